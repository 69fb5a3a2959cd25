"""What dies, or comes too late, or from elsewhere, while the gate holds something: nothing passes, and it is told."""

import json
import os
import signal
import subprocess

import pytest

from tests.enforcer.approvals.approvals_lab import RULES, as_root, as_user
from tests.invariants.lab_runner import worker_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


def code(answer):
    return answer["out"].rsplit("\n", 1)[1]


def page(answer):
    return json.loads(answer["out"].rsplit("\n", 1)[0])


def test_killed_registry_denies_held_attempts_and_is_replaced(approvals_lab):
    task = approvals_lab.start("bereft", "until", "/ask/first")
    first = approvals_lab.waits("/ask/first")
    old = approvals_lab.kill()
    approvals_lab.waits("/ask/first")  # in the store, for whoever looks: that starts another registry
    assert approvals_lab.registry != old
    assert "approved: " in approvals_lab.answer(first, "approve")  # serves the retry, once the task has been introduced
    ((tries,), _) = approvals_lab.done(task)
    assert page(tries[0])["reason"] == "approval_unavailable"
    assert code(tries[-1]) == "200"
    told = [event["kind"] for event in approvals_lab.events() if event.get("approval", {}).get("id") == first["id"]]
    assert told[0] == "approval.asked"
    assert {"approval.answered", "approval.used", "request.decided"} <= set(told)


@as_root
def test_grant_of_one_task_does_not_serve_another(approvals_lab):
    """After `everything`, in which the same request was approved for another task."""
    task = approvals_lab.start("twin", "once", "/ask/approved")
    waits = approvals_lab.waits("/ask/approved")
    assert "until the task ends" in approvals_lab.answer(waits, "approve", **{"for": ["task"]})
    ((seen,), _) = approvals_lab.done(task)
    assert code(seen) == "200"
    assert "it was approved already, by owner" in approvals_lab.answer(waits, "approve")


@as_user
def test_task_can_pre_request_but_not_vote_or_see_other_tasks(approvals_lab):
    other = approvals_lab.start("other", "once", "/ask/of-another")
    foreign = approvals_lab.waits("/ask/of-another")
    task = approvals_lab.start("inband", "wish", foreign["id"])
    waits = approvals_lab.waits("/ask/wished")
    assert waits["wish"]
    (shown,) = approvals_lab.ask(what="show", id=waits["id"])
    assert "asked by the agent" in shown["text"]
    assert "agent says   to publish the report" in shown["text"]
    wait_until(lambda: len(approvals_lab.events("approval.seen", "inband")), "that it was seen")
    assert "approved: " in approvals_lab.answer(waits, "approve", why="go on")
    (seen, _) = approvals_lab.done(task)
    assert [page(seen[what])["standing"] for what in ("wish", "looked", "foreign")] == [
        "pending",
        "approved",
        "unknown",
    ]
    assert {code(answer)[0] for answer in seen["answers"]} == {"4"}
    assert code(seen["used"]) == "200"
    assert approvals_lab.events("approval.asked", "inband")[0]["approval"]["agent"] is True
    assert "rejected" in approvals_lab.answer(foreign, "reject")
    approvals_lab.done(other)


@as_user
def test_approvals_survive_deaths_of_worker_and_registry(approvals_lab):
    more = {"EXEAT_CONTROL": str(approvals_lab.home / "control")}
    up = approvals_lab.lab.start(
        ["exeat", "up", "--workers", "1"], user=approvals_lab.user, env=more, stderr=subprocess.PIPE, text=True
    )
    assert "serving" in up.stderr.readline()
    try:
        task = approvals_lab.start("served", "until", "/ask/served", "/ask/later", env=more)
        first = approvals_lab.waits("/ask/served")
        status = json.loads(approvals_lab.exeat("status", "--format", "json", env=more).stdout)
        assert (status["approvals"]["pid"], status["approvals"]["pending"]) == (approvals_lab.registry, 1)
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: approvals_lab.events("approval.stale", "served"), "that nobody waits")
        listed = json.loads(approvals_lab.exeat("ps", "--format", "json", env=more).stdout)
        assert [(each["name"], each["pending"], each["tainted"]) for each in listed] == [("served", 1, False)]
        assert "approved: " in approvals_lab.answer(first, "approve")
        second = approvals_lab.waits("/ask/later")
        approvals_lab.kill()
        approvals_lab.waits("/ask/later")
        assert "approved: " in approvals_lab.answer(second, "approve")
        ((served, later), _) = approvals_lab.done(task)
        assert served[0]["status"] in {52, 56}
        assert (code(served[-1]), code(later[-1])) == ("200", "200")
        assert page(later[0])["reason"] == "approval_unavailable"
    finally:
        up.terminate()
        up.communicate(timeout=60)


@as_root
def test_approval_as_a_rule_changes_nothing_else_in_the_file(approvals_lab):
    rules = approvals_lab.write(approvals_lab.home / "edited.yaml", f"# ours\n{RULES}")
    task = approvals_lab.start("edited", "once", "/ask/written", "/ask/written", "/ask/other", rules=rules)
    waits = approvals_lab.waits("/ask/written")
    done = approvals_lab.exeat("approve", waits["id"], "--as-rule", "--why", "from now on")
    assert done.returncode == 0, done.stderr
    assert "; written: held:approved-api-held-example in " in done.stdout
    other = approvals_lab.waits("/ask/other")  # the second was let out by the rule, and this one is no other's
    assert "rejected" in approvals_lab.answer(other, "reject")
    (seen, _) = approvals_lab.done(task)
    assert [code(answer) for answer in seen] == ["200", "200", "403"]
    text = rules.read_text()
    assert text.startswith("# ours\n")
    assert "paths: [/ask/written]" in text
    assert "from now on" in text
    again = approvals_lab.exeat("approve", other["id"], "--as-rule")
    assert (again.returncode, "rejected already" in again.stderr) == (1, True)
    assert rules.read_text() == text


@as_root
def test_vote_on_a_superseded_request_names_its_successor(approvals_lab):
    rules = approvals_lab.write(approvals_lab.home / "superseded.yaml", RULES)
    task = approvals_lab.start("superseded", "together", "/ask/one", "/ask/another", rules=rules)
    one, before = approvals_lab.waits("/ask/one"), approvals_lab.waits("/ask/another")
    done = approvals_lab.exeat("approve", one["id"], "--as-rule")
    assert done.returncode == 0, done.stderr
    now = wait_until(
        lambda: [
            each for each in approvals_lab.pending() if each["line"] == before["line"] and each["id"] != before["id"]
        ]
    )[0]
    said = approvals_lab.exeat("approve", before["id"], "--for", "1h")
    why = f"held:writing has changed since it was asked, and it is asked as {now['id']} now"
    assert (said.returncode, said.stderr) == (1, f"exeat: {before['id']}: an answer has no effect: {why}\n")
    (was,) = [
        line for line in approvals_lab.exeat("approvals", "history").stdout.splitlines() if before["id"] in line[:40]
    ]
    assert " superseded " in was
    assert was.endswith(f": {why}")
    assert [each["id"] for each in approvals_lab.pending() if each["task"] == before["task"]] == [now["id"]]
    assert "approved: " in approvals_lab.answer(now, "approve")
    (seen, _) = approvals_lab.done(task)
    assert [code(answer) for answer in seen] == ["200", "200"]
    told = approvals_lab.events("approval.expired", "superseded")
    assert [(event["approval"]["id"], event["detail"]) for event in told] == [(before["id"], f"superseded: {why}")]
    verified = approvals_lab.exeat("log", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@as_root
def test_unruled_attempt_is_allowed_by_a_rule_from_an_approval(approvals_lab):
    rules = approvals_lab.write(approvals_lab.home / "unruled.yaml", f"# ours\n{RULES}")
    task = approvals_lab.start("unruled", "unruled", "/new", rules=rules)
    waits = approvals_lab.waits("/new")
    assert "no rule covers this" in approvals_lab.answer(waits, "approve")
    missing = approvals_lab.exeat("approve", waits["id"], "--as-rule", approvals_lab.home / "none.yaml")
    assert (missing.returncode, "none.yaml` can't be read" in missing.stderr) == (2, True)
    done = approvals_lab.exeat("approve", waits["id"], "--as-rule")
    assert done.returncode == 0, done.stderr
    assert "; written: held:approved-api-held-example in " in done.stdout
    (seen, _) = approvals_lab.done(task)
    assert code(seen) == "200"
    before, _, new = rules.read_text().partition("  - id: approved-api-held-example\n")
    assert before == f"# ours\n{RULES}"
    assert "paths: [/new]" in new


@as_root
def test_ask_rules_that_begin_later_find_the_registry(approvals_lab):
    closed = "version: 1\nname: held\nrules:\n  - {id: closed, to: api.held.example, action: deny}\n"
    rules = approvals_lab.write(approvals_lab.home / "changing.yaml", closed)
    task = approvals_lab.start("changed", "until", "/ask/changed", rules=rules)
    wait_until(lambda: approvals_lab.events("connection.decided", "changed"), "a refusal")
    rules.write_text(RULES)
    waits = approvals_lab.waits("/ask/changed")
    assert "approved: " in approvals_lab.answer(waits, "approve")
    ((tries,), _) = approvals_lab.done(task)
    assert code(tries[-1]) == "200"
    assert page(tries[0])["reason"] == "rule"


def test_killed_worker_ends_its_held_connections(approvals_lab):
    approvals_lab.lab.origin.forget()
    task = approvals_lab.start("orphan", "once", "/ask/orphaned")
    waits = approvals_lab.waits("/ask/orphaned")
    os.kill(worker_of(task), signal.SIGKILL)
    ((seen,), err) = approvals_lab.done(task)
    assert seen["status"] in {52, 56}  # curl: an empty reply, or a reset
    assert "the gate ended unexpectedly" in err
    assert approvals_lab.lab.origin.requests() == []
    wait_until(lambda: waits["id"] not in [each["id"] for each in approvals_lab.pending()], "the end of its question")
    assert "its task has ended" in approvals_lab.answer(waits, "approve")
