"""Timeline of a task's events, a line each: attempt, rules considered, outcome, reason.

All text of a task is escaped (`visible`).
"""

from typing import TYPE_CHECKING

from proxy.telemetry.descriptions import describe
from proxy.telemetry.encoding import timestamp
from proxy.telemetry.events import DECISIONS, Kind
from proxy.telemetry.visible import unpadded, visible
from rules.explain.reasons import REASONS
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.telemetry.events import Event

_OUTCOME_PHRASES = {
    Outcome.PASSED: "allowed",
    Outcome.BLOCKED: "blocked",
    Outcome.WOULD_BLOCK: "allowed only because of `mode: audit`",
    Outcome.FAILED: "allowed by the rules, then it failed",
}
_LATER_APPROVAL = {  # kinds with the verdict `ask` that continue: a later attempt is held instead
    Kind.DNS_DECIDED: "not the lookup: what is sent to that name is held for approval",
    Kind.CONNECTION_DECIDED: "not the connection: each request on it is held for approval",
}


def timeline_of(events: "Iterable[Event]") -> "Iterator[str]":
    """Yield the lines of a task's timeline. `events` are those of one task, in order."""
    start = None
    attempts = blocked = 0
    for event in events:
        if start is None:
            start = event.time
            yield _format_header(event)
        if event.kind in DECISIONS:
            attempts += 1
            blocked += event.outcome is Outcome.BLOCKED
        since = (event.time - start) / 1e9
        yield f"{since:>9.3f} s  {_format_event(event)}"
        yield from (f"{'':>13}{line}" for line in _explain_decision(event))
    if start is not None:
        yield f"In all {attempts} attempts, {blocked} of them blocked."


def _format_header(event: "Event") -> str:
    task = event.task
    name = f"`{visible(task.name)}`, " if task.name else ""
    host = f" on {visible(event.host)}" if event.host else ""
    labels = "".join(f", {visible(key)}={visible(value)}" for key, value in task.labels.items())
    return f"Task {name}{visible(task.id)}{host}{labels}, from {timestamp(event.time)[:19]}Z."


def _format_event(event: "Event") -> str:
    process = f"{event.process.exe} ({event.process.pid}): " if event.process is not None else ""
    outcome = ""
    if event.kind in DECISIONS or event.kind is Kind.SECRET_DETECTED:
        outcome = f": {_OUTCOME_PHRASES[event.outcome]}" if event.outcome is not None else ""
    return f"{unpadded(visible(f'{process}{describe(event)}'))}{outcome}"


def _explain_decision(event: "Event") -> "Iterator[str]":
    """Yield the facts behind a decision: TLS, process, approval, rules, reason and mode."""
    if event.kind not in DECISIONS:
        if event.reason is not None:
            yield f"why: {event.reason}, {REASONS[event.reason].meaning}"
        return
    if event.tls is not None:
        offered = f", offering {visible(' '.join(event.tls.alpn))}" if event.tls.alpn else ""
        hidden = ", with its name hidden" if event.tls.ech else ""
        yield f"seen: TLS for {visible(event.tls.sni or 'no name')}{offered}{hidden}"
    if event.process is not None and event.process.ancestors:
        yield f"who: started by {visible(' < '.join(event.process.ancestors))}"
    if held := _describe_hold(event):
        yield f"held: {held}"
    if event.rules:
        yield f"rules: {visible(', '.join(event.rules))} say {event.verdict}"
    if event.reason is not None and event.reason is not Reason.RULE:
        yield f"why: {event.reason}, {REASONS[event.reason].meaning}"
    if event.mode is Mode.AUDIT:
        yield "mode: audit, which allows what no rule decides"


def _describe_hold(event: "Event") -> str:
    """Return how an approval affected the attempt; empty if there was none."""
    if event.approval is not None:
        return f"for approval, as {visible(event.approval.id)}"
    if event.verdict is Verdict.ASK:
        return _LATER_APPROVAL.get(event.kind, "")
    return "no, flagged for review" if event.verdict is Verdict.FLAG else ""
