"""Findings of lint as a table of rules; each code is documented, unique, and reported for its sample."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from enforcer.cli import check, main
from rules.lint import LintContext, lint
from rules.lint.findings import CHECKS, IDLE_EXCEPT, NO_WHY
from rules.loading.load import preset_names, read, read_preset
from rules.presets.shipped import preset_source
from rules.problems import RuleFileError
from tests.rules.rule_texts import loaded

TODAY = date(2027, 1, 15)


def found(rules, head="", *, identities=False):
    findings = lint(loaded(rules, head), LintContext(TODAY, identities=identities))
    return [f"{f.line}:{f.column} {f.check.code} {f.message}" for f in findings if f.check is not NO_WHY]


def codes(rules, head="", **around):
    return [finding.split()[1] for finding in found(rules, head, **around)]


WIDE = "- {id: wide, to: '**.a.test', action: allow}\n"

IDLE = [
    ("alone", WIDE, []),
    ("a name of it", WIDE + "- {id: n, to: x.a.test, action: allow}", ["6:3 EX011 `t:n` adds nothing to `t:wide` (allow)"]),
    ("itself again", WIDE + "- {id: n, to: '**.A.test.', action: allow}", ["6:3 EX011 `t:n` adds nothing to `t:wide` (allow)"]),
    ("a wildcard below", WIDE + "- {id: n, to: 'r*.a.test', action: allow}", ["6:3 EX011 `t:n` adds nothing to `t:wide` (allow)"]),
    ("a wider wildcard", "- {id: w, to: '*.a.test', action: allow}\n- {id: n, to: '**.a.test', action: allow}", ["5:3 EX011 `t:w` adds nothing to `t:n` (allow)"]),
    ("another name", WIDE + "- {id: n, to: x.b.test, action: allow}", []),
    ("a name that only ends alike", WIDE + "- {id: n, to: xa.test, action: allow}", []),
    ("another port", WIDE + "- {id: n, to: x.a.test, ports: 8443/tls, action: allow}", []),
    ("a request of it", WIDE + "- {id: n, to: x.a.test, http: {methods: [GET]}, action: allow}", ["6:3 EX011 `t:n` adds nothing to `t:wide` (allow)"]),
    ("wider than requests", "- {id: g, to: x.a.test, http: {methods: [GET]}, action: allow}\n- {id: n, to: x.a.test, http: {methods: [GET, PUT]}, action: allow}", ["5:3 EX011 `t:g` adds nothing to `t:n` (allow)"]),
    ("other paths", "- {id: g, to: x.test, http: {paths: /a/**}, action: allow}\n- {id: n, to: x.test, http: {paths: /b}, action: allow}", []),
    ("a path of them", "- {id: g, to: x.test, http: {paths: /a/**}, action: allow}\n- {id: n, to: x.test, http: {paths: /a/b/*}, action: allow}", ["6:3 EX011 `t:n` adds nothing to `t:g` (allow)"]),
    ("stricter", WIDE + "- {id: n, to: x.a.test, action: deny}", []),
    ("laxer", "- {id: no, to: '**.a.test', action: deny}\n- {id: n, to: x.a.test, action: allow}", ["6:3 EX012 `t:n` (allow) never decides: `t:no` (deny) takes precedence"]),
    ("laxer than a deny of requests", "- {id: no, to: '**.a.test', http: {methods: [PUT]}, action: deny}\n- {id: n, to: x.a.test, action: allow}", []),
    ("laxer on raw TCP than a deny of TLS", "- {id: no, to: x.a.test, ports: 443, action: deny}\n- {id: n, to: x.a.test, ports: 443/tcp, action: allow}", ["6:25 EX031 `t:n` allows any bytes on 443/tcp"]),
    ("laxer, and exempt", "- {id: no, to: '**.a.test', except: x.a.test, action: deny}\n- {id: n, to: x.a.test, action: allow}", []),
    ("laxer, and something else is exempt", "- {id: no, to: '**.a.test', except: y.a.test, action: deny}\n- {id: n, to: x.a.test, action: allow}", ["6:3 EX012 `t:n` (allow) never decides: `t:no` (deny) takes precedence"]),
    ("a default under a rule", "- {id: no, to: x.test, action: ask}\n- {id: d, to: x.test, default: true, action: deny}", []),
    ("a rule under a default", "- {id: d, to: '*', default: true, action: deny}\n- {id: n, to: x.test, action: allow}", []),
    ("addresses that names may have", WIDE + "- {id: n, to: x.a.test, resolves_to: 10.0.0.0/8, action: allow}", []),
    ("addresses of a network", "- {id: w, to: 10.0.0.0/8, action: deny}\n- {id: n, to: 10.1.0.0/16, action: allow}", ["6:3 EX012 `t:n` (allow) never decides: `t:w` (deny) takes precedence"]),
    ("an address is no name", "- {id: w, to: '*', action: deny}\n- {id: n, to: 10.1.0.0/16, action: allow}", []),
    ("what a wide network doesn't open", "- {id: w, to: [0.0.0.0/4, 8.0.0.0/12], action: allow}\n- {id: n, to: 10.1.0.0/16, action: allow}", ["5:16 EX022 `t:w` allows `0.0.0.0/4`: the task can connect to addresses that no name rule allows", "5:27 EX013 `8.0.0.0/12` adds nothing to the other targets of `t:w`"]),
    ("a sooner end to silence", WIDE + "- {id: n, to: x.a.test, idle_timeout: 5s, action: allow}", []),
    ("splice under inspect", WIDE + "- {id: n, to: x.a.test, tls: splice, action: allow}", ["6:3 EX011 `t:n` adds nothing to `t:wide` (allow)", "6:25 EX032 `t:n` has `tls: splice`, and `t:wide` needs requests to `x.a.test` inspected: clients see the CA of the gate"]),
    ("one of two names", "- {id: no, to: '**.a.test', action: deny}\n- {id: n, to: [b.test, x.a.test], action: allow}", ["6:24 EX013 `x.a.test` never decides in `t:n` (allow): `t:no` (deny) takes precedence"]),
    ("both names, by two", WIDE + "- {id: b, to: b.test, action: deny}\n- {id: n, to: [b.test, x.a.test], action: allow}", ["7:3 EX012 `t:n` (allow) never decides: `t:b` (deny), `t:wide` (allow) take precedence"]),
    ("a name twice", "- {id: n, to: [b.test, B.test], action: allow}", ["5:24 EX013 `b.test` adds nothing to the other targets of `t:n`"]),
    ("UDP that could leave", "- {id: u, to: '*', ports: [123/udp, 53/udp], action: deny}", []),
    ("UDP", "- {id: u, to: '*', ports: 53/udp, action: deny}", ["5:20 EX010 `t:u` lists only UDP that no rule can allow"]),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "findings"), [row[1:] for row in IDLE], ids=[row[0] for row in IDLE])
def test_rule_without_effect_is_reported(rules, findings):
    assert found(rules) == findings


E = "exempts nothing: `t:a`"
EXCEPTED = [
    ("a name of it", "- {id: a, to: '**.a.test', except: [x.a.test, a.test], action: allow}", []),
    ("a mistyped one", "- {id: a, to: '**.a.test', except: [x.a.test, secrets.a.tset], action: allow}", [f"5:47 EX014 `secrets.a.tset` under `except` {E} (allow) does not cover it"]),
    ("the name above a wildcard", "- {id: a, to: '*.a.test', except: a.test, action: allow}", [f"5:35 EX014 `a.test` under `except` {E} (allow) does not cover it"]),
    ("of something that holds back", "- {id: a, to: '**.a.test', except: b.test, action: deny}", [f"5:36 EX014 `b.test` under `except` {E} (deny) does not cover it"]),
    ("wider than it", "- {id: a, to: x.a.test, except: '**.a.test', action: deny}", []),
    ("labels with a star", "- {id: a, to: 'r*.a.test', except: ['*1.a.test', 'r1.*.a.test'], action: deny}", [f"5:50 EX014 `r1.*.a.test` under `except` {E} (deny) does not cover it"]),
    ("in a mapping", "- {id: a, to: a.test, except: [{to: b.test, ports: 443}], action: deny}", [f"5:31 EX014 `b.test` under `except` {E} (deny) does not cover it"]),
    ("without names", "- {id: a, to: a.test, except: [{http: {methods: [GET]}}], action: deny}", []),
    ("a network of it", "- {id: a, to: 10.0.0.0/8, except: 10.1.0.0/16, action: deny}", []),
    ("another network", "- {id: a, to: 10.0.0.0/8, except: [11.1.0.0/16], action: deny}", [f"5:36 EX014 `11.1.0.0/16` under `except` {E} (deny) does not cover it"]),
    ("of another version", "- {id: a, to: 10.0.0.0/8, except: ['fd00::/8'], action: deny}", [f"5:36 EX014 `fd00::/8` under `except` {E} (deny) does not cover it"]),
    ("a name that may have such an address", "- {id: a, to: [b.test, 10.0.0.0/8], except: [a.test, 8.8.8.8], action: deny}", []),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "findings"), [row[1:] for row in EXCEPTED], ids=[row[0] for row in EXCEPTED])
def test_exception_without_effect_is_reported(rules, findings):
    assert found(rules) == findings


def test_list_covers_names_but_no_wildcards(tmp_path):
    (tmp_path / "ads.txt").write_text("ads.test\n")
    text = (
        "version: 1\nrules:\n- {id: a, to: {list: ads.txt}, except: [x.ads.test, '*.b.test', b.test], action: deny}\n"
    )
    (tmp_path / "t.yaml").write_text(text)
    findings = lint(read([tmp_path / "t.yaml"]), LintContext(TODAY))
    assert [f.message.split()[0] for f in findings if f.check is IDLE_EXCEPT] == ["`b.test`"]


METHODS = [
    ("http: {methods: [GET, QUERY, PURGE, PROPFIND]}", []),
    ("http: {methods: [GET, PSOT]}", ["5:23 EX016 `t:a` lists the method `PSOT`, which is not registered; did you mean `POST`?"]),
    ("http: {methods: FROBNICATE}", ["5:23 EX016 `t:a` lists the method `FROBNICATE`, which is not registered"]),
    ("except: [{http: {methods: DELTE}}]", ["5:23 EX016 `t:a` lists the method `DELTE`, which is not registered; did you mean `DELETE`?"]),
]  # fmt: skip


@pytest.mark.parametrize(("about", "findings"), METHODS)
def test_unknown_http_method_is_reported(about, findings):
    assert found(f"- {{id: a, to: a.test, {about}, action: deny}}") == findings


SECRET = "secrets: [{id: key, from: {env: K}, as: K, hosts: [k.test, 'l.test:8443'], in: basic}]"
CREDENTIALS = [
    ("k.test, action: deny", False),
    ("'*.test', action: deny", False),
    ("[a.test, l.test], action: deny", False),
    ("a.test, action: deny", True),
    ("k.test, action: allow", False),
    ("l.test, action: allow", True),  # on 443, that is
    ("l.test, ports: 8443/tls, action: allow", False),
    ("l.test, ports: 8000-9000/tls, action: allow", False),
    ("l.test, ports: 8443/http, action: allow", True),
    ("k.test, ports: [80, 443], action: allow", False),
    ("k.test, ports: 80, action: allow", True),
    ("[k.test, l.test], ports: 8080/tls, action: ask", True),
]
GOES = "`t:a` requires `key`, which is sent to `k.test`, `l.test:8443` only"


@pytest.mark.parametrize(("to", "idle"), CREDENTIALS)
def test_secret_sent_to_an_unlisted_host_is_reported(to, idle):
    told = found(f"- {{id: a, to: {to}, credential: key}}", SECRET)
    idle_ones = [finding.partition(" ")[2] for finding in told if " EX015 " in finding]
    assert idle_ones == ([f"EX015 {GOES}"] if idle else [])


CLEAR, RAW_BYTES, NOTHING = (
    "EX017 `key` is sent to `k.test:80` over TLS only, and the rules allow HTTP in the clear there",
    "EX017 `key` is sent to `k.test:80` over TLS only, and the rules allow bytes that the gate does not read there",
    "EX018 `key` is sent to `k.test:80`, and no rule allows that",
)
SENT = [
    # rules, the settings, what is found of a secret that goes to k.test:80
    ("- {id: a, to: k.test, ports: 80, action: allow}", "", [CLEAR]),
    ("- {id: a, to: k.test, ports: [80, 443], action: flag}", "", [CLEAR]),
    ("- {id: a, to: '*.test', ports: 80/tls, action: allow}", "", []),
    ("- {id: a, to: k.test, ports: [80/http, 80/tcp], action: allow}", "", []),
    ("- {id: a, to: k.test, ports: 80/tcp, action: allow}", "", [RAW_BYTES]),
    ("- {id: a, to: k.test, ports: 80/udp, action: allow}", "", [NOTHING]),
    ("- {id: a, to: k.test, action: allow}", "", [NOTHING]),
    ("- {id: a, to: l.test, ports: 80/tls, action: allow}", "", [NOTHING]),
    ("- {id: a, to: k.test, action: deny}", "", [NOTHING]),
    ("- {id: a, to: k.test, action: ask}", "", []),
    ("- {id: a, to: k.test, ports: 80/tls, for: {tasks: x}, until: 2020-01-01, action: allow}", "", []),
    ("- {id: a, to: l.test, action: allow}", "settings: {mode: audit}\n", []),
    ("- {id: a, to: '*', default: true, mode: audit, action: deny}", "", []),
]


@pytest.mark.parametrize(("rules", "settings", "findings"), SENT)
def test_secret_sent_nowhere_is_reported(rules, settings, findings):
    secret = "secrets: [{id: key, from: {env: K}, as: K, in: basic, hosts: [ 'k.test:80']}]"
    told = found(rules, f"{secret}\n{settings}")
    unsent = [finding.partition(" ")[2] for finding in told if " EX017 " in finding or " EX018 " in finding]
    assert unsent == findings


def test_secret_with_rules_in_another_file_is_not_reported():
    assert found("version: 1\nsecrets: [{id: key, from: {env: K}, as: K, in: basic, hosts: k.test}]") == []


def test_default_port_of_a_secret_host_is_omitted():
    secret = "secrets: [{id: key, from: {env: K}, as: K, in: basic, hosts: [l.test, K.test]}]"
    (told,) = [each for each in found("- {id: a, to: l.test, action: allow}", secret) if " EX018 " in each]
    assert told == "3:71 EX018 `key` is sent to `k.test`, and no rule allows that"


REACH = [
    ("every name", "- {id: a, to: '*', action: allow}", ["EX020"]),
    ("every name, flagged by default", "- {id: a, to: '*', default: true, action: flag}", []),
    ("every name, flagged", "- {id: a, to: '*', action: flag}", ["EX020"]),
    ("every name, asked", "- {id: a, to: '*', action: ask}", []),
    ("all addresses of an owner", "- {id: a, to: 8.0.0.0/12, action: allow}", []),
    ("more addresses", "- {id: a, to: 8.0.0.0/11, action: allow}", ["EX022"]),
    ("private ones", "- {id: a, to: 10.0.0.0/8, action: allow}", []),
    ("all of IPv6", "- {id: a, to: '2000::/3', action: deny}", []),
    ("a range of ports", "- {id: a, to: a.test, ports: 8000-9023/tls, action: allow}", []),
    ("a wide range of ports", "- {id: a, to: a.test, ports: 8000-9024/tls, action: allow}", ["EX023"]),
]
SPLICED = [
    ("inspected", "- {id: a, to: a.test, action: allow}", []),
    ("spliced", "- {id: a, to: a.test, tls: splice, action: allow}", ["EX030"]),
    ("raw", "- {id: a, to: a.test, ports: 22/tcp, action: flag}", ["EX031"]),
    ("UDP", "- {id: a, to: a.test, ports: 123/udp, action: allow}", ["EX031"]),
    ("mail that is read", "- {id: a, to: a.test, ports: [443, 993/tls, 465/tls], action: allow}", ["EX033"]),
    ("a database that is read", "- {id: a, to: a.test, ports: [3306/http, 5432/tls], action: allow}", ["EX033"]),
    ("a database that is passed on", "- {id: a, to: a.test, ports: 3306/tcp, action: allow}", ["EX031"]),
    ("a directory that is read", "- {id: a, to: a.test, ports: 636/tls, action: flag}", ["EX033"]),
    ("mail that is passed on", "- {id: a, to: a.test, ports: 993/tls, tls: splice, action: allow}", ["EX030"]),
    ("mail in a range", "- {id: a, to: a.test, ports: 900-1000/tls, action: allow}", []),
    ("mail that is denied", "- {id: a, to: a.test, ports: 993/tls, action: deny}", []),
    ("a deny of raw bytes", "- {id: a, to: a.test, ports: 22/tcp, action: deny}", []),
    ("beside one that reads another host", "- {id: a, to: a.test, tls: splice, action: allow}\n- {id: b, to: b.test, http: {methods: [PUT]}, action: deny}", ["EX030"]),
    ("beside one that reads", "- {id: a, to: a.test, tls: splice, action: allow}\n- {id: b, to: '*', http: {methods: [PUT]}, action: deny}", ["EX032"]),
    ("beside one that reads another port", "- {id: a, to: a.test, tls: splice, action: allow}\n- {id: b, to: '*', ports: 8443/tls, http: {methods: [PUT]}, action: deny}", ["EX030", "EX040"]),
]  # fmt: skip
HOLD = "- {id: hold, to: '**.g.test', ports: [443, 80], http: {methods: [PUT]}, action: deny}\n"
AROUND = [
    ("raw bytes on another port", HOLD + "- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX040", "EX031"]),
    ("UDP", HOLD + "- {id: ntp, to: g.test, ports: 123/udp, action: allow}", ["EX040", "EX031"]),
    ("raw bytes on the same port", HOLD + "- {id: ssh, to: g.test, ports: 443/tcp, action: allow}", ["EX031"]),
    ("to another host", HOLD + "- {id: ssh, to: h.test, ports: 22/tcp, action: allow}", ["EX031"]),
    ("to every host", HOLD + "- {id: ssh, to: '*', ports: 22/tcp, action: allow}", ["EX040", "EX020", "EX031"]),
    ("held back by another rule", HOLD + "- {id: ssh, to: g.test, ports: 22/tcp, action: allow}\n- {id: no, to: g.test, ports: 22, action: deny}".replace("22, ", "22/tcp, "), ["EX012", "EX031"]),
    ("around what looks for secrets", "- {id: look, to: g.test, scan: block, action: allow}\n- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX040", "EX031"]),
    ("around what tells of secrets", "- {id: look, to: g.test, scan: flag, action: allow}\n- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX031"]),
    ("around an ask", "- {id: ask, to: g.test, ports: 443, action: ask}\n- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX040", "EX031"]),
    ("a plain deny of a port leaves the others open", "- {id: no, to: g.test, ports: 443, action: deny}\n- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX031"]),
    ("an ask about every port", "- {id: ask, to: g.test, action: ask}\n- {id: ssh, to: g.test, ports: 22/tcp, action: allow}", ["EX031"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "expected"),
    [row[1:] for row in (*REACH, *SPLICED, *AROUND)],
    ids=[row[0] for row in (*REACH, *SPLICED, *AROUND)],
)
def test_rule_wider_than_it_looks_is_reported(rules, expected):
    assert sorted(codes(rules)) == sorted(expected)


def test_bypass_is_shown_as_an_attempt():
    rules = HOLD + "- {id: ssh, to: x.g.test, ports: 22/tcp, action: allow}"
    assert "5:3 EX040 `t:hold` (deny) does not cover `tcp x.g.test:22`, which `t:ssh` allows" in found(rules)


def test_rules_without_why_are_reported_together():
    rules = "".join(f"- {{id: r{n}, to: h{n}.test, action: allow{', why: yes' if n == 2 else ''}}}\n" for n in range(6))
    told = [str(f) for f in lint(loaded(rules), LintContext(TODAY)) if f.check is NO_WHY]
    assert len(told) == 1
    assert "`t:r0`, `t:r1`, `t:r3` and 2 more have no `why`" in told[0]


def test_audit_mode_is_reported_at_its_setting():
    rule = "- {id: d, to: '*', default: true, mode: audit, action: ask}"
    assert found(rule, "settings: {mode: audit}") == [
        "3:12 EX061 audit mode is on: what no rule decides is allowed",
        "5:35 EX061 `t:d` has `mode: audit`: what it would block is allowed",
    ]
    assert codes(rule.replace("mode: audit, ", "")) == []


def test_findings_are_in_the_order_of_the_file():
    rules = "- {id: z, to: '*', action: allow}\n- {id: a, to: '*', ports: 22/tcp, action: allow}\n"
    assert [finding.split(":")[0] for finding in found(rules)] == ["5", "6", "6"]


DOCS = (Path(__file__).parents[3] / "docs/reference/lint.md").read_text()


def test_every_code_is_documented_and_no_other():
    sections = re.findall(r"^### (EX\d{3}) ([\w-]+) \((\w+)\)\n\n(\S.{30,})", DOCS, re.MULTILINE)
    assert [row[:3] for row in sections] == [(check.code, check.name, check.severity) for check in CHECKS]


def test_codes_and_words_are_unique():
    assert len({check.code for check in CHECKS}) == len({check.name for check in CHECKS}) == len(CHECKS)


def test_messages_follow_the_common_form():
    for finding in CHECKS:
        for text in (finding.meaning, finding.remedy):
            assert not text.endswith("."), finding
            assert text[0].islower(), finding


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


WIDE_TERMS = "- {id: w, to: '**.a.test', %s}\n- {id: n, to: x.a.test, %s}"
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
    assert [code for code in codes(WIDE_TERMS % (wide, narrow)) if code < "EX020"] == expected


PUSHES = "- {id: main, to: g.test, git: {repos: acme/*, push: refs/heads/main}, action: ask}\n"
AROUND_PUSHES = [
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


@pytest.mark.parametrize(
    ("rules", "expected"), [row[1:] for row in AROUND_PUSHES], ids=[row[0] for row in AROUND_PUSHES]
)
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
