"""Runs the commands of docs/how-to/audit-to-enforce.md on a real task, from audit mode to enforce mode."""

import os
import re
from pathlib import Path

import pytest

from tests.lab import Name

PAGE = (Path(__file__).parents[2] / "docs/how-to/audit-to-enforce.md").read_text()
AUDIT = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
COMMANDS = re.findall(r"^\$ (exeat .*)$", PAGE, re.MULTILINE)
# `make test` requests two hosts: three pages of one pattern, an upload, and one plain HTTP request.
MAKEFILE = """test:
\tcurl -sS --fail -o /dev/null https://api.walk.example/echo
\tfor page in 1 2 3; do curl -sS --fail -o /dev/null https://api.walk.example/pages/$$page/x || exit 1; done
\tcurl -sS --fail -o /dev/null -d data https://api.walk.example/echo
\tcurl -sS --fail -o /dev/null http://clear.walk.example/echo
"""
FURTHER = "test:\n\tcurl -sS --fail -o /dev/null https://elsewhere.walk.example/echo\n"


@pytest.fixture(scope="module")
def command_results(runner):
    """Run every command of the page in order; returns (status, output, errors) by command."""
    runner.lab.origin.name({"*.walk.example": Name.at("93.184.216.251")})
    home = runner.lab.home(runner.user)
    rules, work = home / "rules", runner.workspace("walk")
    rules.mkdir()
    (rules / "audit.yaml").write_text(AUDIT)
    (work / "Makefile").write_text(MAKEFILE)
    for path in (rules, rules / "audit.yaml", work / "Makefile"):
        os.chown(path, runner.user or 0, runner.user or 0)
    return {command: run(runner, command) for command in COMMANDS}


def run(runner, command):
    """Run a command in a shell, as a reader of the page would."""
    done = runner.lab.run(["sh", "-c", command], user=runner.user, cwd=runner.workspace("walk"), timeout=100)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def only(command_results, *words):
    (found,) = [recorded for command, recorded in command_results.items() if all(word in command for word in words)]
    return found


def test_page_has_every_command_in_order():
    assert [command.split()[1] for command in COMMANDS] == [
        "run", "log", "learn", "check", "test", "diff", "replay", "run", "log",
    ]  # fmt: skip


def test_task_works_in_audit_mode_and_is_logged(command_results):
    status, _, err = only(command_results, "run", "audit.yaml")
    assert status == 0, err
    status, out, err = only(command_results, "--verdict would_block")
    assert (status, err) == (0, [])
    assert sum("POST https://api.walk.example/echo" in line for line in out) >= 1


def test_learn_writes_rules_for_what_was_seen(runner, command_results):
    assert only(command_results, "learn") == (0, [], [])
    text = (runner.lab.home(runner.user) / "rules/tests.yaml").read_text()
    assert re.findall(r'^        - (".*")$', text, re.MULTILINE) == ['"/echo"', '"/pages/*/x"', '"/echo"', '"/echo"']
    assert re.findall(r"^      methods: (.*)$", text, re.MULTILINE) == ['["GET"]', '["POST"]', '["GET"]']
    assert "by `tests`" in text


def test_learned_rules_pass_check_and_test(command_results):
    assert only(command_results, "exeat check")[0] == 0
    assert only(command_results, "exeat test ") == (
        0,
        ["ok    allow  GET https://api.walk.example/echo", "ok    allow  POST https://api.walk.example/echo",
         "ok    allow  GET http://clear.walk.example/echo", "3 passed, 0 failed"],
        [],
    )  # fmt: skip


def test_diff_and_replay_show_that_nothing_breaks(command_results):
    status, out, err = only(command_results, "diff")
    assert (status, err) == (1, [])
    assert out[0].startswith("setting `mode`: was audit, is enforce")
    assert any(
        line.startswith("GET https://api.walk.example/echo") and "allowed by audit mode" in line for line in out
    ), out
    status, out, err = only(command_results, "replay")
    assert (status, err) == (0, [])
    assert any(line.endswith("attempts: nothing would change") for line in out), out


def test_task_works_in_enforce_mode(command_results):
    status, _, err = only(command_results, "run", "tests.yaml")
    assert status == 0, err
    status, out, err = only(command_results, "--verdict blocked")
    assert (status, err, len(out)) == (0, [], 1), out


def test_enforce_mode_blocks_what_was_not_learned(runner, command_results):
    """The same command later, when the task connects to a new host."""
    (runner.workspace("walk") / "Makefile").write_text(FURTHER)
    enforced = [command for command in COMMANDS if "run" in command][-1]
    status, _, err = run(runner, enforced)
    assert status != 0
    assert any("blocked" in line and "(elsewhere.walk.example)" in line for line in err), err
