"""`exeat check`, `explain` and `test`: what they print and how they exit."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from enforcer.cli import explain, main
from enforcer.cli.parsing import add_arguments

GOOD = """version: 1
name: web
rules:
  - {id: read, to: x.example, http: {methods: [GET]}, action: allow}
tests:
  - {attempt: "GET https://x.example/", expect: allow, rule: read}
"""
BROKEN = GOOD.replace("methods: [GET]", "methods: [get]").replace("to:", "too:")
FAILING = GOOD.replace("expect: allow", "expect: deny")
WARNED = GOOD.replace("to: x.example", "to: '**.github.io'").replace("https://x.example", "https://x.github.io")


@pytest.fixture
def exeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in {"good": GOOD, "broken": BROKEN, "failing": FAILING, "warned": WARNED}.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def run(*words):
        code = main(list(words))
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()

    return run


BROKEN_LINES = [
    "broken.yaml:4:16: `too` is not a key of a rule; did you mean `to`?",
    "broken.yaml:4:49: `get` is not a method; methods are written like `GET`",
]


def test_each_file_is_tested_despite_errors_in_others(exeat, tmp_path):
    (tmp_path / "plain.yaml").write_text("version: 1\nrules: []\n")
    assert exeat("test", "plain.yaml", "good.yaml") == (
        0,
        ["ok    allow  GET https://x.example/", "1 passed, 0 failed"],
        ["exeat: `plain.yaml` has no `tests`"],
    )
    code, out, err = exeat("test", "broken.yaml", "failing.yaml")
    assert (code, out[-1], err) == (2, "0 passed, 1 failed", BROKEN_LINES)
    code, out, err = exeat("test", ".")
    assert (code, out[-1], err) == (2, "2 passed, 1 failed", [*BROKEN_LINES, "exeat: `plain.yaml` has no `tests`"])
    assert exeat("test", "gone.yaml", "good.yaml") == (
        2,
        [],
        ["gone.yaml:1:1: `gone.yaml` can't be read: no such file or directory"],
    )


def test_options_and_names_come_in_any_order(exeat):
    [value] = [json.loads("\n".join(exeat("check", "good.yaml", "--format", "json", "failing.yaml")[1]))]
    assert [one["file"] for one in value["files"]] == ["good.yaml", "failing.yaml"]
    assert exeat("check", "--", "--strict") == (
        2,
        [],
        ["--strict:1:1: `--strict` can't be read: no such file or directory"],
    )


def test_help_can_come_first(capsys):
    for words in (["help", "check"], ["check", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert (ended.value.code, capsys.readouterr().out[:19]) == (0, "usage: exeat check ")


def test_closed_output_pipe_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", "from enforcer.cli import main; raise SystemExit(main(['schema']))"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["schema"], ["log", "--journal", "."]], ids=["schema", "log"])
def test_full_output_device_is_an_error(words, tmp_path):
    program = [sys.executable, "-c", f"from enforcer.cli import main; raise SystemExit(main({words}))"]
    here = {**os.environ, "PYTHONPATH": os.getcwd()}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(program, cwd=tmp_path, env=here, stdout=full, stderr=subprocess.PIPE, check=False)
    said = b"exeat: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_output_is_flushed_before_the_exit():
    program = "import atexit; from enforcer.cli import main; atexit.register(print, 'tidied'); main()"
    done = subprocess.run([sys.executable, "-c", program, "schema"], capture_output=True, check=True)
    assert json.loads(done.stdout)["$schema"]
    refused = subprocess.run([sys.executable, "-c", program, "no-such"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("exeat: `no-such` is not a command; ")


def test_check_prints_problems(exeat):
    code, out, err = exeat("check", "good.yaml")
    assert (code, err) == (0, [])
    assert (
        out[0]
        == "good.yaml:4:5: note: EX060 no-why: `web:read` has no `why`; add `why`: block pages and reviews show it"
    )
    assert out[1].startswith("good.yaml: ok, 1 rule in 1 file, ")
    assert exeat("check", "broken.yaml") == (1, BROKEN_LINES, [])
    code, out, _ = exeat("check", "good.yaml", "warned.yaml")
    assert code == 1
    assert out[2] == (
        "warned.yaml:4:20: warning: EX021 strangers: `**.github.io` also allows strangers: "
        "anyone can get a name under `github.io`; list the hosts that are yours"
    )
    assert out[4].startswith("warned.yaml: not clean, 1 rule in 1 file, ")
    assert out[4].endswith(", 1 warning, 1 note")
    code, out, _ = exeat("check", "failing.yaml")
    told = "failing.yaml:6:5: test failed: `GET https://x.example/` should be deny and is allow (rule) by `web:read`"
    assert (code, out[0]) == (1, told)
    assert out[-1].endswith(", 1 error, 1 note")


def test_explain_prints_the_decision(exeat):
    code, out, err = exeat("explain", "--rules", "good.yaml", "GET https://x.example/")
    assert (code, out[0], err) == (
        0,
        "`GET https://x.example/` is allowed by `web:read` (`rule`)",
        [],
    )
    code, out, _ = exeat("explain", "--rules", "good.yaml", "--format", "json", "tcp x.example:22")
    value = json.loads("\n".join(out))
    assert (code, value["verdict"], value["near"]["field"]) == (0, "deny", "ports")


def test_test_prints_failing_cases(exeat):
    assert exeat("test", "good.yaml") == (0, ["ok    allow  GET https://x.example/", "1 passed, 0 failed"], [])
    code, out, _ = exeat("test", "good.yaml", "failing.yaml")
    assert (code, out[-1]) == (1, "1 passed, 1 failed")
    assert out[1].startswith("failing.yaml:6:5: `GET https://x.example/` should be deny and is allow")
    code, out, _ = exeat("test", "--format", "json", "failing.yaml")
    value = json.loads("\n".join(out))
    assert (code, value["failed"], value["tests"][0]["verdict"], value["tests"][0]["line"]) == (1, 1, "allow", 6)


SOMEBODY = """version: 1
name: who
rules:
  - {id: data, to: x.example, for: {tasks: "m-*", labels: {team: data}}, until: 2030-01-31, action: allow}
  - {id: json, to: y.example, http: {methods: [GET, POST], headers: {accept: [application/json]}}, action: allow}
  - {id: key, to: z.example, credential: key, action: allow}
secrets:
  - {id: key, from: {env: KEY}, as: KEY, hosts: z.example, in: basic}
  - {id: other, from: {env: OTHER}, as: OTHER, hosts: z.example, in: basic}
"""
ALIKE = (
    SOMEBODY
    + """tests:
  - {attempt: x.example:443, expect: deny}
  - {attempt: x.example:443, task: m-1, labels: {team: data, b: "\\e[2J"}, at: 2030-01-31, expect: allow}
  - {attempt: "https://y.example/", headers: {Accept: application/json}, expect: allow}
  - {attempt: "https://z.example/", credential: key, expect: deny}
"""
)


def test_test_cases_of_different_tasks_are_distinguished(exeat, tmp_path):
    (tmp_path / "alike.yaml").write_text(ALIKE)
    code, out, _ = exeat("test", "alike.yaml")
    assert (code, out[:3]) == (
        1,
        [
            "ok    deny   x.example:443",
            "ok    allow  x.example:443  (task m-1; labels b=\\x1b[2J, team=data; at 2030-01-31)",
            "ok    allow  GET https://y.example/  (header accept: application/json)",
        ],
    )
    assert out[3].endswith(" is allow (rule) by `who:key`  (credential key)")
    value = json.loads("\n".join(exeat("test", "--format", "json", "alike.yaml")[1]))["tests"][1]
    assert (value["task"], value["labels"]["team"], value["at"]) == ("m-1", "data", "2030-01-31")


def test_only_rule_files_are_counted(exeat, tmp_path):
    (tmp_path / "list.txt").write_text("ads.example\n")
    (tmp_path / "more.yaml").write_text(GOOD.replace("name: web", "name: more").partition("tests:")[0])
    text = (
        "version: 1\nname: all\ninclude: [{preset: github}, {file: more.yaml}]\n"
        "rules:\n  - {id: ads, to: {list: list.txt}, action: deny, why: no}\n"
    )
    (tmp_path / "all.yaml").write_text(text)
    (last,) = [line for line in exeat("check", "all.yaml")[1] if line.startswith("all.yaml: ")]
    assert " rules in 2 files, " in last


MISUSE = [
    (("check", "gone.yaml"), "gone.yaml:1:1: `gone.yaml` can't be read: no such file or directory"),
    (("explain", "--rules", "broken.yaml", "x.example:1"), BROKEN_LINES[0]),
    (
        ("explain", "--rules", "good.yaml", "nonsense"),
        "exeat: `nonsense` needs a port between 1 and 65535, as in `host:443`",
    ),
    (
        ("explain", "--rules", "gone.yaml", "x.example:1"),
        "gone.yaml:1:1: `gone.yaml` can't be read: no such file or directory",
    ),
    (("test", "broken.yaml"), BROKEN_LINES[0]),
    (("test", "plain.yaml"), "exeat: `plain.yaml` has no `tests`"),
]


@pytest.mark.parametrize(("words", "says"), MISUSE)
def test_invalid_arguments_exit_2_with_a_sentence(exeat, tmp_path, words, says):
    (tmp_path / "plain.yaml").write_text("version: 1")
    code, out, err = exeat(*words)
    assert (code, out, err[0]) == (2, [], says)


SAME = [
    (("GET https://x.example/a",), ("GET", "https://x.example/a")),
    (("GET https://x.example/a",), ("https://x.example/a",)),
    (("tcp x.example:22",), ("tcp", "x.example:22")),
    (("git push https://x.example/a/b refs/heads/main",), ("git", "push", "https://x.example/a/b", "refs/heads/main")),
    (("dns TXT x.example",), ("dns", "TXT  x.example")),
]


@pytest.mark.parametrize(("quoted", "bare"), SAME, ids=[" ".join(row[1]) for row in SAME])
def test_explain_needs_no_quotes(exeat, quoted, bare):
    code, out, err = exeat("explain", "--rules", "good.yaml", *quoted)
    assert (code, err) == (0, [])
    assert exeat("explain", "--rules", "good.yaml", *bare) == (code, out, err)


WHO = [
    ("x.example:443", (), "deny"),
    ("x.example:443", ("--task", "m-1"), "deny"),
    ("x.example:443", ("--task", "m-1", "--label", "team=data", "--at", "2030-01-31"), "allow"),
    ("x.example:443", ("--task", "m-1", "--label", "team=data", "--at", "2030-02-01"), "deny"),
    ("x.example:443", ("--task", "n-1", "--label", "team=data", "--at", "2030-01-31"), "deny"),
    ("https://y.example/", (), "deny"),
    ("https://y.example/", ("--header", "Accept: application/json"), "allow"),
    ("https://y.example/", ("--header", "Accept: application/json", "--body"), "deny"),
    ("POST https://y.example/", ("--header", "accept:application/json"), "allow"),
    ("POST https://y.example/", ("--header", "accept:text/html"), "deny"),
    ("https://z.example/", (), "deny"),
    ("https://z.example/", ("--credential", "other"), "deny"),
    ("https://z.example/", ("--credential", "key"), "allow"),
]


@pytest.mark.parametrize(("attempt", "options", "verdict"), WHO, ids=[f"{row[0]} {row[1]}" for row in WHO])
def test_explain_takes_task_and_time(exeat, tmp_path, attempt, options, verdict):
    (tmp_path / "who.yaml").write_text(SOMEBODY)
    code, out, err = exeat("explain", "--rules", "who.yaml", "--format", "json", *options, *attempt.split())
    assert (code, err) == (0, [])
    assert json.loads("\n".join(out))["verdict"] == verdict


def test_explain_notes_a_missing_credential(exeat, tmp_path):
    (tmp_path / "who.yaml").write_text(SOMEBODY)
    code, out, err = exeat("explain", "--rules", "who.yaml", "https://z.example/")
    assert (code, err) == (0, [])
    assert (
        "the request does not carry the credential that the rule requires, or not only that one; send the placeholder of the rule's `credential` and no other credential (`credential_mismatch`)"
        in out[0]
    )
    assert "the nearest rule is `who:key`: its `credential` is `key`, and the attempt has `none that is known`" in out
    assert out[-1].startswith("no credential was given: add `--credential ID` ")
    code, out, err = exeat("explain", "--rules", "who.yaml", "--credential", "other", "https://z.example/")
    assert "the nearest rule is `who:key`: its `credential` is `key`, and the attempt has `other`" in out
    assert not any("--credential" in line for line in out)


@pytest.mark.parametrize(
    ("ident", "says"),
    [
        ("othr", "exeat: there is no secret `othr`; did you mean `other`?"),
        ("x1", "exeat: there is no secret `x1`: `secrets` say what there is"),
    ],
)
def test_explain_knows_only_the_secrets_of_the_files(exeat, tmp_path, ident, says):
    (tmp_path / "who.yaml").write_text(SOMEBODY)
    asked = exeat("explain", "--rules", "who.yaml", "--credential", ident, "https://z.example/")
    assert asked == (2, [], [says])


WRONG = [
    (("--label", "team", "x.example:1"), "exeat: --label: `team` is not a label; write NAME=VALUE, as in `--label team=data`"),
    (("--body", "x.example:1"), "exeat: `--header`, `--body` and `--credential` need a request, such as `https://host/path`, as the attempt"),
    (("--header", "accept", "https://x.example"), "exeat: --header: `accept` is not a header: write NAME:VALUE, as in `--header accept:text/html`"),
    (("--header", "Host: y.example", "https://x.example"), "exeat: `Host` is set by the gate: use `to` for the host, `body` and `websocket` for the rest"),
    (("ftp://x.example",), "exeat: `GET ftp://x.example` is not an attempt; one looks like `GET https://host/path`, `git push URL REF`, `git fetch URL`, `dns TYPE NAME`, `run PROGRAM WORDS`, `host:port`, or `tcp host:port` with `tcp`, `udp`, `tls` or `http`"),
    (("ping", "x"), "exeat: `ping x` is not an attempt; one looks like `GET https://host/path`, `git push URL REF`, `git fetch URL`, `dns TYPE NAME`, `run PROGRAM WORDS`, `host:port`, or `tcp host:port` with `tcp`, `udp`, `tls` or `http`"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_explain_reports_malformed_attempts(exeat, words, says):
    code, out, err = exeat("explain", "--rules", "good.yaml", *words)
    assert (code, out, err) == (2, [], [says])


def test_explain_requires_a_date(exeat, capsys):
    with pytest.raises(SystemExit) as end:
        exeat("explain", "--rules", "good.yaml", "--at", "2030-02-30", "x.example:1")
    assert end.value.code == 2
    assert "`2030-02-30` is not a day of the calendar" in capsys.readouterr().err


def test_explain_includes_roots_rules(exeat, tmp_path, monkeypatch, capsys):
    """What holds for every run holds for what is said of one."""
    from enforcer.policy import rule_files

    (tmp_path / "rules.d").mkdir(mode=0o755)
    (tmp_path / "rules.d/corp.yaml").write_text("version: 1\nrules:\n  - {id: no, to: x.example, action: deny}\n")
    monkeypatch.setattr(rule_files, "check_root_owned", bool)  # whoever runs the tests is not root
    parser = argparse.ArgumentParser()
    add_arguments(parser, explain.ARGUMENTS)
    words = ["--rules", "good.yaml", "--format", "json", "https://x.example/"]
    (tmp_path / "good.yaml").write_text(GOOD.partition("tests:")[0])
    assert explain.run(parser.parse_args(words), system=tmp_path) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["verdict"], value["rules"]) == ("deny", ["corp:no"])
