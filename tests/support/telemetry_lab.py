"""Lab for telemetry: a recorder on a real journal, decisions of every verdict, hostile texts, and full events."""

import json
import shutil
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, cast

from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.events import (
    Agent,
    Anomaly,
    Answer,
    Approval,
    Component,
    Destination,
    Dns,
    Ending,
    Event,
    Fault,
    Git,
    Http,
    Kind,
    Mark,
    Origin,
    Process,
    StartedBy,
    Tls,
    Transferred,
)
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.attempt import Protocol
from rules.decision import Decision
from rules.verdicts import Mode, OnJournalFailure, Outcome, Reason, Verdict
from tests.support.harness import missing

if TYPE_CHECKING:
    from pathlib import Path

    from rules.matching.policy import Policy

REVISION = "0f" * 32
ORIGIN = Origin.of("t-1", "migrate", {"team": "data"}, "s-1", "host.example")
ALLOWED = Decision(Verdict.ALLOW, Outcome.PASSED, Reason.RULE, ("web:pages",), REVISION)
DENIED = Decision(Verdict.DENY, Outcome.BLOCKED, Reason.NO_RULE, (), REVISION)
FLAGGED = Decision(Verdict.FLAG, Outcome.PASSED, Reason.RULE, ("web:files", "web:pages"), REVISION)
AUDITED = Decision(Verdict.DENY, Outcome.WOULD_BLOCK, Reason.NO_RULE, (), REVISION)
FAILED = Decision(Verdict.ALLOW, Outcome.FAILED, Reason.UNRESOLVED, ("web:pages",), REVISION)
CAUSE = "01a1fbac-5503-7e75-bce9-8bc86d516a2a"

# Texts that a hostile sandbox may choose.
HOSTILE = {
    "ansi": "\x1b[2J\x1b]0;owned\x07evil",
    "crlf": 'a\r\n{"kind":"task.started"}\n',
    "quotes": '","verdict":"allow","x":"\\',
    "nul": "a\0b",
    "del": "a\x7fb",
    "c1": "a\x9bmb\x85c",
    "line separators": "a\u2028b\u2029c",
    "right to left": "\u202egpj.exe\u2066\u200f",
    "invisible": "a\u200b\ufeff\u3164\u2800b",
    "piled marks": "a" + "\u0301" * 50,
    "astral": "\U0001f4a9\U000e0041",
    "not utf-8": b"a\xff\xfe\x80".decode("utf-8", "surrogateescape"),
    "lone surrogate": "a\ud800b\udfff",
    "long": "a" * 10_240,
    "long and wide": "\U0001f4a9" * 10_240,
    "label": 'a"} 1\nexeat_rules_valid{x="',
    "empty": "",
}


@dataclass(frozen=True)
class FakeSettings:
    mode: Mode = Mode.ENFORCE
    on_journal_failure: OnJournalFailure = OnJournalFailure.BLOCK


@dataclass(frozen=True)
class FakeNeeds:
    """The needs of a policy that telemetry reads."""

    endings: tuple[date, ...] = ()


@dataclass(frozen=True)
class FakePolicy:
    """The part of a policy that telemetry reads."""

    revision: str = REVISION
    settings: FakeSettings = FakeSettings()
    sources: tuple[str, ...] = ("/rules/web.yaml",)
    rule_ids: tuple[str, ...] = ("web:pages", "web:files")
    needs: FakeNeeds = FakeNeeds()


@dataclass(frozen=True)
class RecorderLab:
    directory: "Path"
    metrics: Metrics
    recorder: Recorder

    def lines(self) -> list[dict[str, Any]]:
        segments = sorted(self.directory.glob("*/*.jsonl"))
        reported = [json.loads(line) for segment in segments for line in segment.read_bytes().splitlines()]
        return [event for event in reported if not event["kind"].startswith("journal.")]


def recorder_lab(directory: "Path", task: str = "t-1", name: str = "migrate") -> RecorderLab:
    metrics = Metrics()
    sandbox = SandboxState("s-1", Task(task, name, {"team": "data"}), cast("Policy", FakePolicy()))
    return RecorderLab(directory, metrics, Recorder(sandbox, Journal(directory), metrics))


def connect(recorder: Recorder, decision: Decision = ALLOWED, **more: Any) -> str:
    """Record a decided connection to the default destination."""
    expected: dict[str, Any] = {
        "name": "www.example.com",
        "address": "93.184.216.34",
        "port": 443,
        "protocol": Protocol.TLS,
    }
    return recorder.decided(Kind.CONNECTION_DECIDED, decision, **{**expected, **more})


def close(recorder: Recorder, cause: str, up: int = 10, down: int = 20, **more: Any) -> None:
    recorder.closed(
        cause,
        name="www.example.com",
        address="93.184.216.34",
        port=443,
        protocol=Protocol.TLS,
        up=up,
        down=down,
        seconds=0.5,
        **more,
    )


def full_event(kind: Kind, text: str = "text", time: int = 1_795_000_000_123_456_789) -> Event:
    """Return an event with every field, and `text` wherever a sandbox or an admin chooses the text."""
    return Event(
        time=time,
        id="01a1fbac-5503-76e9-a59b-c45e38a868d4",
        kind=kind,
        **Origin.of(text, text, {text: text}, text, text)._asdict(),
        verdict=Verdict.FLAG,
        outcome=Outcome.WOULD_BLOCK,
        reason=Reason.DEFAULT_RULE,
        rules=(text, "web:pages"),
        revision=REVISION,
        mode=Mode.AUDIT,
        cause="01a1fbac-5503-7e75-bce9-8bc86d516a2a",
        process=Process(7, text, (text,), 1000, (text,), (6,), 0),
        destination=Destination(text, text, 443, text),
        protocol=Protocol.TLS,
        tls=Tls(text, (text, "h2"), text, ech=True, ja4=text),
        http=Http(text, text, text, 200, body=True, websocket=True, query=7, pattern=True),
        dns=Dns(text, text, (text,)),
        bytes=Transferred(1, 2**40),
        duration=0.25,
        argv=(text,),
        call=text,
        ending=Ending(3, 9),
        previous=REVISION,
        sources=(text,),
        problems=(text,),
        fault=Fault(Component.DIAL, text),
        detail=text,
        by=text,
        paths=(text,),
        agent=Agent(text, text, text, text, text, text, 7, {text: text}),
        journal=Mark(text, 7, text, closed=True, format=1, writer=7, after=text, follows=text, key=text),
        approval=Approval(
            text, text, (text,), Answer.REJECTED, True, text, (text,), text, 1, 2, 3, agent=True, joined=True
        ),
        unusual=Anomaly(text, 7, 3, 5),
        git=Git(text, text, (text,)),
        started_by=StartedBy(1000, text),
        workspace=text,
    )


def find_program(tool: str) -> str:
    """Return the path of a program. Without it the test is skipped, or fails where all tools are required."""
    path = shutil.which(tool)
    if path is None:
        missing(tool)
    return path
