"""What is told of questions to people: each step once, before it counts where something depends on it."""

import json

import pytest
from telemetry_harness import HOSTILE, ORIGIN, REVISION, connect, rig

from proxy.telemetry.approving import ApprovalRecorder, Grant, Subject
from proxy.telemetry.decoding import decode
from proxy.telemetry.events import Answer, Destination, Http, Kind, Process
from proxy.telemetry.journal.writer import Journal, JournalFailed
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.sayings import what
from rules.attempt import Protocol
from tests import event_schema

ID = "k3x9abcd"
SUBJECT = Subject(
    "request",
    ("web:api",),
    REVISION,
    Destination("api.example", None, 443),
    Protocol.TLS,
    Http("POST", "api.example", "/v1/things"),
    process=Process(7, "/usr/bin/curl"),
    cause="01a1fbac-5503-7e75-bce9-8bc86d516a2a",
)
GRANT = Grant(("g1",), "destination", 3, None, 1_795_003_600)
STEPS = {
    "asked": (lambda to: to.asked(ID, SUBJECT, why="writes there"), "asked for POST https://api.example/v1/things: writes there"),
    "asked by the task": (lambda to: to.asked(ID, SUBJECT, why="I need it", agent=True, joined=True), "the task asks again for"),
    "seen": (lambda to: to.seen(ID, SUBJECT, "ada"), "seen by ada"),
    "one of two": (lambda to: to.answered(ID, SUBJECT, Answer.APPROVED, ["ada"]), "and more have to say so, by ada"),
    "approved": (
        lambda to: to.answered(ID, SUBJECT, Answer.APPROVED, ["ada", "bo"], final=True, grant=GRANT),
        "(this destination, 3 uses, until 2026-11-18T12:06:40Z) by ada, bo",
    ),
    "rejected": (lambda to: to.answered(ID, SUBJECT, Answer.REJECTED, ["ada"], final=True, why="no"), "rejected for POST"),
    "expired": (lambda to: to.expired(ID, SUBJECT), "expired for POST"),
    "used": (lambda to: to.used(ID, SUBJECT, Grant(("g1",), uses=2)), "used for POST https://api.example/v1/things (2 uses left)"),
    "flood": (lambda to: to.refused("", SUBJECT, answer=Answer.FLOOD), "no approval refused for POST https://api.example/v1/things (flood)"),
    "forged": (lambda to: to.refused(ID, SUBJECT, by="mallory", detail="the token is not theirs"), "by mallory: the token"),
    "stale": (lambda to: to.stale(ID, SUBJECT), "is stale: nothing waits any more"),
    "tainted": (lambda to: to.tainted("web:issues", Destination("issues.example", None, 443), SUBJECT.cause), "read from issues.example:443"),
}  # fmt: skip


@pytest.mark.parametrize(("step", "said"), STEPS.values(), ids=STEPS)
def test_each_step_is_one_event_as_documented_and_says_what_it_is(tmp_path, step, said):
    metrics = Metrics()
    step(ApprovalRecorder(ORIGIN, Journal(tmp_path), metrics))
    (segment,) = tmp_path.glob("*/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2  # the journal's own first
    event_schema.hold([json.loads(line) for line in lines])
    event = decode(lines[1])
    assert said in what(event)
    assert (event.task, event.sandbox, event.host) == ORIGIN
    assert event.rules
    assert metrics.events == {event.kind: 1}


def test_what_depends_on_being_told_raises_and_the_rest_is_counted(tmp_path):
    metrics = Metrics()
    journal = Journal(tmp_path)
    journal.close()
    here = ApprovalRecorder(ORIGIN, journal, metrics)
    must = ("asked", "one of two", "approved", "rejected", "used", "tainted")
    for name, (step, _said) in STEPS.items():
        if name in must or name == "asked by the task":
            with pytest.raises(JournalFailed):
                step(here)
        else:
            step(here)
    assert metrics.events_dropped == len(STEPS)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_that_a_task_or_an_approver_says_breaks_a_line(tmp_path, text):
    here = ApprovalRecorder(ORIGIN, Journal(tmp_path))
    here.answered(text, SUBJECT, Answer.REJECTED, [text], why=text, detail=text, grant=Grant((text,), text))
    (segment,) = tmp_path.glob("*/*.jsonl")
    lines = segment.read_bytes().splitlines()
    assert len(lines) == 2
    assert lines[1].decode("ascii").isprintable()
    assert event_schema.problem(json.loads(lines[1])) == ""


def test_a_decision_names_what_it_waited_for(tmp_path):
    here = rig(tmp_path)
    connect(here.recorder, approval=ID)
    connect(here.recorder)
    with_id, without = here.lines()
    assert with_id["kind"] == Kind.CONNECTION_DECIDED
    assert with_id["approval"] == {"id": ID}
    assert "approval" not in without
