"""What lint says of tasks, days, pushes, layers and presets; and that each code is told of something."""

import json
import re
from datetime import date

import pytest

from enforcer.cli import check, main
from rules.lint import LintContext, lint
from rules.lint.findings import CHECKS, NO_WHY
from rules.loading.load import preset_names, read, read_preset
from rules.presets.shipped import preset_source
from rules.problems import RuleFileError
from tests.rules.lint.test_findings import codes, found

DATED = [
    ("ends later", "until: 2027-02-15", []),
    ("ends within thirty days", "until: 2027-02-14", ["EX051"]),
    ("ends today", "until: 2027-01-15", ["EX051"]),
    ("ended yesterday", "until: 2027-01-14", ["EX050"]),
]


@pytest.mark.parametrize(("key", "expected"), [row[1:] for row in DATED], ids=[row[0] for row in DATED])
def test_ended_rules_are_reported(key, expected):
    assert codes(f"- {{id: a, to: a.test, {key}, action: allow}}") == expected


def test_dates_are_reported():
    rules = (
        "- {id: a, to: a.test, until: 2027-01-16, action: allow}\n- {id: b, to: b.test, until: 2027-01-01, action: ask}"
    )
    assert found(rules) == [
        "5:23 EX051 `t:a` ends tomorrow, on 2027-01-16",
        "6:23 EX050 `t:b` ended on 2027-01-01 and now denies",
    ]


WIDE = "- {id: w, to: '**.a.test', %s}\n- {id: n, to: x.a.test, %s}"
TERMS = [
    ("for everybody, and for some", "action: allow", "for: {tasks: m}, action: allow", ["EX011"]),
    ("for some, and for everybody", "for: {tasks: m}, action: allow", "action: allow", []),
    ("for the same", "for: {tasks: m}, action: allow", "for: {tasks: m}, action: allow", ["EX011"]),
    ("for others", "for: {tasks: m}, action: allow", "for: {tasks: n}, action: allow", []),
    ("longer", "until: 2028-01-02, action: allow", "until: 2028-01-01, action: allow", ["EX011"]),
    ("shorter", "until: 2028-01-01, action: allow", "until: 2028-01-02, action: allow", []),
    ("an ask that ends is a deny then", "action: ask", "until: 2028-01-01, action: ask", []),
    ("limited more", "action: allow", "limits: {requests: 5}, action: allow", []),
    ("limited alike", "limits: {requests: 5}, action: allow", "limits: {requests: 5}, action: allow", ["EX011"]),
    ("limited, and denied", "action: deny", "limits: {requests: 5}, action: allow", ["EX012"]),
    ("limited, and asked", "action: ask", "limits: {requests: 5}, action: allow", []),
    ("approved by others", "action: ask", "approval: {by: dba}, action: ask", []),
    ("with other headers", "http: {headers: {a: b}}, action: deny", "http: {headers: {a: c}}, action: deny", []),
    ("with the same headers", "http: {headers: {a: b}}, action: deny", "http: {headers: {a: b}, methods: [PUT]}, action: deny", ["EX011"]),
    ("bodies too", "http: {methods: [GET]}, action: allow", "http: {methods: [GET], body: true}, action: allow", []),
    ("of one repository", "git: {repos: acme/*, fetch: true}, action: allow", "git: {repos: acme/web, fetch: true}, action: allow", []),
    ("pushes, under anything but pushes", "http: {methods: [POST]}, action: allow", "http: {methods: [POST], paths: /a/**}, action: allow", []),
    ("with more answered", "action: allow", "dns_types: [TXT], action: allow", []),
    ("logged otherwise", "action: allow", "log: full, action: allow", []),
]  # fmt: skip


@pytest.mark.parametrize(("wide", "narrow", "expected"), [row[1:] for row in TERMS], ids=[row[0] for row in TERMS])
def test_findings_consider_the_terms_of_a_rule(wide, narrow, expected):
    assert [code for code in codes(WIDE % (wide, narrow)) if code < "EX020"] == expected


PUSHES = "- {id: main, to: g.test, git: {repos: acme/*, push: refs/heads/main}, action: ask}\n"
AROUND = [
    ("nothing else", PUSHES, []),
    ("the whole host", PUSHES + "- {id: all, to: g.test, action: allow}", ["EX041", "EX042"]),
    ("reading", PUSHES + "- {id: r, to: [g.test, api.g.test], http: {methods: [GET, HEAD]}, action: allow}", []),
    ("the API", PUSHES + "- {id: api, to: api.g.test, action: allow}", ["EX041"]),
    ("the API, of other repositories", PUSHES + "- {id: api, to: api.g.test, http: {paths: /repos/other/**}, action: allow}", []),
    ("the API, held back", PUSHES + "- {id: api, to: api.g.test, action: allow}\n- {id: no, to: '**.g.test', http: {methods: [POST, PUT, PATCH, DELETE]}, action: deny}", []),
    ("the API of the same host", PUSHES + "- {id: api, to: g.test, http: {paths: /api/**}, action: allow}", ["EX041"]),
    ("large files", PUSHES + "- {id: lfs, to: g.test, http: {methods: [POST], paths: '/**/info/lfs/**'}, action: allow}", ["EX042"]),
    ("SSH", PUSHES + "- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX031", "EX040"]),
    ("fetching alone is held back", "- {id: f, to: g.test, git: {repos: acme/*, fetch: true}, action: deny}\n- {id: all, to: g.test, action: allow}", []),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), [row[1:] for row in AROUND], ids=[row[0] for row in AROUND])
def test_bypasses_of_a_push_rule_are_reported(rules, expected):
    ports = "ports: [443, 80], "
    assert sorted(codes(rules.replace("git: {repos", ports + "git: {repos"))) == expected


def test_bypasses_are_shown_as_attempts():
    (finding,) = found(PUSHES + "- {id: api, to: api.g.test, http: {methods: [PUT]}, action: allow}")
    assert finding == (
        "5:26 EX041 `t:main` (ask) does not cover `PUT https://api.g.test/repos/acme/*/contents/*`, "
        "`PUT https://api.g.test/repos/acme/*/pulls/1/merge`, which `t:api` allows"
    )


def test_bypass_respects_the_tasks_of_a_rule():
    rules = "- {id: a, to: a.test, for: {tasks: 'm-*'}, action: deny}"
    assert found(rules) == ["5:23 EX062 `t:a` (deny) is for tasks m-*, and a user can start the task under another one"]
    assert found(rules, identities=True) == []
    assert found(rules.replace("deny", "allow")) == []


def checked(tmp_path, files):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(f"version: 1\nname: {name}\n{text}")
    findings = lint(read([tmp_path / f"{next(iter(files))}.yaml"]), LintContext(date(2027, 1, 15)))
    return [
        f"{f.file.rpartition('/')[2]}:{f.line} {f.check.code} {' '.join(f.rules)}"
        for f in findings
        if f.check is not NO_WHY
    ]


DENY = "rules:\n  - {id: no, to: x.a.test, action: deny}\n"


def test_rule_of_a_mandatory_layer_is_no_duplicate(tmp_path):
    """The layer's own deny stays when the pool's is edited: it is not redundant; the pool's beside it is."""
    wide = "include: [{file: corp.yaml}]\nrules:\n  - {id: all, to: '**.a.test', action: deny}\n"
    assert checked(tmp_path, {"main": wide, "corp": "layer: mandatory\n" + DENY}) == []
    assert checked(tmp_path, {"main": wide, "corp": DENY}) == ["corp.yaml:4 EX011 corp:no main:all"]
    narrow = "include: [{file: corp.yaml}]\nrules:\n  - {id: n, to: y.x.a.test, action: deny}\n"
    corp = "layer: mandatory\n" + DENY.replace("x.a.test", "'**.x.a.test'")
    assert checked(tmp_path, {"main": narrow, "corp": corp}) == ["main.yaml:5 EX011 main:n corp:no"]


def test_presets_are_reported_only_for_bypasses_at_the_include(tmp_path):
    head = "include:\n  - {preset: exfiltration-sites-deny}\n  - {preset: github}\nrules:\n"
    calm = head + "  - {id: a, to: a.test, action: allow}\n"
    assert checked(tmp_path, {"main": calm}) == []
    (push,) = checked(tmp_path, {"main": head + "  - {id: a, to: api.github.com, action: allow}\n"})
    assert push == "main.yaml:5 EX041 github:push main:a"


@pytest.mark.parametrize("name", preset_names())
def test_shipped_presets_have_no_findings(name):
    if b"locked:" in preset_source(name):
        with pytest.raises(RuleFileError, match="is not locked"):  # a template: what it stands for is a machine's own
            read_preset(name, [])
    else:
        assert lint(read_preset(name, []), LintContext(date(2027, 1, 15), identities=True)) == []


EVERY = {
    "EX001": "- {id: a, too: a.test, action: allow}",
    "EX002": "- {id: a, to: a.test, action: allow}\ntests:\n- {attempt: 'a.test:443', expect: deny}",
    "EX003": "- {id: a, to: {list: bad.txt}, action: deny}",
    "EX010": "- {id: a, to: a.test, ports: 53/udp, action: deny}",
    "EX011": "- {id: a, to: a.test, action: deny}\n- {id: b, to: a.test, action: deny}",
    "EX012": "- {id: a, to: a.test, action: deny}\n- {id: b, to: a.test, action: allow}",
    "EX013": "- {id: a, to: [a.test, '**.a.test'], action: deny}",
    "EX014": "- {id: a, to: a.test, except: b.test, action: deny}",
    "EX015": "- {id: a, to: a.test, credential: key, action: allow}\nsecrets: [{id: key, from: {env: K}, as: K, hosts: k.test, in: basic}]",
    "EX016": "- {id: a, to: a.test, http: {methods: [GTE]}, action: allow}",
    "EX017": "- {id: a, to: a.test, ports: 80, action: allow}\nsecrets: [{id: key, from: {env: K}, as: K, hosts: 'a.test:80', in: basic}]",
    "EX018": "- {id: a, to: a.test, action: allow}\nsecrets: [{id: key, from: {env: K}, as: K, hosts: b.test, in: basic}]",
    "EX019": "- {id: a, to: a.test, when: tainted, action: deny}",
    "EX020": "- {id: a, to: '*', action: allow}",
    "EX021": "- {id: a, to: '*.github.io', action: allow}",
    "EX022": "- {id: a, to: 8.0.0.0/8, action: allow}",
    "EX023": "- {id: a, to: a.test, ports: 1000-9000/tcp, action: allow}",
    "EX024": "- {id: a, to: 0.0.0.0/0, action: allow}",
    "EX030": "- {id: a, to: a.test, tls: splice, action: allow}",
    "EX031": "- {id: a, to: a.test, ports: 22/tcp, action: allow}",
    "EX032": "- {id: a, to: a.test, tls: splice, action: allow}\n- {id: b, to: '*', http: {methods: [PUT]}, action: deny}",
    "EX033": "- {id: a, to: a.test, ports: 993/tls, action: allow}",
    "EX040": "- {id: a, to: a.test, ports: 22/tcp, action: allow}\n- {id: b, to: a.test, ports: 443, action: ask}",
    "EX041": PUSHES + "- {id: a, to: api.g.test, action: allow}",
    "EX042": PUSHES + "- {id: a, to: g.test, action: allow}",
    "EX050": "- {id: a, to: a.test, until: 2027-01-14, action: allow}",
    "EX051": "- {id: a, to: a.test, until: 2027-01-15, action: allow}",
    "EX060": "- {id: a, to: a.test, action: allow}",
    "EX061": "- {id: a, to: '*', default: true, mode: audit, action: deny}",
    "EX062": "- {id: a, to: a.test, for: {tasks: a}, action: deny}",
    "EX063": "- {id: a, to: build.corp, action: ask}",
    "EX064": "- {id: a, to: a.test, action: deny}\nsandbox: {approval: {by: release}}",
    "EX065": "- {id: a, to: a.test, action: deny}\nsandbox: {write: [~/.cache/x, ~/.bashrc]}",
}  # fmt: skip


READS = "- {id: r, to: a.test, http: {methods: [GET]}, resolves_to: 10.0.0.0/8, action: allow}\n"
IN_VAIN = [
    ("a name inside", "- {id: a, to: '*.corp', action: ask}", True),
    ("a name inside, by its addresses", "- {id: a, to: '*.corp', resolves_to: 10.0.0.0/8, action: ask}", False),
    ("beside a rule for some requests that says where it is", READS + "- {id: a, to: a.test, action: ask}", True),
    ("beside one, by its addresses", READS + "- {id: a, to: a.test, resolves_to: 10.0.0.0/8, action: ask}", False),
    ("beside one for all requests, which opens it", "- {id: r, to: a.test, resolves_to: 10.0.0.0/8, action: allow}\n- {id: a, to: a.test, action: ask}", False),
    ("at public addresses", "- {id: r, to: a.test, http: {methods: [GET]}, resolves_to: 1.0.0.0/8, action: allow}\n- {id: a, to: a.test, action: ask}", False),
    ("this machine", "- {id: a, to: host.exeat.internal, ports: 22/tcp, action: ask}", False),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "in_vain"), [case[1:] for case in IN_VAIN], ids=[case[0] for case in IN_VAIN])
def test_ask_about_an_address_without_effect_is_reported(rules, in_vain):
    assert ("EX063" in codes(rules)) is in_vain


def test_each_code_has_a_sample_rule():
    assert list(EVERY) == [found.code for found in CHECKS]


@pytest.mark.parametrize("code", EVERY)
def test_each_code_is_reported_for_its_sample(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "IDENTITIES", str(tmp_path / "none"))
    (tmp_path / "bad.txt").write_text("good.test\nnot a name at all!\n")
    (tmp_path / "t.yaml").write_text(f"version: 1\nrules:\n{EVERY[code]}\n")
    status = main(["check", "--at", "2027-01-15", "--format", "json", "t.yaml"])
    findings = json.loads(capsys.readouterr().out)["files"][0]["findings"]
    (finding, *_) = [finding for finding in findings if finding["code"] == code]
    assert status == (1 if any(finding["severity"] != "note" for finding in findings) else 0)
    assert re.fullmatch(r"[^.].*[^.]", finding["message"])
    main(["check", "--at", "2027-01-15", "--ignore", code, "--format", "json", "t.yaml"] if finding["severity"] != "error" else ["schema"])  # fmt: skip
    assert f'"{code}"' not in capsys.readouterr().out
