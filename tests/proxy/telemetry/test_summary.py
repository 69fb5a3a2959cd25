"""Summary of a run: each attempt once by its final outcome, in one packet."""

import pytest

from proxy.telemetry.events import Kind
from proxy.telemetry.summary import Summary
from rules.attempt import Protocol
from rules.verdicts import Outcome, Reason
from tests.support.telemetry_lab import ALLOWED, AUDITED, CAUSE, DENIED, FAILED, FLAGGED, close, connect, recorder_lab


def test_summary_counts_attempts_by_outcome(tmp_path):
    here = recorder_lab(tmp_path)
    assert here.recorder.summary().describe() == "it attempted nothing on the network"
    assert here.recorder.summary().is_empty
    connect(here.recorder)
    assert not here.recorder.summary().is_empty
    connect(here.recorder, AUDITED)
    connect(here.recorder, DENIED)
    connect(here.recorder, DENIED)
    here.recorder.decided(Kind.DNS_DECIDED, FAILED, name="a", address=None, port=53, protocol=Protocol.UDP)
    here.recorder.decided(Kind.REQUEST_DECIDED, FLAGGED, name="a", address=None, port=53, protocol=Protocol.TLS)
    here.recorder.error("dial", "not an attempt")
    summary = here.recorder.summary()
    assert summary.describe() == (
        "allowed 1 request, 1 connection; blocked 2 connections (www.example.com); only audited 1 connection; "
        "failed 1 lookup (a); 1 flagged (`exeat flagged`)"
    )
    assert Summary.decode(summary.encode()) == summary


def ask(recorder, decision=FLAGGED, name="a.example"):
    return recorder.decided(Kind.REQUEST_DECIDED, decision, name=name, address=None, port=443, protocol=Protocol.TLS)


def answer(recorder, cause, outcome, name="a.example", reason=None):
    recorder.completed(
        cause, name=name, address=None, port=443, protocol=Protocol.TLS, http=None, up=0, down=0, seconds=0.1,
        outcome=outcome, reason=reason,
    )  # fmt: skip


ENDS = {
    "passed": (FLAGGED, [Outcome.PASSED], "allowed 1 request"),
    "blocked": (FLAGGED, [Outcome.BLOCKED], "blocked 1 request (a.example)"),
    "failed": (FLAGGED, [Outcome.FAILED], "failed 1 request (a.example)"),
    "audited": (AUDITED, [Outcome.PASSED], "only audited 1 request"),
    "audited, then blocked": (AUDITED, [Outcome.BLOCKED], "blocked 1 request (a.example)"),
    "told twice": (FLAGGED, [Outcome.BLOCKED, Outcome.FAILED], "blocked 1 request (a.example)"),
    "refused": (DENIED, [Outcome.FAILED], "blocked 1 request (a.example)"),
}


@pytest.mark.parametrize(("decision", "ends", "said"), ENDS.values(), ids=ENDS)
def test_summary_counts_each_request_once_by_its_final_outcome(tmp_path, decision, ends, said):
    here = recorder_lab(tmp_path)
    cause = ask(here.recorder, decision)
    before = dict(here.metrics.decisions)
    for outcome in ends:
        answer(here.recorder, cause, outcome)
    flagged = "; 1 flagged (`exeat flagged`)" if decision is FLAGGED else ""
    assert here.recorder.summary().describe() == said + flagged
    assert here.metrics.decisions == before, "the decision was one, and stays it"
    assert [line["outcome"] for line in here.lines() if line["kind"] == "request.decided"] == [decision.outcome]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome.PASSED, "allowed 1 connection"),
        (Outcome.BLOCKED, "blocked 1 connection (www.example.com)"),
        (Outcome.FAILED, "failed 1 connection (www.example.com)"),
    ],
)
def test_summary_counts_each_connection_once_by_its_final_outcome(tmp_path, outcome, said):
    here = recorder_lab(tmp_path)
    cause = connect(here.recorder)
    close(here.recorder, cause, outcome=outcome)
    close(here.recorder, cause, outcome=Outcome.FAILED)
    assert here.recorder.summary().describe() == said


def test_summary_has_the_reason_of_a_block_after_an_allow(tmp_path):
    """A leak in a body, or a limit that a transfer reaches; without it no host's reason was given."""
    here = recorder_lab(tmp_path)
    asked = ask(here.recorder)
    answer(here.recorder, asked, Outcome.BLOCKED, reason=Reason.LEAK)
    close(here.recorder, connect(here.recorder), outcome=Outcome.BLOCKED, reason=Reason.LIMIT_EXCEEDED)
    [refused] = here.recorder.refused  # what `http://exeat.internal/why` lists, by the id that its page has
    assert (refused.id, refused.reason) == (asked, Reason.LEAK)
    summary = here.recorder.summary()
    assert dict(zip(summary.blocked_places.first, summary.blocked_for, strict=True)) == {
        "a.example": Reason.LEAK,
        "www.example.com": Reason.LIMIT_EXCEEDED,
    }


def test_summary_counts_leaks_and_tampering(tmp_path):
    here = recorder_lab(tmp_path)
    where = {"address": None, "port": 443}
    for name, blocked in (("a.example", False), ("b.example", False), ("b.example", False), ("c.example", True)):
        here.recorder.record_secret(
            CAUSE, "a key", rules=(), blocked=blocked, name=name, **where, protocol=Protocol.TLS, http=None
        )
    here.recorder.record_tampering(CAUSE, "a placeholder", name="d.example", **where)
    assert here.recorder.summary().describe() == "flagged 3 leaks (a.example, b.example); 1 misused placeholder"
    ask(here.recorder)
    here.recorder.record_tampering(CAUSE, "a placeholder", name="d.example", **where)
    summary = here.recorder.summary()
    said = (
        "allowed 1 request; 1 flagged (`exeat flagged`); flagged 3 leaks (a.example, b.example); 2 misused placeholders"
    )
    assert summary.describe() == said
    assert Summary.decode(summary.encode()) == summary


def test_summary_counts_flagged_attempts_listed_for_review(tmp_path):
    """A lookup isn't, and of a connection that is looked into each request is by itself."""
    here = recorder_lab(tmp_path)
    here.recorder.decided(Kind.DNS_DECIDED, FLAGGED, name="a", address=None, port=53, protocol=Protocol.UDP)
    connect(here.recorder, FLAGGED._replace(inspect=True))
    assert here.recorder.summary().flagged == 0
    connect(here.recorder, FLAGGED._replace(inspect=False))
    connect(here.recorder, FLAGGED._replace(outcome=Outcome.BLOCKED))
    ask(here.recorder)
    summary = here.recorder.summary()
    assert summary.describe().endswith("; 2 flagged (`exeat flagged`)")
    assert Summary.decode(summary.encode()) == summary


def test_summary_counts_approval_answers(tmp_path):
    here = recorder_lab(tmp_path)
    for reason in (Reason.APPROVAL_GRANTED, Reason.APPROVAL_DENIED, Reason.APPROVAL_DENIED, Reason.APPROVAL_FLOOD):
        granted = reason is Reason.APPROVAL_GRANTED
        connect(here.recorder, (ALLOWED if granted else DENIED)._replace(reason=reason), approval="k3x9abcd")
    connect(here.recorder, DENIED._replace(reason=Reason.APPROVAL_UNAVAILABLE))
    connect(here.recorder, DENIED._replace(reason=Reason.UNRESOLVED), approval="k3x9abce")  # it was let go, and failed
    summary = here.recorder.summary()
    assert summary.describe() == (
        "allowed 1 connection; blocked 5 connections (www.example.com); 5 held: 2 approved, 2 refused, 1 ended otherwise"
    )
    assert Summary.decode(summary.encode()) == summary


def test_largest_summary_fits_its_packet(tmp_path):
    here = recorder_lab(tmp_path)
    for number in range(5):
        name = f"{number}" + "\U0001f4a9" * 5000
        for kind in (DENIED, FAILED):
            connect(here.recorder, kind, name=name)
        here.recorder.record_secret(
            CAUSE, "a key", rules=(), blocked=False, name=name, address=None, port=1, protocol=Protocol.TLS, http=None
        )
    summary = here.recorder.summary()
    assert len(summary.encode()) < 16384
    assert Summary.decode(summary.encode()) == summary


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["a.example"], "blocked 1 connection (a.example)"),
        (["a.example"] * 4, "blocked 4 connections (a.example)"),
        (["a", "b", "c"], "blocked 3 connections (a, b, c)"),
        (["a", "b", "c", "d", "e"], "blocked 5 connections (a, b, c and 2 more)"),
        (["a\x1b[2J\nb"], r"blocked 1 connection (a\x1b[2J\x0ab)"),
        (["x" * 5000], f"blocked 1 connection (…{'x' * 59})"),
        (["www.good.example." + "x." * 100 + "evil.example"], f"blocked 1 connection (….{'x.' * 23}evil.example)"),
        ([str(number) for number in range(1500)], "blocked 1500 connections (0, 1, 2 and 997 or more)"),
    ],
)
def test_summary_names_blocked_hosts(tmp_path, places, said):
    here = recorder_lab(tmp_path)
    for place in places:
        connect(here.recorder, DENIED, name=place)
    summary = here.recorder.summary()
    assert summary.describe() == said
    assert len(summary.encode()) < 4096, "fits the packet that it is sent in, whatever a task tried"
    assert Summary.decode(summary.encode()) == summary


@pytest.mark.parametrize(
    "encoded",
    [b"", b"5", b"[1]", b'{"more":1}', b'{"counts":[["no.such","passed",1]]}', b'{"counts":[["dns.decided","passed","x"]]}',
     b'{"counts":[["dns.decided","passed"]]}', b'{"blocked_places":5}', b'{"leaked_places":[[],"x"]}',
     b'{"leaked_places":[[1],0]}', b'{"leaks":NaN}', b'{"leaks":1e99}', b'{"held":[]}', b'{"held":{"x":1}}',
     b'{"held":{"leak":-0.5}}', b'{"blocked_for":["x"]}', b'{"calls":"x"}'],
)  # fmt: skip
def test_malformed_summary_is_refused(encoded):
    with pytest.raises(ValueError):
        Summary.decode(encoded)
