"""Invariant 6: one event per decision, one closing event per allowed attempt, and no unexpected events."""

from collections import Counter

from .lab_runner import DECISIONS, summary


def _ends(attempt_results, decided, ended):
    """Return the ids of allowed attempts, and the number of closing events of each."""
    passed = {event["id"] for event in attempt_results.journal.of(kind=decided, outcome="passed")}
    return passed, Counter(event["cause"] for event in attempt_results.journal.of(kind=ended))


def test_every_allowed_connection_has_one_close_event(attempt_results):
    passed, closed = _ends(attempt_results, "connection.decided", "connection.closed")
    assert passed
    assert closed == Counter(passed)


def test_every_allowed_request_has_one_completion_event(attempt_results):
    passed, completed = _ends(attempt_results, "request.decided", "request.completed")
    assert passed
    assert completed == Counter(passed)


def test_every_request_event_names_its_connection(attempt_results):
    connections = {event["id"] for event in attempt_results.journal.of(kind="connection.decided")}
    assert {event["cause"] for event in attempt_results.journal.of(kind="request.decided")} <= connections


def test_event_ids_are_unique_and_no_gate_errors_occur(attempt_results):
    assert max(Counter(event["id"] for event in attempt_results.journal.events).values()) == 1
    assert attempt_results.journal.of(kind="gate.error") == []


def test_every_decision_has_a_verdict_reason_and_revision(attempt_results):
    for event in attempt_results.journal.decisions():
        assert event["kind"] in DECISIONS
        assert event["revision"]
        asked_later = {"ask"} if event["kind"] != "request.decided" else set()
        assert (event["outcome"] == "passed") == (event["verdict"] in {"allow", "flag"} | asked_later), event
        assert summary(event)[2]


def test_requests_at_the_origins_equal_those_in_the_journal(attempt_results):
    """Each request at an origin was allowed, or arrived through a spliced connection."""
    recorded = Counter(
        event["destination"]["name"] for event in attempt_results.journal.of(kind="request.decided", outcome="passed")
    )
    seen = Counter(
        one["authority"].partition(":")[0] for one in attempt_results.requests if ".spliced." not in one["authority"]
    )
    assert seen == recorded
