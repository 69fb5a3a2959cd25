"""`exeat check`, `explain` and `test`: what they print and how they exit."""

import json

import pytest

from enforcer.cli import main

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
    "broken.yaml:4:5: a rule needs `to`",
    "broken.yaml:4:16: `too` is not a key of a rule; did you mean `to`?",
    "broken.yaml:4:49: `get` is not a method; methods are written like `GET`",
]


def test_check(exeat):
    code, out, err = exeat("check", "good.yaml")
    assert (code, err) == (0, [])
    assert out[0].startswith("good.yaml: ok, 1 rule in 1 file, ")
    assert exeat("check", "broken.yaml") == (1, BROKEN_LINES, [])
    code, out, _ = exeat("check", "good.yaml", "warned.yaml")
    assert code == 1
    assert (
        out[1]
        == "warned.yaml:4:20: warning: `**.github.io` lets out to strangers too: anybody can get a name under `github.io`"
    )
    assert exeat("check", "failing.yaml") == (
        1,
        ["failing.yaml:6:5: test failed: `GET https://x.example/` should be deny and is allow (rule) by `web:read`"],
        [],
    )


def test_check_for_programs(exeat):
    code, out, _ = exeat("check", "--format", "json", "good.yaml", "broken.yaml", "warned.yaml")
    good, broken, warned = json.loads("\n".join(out))["files"]
    assert code == 1
    assert (good["findings"], good["rules"], len(good["revision"])) == ([], 1, 64)
    assert broken["findings"][1] == {
        "file": "broken.yaml",
        "line": 4,
        "column": 16,
        "severity": "error",
        "message": "`too` is not a key of a rule; did you mean `to`?",
    }
    assert [finding["severity"] for finding in warned["findings"]] == ["warning"]


def test_explain(exeat):
    code, out, err = exeat("explain", "--rules", "good.yaml", "GET https://x.example/")
    assert (code, out[0], err) == (0, "allow by `web:read`: rule", [])
    code, out, _ = exeat("explain", "--rules", "good.yaml", "--format", "json", "tcp x.example:22")
    value = json.loads("\n".join(out))
    assert (code, value["verdict"], value["near"]["field"]) == (0, "deny", "ports")


def test_test(exeat):
    assert exeat("test", "good.yaml") == (0, ["ok    allow  GET https://x.example/", "1 passed, 0 failed"], [])
    code, out, _ = exeat("test", "good.yaml", "failing.yaml")
    assert (code, out[-1]) == (1, "1 passed, 1 failed")
    assert out[1].startswith("failing.yaml:6:5: `GET https://x.example/` should be deny and is allow")
    code, out, _ = exeat("test", "--format", "json", "failing.yaml")
    value = json.loads("\n".join(out))
    assert (code, value["failed"], value["tests"][0]["verdict"], value["tests"][0]["line"]) == (1, 1, "allow", 6)


MISUSE = [
    (("check", "gone.yaml"), "exeat: there is no file `gone.yaml`"),
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
def test_misuse_is_two_and_a_sentence(exeat, tmp_path, words, says):
    (tmp_path / "plain.yaml").write_text("version: 1")
    code, out, err = exeat(*words)
    assert (code, out, err[0]) == (2, [], says)
