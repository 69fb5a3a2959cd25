"""`exeat diff`: what it prints and how it exits."""

import json

import pytest

from enforcer.cli import main

OLD = "version: 1\nname: web\nrules:\n  - {id: read, to: x.example, http: {methods: [GET]}, action: allow}\n"
NEW = OLD + "  - {id: no, to: y.example, action: deny}\n  - {id: db, to: z.example, ports: 5432/tcp, action: flag}\n"
MORE = "version: 1\nname: more\nrules:\n  - {id: paste, to: x.example, http: {paths: [/paste]}, action: deny}\n"
AUDIT = OLD.replace("rules:", "settings: {mode: audit}\nrules:")
PROXIED = OLD.replace("rules:", "settings: {upstream: 'http://proxy.corp.example:3128'}\nrules:")


@pytest.fixture
def exeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {
        "old": OLD,
        "new": NEW,
        "more": MORE,
        "audit": AUDIT,
        "proxied": PROXIED,
        "broken": OLD.replace("to:", "too:"),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def run(*words):
        code = main(["diff", *words])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()

    return run


FLAGGED = "anything to z.example:5432: was denied (no_rule), is flagged by `web:db`"


def test_diff_prints_the_differences(exeat):
    assert exeat("old.yaml", "new.yaml") == (1, [FLAGGED, "1 difference: 1 flagged"], [])


def test_diff_of_equal_policies_prints_nothing_changed(exeat, tmp_path):
    (tmp_path / "moved.yaml").write_text(OLD.replace("name: web", "name: other").replace("read", "reading"))
    assert exeat("old.yaml", "moved.yaml") == (0, ["no decision differs"], [])


def test_several_files_are_one_policy(exeat):
    code, out, err = exeat("--old", "old.yaml", "--new", "old.yaml", "--new", "more.yaml")
    assert (code, err) == (1, [])
    assert out == [
        "GET https://x.example/paste: was allowed by `web:read`, is denied by `more:paste`",
        "1 difference: 1 denied",
    ]


def test_removed_setting_is_reported_as_not_set(exeat):
    assert (
        exeat("proxied.yaml", "old.yaml")[1][0] == "setting `upstream`: was http://proxy.corp.example:3128, is not set"
    )
    assert (
        exeat("old.yaml", "proxied.yaml")[1][0] == "setting `upstream`: was not set, is http://proxy.corp.example:3128"
    )
    setting = json.loads("\n".join(exeat("proxied.yaml", "old.yaml", "--format", "json")[1]))["settings"][0]
    assert (setting["was"], setting["now"]) == ("http://proxy.corp.example:3128", None)


def test_changed_settings_are_printed(exeat):
    code, out, _ = exeat("audit.yaml", "old.yaml")
    assert code == 1
    assert out[0].startswith("setting `mode`: was audit, is enforce: what no rule or but a default rule decides ")
    assert out[1:] == ["1 setting differs"]
    assert exeat("audit.yaml", "new.yaml")[1][-1] == "1 setting differs; 2 differences: 1 flagged, 1 denied"


def test_json_output_has_every_difference(exeat):
    code, out, _ = exeat("--format", "json", "old.yaml", "new.yaml")
    value = json.loads("\n".join(out))
    assert (code, value["complete"], value["settings"]) == (1, True, [])
    (difference,) = value["differences"]
    assert difference["targets"] == ["z.example"]
    assert (difference["was"]["verdict"], difference["now"]["verdict"]) == ("deny", "flag")
    assert (difference["ports"], difference["text"]) == ("5432", FLAGGED)
    assert difference["example"] == "tcp z.example:5432"
    assert value["old"]["files"][0].endswith("old.yaml")


MISUSE = [
    (("old.yaml",), "exeat: name two rule files"),
    (("old.yaml", "new.yaml", "more.yaml"), "exeat: name two rule files"),
    (("--old", "old.yaml"), "exeat: name two rule files"),
    (("--old", "old.yaml", "--new", "new.yaml", "more.yaml"), "exeat: name two rule files"),
    (("old.yaml", "broken.yaml"), "broken.yaml:4:16: `too` is not a key of a rule"),
    (("gone.yaml", "old.yaml"), "gone.yaml:1:1: `gone.yaml` can't be read"),
]


@pytest.mark.parametrize(("words", "says"), MISUSE)
def test_invalid_arguments_exit_2_with_a_sentence(exeat, words, says):
    code, out, err = exeat(*words)
    assert (code, out) == (2, [])
    assert err[0].startswith(says)
