"""Programs that `commands:` ask about: held where they are about to start, until somebody in another process says so."""

import json
import os
import shutil
import signal

import pytest

from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.timeout(300)

RULES = """
version: 1
name: programs
commands:
  - {id: plan, run: "printf plan*", action: ask, approval: {self: true, hold: 1m}, why: "it costs"}
  - {id: two, run: "printf plan-two*", action: ask, approval: {by: dba, count: 2, hold: 1m}}
rules: []
"""
# Each attempt in a process of its own: how it ends, and what it says
SCRIPT = """
import json, subprocess, sys
start = ["sh", "-c", 'exec printf "$1"', "sh"]
plans = [subprocess.Popen([*start, word], stdout=-1, stderr=-1, text=True) for word in sys.argv[1:]]
print(json.dumps([[plan.wait(), *plan.communicate()] for plan in plans]))
"""


def started(approvals_lab, name, *plans):
    """A task that starts these programs at once."""
    rules = approvals_lab.write(approvals_lab.home / "programs.yaml", RULES)
    words = ["exeat", "run", "--quiet", "--rules", rules, "--task", name, "--", "python3", "-c", SCRIPT, *plans]
    return approvals_lab.lab.start(
        words, user=approvals_lab.user, cwd=approvals_lab.workspace(name), stdout=-1, stderr=-1, text=True
    )


def done(task):
    out, err = task.communicate(timeout=PATIENCE)
    return json.loads(out.splitlines()[-1]), err


def decided(approvals_lab, name):
    told = approvals_lab.events("command.decided", name)
    return [(event["argv"][1:], event["outcome"], event["reason"], event["approval"]["id"]) for event in told]


def test_programs_held_at_once_get_their_own_answers(approvals_lab):
    task = started(approvals_lab, "plans", "plan-a", "plan-b", "plan-two")
    one, other, two = (approvals_lab.waits(word) for word in ("plan-a", "plan-b", "plan-two"))
    approvals_lab.answer(other, "reject", why="not now")
    for token in approvals_lab.tokens["ada"], approvals_lab.tokens["bo"]:
        assert task.poll() is None
        approvals_lab.answer(two, "approve", token=token)
    approvals_lab.answer(one, "approve", why="fine")
    found, err = done(task)
    assert [each[:2] for each in found] == [[0, "plan-a"], [126, ""], [0, "plan-two"]], (found, err)
    assert f"not allowed by programs:plan (approval_denied, approval {other['id']}): not now" in found[1][2]
    assert sorted(decided(approvals_lab, "plans")) == sorted([
        (["plan-a"], "passed", "approval_granted", one["id"]),
        (["plan-b"], "blocked", "approval_denied", other["id"]),
        (["plan-two"], "passed", "approval_granted", two["id"]),
    ])  # fmt: skip


def test_held_program_is_evaluated_by_the_current_rules(approvals_lab):
    task = started(approvals_lab, "ruled", "plan-ruled")
    before = approvals_lab.waits("plan-ruled")
    approvals_lab.write(approvals_lab.home / "programs.yaml", RULES.replace("hold: 1m}, why", "hold: 2m}, why"))
    now = wait_until(
        lambda: [
            each for each in approvals_lab.pending() if "plan-ruled" in each["line"] and each["id"] != before["id"]
        ]
    )
    assert f"has no effect: programs:plan has changed since it was asked, and it is asked as {now[0]['id']} now" in (
        approvals_lab.answer(before, "approve")
    )
    assert "approved: " in approvals_lab.answer(now[0], "approve")
    ((found, *_),), _ = done(task)
    assert found == 0
    assert decided(approvals_lab, "ruled") == [(["plan-ruled"], "passed", "approval_granted", now[0]["id"])]


def test_script_changed_while_held_does_not_start(approvals_lab):
    (script := approvals_lab.workspace("swapped") / "printf").write_text("#!/bin/sh\necho mine\n")
    script.chmod(0o755)
    os.chown(script, approvals_lab.uid, approvals_lab.uid)
    rules = approvals_lab.write(approvals_lab.home / "programs.yaml", RULES)
    words = ["exeat", "run", "--quiet", "--rules", rules, "--task", "swapped", "--", "sh", "-c", "./printf plan-swap"]
    task = approvals_lab.lab.start(words, user=approvals_lab.user, cwd=script.parent, stdout=-1, stderr=-1, text=True)
    asked = approvals_lab.waits("plan-swap")
    script.write_text("#!/bin/sh\necho evil\n")
    approvals_lab.answer(asked, "approve")
    out, err = task.communicate(timeout=PATIENCE)
    assert (task.returncode, out) == (126, "")
    assert (
        f"(expired, approval {asked['id']}): the program's file or arguments changed while it waited for an approval"
        in err
    )
    assert decided(approvals_lab, "swapped") == [(["plan-swap"], "blocked", "expired", asked["id"])]


def test_program_killed_while_held_withdraws_its_request(approvals_lab):
    task = started(approvals_lab, "killed", "plan-gone", "plan-stays")
    asked, other = approvals_lab.waits("plan-gone"), approvals_lab.waits("plan-stays")
    pids = {event["argv"][-1]: event["process"]["pid"] for event in approvals_lab.events("approval.asked", "killed")}
    os.kill(pids["plan-gone"], signal.SIGKILL)
    wait_until(lambda: [each for each in approvals_lab.pending() if each["id"] == asked["id"] and each["stale"]])
    approvals_lab.answer(other, "approve")
    ((gone, *_), (stays, said, _)), _ = done(task)
    assert (gone, stays, said) == (-signal.SIGKILL, 0, "plan-stays")
    asked_about = {event["argv"][0] for event in approvals_lab.events("approval.asked", "killed")}
    assert asked_about == {os.path.realpath(shutil.which("printf"))}  # and not the path that led there
    assert (["plan-gone"], "blocked", "approval_timeout", asked["id"]) in decided(approvals_lab, "killed")
