"""The recorder: one event a decision, one closing event a connection, and an error when that can't be written."""

import errno
import subprocess
import sys

import pytest

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Component, Dns, Http, Kind, Tls
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from rules.attempt import Protocol
from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Verdict
from tests.support.telemetry_lab import (
    ALLOWED,
    AUDITED,
    CAUSE,
    DENIED,
    FAILED,
    FLAGGED,
    HOSTILE,
    REVISION,
    close,
    connect,
    recorder_lab,
)

ASKED = Decision(Verdict.ASK, Outcome.BLOCKED, Reason.APPROVAL_UNAVAILABLE, ("web:files",), REVISION)

# Each shape that a decision comes in: how it is told, and what must stand in its one line.
SHAPES = {
    "tls": (Kind.CONNECTION_DECIDED, ALLOWED, {"protocol": Protocol.TLS, "tls": Tls("a.example", ("h2",), "1.3")}),
    "tls without a name": (Kind.CONNECTION_DECIDED, DENIED, {"protocol": Protocol.TLS, "tls": Tls(), "name": None}),
    "http": (Kind.CONNECTION_DECIDED, ALLOWED, {"protocol": Protocol.HTTP, "port": 80}),
    "tcp to an address": (Kind.CONNECTION_DECIDED, DENIED, {"protocol": Protocol.TCP, "name": None, "port": 22}),
    "not told apart": (Kind.CONNECTION_DECIDED, DENIED, {"protocol": None}),
    "audited": (Kind.CONNECTION_DECIDED, AUDITED, {}),
    "asked": (Kind.CONNECTION_DECIDED, ASKED, {}),
    "failed": (Kind.CONNECTION_DECIDED, FAILED, {"address": None}),
    "request": (Kind.REQUEST_DECIDED, FLAGGED, {"http": Http("GET", "a.example", "/"), "cause": CAUSE}),
    "refused request": (Kind.REQUEST_DECIDED, DENIED, {"http": Http("PUT", "a.example", "/x"), "cause": CAUSE}),
    "query": (Kind.DNS_DECIDED, ALLOWED, {"protocol": Protocol.UDP, "dns": Dns("a.example", "A", ("198.18.0.1",))}),
    "refused query": (Kind.DNS_DECIDED, DENIED, {"protocol": Protocol.TCP, "dns": Dns("x.example", "TXT")}),
}


@pytest.mark.parametrize(("kind", "decision", "how"), SHAPES.values(), ids=SHAPES)
def test_each_decision_is_one_event(tmp_path, kind, decision, how):
    here = recorder_lab(tmp_path)
    wanted = {"name": "a.example", "address": "93.184.216.34", "port": 443, "protocol": Protocol.TLS, **how}
    event = here.recorder.decided(kind, decision, **wanted)
    [line] = here.lines()
    assert line["id"] == event
    assert line["kind"] == kind.value
    assert (line["verdict"], line["outcome"], line["reason"]) == (decision.verdict, decision.outcome, decision.reason)
    assert tuple(line.get("rules", ())) == decision.rules
    assert (line["revision"], line["mode"]) == (REVISION, "enforce")
    assert line["task"] == {"id": "t-1", "name": "migrate", "labels": {"team": "data"}}
    assert line["sandbox"] == "s-1"
    assert line["destination"].get("name") == wanted["name"]
    assert line["destination"].get("address") == wanted["address"]
    assert line["destination"]["port"] == wanted["port"]
    assert line.get("protocol") == wanted["protocol"]
    assert line.get("cause") == wanted.get("cause")
    assert [key for key in ("tls", "http", "dns") if key in line] == [
        key for key in ("tls", "http", "dns") if key in how
    ]
    assert here.metrics.decisions == {(kind, decision.verdict, decision.outcome, decision.reason): 1}
    assert here.metrics.events == {kind: 1}
    assert sum(here.metrics.rule_decisions.values()) == len(decision.rules)
    assert here.recorder.summary().counts == ((kind, decision.outcome, 1),)


def test_invalid_decision_is_not_recorded(tmp_path):
    here = recorder_lab(tmp_path)
    with pytest.raises(ValueError, match=r"task\.started"):
        here.recorder.decided(Kind.TASK_STARTED, ALLOWED, name=None, address=None, port=None, protocol=None)
    assert here.lines() == []


@pytest.mark.parametrize("decision", [ALLOWED, AUDITED])
def test_allowed_connection_has_one_close_event(tmp_path, decision):
    here = recorder_lab(tmp_path)
    cause = connect(here.recorder, decision)
    assert here.metrics.connections_open == 1
    close(here.recorder, cause, up=3, down=5)
    close(here.recorder, cause, up=3, down=5)
    decided, closed = here.lines()
    assert decided["id"] == closed["cause"] == cause
    assert closed["kind"] == "connection.closed"
    assert closed["bytes"] == {"up": 3, "down": 5}
    assert closed["duration"] == 0.5
    assert here.metrics.connections_open == 0
    assert (here.metrics.bytes_up, here.metrics.bytes_down) == (3, 5)
    assert sum(here.metrics.connection_seconds.counts) == 1


@pytest.mark.parametrize("decision", [DENIED, ASKED, FAILED])
def test_denied_connection_has_no_close_event(tmp_path, decision):
    here = recorder_lab(tmp_path)
    close(here.recorder, connect(here.recorder, decision))
    close(here.recorder, "never told")
    assert [line["kind"] for line in here.lines()] == ["connection.decided"]
    assert here.metrics.connections_open == 0


def test_connection_cut_short_has_a_reason(tmp_path):
    here = recorder_lab(tmp_path)
    here.recorder.closed(
        connect(here.recorder),
        name=None,
        address="93.184.216.34",
        port=443,
        protocol=Protocol.TLS,
        up=1,
        down=0,
        seconds=1.0,
        outcome=Outcome.FAILED,
        reason=Reason.UPSTREAM_FAILED,
    )
    assert (here.lines()[1]["outcome"], here.lines()[1]["reason"]) == ("failed", "upstream_failed")


def test_completed_request_has_its_status_and_counts_bytes_once(tmp_path):
    here = recorder_lab(tmp_path)
    here.recorder.completed(
        CAUSE,
        name="a.example",
        address=None,
        port=443,
        protocol=Protocol.TLS,
        http=Http("GET", "a.example", "/x?secret", 200),
        up=1,
        down=2,
        seconds=0.1,
    )
    [line] = here.lines()
    assert line["http"] == {"method": "GET", "host": "a.example", "path": "/x", "status": 200}
    assert line["cause"] == CAUSE
    assert (here.metrics.bytes_up, here.metrics.bytes_down) == (0, 0)


def test_unwritable_event_blocks_its_attempt_only(tmp_path, monkeypatch):
    here = recorder_lab(tmp_path)
    before = connect(here.recorder)

    def full(_line, _now):
        raise JournalWriteError(errno.ENOSPC, "no room")

    with monkeypatch.context() as broken:
        broken.setattr(type(here.recorder.journal), "append", lambda _self, line, now: full(line, now))
        for _ in range(2):
            with pytest.raises(JournalWriteError):
                connect(here.recorder)
            assert here.recorder.failed
        close(here.recorder, before)
        here.recorder.error("dial", "x")
        here.recorder.task_ended(CAUSE, seconds=1.0, status=0)
        here.recorder.rules_loaded()
        here.recorder.rules_rejected(["a"])
        with pytest.raises(JournalWriteError):
            here.recorder.task_started(["true"])
    denied = (Kind.CONNECTION_DECIDED, Verdict.DENY, Outcome.BLOCKED, Reason.JOURNAL_FAILED)
    assert here.metrics.decisions[denied] == 2
    assert here.metrics.events_dropped == 8
    assert here.metrics.gate_errors == {Component.JOURNAL: 8, Component.DIAL: 1}
    assert here.metrics.connections_open == 0
    connect(here.recorder)
    assert not here.recorder.failed
    assert [line["kind"] for line in here.lines()] == ["connection.decided", "connection.decided"]


@pytest.mark.parametrize("detail", HOSTILE.values(), ids=HOSTILE)
def test_any_error_text_is_recorded(tmp_path, detail):
    here = recorder_lab(tmp_path)
    here.recorder.error(Component.PEEK, detail, cause=CAUSE)
    here.recorder.error(detail, detail)
    first, second = here.lines()
    assert (first["fault"]["where"], first["cause"]) == ("peek", CAUSE)
    assert second["fault"]["where"] == "other"
    assert here.metrics.gate_errors == {Component.PEEK: 1, Component.OTHER: 1}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_are_recorded_in_one_line(tmp_path, text):
    here = recorder_lab(tmp_path, task=text, name=text)
    here.recorder.decided(
        Kind.REQUEST_DECIDED,
        DENIED,
        name=text,
        address=text,
        port=443,
        protocol=Protocol.TLS,
        tls=Tls(text, (text,), text),
        http=Http(text, text, text),
        dns=Dns(text, text, (text,)),
        cause=CAUSE,
    )
    assert len(here.lines()) == 1


def test_task_is_recorded_from_start_to_end_without_secrets(tmp_path):
    here = recorder_lab(tmp_path)
    cause = here.recorder.task_started(["curl", "-u", "me:hunter2", "https://host/"])
    here.recorder.task_ended(cause, seconds=2.5, status=3)
    here.recorder.task_ended(cause, seconds=2.5, signal=9)
    here.recorder.task_ended(None, seconds=0.0, outcome=Outcome.FAILED)
    started, *ended = here.lines()
    assert started["argv"] == ["curl", "-u", "me:***", "https://host/"]
    assert [line.get("ending") for line in ended] == [{"status": 3}, {"signal": 9}, None]
    assert [line["outcome"] for line in ended] == ["passed", "passed", "failed"]
    assert [line.get("cause") for line in ended] == [cause, cause, None]
    assert here.metrics.tasks == {"passed": 2, "failed": 1}


def test_applied_and_rejected_rules_are_recorded(tmp_path):
    here = recorder_lab(tmp_path)
    here.recorder.rules_loaded()
    here.recorder.rules_rejected(["web.yaml:3:1: `actoin` is not a key of a rule"])
    loaded, rejected = here.lines()
    assert loaded["revision"] == rejected["revision"] == REVISION
    assert loaded["sources"] == ["/rules/web.yaml"]
    assert rejected["problems"] == ["web.yaml:3:1: `actoin` is not a key of a rule"]
    assert here.metrics.rules_loads == {"loaded": 1, "rejected": 1}
    assert not here.metrics.rules_valid
    assert here.metrics.rules_loaded_at is not None


def test_two_tasks_in_one_process_are_never_confused(tmp_path):
    first, second = recorder_lab(tmp_path, task="t-1"), recorder_lab(tmp_path, task="t-2")
    for _ in range(3):
        connect(first.recorder)
        connect(second.recorder)
    ids = {}
    for line in first.lines():
        ids.setdefault(line["task"]["id"], []).append(line["id"])
    assert {task: len(events) for task, events in ids.items()} == {"t-1": 3, "t-2": 3}
    assert len({event for events in ids.values() for event in events}) == 6


def test_recording_imports_nothing_heavy():
    heavy = ("asyncio", "prometheus_client", "mitmproxy", "dns", "pyroute2", "asyncpg", "yaml")
    program = (
        "import sys, proxy.sandbox.recorder, proxy.telemetry.prometheus.metrics, proxy.telemetry.summary\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_cached_parts_of_a_line_follow_their_values(tmp_path):
    """What is kept between events is keyed by value: a new revision or another rule is never told as the old one."""
    here = recorder_lab(tmp_path)
    connect(here.recorder, ALLOWED)
    connect(here.recorder, FLAGGED)
    connect(here.recorder, Decision(Verdict.ALLOW, Outcome.PASSED, Reason.RULE, ("web:pages",), "ff" * 32))
    assert [(line["verdict"], line["revision"][:2]) for line in here.lines()] == [
        ("allow", "0f"),
        ("flag", "0f"),
        ("allow", "ff"),
    ]
    assert encode.__module__ == "proxy.telemetry.encoding"


@pytest.mark.parametrize("part", ["encode", "append"])
def test_error_while_recording_counts_as_a_lost_event(tmp_path, monkeypatch, part):
    here = recorder_lab(tmp_path)

    def broken(*_):
        raise ZeroDivisionError

    if part == "encode":
        monkeypatch.setattr("proxy.sandbox.recorder.encode", broken)
    else:
        monkeypatch.setattr(Journal, "append", broken)
    with pytest.raises(JournalWriteError, match="ZeroDivisionError"):
        here.recorder.task_started(["true"])
    here.recorder.error("relay", "never raises")
    assert here.recorder.failed
    assert here.metrics.events_dropped == 2


def test_decision_names_its_approval(tmp_path):
    here = recorder_lab(tmp_path)
    connect(here.recorder, approval="k3x9abcd")
    connect(here.recorder)
    with_id, without = here.lines()
    assert with_id["kind"] == Kind.CONNECTION_DECIDED
    assert with_id["approval"] == {"id": "k3x9abcd"}
    assert "approval" not in without
