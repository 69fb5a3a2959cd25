"""What is recorded of approvals: each step once, before it counts where something depends on it."""

import json

import pytest

from proxy.approvals.approval_request import ApprovalRequest, Kind, Program, Source
from proxy.approvals.model import Approval, ApprovalState, Grant, PreRequestKind
from proxy.approvals.recording import ApprovalRecorder
from proxy.telemetry.descriptions import describe
from proxy.telemetry.encoding import decode
from proxy.telemetry.events import Answer
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from proxy.telemetry.prometheus.metrics import Metrics
from rules.decision import GrantScope
from tests.proxy.approvals.sample_requests import ANYONE, EVENT
from tests.support import event_schema
from tests.support.telemetry_lab import HOSTILE, ORIGIN, REVISION

ID = "k3x9abcd"
QUESTION = ApprovalRequest(
    Kind.REQUEST, "tls", "api.example", 443, "POST", "/v1/things", rules=(ANYONE._replace(why="writes there"),),
    revision=REVISION, event=EVENT, process=Program(7, "/usr/bin/curl"),
)  # fmt: skip
APPROVAL = Approval(
    ID, "t-1", ApprovalState.PENDING, PreRequestKind.NONE, "key", QUESTION, "", 1_795_000_000.0, 1_795_003_600.0
)
WISH = APPROVAL._replace(wish=PreRequestKind.ASKS, said="I need it")
GRANT = Grant(
    "g1",
    ID,
    "t-1",
    "web:ask",
    "d",
    GrantScope.DESTINATION,
    "k",
    3,
    None,
    1_795_003_600.0,
    cuts=True,
    made=1_795_000_000.0,
)
STEPS = {
    "asked": (lambda to: to.asked(APPROVAL, joined=False), "requested for POST https://api.example/v1/things: writes there"),
    "asked by the task": (lambda to: to.asked(WISH, joined=True), "requested by the task again for"),
    "seen": (lambda to: to.seen(APPROVAL, "ada"), "seen by ada"),
    "one of two": (lambda to: to.answered(APPROVAL, Answer.APPROVED, ["ada"]), "more approvals needed, by ada"),
    "approved": (
        lambda to: to.answered(APPROVAL, Answer.APPROVED, ["ada", "bo"], grants=[GRANT]),
        "(this destination, 3 uses, until 2026-11-18T12:06:40Z) by ada, bo",
    ),
    "rejected": (lambda to: to.answered(APPROVAL, Answer.REJECTED, ["ada"], "no", ()), "rejected for POST"),
    "expired": (lambda to: to.expired(ID, QUESTION, ""), "expired for POST"),
    "used": (lambda to: to.used(QUESTION, [GRANT._replace(uses=2)]), "used for POST https://api.example/v1/things"),
    "flood": (lambda to: to.refused("", QUESTION, "", answer=Answer.FLOOD), "no approval refused for POST https://api.example/v1/things (flood)"),
    "forged": (lambda to: to.refused(ID, QUESTION, "the token is not theirs", by="mallory"), "by mallory: the token"),
    "stale": (lambda to: to.stale(APPROVAL), "stale, its client left: "),
    "tainted": (lambda to: to.tainted(Source("web:issues", "issues.example:443", EVENT)), "reading from issues.example:443"),
}  # fmt: skip


@pytest.mark.parametrize(("step", "said"), STEPS.values(), ids=STEPS)
def test_each_step_is_recorded_as_one_documented_event(tmp_path, step, said):
    metrics = Metrics()
    step(ApprovalRecorder(ORIGIN, Journal(tmp_path), metrics))
    (segment,) = tmp_path.glob("*/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2  # the journal's own first
    event_schema.hold([json.loads(line) for line in lines])
    event = decode(lines[1])
    assert said in describe(event)
    assert (event.task, event.sandbox, event.host) == ORIGIN
    assert event.rules
    assert metrics.events == {event.kind: 1}


def test_unrecorded_grants_raise_and_other_lost_events_are_counted(tmp_path):
    metrics = Metrics()
    journal = Journal(tmp_path)
    journal.close()
    here = ApprovalRecorder(ORIGIN, journal, metrics)
    must = ("asked", "one of two", "approved", "rejected", "used", "tainted")
    for name, (step, _said) in STEPS.items():
        if name in must or name == "asked by the task":
            with pytest.raises(JournalWriteError):
                step(here)
        else:
            step(here)
    assert metrics.events_dropped == len(STEPS)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_of_a_task_or_approver_breaks_an_event_line(tmp_path, text):
    here = ApprovalRecorder(ORIGIN, Journal(tmp_path))
    asked = APPROVAL._replace(id=text, question=QUESTION._replace(path=text, method=text, argv=(text,), repo=text))
    here.answered(asked, Answer.REJECTED, [text], text, [GRANT._replace(id=text)], text)
    (segment,) = tmp_path.glob("*/*.jsonl")
    lines = segment.read_bytes().splitlines()
    assert len(lines) == 2
    assert lines[1].decode("ascii").isprintable()
    assert event_schema.problem(json.loads(lines[1])) == ""
