"""A task changes what is protected, and people are asked before that is merged: the real commands, from end to end."""

import json
import subprocess

import pytest

from tests.enforcer.approvals.approvals_lab import as_root, as_user
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.timeout(300)
RULES = """
version: 1
name: merges
sandbox:
  workspace: review
  approval: {{by: dba, hold: {hold}, open: 1h}}
"""


def changed(approvals_lab, name, hold):
    """Have a task change a protected file and another, under these rules; return its workspace."""
    rules = approvals_lab.write(approvals_lab.home / f"{name}.yaml", RULES.format(hold=hold))
    work = approvals_lab.workspace(name)
    run = ["exeat", "run", "--quiet", "--rules", rules, "--task", name, "--", "sh", "-c"]
    task = approvals_lab.lab.start([*run, "echo run >.envrc; echo plain >plain"], user=approvals_lab.user, cwd=work)
    assert task.wait(timeout=PATIENCE * 3) == 0
    approvals_lab.write(
        approvals_lab.home / f"{name}.yaml", "version: 1\nname: merges\n"
    )  # too late: it ran under the others
    return work


@as_user
def test_merge_waits_for_the_approvers_of_its_rules(approvals_lab):
    work = changed(approvals_lab, "held-merge", "1m")
    words = ["exeat", "changes", "accept", "held-merge", "--protected", ".envrc"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    merging = approvals_lab.lab.start(words, user=approvals_lab.user, cwd=approvals_lab.home, **pipes)
    asked = approvals_lab.waits("change .envrc")
    assert (asked["name"], asked["kind"], asked["rules"]) == ("held-merge", "merge", ["merges:sandbox.approval"])
    assert "and owner is not in that group" in approvals_lab.answer(asked, "approve")
    (card,) = approvals_lab.ask(what="show", id=asked["id"])
    assert "  added        .envrc: nothing -> file 0644, 4 bytes, +1 -0, SHA-256 " in card["text"]
    assert card["card"]["task"]["id"] == asked["task"]
    assert not (work / ".envrc").exists()
    assert "approved" in approvals_lab.answer(asked, "approve", token=approvals_lab.tokens["ada"])
    out, err = merging.communicate(timeout=PATIENCE)
    assert (merging.returncode, out) == (0, "accepted: 2 added\n"), err
    assert f"asked for as {asked['id']}: `exeat approve {asked['id']}` gives it" in err
    assert (work / ".envrc").read_text() == "run\n"
    steps = [event["kind"] for event in approvals_lab.events("approval.", "held-merge")]
    assert steps == [f"approval.{step}" for step in ("asked", "refused", "seen", "answered", "used")]
    merged = approvals_lab.events("changes.", "held-merge")
    assert [event["kind"] for event in merged] == ["changes.kept", "changes.accepted", "changes.merged"]
    for event in merged[1:]:
        assert (event["approval"]["id"], event["approval"]["by"]) == (asked["id"], ["ada"])
    assert {event["task"]["id"] for event in merged} == {asked["task"]}


@as_root
def test_late_answer_serves_the_next_accept(approvals_lab):
    work = changed(approvals_lab, "late-merge", "1s")
    words = ["changes", "accept", "late-merge", "--protected", ".envrc", "--format", "json"]
    done = approvals_lab.exeat(*words)
    assert done.returncode == 1
    left = {each["path"]: each["why"] for each in json.loads(done.stdout)["changes"]}
    asked = approvals_lab.waits("change .envrc")
    assert left == {".envrc": f"it waits for approval {asked['id']}: accept again when that is given", "plain": ""}
    assert [path.name for path in work.iterdir() if path.name in left] == ["plain"]
    approvals_lab.kill()  # what was asked is kept, and the next registry knows it
    assert "approved" in approvals_lab.answer(asked, "approve", token=approvals_lab.tokens["bo"])
    done = approvals_lab.exeat(*words[:-2])
    assert (done.returncode, done.stdout) == (0, "accepted: 1 added\n"), done.stderr
    assert (work / ".envrc").read_text() == "run\n"
