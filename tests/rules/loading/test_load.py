"""Loading of rule files: exact positions of problems, includes, hostile YAML, and a sample with every key."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.loading.document import parse
from rules.loading.identities import parse_identities
from rules.loading.load import failures, load, read
from rules.problems import Problem, RuleFileError
from rules.values.names import HostName
from tests.rules.rule_texts import loaded

RULE = "  - {id: a, to: x.example, action: allow}\n"


def told(*paths):
    with pytest.raises(RuleFileError) as error:
        load(paths)
    return str(error.value).splitlines()


def written(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory / f"{next(iter(files))}.yaml"


def test_error_in_line_4711_has_its_line_and_column(tmp_path):
    lines = ["version: 1", "rules:"]
    lines += [f"  - {{id: r{n}, to: h{n}.example, action: deny}}" for n in range(3, 4711)]
    lines += [
        "  - {id: wrong, to: h.example, actoin: deny, action: deny}",
        "  - {id: last, to: h.example, action: deny}",
    ]
    file = tmp_path / "web.yaml"
    file.write_text("\n".join(lines))
    assert told(file) == [f"{file}:4711:32: `actoin` is not a key of a rule; did you mean `action`?"]


def test_columns_count_characters(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("version: 1\nrules:\n  - {id: a, why: 'größer ☃ 𝄞', to: x.example, action: no}\n")
    assert told(file)[0].startswith(f"{file}:3:55: `no` is not a value of `action`")


YAML = [
    (b"to: *.example.com\n", 1, "put quotes around a name"),
    (b"a: [*x]\n", 1, "aliases are not part"),
    (b"a: &x [1]\nb: *x\n", 1, "anchors (`&`) are not part"),
    (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", 1, "anchors"),
    (b"version: 1\n<<: {name: x}\n", 2, "merge keys"),
    (b"version: !!int 1\n", 1, "tags (`!`)"),
    (b"version: !!python/object/apply:os.system [id]\n", 1, "tags (`!`)"),
    (b"version: 1\n---\nversion: 1\n", 2, "a rule file is one document"),
    (b"version: 1\nversion: 1\n", 2, "`version` is here twice; first in line 1"),
    (b"rules:\n\t- a\n", 2, "tabs can't indent"),
    (b"version: 1\nwhy: @x\n", 2, "`@` can't begin a value"),
    (b"version: 1\nname: 'x\n", 2, "the quote that begins here is never closed"),
    (b"version: 1\nname: x: y\n", 2, "mapping values are not allowed in this context; put quotes around text with `: ` in it"),
    (b"rules:\n  - id: a\n    to: x\n     why: y\n", 4, "4:9: this line is indented further than the ones above, as if"),
    (b"rules:\n  - id: a\n\n    # more\n     to: x\n", 5, "5:6: this line is indented further than the ones above"),
    (b"version: 1\n name: x\n", 2, "2:6: this line is indented further than the ones above"),
    (b"rules:\n  - id: a\n    why: x\n     y z: a\n", 4, "4:9: this is not YAML: mapping values"),
    (b"version: 1\nrules:\n  -{id: a, to: b}\n", 3, "; a `-` needs a space behind it"),
    ("version: 1\nrules:\n\u00a0\u00a0- {id: a, to: b}\n".encode(), 3, "the line has U+00A0 in it, which only looks like a space"),
    (b"rules:\n  - id: a\n   to: x\n    action: allow\n", 3, "; what belongs together begins in one column"),
    (b"rules:\n  - {id: a, to: [x, y}\n", 2, "for what begins in line 2, column 17"),
    (b"version: 1\n<<<<<<< ours\nname: a\n=======\nname: b\n>>>>>>> theirs\n", 2, "a merge conflict is left in the file: resolve it"),
    (b"? [a]\n: b\nversion: 1\n", 1, "a key is a word"),
    (b"version: 1\nname: a\x00b\n", 2, "control character"),
    (b"version: 1\nname: a\x1b[31mb\n", 2, "control character"),
    (b"version: 1\nname: \xff\n", 2, "a rule file is UTF-8"),
    ("version: 1\n".encode("utf-16"), 1, "a rule file is UTF-8"),
    ("version: 1 # \u2028rules: []\n".encode(), 1, "shows a reader something else"),
    ("version: 1\n# \u202e1 :noisrev\n".encode(), 2, "shows a reader something else"),
    (b"a: " + b"[" * 1_000_000, 1, "nested more than"),
    (b"- " * 1_000_000, 1, "nested more than"),
    (b"{a: " * 100_000, 1, "nested more than"),
    (b"? " * 100_000, 1, "nested more than"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "line", "part"), YAML, ids=[row[2] for row in YAML])
def test_hostile_yaml_is_refused(data, line, part, tmp_path):
    file = tmp_path / "t.yaml"
    file.write_bytes(data)
    first = told(file)[0]
    assert first.startswith(f"{file}:{line}:")
    assert part in first


def test_byte_order_mark_and_crlf_are_accepted(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_bytes("\ufeffversion: 1\r\nrules:\r\n  - {id: a, to: x.example, action: allow}\r\n".encode())
    assert load([file]).rule_ids == ("t:a",)
    file.write_bytes("\ufeffversion: 1\r\nrules:\r\n  - {id: a, to: a..b, action: allow}\r\n".encode())
    assert told(file)[0].startswith(f"{file}:3:17: ")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abc:-[]{}&*!?|>'\"%@`#, \n\t\0\x85\u2028\ufeff~<", max_size=60) | st.binary(max_size=60))
def test_arbitrary_text_loads_or_is_an_error(text):
    data = text if isinstance(text, bytes) else text.encode()
    problems: list[Problem] = []
    root = parse(data, "t", problems)
    lines = data.count(b"\n") + data.count(b"\r") + 2
    for problem in problems:
        assert 1 <= problem.line <= lines + data.count("\u2028".encode()) + data.count(b"\xc2\x85")
        assert problem.column >= 1
        assert problem.message.isprintable()
    if root is None:
        assert (
            problems
            or not text.strip()
            or b"#" in data
            or b"---" in data
            or b"..." in data
            or b"%" in data
            or b"\xef" in data
        )


WORDS = st.sampled_from(["version", "rules", "id", "to", "action", "allow", "deny", "http", "paths", "ports", "1", "x.example", "*", "'*.com'", "443", "/a", "except", "settings", "mode", "include", "file", "tests", "~", "10.0.0.0/8", "[", "]", "{", "}", ":", "-", ",", "\n", "  ", " "])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=30))
def test_arbitrary_keys_load_or_are_an_error(tmp_path_factory, words):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text("version: 1\n" + "".join(words))
    try:
        load([file])
    except RuleFileError as error:
        told = error.problems
    else:
        told = ("none",)
    assert told


def test_includes_are_relative_to_their_file(tmp_path):
    (tmp_path / "corp").mkdir()
    file = written(
        tmp_path, web="version: 1\ninclude: [{file: corp/a.yaml}, {file: ./corp/../corp/b.yaml}]\nrules:\n" + RULE
    )
    written(
        tmp_path / "corp",
        a="version: 1\ninclude: [{file: b.yaml}]\nrules:\n" + RULE,
        b="version: 1\nname: bee\nrules:\n" + RULE,
    )
    policy = load([file])
    assert policy.rule_ids == ("a:a", "bee:a", "web:a")
    assert policy.sources == tuple(
        path.resolve() for path in (file, tmp_path / "corp/a.yaml", tmp_path / "corp/b.yaml")
    )


def test_include_cycle_is_reported_where_it_closes(tmp_path):
    file = written(
        tmp_path,
        a="version: 1\ninclude:\n  - {file: b.yaml}\n",
        b="version: 1\n\ninclude:\n  - {file: a.yaml}\n",
    )
    assert told(file) == [f"{tmp_path}/b.yaml:4:5: `{tmp_path}/a.yaml` includes itself: a.yaml -> b.yaml -> a.yaml"]
    (tmp_path / "self.yaml").write_text("version: 1\ninclude: [{file: self.yaml}]")
    assert "includes itself: self.yaml -> self.yaml" in told(tmp_path / "self.yaml")[0]


def test_unreadable_include_is_reported_at_its_line(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "directory.yaml").mkdir()
    os.mkfifo(tmp_path / "fifo.yaml")
    names = ["missing.yaml", "loop.yaml", "directory.yaml", "fifo.yaml", "/dev/zero", "a\\0b"]
    entries = "".join(f'  - {{file: "{name}"}}\n' for name in names)
    lines = told(written(tmp_path, web="version: 1\ninclude:\n" + entries))
    assert [line.split(":")[1] for line in lines] == ["3", "4", "5", "6", "7", "8"]
    for line, part in zip(
        lines, ["no such file", "symbolic link", "not a file", "not a file", "not a file", "null"], strict=True
    ):
        assert part in line.lower()


def test_unreadable_file_is_an_error(tmp_path):
    file = written(tmp_path, web="version: 1")
    file.chmod(0)
    if os.access(file, os.R_OK):  # root reads everything
        assert load([file]).rule_ids == ()
    else:
        assert "permission denied" in told(file)[0]


def test_oversized_file_is_an_error_and_is_not_read(tmp_path):
    file = tmp_path / "huge.yaml"
    with file.open("wb") as huge:
        huge.truncate(1 << 40)
    assert "larger than 64 MiB" in told(file)[0]


def test_file_of_100_megabytes_is_an_error(tmp_path):
    file = tmp_path / "huge.yaml"
    with file.open("wb") as written:
        written.write(b"version: 1\nrules:\n  - {id: a, to: x.example, action: deny}\n")
        written.truncate(100_000_000)  # it takes no room on the disk
    assert told(file) == [f"{file}:1:1: `{file}` can't be read: it is larger than 64 MiB"]


@pytest.mark.parametrize("text", [b"- a\n", b"[],", b"{},", b"a,", b"\r"])
def test_file_with_too_many_values_is_refused_before_parsing(text, tmp_path):
    file = tmp_path / "dense.yaml"
    file.write_bytes(b"version: 1\nrules: [" + text * 2_000_001)
    assert told(file) == [
        f"{file}:1:1: more than 2000000 values: keep long lists of names in files of their own, `to: {{list: FILE}}`"
    ]


def test_first_thousand_problems_are_reported(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("version: 1\nrules:\n" + "- foo\n" * 5000)
    lines = told(file)
    assert len(lines) == 1001
    assert lines[-1] == f"{file}:1003:3: 4000 more problems are not shown: fix these first"


def test_error_among_many_keys_has_its_own_line(tmp_path):
    """Each key in a line of its own, and the one wrong value in line 4711."""
    block = [
        "  - id: r{0}",
        "    to: h{0}.example",
        "    until: 2027-01-31",
        "    limits:",
        "      requests: 5",
        "      per: task",
        "    action: allow",
    ]
    lines = ["version: 1", "rules:", *(line.format(n) for n in range(1000) for line in block)]
    assert lines[4710] == "      requests: 5"
    lines[4710] = "      requests: five"
    file = tmp_path / "web.yaml"
    file.write_text("\n".join(lines))
    assert told(file) == [f"{file}:4711:17: `five` is not a number between 1 and 1000000000"]


def test_too_many_includes_are_an_error(tmp_path):
    files = {"web": "version: 1\ninclude:\n" + "".join(f"  - {{file: i{n}.yaml}}\n" for n in range(300))}
    file = written(tmp_path, **files, **{f"i{n}": "version: 1" for n in range(300)})
    assert "more than 256 files" in told(file)[0]


def test_settings_belong_to_one_top_level_file(tmp_path):
    one = written(tmp_path, one="version: 1\nsettings: {mode: audit}\n", two="version: 1\n\nsettings: {mode: audit}\n")
    assert told(one, tmp_path / "two.yaml") == [
        f"{tmp_path}/two.yaml:3:11: `settings` are in `{one}` already: only one file may have them"
    ]
    (tmp_path / "three.yaml").write_text("version: 1\ninclude: [{file: two.yaml}]")
    assert told(tmp_path / "three.yaml") == [f"{tmp_path}/two.yaml:3:11: an included file may not have `settings`"]


def test_settings_apply_to_included_rules(tmp_path):
    file = written(
        tmp_path, web="version: 1\nsettings: {tls: splice}\ninclude: [{file: i.yaml}]", i="version: 1\nrules:\n" + RULE
    )
    [rule] = load([file]).rules
    assert rule.tls.value == "splice"


def test_file_names_must_be_unique(tmp_path):
    (tmp_path / "sub").mkdir()
    one, two = written(tmp_path, web="version: 1"), written(tmp_path / "sub", web="version: 1")
    assert told(one, two) == [f"{two}:1:1: `{one}` is named `web` too: give one of them another `name`"]


def test_file_names_must_differ_as_displayed(tmp_path):
    """What a link's file includes lies beside that file, and is shown beside the link."""
    (tmp_path / "real").mkdir()
    written(tmp_path / "real", all="version: 1\ninclude: [{file: web.yaml}]", web=f"version: 1\nrules:\n{RULE}")
    (tmp_path / "all.yaml").symlink_to("real/all.yaml")
    web = written(tmp_path, web=f"version: 1\nrules:\n{RULE}")
    assert told(tmp_path / "all.yaml", web) == [
        f"{web}:1:1: `{web}` is named `web` too: give one of them another `name`"
    ]


def test_file_given_twice_is_loaded_once(tmp_path):
    file = written(tmp_path, web="version: 1\nrules:\n" + RULE)
    (tmp_path / "link.yaml").symlink_to(file)
    assert load([file, file, tmp_path / "link.yaml"]).rule_ids == ("web:a",)


def test_problems_of_all_files_are_reported_in_order(tmp_path):
    file = written(
        tmp_path,
        web="version: 1\ninclude: [{file: i.yaml}, {file: gone.yaml}]\nrules:\n  - {id: a, tu: x}\n",
        i="version: 1\nrules:\n  - {id: b, to: x.example, action: nope}\n",
    )
    assert [line.split(": ")[0] for line in told(file)] == [
        f"{file}:2:27",
        *[f"{file}:4:5"] * 2,
        f"{file}:4:13",
        f"{tmp_path}/i.yaml:3:36",
    ]


def test_failing_test_case_blocks_loading(tmp_path):
    tests = "tests:\n  - {attempt: 'GET https://x.example/', expect: allow, rule: a}\n  - {attempt: 'tcp x.example:22', expect: allow}\n"
    file = written(tmp_path, web="version: 1\nrules:\n" + RULE + tests)
    assert told(file) == [f"{file}:6:5: test failed: `tcp x.example:22` should be allow and is deny (no_rule)"]
    assert read([file]).policy.rule_ids == ("web:a",), "`read` leaves the tests to the caller"


def test_no_rules_deny_everything(tmp_path):
    from rules.loading.cases import parse_attempt

    empty = load([written(tmp_path, web="version: 1\nrules: []")])
    assert parse_attempt("GET https://x.example/").decide(empty).reason == "no_rule"
    assert load([]).decide_name.__self__.rule_ids == ()


TEAM = """\
version: 1
name: web-team
settings: {mode: enforce, tls: inspect, dns: synthetic, dns_pool: 198.18.0.0/15, on_block: explain, on_journal_failure: block, idle_timeout: 10m}
secrets:
  - {id: model-key, from: {env: MODEL_KEY}, as: MODEL_API_KEY, hosts: api.model.example, in: {header: authorization}}

rules:
  - id: registry-internal
    to: registry.corp.example
    resolves_to: [10.20.0.0/16]
    tls: splice
    action: allow
    why: "internal package mirror"

  - id: read-our-repositories
    to: api.github.com
    http: {methods: [GET, HEAD], paths: ["/repos/acme/**", "/user"], query: {ref: absent}}
    action: allow

  - id: feature-branches
    to: github.com
    git: {repos: ["acme/*"], fetch: true, push: ["refs/heads/**"]}
    action: flag

  - id: main-needs-two
    to: github.com
    git: {repos: ["acme/*"], push: [refs/heads/main, "refs/heads/release/*"]}
    action: ask
    approval: {by: release, count: 2, hold: 2m, open: 24h}

  - id: our-model-account
    to: api.model.example
    credential: model-key
    action: allow

  - id: staging-db
    to: db.staging.example
    ports: [5432/tcp]
    for: {tasks: ["migrate-*"], labels: {team: data}}
    limits: {connections: 4, bytes_down: 2GB, per: task}
    until: 2027-01-31
    action: ask
    approval: {by: dba, covers: destination, for: 1h}

  - id: paste-sites
    to: ["**.pastebin.com", "**.transfer.sh"]
    except: [{to: pastebin.com, for: {tasks: triage}, http: {methods: [GET], paths: ["/raw/*"]}}]
    action: deny

  - id: paste-reading
    to: pastebin.com
    http: {methods: [GET]}
    log: pattern
    action: allow

  - id: mail-records
    to: corp.example
    dns_types: [MX, TXT]
    action: allow

  - id: anything-else
    to: "*"
    default: true
    action: ask

tests:
  - {attempt: "GET https://api.github.com/repos/acme/web", expect: allow, rule: read-our-repositories}
  - {attempt: "GET https://api.github.com/repos/acme/web?ref=main", expect: ask, rule: anything-else}
  - {attempt: "GET https://api.github.com/repos/acme/web", body: true, expect: ask, rule: anything-else}
  - {attempt: "git fetch https://github.com/acme/web", expect: flag}
  - {attempt: "git push https://github.com/acme/web refs/heads/topic", expect: flag, rule: feature-branches}
  - {attempt: "git push https://github.com/acme/web refs/heads/main", expect: ask, rule: main-needs-two}
  - {attempt: "git push https://github.com/ACME/Web.git refs/heads/main", expect: ask, rule: main-needs-two}
  - {attempt: "git push https://github.com/acme/web refs/heads/topic delete", expect: ask, rule: anything-else}
  - {attempt: "git push https://github.com/acme/web refs/tags/v1 create", expect: ask, rule: anything-else}
  - {attempt: "tcp db.staging.example:5432", task: migrate-7, labels: {team: data}, at: 2026-12-01, expect: ask, rule: staging-db}
  - {attempt: "tcp db.staging.example:5432", task: migrate-7, labels: {team: data}, at: 2027-02-01, expect: deny, rule: staging-db}
  - {attempt: "tcp db.staging.example:5432", task: web, expect: ask, rule: anything-else}
  - {attempt: "POST https://api.model.example/v1", expect: ask, rule: anything-else}
  - {attempt: "POST https://api.model.example/v1", credential: model-key, expect: allow, rule: our-model-account}
  - {attempt: "GET https://pastebin.com/raw/x", task: triage, expect: allow, rule: paste-reading}
  - {attempt: "GET https://pastebin.com/raw/x", expect: deny, rule: paste-sites}
  - {attempt: "POST https://pastebin.com/raw/x", task: triage, expect: deny, rule: paste-sites}
  - {attempt: "GET wss://pastebin.com/raw/x", task: triage, expect: deny, rule: paste-sites}
  - {attempt: "dns MX corp.example", expect: allow}
  - {attempt: "dns SRV corp.example", expect: deny}
  - {attempt: "dns MX nobody.example", expect: ask}
"""


def test_language_sample_loads_and_its_tests_pass():
    files = loaded(TEAM)
    assert [str(problem) for problem in failures(files)] == []
    assert len(files.tests) == 21
    assert files.warnings == ()


def test_order_of_rules_has_no_effect():
    rules = TEAM.split("\nrules:\n")[1].split("\ntests:", maxsplit=1)[0]
    turned = TEAM.replace(rules, "\n" + "\n\n".join(reversed(rules.strip("\n").split("\n\n"))) + "\n")
    assert loaded(turned).policy.revision == loaded(TEAM).policy.revision
    assert failures(loaded(turned)) == []


def test_gate_inspects_what_the_sample_needs():
    asked = loaded(TEAM).policy
    looks = {
        name: (asked.looks_at(HostName(name), 443).requests, asked.looks_at(HostName(name), 443).git)
        for name in ("registry.corp.example", "api.github.com", "github.com", "pastebin.com", "nobody.example")
    }
    assert looks == {
        "registry.corp.example": (False, False),
        "api.github.com": (True, False),
        "github.com": (True, True),
        "pastebin.com": (True, False),
        "nobody.example": (False, False),
    }
    assert asked.for_matters


def test_documented_identities_are_parsed():
    docs = (Path(__file__).parents[3] / "docs/reference/rules.md").read_text()
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", docs, re.DOTALL) if "identities:" in block]
    identities = parse_identities(example.encode(), "identities.yaml")
    assert identities.refuse("alice", "nightly", {"team": "data"}) == ""
    assert "needs the label `team`" in identities.refuse("alice", "nightly", {})
