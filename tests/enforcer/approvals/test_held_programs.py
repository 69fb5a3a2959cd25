"""Programs that `commands:` ask about: held where they are about to start, until somebody in another process says so."""

import json
import os
import shutil
import signal

import pytest

from .world import PATIENCE, until

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


def started(here, name, *plans):
    """A task that starts these programs at once."""
    rules = here.write(here.home / "programs.yaml", RULES)
    words = ["exeat", "run", "--quiet", "--rules", rules, "--task", name, "--", "python3", "-c", SCRIPT, *plans]
    return here.lab.start(words, user=here.user, cwd=here.workspace(name), stdout=-1, stderr=-1, text=True)


def done(task):
    out, err = task.communicate(timeout=PATIENCE)
    return json.loads(out.splitlines()[-1]), err


def decided(here, name):
    told = here.events("command.decided", name)
    return [(event["argv"][1:], event["outcome"], event["reason"], event["approval"]["id"]) for event in told]


def test_several_wait_at_once_and_each_gets_its_own_answer(here):
    task = started(here, "plans", "plan-a", "plan-b", "plan-two")
    one, other, two = (here.waits(word) for word in ("plan-a", "plan-b", "plan-two"))
    here.answer(other, "reject", why="not now")
    for token in here.tokens["ada"], here.tokens["bo"]:
        assert task.poll() is None
        here.answer(two, "approve", token=token)
    here.answer(one, "approve", why="fine")
    found, err = done(task)
    assert [each[:2] for each in found] == [[0, "plan-a"], [126, ""], [0, "plan-two"]], (found, err)
    assert f"not allowed by programs:plan (approval_denied, approval {other['id']}): not now" in found[1][2]
    assert sorted(decided(here, "plans")) == sorted([
        (["plan-a"], "passed", "approval_granted", one["id"]),
        (["plan-b"], "blocked", "approval_denied", other["id"]),
        (["plan-two"], "passed", "approval_granted", two["id"]),
    ])  # fmt: skip


def test_a_program_is_asked_about_by_the_rules_of_now_and_by_those_alone(here):
    task = started(here, "ruled", "plan-ruled")
    before = here.waits("plan-ruled")
    here.write(here.home / "programs.yaml", RULES.replace("hold: 1m}, why", "hold: 2m}, why"))
    now = until(
        lambda: [each for each in here.pending() if "plan-ruled" in each["line"] and each["id"] != before["id"]]
    )
    assert f"has no effect: programs:plan has changed since it was asked, and it is asked as {now[0]['id']} now" in (
        here.answer(before, "approve")
    )
    assert "approved: " in here.answer(now[0], "approve")
    ((found, *_),), _ = done(task)
    assert found == 0
    assert decided(here, "ruled") == [(["plan-ruled"], "passed", "approval_granted", now[0]["id"])]


def test_a_script_that_is_changed_while_it_waits_does_not_start(here):
    (script := here.workspace("swapped") / "printf").write_text("#!/bin/sh\necho mine\n")
    script.chmod(0o755)
    os.chown(script, here.uid, here.uid)
    rules = here.write(here.home / "programs.yaml", RULES)
    words = ["exeat", "run", "--quiet", "--rules", rules, "--task", "swapped", "--", "sh", "-c", "./printf plan-swap"]
    task = here.lab.start(words, user=here.user, cwd=script.parent, stdout=-1, stderr=-1, text=True)
    asked = here.waits("plan-swap")
    script.write_text("#!/bin/sh\necho evil\n")
    here.answer(asked, "approve")
    out, err = task.communicate(timeout=PATIENCE)
    assert (task.returncode, out) == (126, "")
    assert (
        f"(expired, approval {asked['id']}): the program's file or arguments changed while it waited for an approval"
        in err
    )
    assert decided(here, "swapped") == [(["plan-swap"], "blocked", "expired", asked["id"])]


def test_a_program_that_is_killed_while_it_waits_is_no_question_any_more(here):
    task = started(here, "killed", "plan-gone", "plan-stays")
    asked, other = here.waits("plan-gone"), here.waits("plan-stays")
    pids = {event["argv"][-1]: event["process"]["pid"] for event in here.events("approval.asked", "killed")}
    os.kill(pids["plan-gone"], signal.SIGKILL)
    until(lambda: [each for each in here.pending() if each["id"] == asked["id"] and each["stale"]])
    here.answer(other, "approve")
    ((gone, *_), (stays, said, _)), _ = done(task)
    assert (gone, stays, said) == (-signal.SIGKILL, 0, "plan-stays")
    asked_about = {event["argv"][0] for event in here.events("approval.asked", "killed")}
    assert asked_about == {os.path.realpath(shutil.which("printf"))}  # and not the path that led there
    assert (["plan-gone"], "blocked", "approval_timeout", asked["id"]) in decided(here, "killed")
