"""`exeat run` with rules that ask: real clients in real sandboxes, people who watch and answer with the commands for it."""

import json
import re

import pytest

pytestmark = pytest.mark.timeout(300)


def test_approved_attempt_passes_once_and_rejected_one_says_why(attempts):
    seen, said, _ = attempts
    assert seen["free"]["out"].endswith("200")
    assert seen["approved"]["out"].endswith("200")
    assert seen["again"]["out"].endswith("200")  # asked about and approved again: a grant is for once
    assert len(said["/ask/approved"]) == 2
    refused = seen["rejected"]["out"]
    assert refused.endswith("403")
    page = json.loads(refused.removesuffix("403"))
    assert (page["reason"], page["detail"]) == ("approval_denied", "not on a Friday")


def test_quorum_of_two_needs_two_distinct_approvers(attempts):
    seen, said, _ = attempts
    assert seen["two"]["out"].endswith("200")
    first, again, second = said["/ask/two"]
    assert (first[0], again[0], second[0]) == (True, False, True)
    assert "1 more for held:by-two by dba" in first[1]
    assert "a second vote does not count" in again[1]


def test_forged_token_cannot_vote(attempts, approvals_lab):
    seen, said, _ = attempts
    forged, rejected = said["/ask/forged"]
    assert forged == (False, "this token is nobody's")
    assert rejected[0]
    assert seen["forged"]["out"].endswith("403")
    assert any(
        "a token that is nobody's" in event.get("detail", "") for event in approvals_lab.events("approval.refused")
    )


def test_git_pushes_are_allowed_held_and_refused_with_a_git_message(attempts, approvals_lab):
    seen, said, _ = attempts
    assert seen["clone"]["status"] == 0, seen["clone"]
    assert seen["branch"]["status"] == 0, seen["branch"]
    assert seen["both"]["status"] != 0  # neither ref moved, though one of them needs nobody
    assert "one at a time" in seen["both"]["err"]
    assert seen["main"]["status"] == 0, seen["main"]
    assert len(said["refs/heads/main"]) == 1
    assert seen["release"]["status"] != 0
    assert "frozen until Monday" in seen["release"]["err"]
    refs = approvals_lab.refs()
    assert set(refs) == {"refs/heads/main", "refs/heads/topic"}
    assert refs["refs/heads/main"] == refs["refs/heads/topic"]


def test_every_step_is_recorded_once_in_a_verified_journal(attempts, approvals_lab):
    events = approvals_lab.events("approval.", "held")
    asked = [event for event in events if event["kind"] == "approval.asked"]
    answered = [event for event in events if event["kind"] == "approval.answered" and event["approval"].get("final")]
    assert len(asked) == len(answered) == 8
    assert len([event for event in events if event["kind"] == "approval.used"]) == 4
    decided = [event for event in approvals_lab.events("request.decided", "held") if event.get("approval")]
    assert {event["approval"]["id"] for event in decided} == {event["approval"]["id"] for event in asked}


def test_first_requests_are_printed_at_the_terminal_of_the_run(attempts, approvals_lab):
    told = re.findall(r"`exeat approvals show (\w+)`", approvals_lab.told)
    assert len(told) >= 5
    assert set(told) <= {event["approval"]["id"] for event in approvals_lab.events("approval.asked")}
    assert "exeat: approval requested: POST api.held.example:443/ask/approved (held:writing)" in approvals_lab.told


def test_held_attempts_send_nothing_before_their_answer(attempts, approvals_lab):
    paths = [request["target"] for request in attempts[2] if request["method"] == "POST"]
    assert [path for path in paths if path.startswith("/ask")] == ["/ask/approved"] * 2 + ["/ask/two"]
