"""A task changes what is protected, and people are asked before that is merged: the real commands, from end to end."""

import json
import subprocess

import pytest

from .world import PATIENCE, as_root, as_user

pytestmark = pytest.mark.timeout(300)
RULES = """
version: 1
name: merges
sandbox:
  workspace: review
  approval: {{by: dba, hold: {hold}, open: 1h}}
"""


def changed(here, name, hold):
    """Have a task change a protected file and another, under these rules; return its workspace."""
    rules = here.write(here.home / f"{name}.yaml", RULES.format(hold=hold))
    work = here.workspace(name)
    run = ["exeat", "run", "--quiet", "--rules", rules, "--task", name, "--", "sh", "-c"]
    task = here.lab.start([*run, "echo run >.envrc; echo plain >plain"], user=here.user, cwd=work)
    assert task.wait(timeout=PATIENCE * 3) == 0
    here.write(here.home / f"{name}.yaml", "version: 1\nname: merges\n")  # too late: it ran under the others
    return work


@as_user
def test_a_merge_waits_for_whom_the_rules_name_and_is_told(here):
    work = changed(here, "held-merge", "1m")
    words = ["exeat", "changes", "accept", "held-merge", "--protected", ".envrc"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    merging = here.lab.start(words, user=here.user, cwd=here.home, **pipes)
    asked = here.waits("change .envrc")
    assert (asked["name"], asked["kind"], asked["rules"]) == ("held-merge", "merge", ["merges:sandbox.approval"])
    assert "and owner is not in that group" in here.answer(asked, "approve")
    (card,) = here.ask(what="show", id=asked["id"])
    assert "  added        .envrc: nothing -> file 0644, 4 bytes, +1 -0, SHA-256 " in card["text"]
    assert card["card"]["task"]["id"] == asked["task"]
    assert not (work / ".envrc").exists()
    assert "approved" in here.answer(asked, "approve", token=here.tokens["ada"])
    out, err = merging.communicate(timeout=PATIENCE)
    assert (merging.returncode, out) == (0, "accepted: 2 added\n"), err
    assert f"asked for as {asked['id']}: `exeat approve {asked['id']}` gives it" in err
    assert (work / ".envrc").read_text() == "run\n"
    steps = [event["kind"] for event in here.events("approval.", "held-merge")]
    assert steps == [f"approval.{step}" for step in ("asked", "refused", "seen", "answered", "used")]
    merged = here.events("changes.", "held-merge")
    assert [event["kind"] for event in merged] == ["changes.kept", "changes.accepted", "changes.merged"]
    for event in merged[1:]:
        assert (event["approval"]["id"], event["approval"]["by"]) == (asked["id"], ["ada"])
    assert {event["task"]["id"] for event in merged} == {asked["task"]}


@as_root
def test_nobody_answers_and_the_next_accept_has_the_answer(here):
    work = changed(here, "late-merge", "1s")
    words = ["changes", "accept", "late-merge", "--protected", ".envrc", "--format", "json"]
    done = here.exeat(*words)
    assert done.returncode == 1
    left = {each["path"]: each["why"] for each in json.loads(done.stdout)["changes"]}
    asked = here.waits("change .envrc")
    assert left == {".envrc": f"it waits for approval {asked['id']}: accept again when that is given", "plain": ""}
    assert [path.name for path in work.iterdir() if path.name in left] == ["plain"]
    here.kill()  # what was asked is kept, and the next registry knows it
    assert "approved" in here.answer(asked, "approve", token=here.tokens["bo"])
    done = here.exeat(*words[:-2])
    assert (done.returncode, done.stdout) == (0, "accepted: 1 added\n"), done.stderr
    assert (work / ".envrc").read_text() == "run\n"
