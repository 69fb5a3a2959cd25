"""What dies, or comes too late, or from elsewhere, while the gate holds something: nothing passes, and it is told."""

import json
import os
import signal
import subprocess

import pytest

from tests.invariants.running import worker_of

from .world import RULES, as_root, as_user, until

pytestmark = pytest.mark.timeout(300)


def code(answer):
    return answer["out"].rsplit("\n", 1)[1]


def page(answer):
    return json.loads(answer["out"].rsplit("\n", 1)[0])


def test_a_registry_that_is_killed_while_it_holds_denies_and_the_next_one_serves_the_same_task(here):
    task = here.start("bereft", "until", "/ask/first")
    first = here.waits("/ask/first")
    old = here.kill()
    here.waits("/ask/first")  # in the store, for whoever looks: that starts another registry
    assert here.registry != old
    assert "approved: " in here.answer(first, "approve")  # serves the retry, once the task has been introduced
    ((tries,), _) = here.done(task)
    assert page(tries[0])["reason"] == "approval_unavailable"
    assert code(tries[-1]) == "200"
    told = [event["kind"] for event in here.events() if event.get("approval", {}).get("id") == first["id"]]
    assert told[0] == "approval.asked"
    assert {"approval.answered", "approval.used", "request.decided"} <= set(told)


@as_root
def test_what_was_granted_to_one_task_is_asked_anew_of_another_and_too_late_is_too_late(here):
    """After `everything`, in which the same request was approved for another task."""
    task = here.start("twin", "once", "/ask/approved")
    waits = here.waits("/ask/approved")
    assert "until the task ends" in here.answer(waits, "approve", **{"for": ["task"]})
    ((seen,), _) = here.done(task)
    assert code(seen) == "200"
    assert "it was approved already, by owner" in here.answer(waits, "approve")


@as_user
def test_a_task_asks_for_itself_and_can_t_answer_and_knows_nothing_of_others(here):
    other = here.start("other", "once", "/ask/of-another")
    foreign = here.waits("/ask/of-another")
    task = here.start("inband", "wish", foreign["id"])
    waits = here.waits("/ask/wished")
    assert waits["wish"]
    (shown,) = here.ask(what="show", id=waits["id"])
    assert "asked by the agent" in shown["text"]
    assert "agent says   to publish the report" in shown["text"]
    until(lambda: len(here.events("approval.seen", "inband")), "that it was seen")
    assert "approved: " in here.answer(waits, "approve", why="go on")
    (seen, _) = here.done(task)
    assert [page(seen[what])["standing"] for what in ("wish", "looked", "foreign")] == [
        "pending",
        "approved",
        "unknown",
    ]
    assert {code(answer)[0] for answer in seen["answers"]} == {"4"}
    assert code(seen["used"]) == "200"
    assert here.events("approval.asked", "inband")[0]["approval"]["agent"] is True
    assert "rejected" in here.answer(foreign, "reject")
    here.done(other)


@as_user
def test_under_the_service_a_worker_s_and_a_registry_s_death_cost_an_answer_and_not_the_approvals(here):
    more = {"EXEAT_CONTROL": str(here.home / "control")}
    up = here.lab.start(["exeat", "up", "--workers", "1"], user=here.user, env=more, stderr=subprocess.PIPE, text=True)
    assert "serving" in up.stderr.readline()
    try:
        task = here.start("served", "until", "/ask/served", "/ask/later", env=more)
        first = here.waits("/ask/served")
        status = json.loads(here.exeat("status", "--format", "json", env=more).stdout)
        assert (status["approvals"]["pid"], status["approvals"]["pending"]) == (here.registry, 1)
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        until(lambda: here.events("approval.stale", "served"), "that nobody waits")
        listed = json.loads(here.exeat("ps", "--format", "json", env=more).stdout)
        assert [(each["name"], each["pending"], each["tainted"]) for each in listed] == [("served", 1, False)]
        assert "approved: " in here.answer(first, "approve")
        second = here.waits("/ask/later")
        here.kill()
        here.waits("/ask/later")
        assert "approved: " in here.answer(second, "approve")
        ((served, later), _) = here.done(task)
        assert served[0]["status"] in {52, 56}
        assert (code(served[-1]), code(later[-1])) == ("200", "200")
        assert page(later[0])["reason"] == "approval_unavailable"
    finally:
        up.terminate()
        up.communicate(timeout=60)


@as_root
def test_an_approval_is_written_down_as_a_rule_and_nothing_else_of_the_file_moves(here):
    rules = here.write(here.home / "edited.yaml", f"# ours\n{RULES}")
    task = here.start("edited", "once", "/ask/written", "/ask/written", "/ask/other", rules=rules)
    waits = here.waits("/ask/written")
    done = here.exeat("approve", waits["id"], "--as-rule", "--why", "from now on")
    assert done.returncode == 0, done.stderr
    assert "; written: held:approved-api-held-example in " in done.stdout
    other = here.waits("/ask/other")  # the second was let out by the rule, and this one is no other's
    assert "rejected" in here.answer(other, "reject")
    (seen, _) = here.done(task)
    assert [code(answer) for answer in seen] == ["200", "200", "403"]
    text = rules.read_text()
    assert text.startswith("# ours\n")
    assert "paths: [/ask/written]" in text
    assert "from now on" in text
    again = here.exeat("approve", other["id"], "--as-rule")
    assert (again.returncode, "rejected already" in again.stderr) == (1, True)
    assert rules.read_text() == text


@as_root
def test_what_was_asked_before_its_rule_was_changed_opens_nothing_and_says_what_is_asked_now(here):
    rules = here.write(here.home / "superseded.yaml", RULES)
    task = here.start("superseded", "together", "/ask/one", "/ask/another", rules=rules)
    one, before = here.waits("/ask/one"), here.waits("/ask/another")
    done = here.exeat("approve", one["id"], "--as-rule")
    assert done.returncode == 0, done.stderr
    now = until(
        lambda: [each for each in here.pending() if each["line"] == before["line"] and each["id"] != before["id"]]
    )[0]
    said = here.exeat("approve", before["id"], "--for", "1h")
    why = f"held:writing has changed since it was asked, and it is asked as {now['id']} now"
    assert (said.returncode, said.stderr) == (1, f"exeat: {before['id']}: an answer has no effect: {why}\n")
    (was,) = [line for line in here.exeat("approvals", "history").stdout.splitlines() if before["id"] in line[:40]]
    assert " superseded " in was
    assert was.endswith(f": {why}")
    assert [each["id"] for each in here.pending() if each["task"] == before["task"]] == [now["id"]]
    assert "approved: " in here.answer(now, "approve")
    (seen, _) = here.done(task)
    assert [code(answer) for answer in seen] == ["200", "200"]
    told = here.events("approval.expired", "superseded")
    assert [(event["approval"]["id"], event["detail"]) for event in told] == [(before["id"], f"superseded: {why}")]
    verified = here.exeat("log", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@as_root
def test_what_no_rule_speaks_of_is_let_out_by_one_that_an_approval_writes(here):
    rules = here.write(here.home / "unruled.yaml", f"# ours\n{RULES}")
    task = here.start("unruled", "unruled", "/new", rules=rules)
    waits = here.waits("/new")
    assert "no rule covers this" in here.answer(waits, "approve")
    missing = here.exeat("approve", waits["id"], "--as-rule", here.home / "none.yaml")
    assert (missing.returncode, "none.yaml` can't be read" in missing.stderr) == (2, True)
    done = here.exeat("approve", waits["id"], "--as-rule")
    assert done.returncode == 0, done.stderr
    assert "; written: held:approved-api-held-example in " in done.stdout
    (seen, _) = here.done(task)
    assert code(seen) == "200"
    before, _, new = rules.read_text().partition("  - id: approved-api-held-example\n")
    assert before == f"# ours\n{RULES}"
    assert "paths: [/new]" in new


@as_root
def test_rules_that_ask_from_some_time_on_have_somebody_to_ask(here):
    closed = "version: 1\nname: held\nrules:\n  - {id: closed, to: api.held.example, action: deny}\n"
    rules = here.write(here.home / "changing.yaml", closed)
    task = here.start("changed", "until", "/ask/changed", rules=rules)
    until(lambda: here.events("connection.decided", "changed"), "a refusal")
    rules.write_text(RULES)
    waits = here.waits("/ask/changed")
    assert "approved: " in here.answer(waits, "approve")
    ((tries,), _) = here.done(task)
    assert code(tries[-1]) == "200"
    assert page(tries[0])["reason"] == "rule"


def test_a_worker_that_is_killed_while_it_holds_ends_the_connection_and_nothing_passes(here):
    here.lab.origin.forget()
    task = here.start("orphan", "once", "/ask/orphaned")
    waits = here.waits("/ask/orphaned")
    os.kill(worker_of(task), signal.SIGKILL)
    ((seen,), err) = here.done(task)
    assert seen["status"] in {52, 56}  # curl: an empty reply, or a reset
    assert "the gate ended unexpectedly" in err
    assert here.lab.origin.requests() == []
    until(lambda: waits["id"] not in [each["id"] for each in here.pending()], "the end of its question")
    assert "its task has ended" in here.answer(waits, "approve")
