"""`exeat check` as people and programs call it: what it prints in each format, and how it exits."""

import json
import os
from datetime import UTC, datetime, timedelta

import jsonschema
import pytest

from enforcer.cli import check, main
from rules.lint.findings import CHECKS, Severity

CLEAN = "version: 1\nname: clean\nrules:\n  - {id: a, to: a.test, action: allow, why: ours}\n"
NOTED = CLEAN.replace("clean", "noted").replace(", why: ours", "")
WARNED = CLEAN.replace("clean", "warned").replace("to: a.test", "to: '*'")
BROKEN = CLEAN.replace("clean", "broken").replace("to:", "too:")
FAILING = CLEAN.replace("clean", "failing") + "tests:\n  - {attempt: 'b.test:443', expect: allow}\n"
FILES = {"clean": CLEAN, "noted": NOTED, "warned": WARNED, "broken": BROKEN, "failing": FAILING}


@pytest.fixture
def exeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def run(*words):
        try:
            code = main(["check", *words])
        except SystemExit as end:
            code = end.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


STATUSES = [
    (("clean.yaml",), 0),
    (("noted.yaml",), 0),
    (("--strict", "noted.yaml"), 1),
    (("--strict", "--ignore", "no-why", "noted.yaml"), 0),
    (("--strict", "clean.yaml"), 0),
    (("warned.yaml",), 1),
    (("--ignore", "EX020", "warned.yaml"), 0),
    (("--ignore", "EX020", "warned.yaml", "noted.yaml", "failing.yaml"), 1),
    (("broken.yaml",), 1),
    (("failing.yaml",), 1),
    (("clean.yaml", "warned.yaml"), 1),
    (("clean.yaml", "gone.yaml"), 2),
    (("--ignore", "broken", "broken.yaml"), 2),
    (("--ignore", "EX999", "warned.yaml"), 2),
    (("--at", "tomorrow", "clean.yaml"), 2),
    ((), 2),
]


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
@pytest.mark.parametrize(("words", "status"), STATUSES, ids=[" ".join(row[0]) or "nothing" for row in STATUSES])
def test_exit_status_is_the_same_in_every_format(exeat, words, status, form):
    assert exeat("--format", form, *words)[0] == status


def test_clean_file_prints_one_line(exeat):
    code, out, err = exeat("clean.yaml")
    assert (code, out.splitlines()[0].partition(",")[0], err) == (0, "clean.yaml: ok", "")
    assert len(out.splitlines()) == 1


NOT_THERE = [
    (("gone.yaml",), "gone.yaml:1:1: `gone.yaml` can't be read: no such file or directory"),
    (("clean.yaml/x",), "clean.yaml/x:1:1: `clean.yaml/x` can't be read: not a directory"),
    (("pipe",), "pipe:1:1: `pipe` can't be read: it is not a file"),
    (("empty",), "exeat: there is no rule file (`*.yaml`) in the directory `empty`"),
]


@pytest.mark.parametrize(("words", "says"), NOT_THERE)
def test_missing_file_is_an_error_and_nothing_is_checked(exeat, tmp_path, words, says):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    assert exeat("warned.yaml", *words) == (2, "", says + "\n")


@pytest.mark.parametrize("missing", ["gone.yaml", "pipe"])
def test_run_reports_a_missing_file_as_check_does(exeat, tmp_path, capsys, missing):
    os.mkfifo(tmp_path / "pipe")
    _, _, told = exeat(missing)
    assert main(["run", "--rules", missing, "--", "true"]) == 2
    assert capsys.readouterr().err == told


def test_directory_stands_for_its_rule_files(exeat, tmp_path):
    inside = tmp_path / "corp"
    (inside / "deeper").mkdir(parents=True)
    (inside / "b.yml").write_text(CLEAN)
    (inside / "a.yaml").write_text(CLEAN)
    (inside / "notes.txt").write_text("not YAML: [")
    (inside / "deeper" / "c.yaml").write_text("broken")
    code, out, _ = exeat("corp")
    assert (code, [line.partition(":")[0] for line in out.splitlines()]) == (0, ["corp/a.yaml", "corp/b.yml"])


def test_json_output_has_every_finding(exeat):
    code, out, _ = exeat("--format", "json", "clean.yaml", "broken.yaml", "warned.yaml")
    clean, broken, warned = json.loads(out)["files"]
    assert code == 1
    assert (clean["findings"], clean["rules"], len(clean["revision"])) == ([], 1, 64)
    assert (broken["rules"], broken["sources"], broken["revision"]) == (0, [], "")
    assert broken["findings"][0] == {
        "file": "broken.yaml",
        "line": 4,
        "column": 13,
        "severity": "error",
        "code": "EX001",
        "name": "broken",
        "message": "`too` is not a key of a rule; did you mean `to`?",
        "todo": "correct the file: no task starts until it can be read",
        "rules": [],
    }
    assert [(f["code"], f["rules"], f["line"], f["column"]) for f in warned["findings"]] == [
        ("EX020", ["warned:a"], 4, 17)
    ]


APPROVERS = """\
version: 1
people:
  - {name: ada, user: ada}
  - {name: bo, uid: 1002}
groups: {release: [ada, bo]}
notify:
  - {command: [/usr/bin/page]}
"""
IDENTITIES = "version: 1\nidentities:\n  - {users: [ada], tasks: ['*']}\n"
OTHERS = [
    ("approvers.yaml", APPROVERS, "ok, who may approve: 2 people, 1 group, 1 notifier"),
    ("approvers.yaml", "version: 1\n", "ok, who may approve: 0 people"),
    ("approvers.yaml", APPROVERS.replace("people", "poeple"), "2:1: `poeple` is not a key of the approvers; did you mean `people`?"),
    ("approvers.yaml", APPROVERS.replace("ada, bo", "ada, b0"), "5:19: `b0` is no person and no reviewer"),
    ("approvers.yaml", "", "1:1: the file is empty: it begins with `version: 1`"),
    ("people.yaml", APPROVERS, "ok, who may approve: 2 people, 1 group, 1 notifier"),
    ("people.yaml", APPROVERS.replace("user:", "username:"), "3:17: `username` is not a key of a person; did you mean `user`?"),
    ("identities.yaml", IDENTITIES, "ok, who may claim which tasks: 1 identity"),
    ("identities.yaml", IDENTITIES.replace("tasks", "task"), "3:20: `task` is not a key of an identity; did you mean `tasks`?"),
    ("identities.yaml", CLEAN, "ok, 1 rule in 1 file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), OTHERS, ids=range(len(OTHERS)))
def test_approvers_and_identities_files_are_checked(exeat, tmp_path, name, text, said):
    (tmp_path / "corp").mkdir()
    (tmp_path / "corp" / name).write_text(text)
    code, out, err = exeat("corp")
    assert (code, err) == (int(not said.startswith("ok")), "")
    assert out.startswith((f"corp/{name}: {said}", f"corp/{name}:{said}")), out
    found = json.loads(exeat("--format", "json", "corp")[1])["files"][0]
    assert found["kind"] == ("rules" if text == CLEAN else "identities" if "identit" in name else "approvers")
    assert all("nobody can approve" in each["todo"] for each in found["findings"] if found["kind"] == "approvers")


def test_approvers_file_writable_by_others_is_an_error(exeat, tmp_path, monkeypatch):
    monkeypatch.setattr("enforcer.approvals.approvers.place", lambda: tmp_path / "approvers.yaml")
    (tmp_path / "approvers.yaml").write_text(APPROVERS)
    (tmp_path / "approvers.yaml").chmod(0o666)
    code, out, _ = exeat("approvers.yaml")
    assert code == 1
    assert out.startswith("approvers.yaml:1:1: others can write it")


def test_ignored_code_is_reported_nowhere(exeat):
    for form in ("text", "json", "sarif"):
        _, out, _ = exeat("--format", form, "--ignore", "every-name", "warned.yaml")
        results = out if form != "sarif" else json.dumps(json.loads(out)["runs"][0]["results"])
        assert "EX020" not in results


def test_unknown_code_is_an_error_with_the_nearest(exeat):
    assert (
        "`every-nam` is not the code of a finding; did you mean `every-name`?" in exeat("--ignore", "every-nam", "x")[2]
    )


TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
POSITION = {"type": "integer", "minimum": 1}
# The part of the SARIF 2.1.0 schema that is used here, closed against what it doesn't know.
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/run"}},
    },
    "definitions": {
        "run": {
            "type": "object",
            "required": ["tool", "results"],
            "additionalProperties": False,
            "properties": {
                "tool": {
                    "type": "object",
                    "required": ["driver"],
                    "additionalProperties": False,
                    "properties": {"driver": {"$ref": "#/definitions/driver"}},
                },
                "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                "results": {"type": "array", "items": {"$ref": "#/definitions/result"}},
            },
        },
        "driver": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "semanticVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
                "rules": {
                    "type": "array",
                    "uniqueItems": True,
                    "items": {
                        "type": "object",
                        "required": ["id"],
                        "additionalProperties": False,
                        "properties": {
                            "id": {"type": "string"},
                            "name": {"type": "string", "pattern": "^[A-Za-z]+$"},
                            "shortDescription": TEXT,
                            "help": TEXT,
                            "defaultConfiguration": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {"level": LEVEL},
                            },
                        },
                    },
                },
            },
        },
        "result": {
            "type": "object",
            "required": ["message"],
            "additionalProperties": False,
            "properties": {
                "ruleId": {"type": "string"},
                "ruleIndex": {"type": "integer", "minimum": 0},
                "level": LEVEL,
                "message": TEXT,
                "locations": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "physicalLocation": {
                                "type": "object",
                                "required": ["artifactLocation"],
                                "additionalProperties": False,
                                "properties": {
                                    "artifactLocation": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {
                                            "uri": {"type": "string", "pattern": r"^[-A-Za-z0-9._~%/:]+$"},
                                            "uriBaseId": {"type": "string"},
                                        },
                                    },
                                    "region": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {"startLine": POSITION, "startColumn": POSITION},
                                    },
                                },
                            }
                        },
                    },
                },
            },
        },
    },
}


def test_github_output_annotates_lines(exeat, tmp_path):
    odd = tmp_path / "odd näme #1.yaml"
    odd.write_text(WARNED)
    code, out, _ = exeat("--format", "sarif", "broken.yaml", "failing.yaml", "noted.yaml", odd.name, str(odd))
    log = json.loads(out)
    jsonschema.Draft7Validator(SARIF).validate(log)
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert ids == [check.code for check in CHECKS]
    told = set()
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        told.add((result["ruleId"], result["level"], place["artifactLocation"]["uri"], place["region"]["startLine"]))
    assert code == 1
    assert told == {
        ("EX001", "error", "broken.yaml", 4),
        ("EX002", "error", "failing.yaml", 6),
        ("EX060", "note", "noted.yaml", 4),
        ("EX020", "warning", "odd%20n%C3%A4me%20%231.yaml", 4),
    }
    assert {r["locations"][0]["physicalLocation"]["artifactLocation"]["uriBaseId"] for r in run["results"]} == {
        "%SRCROOT%"
    }


def test_file_outside_the_directory_has_its_absolute_path(exeat, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    _, out, _ = exeat("--format", "sarif", "../warned.yaml")
    uris = [
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in json.loads(out)["runs"][0]["results"]
    ]
    assert uris == [f"file://{tmp_path}/warned.yaml"]


def test_day_is_today_by_default(exeat, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "IDENTITIES", tmp_path / "none")
    today = datetime.now(UTC).date()
    ends = tmp_path / "ends.yaml"
    ends.write_text(CLEAN.replace("why:", f"until: {today + timedelta(days=90)}, why:"))
    assert "EX05" not in exeat("ends.yaml")[1]
    code, out, _ = exeat("--at", str(today + timedelta(days=80)), "ends.yaml")
    assert (code, "EX051 expires-soon: `clean:a` ends in 10 days" in out) == (0, True)
    code, out, _ = exeat("--at", str(today + timedelta(days=91)), "ends.yaml")
    assert (code, "EX050 expired: `clean:a` ended on" in out) == (1, True)


def test_severities_are_those_of_sarif():
    assert {severity.value for severity in Severity} <= set(LEVEL["enum"])
