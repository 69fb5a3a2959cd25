"""What worker and registry say to each other arrives as it was meant, or not at all."""

import json

import pytest

from proxy.approvals import protocol
from proxy.approvals.approval_request import MalformedMessageError
from rules.verdicts import Reason, Verdict
from tests.proxy.approvals.sample_requests import PUSH, REQUEST, SOURCE

WORDS = (
    protocol.Hello(),
    protocol.Submit(3, PUSH),
    protocol.Withdraw(3),
    protocol.Tainted(SOURCE),
    protocol.BytesUsed("g1", 512),
    protocol.PreRequest(
        4,
        protocol.EvaluatedAttempt(REQUEST, Verdict.ASK, Reason.APPROVAL_UNAVAILABLE, ("web:ask",)),
        "to fix the build",
    ),
    protocol.PreRequest(5, protocol.EvaluatedAttempt(REQUEST._replace(rules=()), Verdict.DENY, Reason.NO_RULE)),
    protocol.StatusQuery(6, "abcd2345"),
    protocol.StatusQuery(7, ""),
)
REPLIES = (
    protocol.TaskState(protocol.TaskTaint(tainted=False)),
    protocol.TaskState(protocol.TaskTaint(tainted=True, tainted_by=(SOURCE,))),
    protocol.Pending(3, "abcd2345", 1.5),
    protocol.Answer(3, protocol.Result.DENIED, "abcd2345", ("ada",), "not today"),
    protocol.Answer(
        3, protocol.Result.GRANTED, "abcd2345", ("ada",), grants=(protocol.Granted("web:ask", "d3", "g1", 100),)
    ),
    protocol.GrantsEnded(("g1", "g2")),
    protocol.StatusReply(4, protocol.RequestState(protocol.RequestStatus.PENDING, "abcd2345", "GET x", until=9.0)),
)
INTRODUCTION = protocol.Introduction("s1", "t1", "fix", {"team": "web"}, 1000, "host", ("web.yaml",), "/src")


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_worker_messages_survive_a_round_trip(word):
    assert protocol.read_worker_message(json.loads(json.dumps(word.packed()))) == word


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_registry_replies_survive_a_round_trip(reply):
    assert protocol.read_registry_message(json.loads(json.dumps(reply.packed()))) == reply


def test_introduction_survives_a_round_trip():
    assert protocol.read_introduction(json.loads(json.dumps(INTRODUCTION.packed()))) == INTRODUCTION


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "answer", "number": 1, "result": "denied"},
        {"type": "hello", "version": 1},
        {"type": "hello", "version": protocol.VERSION, "more": 1},
        {"type": 1},
        {"type": "drop"},
        {"type": "drop", "number": -1},
        {"type": "drop", "number": True},
        {"type": "drop", "number": 1.0},
        {"type": "look", "number": 1, "id": "x" * 65},
        {"type": "used", "grant": "", "bytes": 1},
        {"type": "used", "grant": "g", "bytes": -1},
        {"type": "tainted", "source": {}},
        {"type": "ask", "number": 1, "question": REQUEST._replace(rules=()).packed()},
        {**WORDS[5].packed(), "why": "x" * 2001},
        protocol.PreRequest(4, protocol.EvaluatedAttempt(REQUEST, Verdict.DENY, Reason.RULE)).packed(),
        protocol.PreRequest(
            4, protocol.EvaluatedAttempt(REQUEST._replace(rules=()), Verdict.ASK, Reason.RULE)
        ).packed(),
    ],
    ids=lambda message: json.dumps(message)[:40],
)
def test_malformed_worker_messages_are_refused(message):
    with pytest.raises(MalformedMessageError):
        protocol.read_worker_message(message)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "hello", "version": protocol.VERSION},
        {"type": "state", "done": {"tainted": None}},
        {"type": "state", "done": {"tainted": False, "tainted_by": [SOURCE.packed()]}},
        {"type": "pending", "number": 1, "approval": "a", "until": float("nan")},
        {"type": "pending", "number": 1, "approval": "a", "until": -1},
        {"type": "pending", "number": 1, "approval": "", "until": 1},
        {"type": "answer", "number": 1, "result": "maybe"},
        {"type": "answer", "number": 1, "result": "granted"},
        {**REPLIES[4].packed(), "result": "denied"},
        {"type": "over", "grants": "g1"},
        {"type": "seen", "number": 1},
    ],
    ids=lambda message: json.dumps(message)[:50],
)
def test_malformed_registry_replies_are_refused(message):
    with pytest.raises(MalformedMessageError):
        protocol.read_registry_message(message)
