"""`exeat run` with rules that ask: real clients in real sandboxes, people who watch and answer with the commands for it."""

import json
import re

import pytest

pytestmark = pytest.mark.timeout(300)


def test_what_is_approved_passes_once_and_what_is_rejected_says_why(tried):
    seen, said, _ = tried
    assert seen["free"]["out"].endswith("200")
    assert seen["approved"]["out"].endswith("200")
    assert seen["again"]["out"].endswith("200")  # asked about and approved again: a grant is for once
    assert len(said["/ask/approved"]) == 2
    refused = seen["rejected"]["out"]
    assert refused.endswith("403")
    page = json.loads(refused.removesuffix("403"))
    assert (page["reason"], page["detail"]) == ("approval_denied", "not on a Friday")


def test_two_have_to_say_so_and_nobody_twice(tried):
    seen, said, _ = tried
    assert seen["two"]["out"].endswith("200")
    first, again, second = said["/ask/two"]
    assert (first[0], again[0], second[0]) == (True, False, True)
    assert "1 more for held:by-two by dba" in first[1]
    assert "a second vote does not count" in again[1]


def test_a_token_that_is_forged_answers_nothing(tried, here):
    seen, said, _ = tried
    forged, rejected = said["/ask/forged"]
    assert forged == (False, "this token is nobody's")
    assert rejected[0]
    assert seen["forged"]["out"].endswith("403")
    assert any("a token that is nobody's" in event.get("detail", "") for event in here.events("approval.refused"))


def test_git_pushes_flow_wait_and_are_refused_in_git_s_own_words(tried, here):
    seen, said, _ = tried
    assert seen["clone"]["status"] == 0, seen["clone"]
    assert seen["branch"]["status"] == 0, seen["branch"]
    assert seen["both"]["status"] != 0  # neither ref moved, though one of them needs nobody
    assert "one at a time" in seen["both"]["err"]
    assert seen["main"]["status"] == 0, seen["main"]
    assert len(said["refs/heads/main"]) == 1
    assert seen["release"]["status"] != 0
    assert "frozen until Monday" in seen["release"]["err"]
    refs = here.refs()
    assert set(refs) == {"refs/heads/main", "refs/heads/topic"}
    assert refs["refs/heads/main"] == refs["refs/heads/topic"]


def test_every_step_is_told_once_and_the_journal_is_whole(tried, here):
    events = here.events("approval.", "held")
    asked = [event for event in events if event["kind"] == "approval.asked"]
    answered = [event for event in events if event["kind"] == "approval.answered" and event["approval"].get("final")]
    assert len(asked) == len(answered) == 8
    assert len([event for event in events if event["kind"] == "approval.used"]) == 4
    decided = [event for event in here.events("request.decided", "held") if event.get("approval")]
    assert {event["approval"]["id"] for event in decided} == {event["approval"]["id"] for event in asked}


def test_the_first_questions_are_told_where_the_run_was_started(tried, here):
    told = re.findall(r"`exeat approvals show (\w+)`", here.told)
    assert len(told) >= 5
    assert set(told) <= {event["approval"]["id"] for event in here.events("approval.asked")}
    assert "exeat: somebody is asked to approve: POST api.held.example:443/ask/approved (held:writing)" in here.told


def test_nothing_that_was_held_left_before_it_was_answered(tried, here):
    paths = [request["target"] for request in tried[2] if request["method"] == "POST"]
    assert [path for path in paths if path.startswith("/ask")] == ["/ask/approved"] * 2 + ["/ask/two"]
