"""Timeline of a task's events, a line each: attempt, rules considered, outcome, reason.

Nothing of a task's own text is printed otherwise than spelled out (`visible`).
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
    Outcome.PASSED: "it was let out",
    Outcome.BLOCKED: "it was not let out",
    Outcome.WOULD_BLOCK: "it was let out, and would not have been but for `mode: audit`",
    Outcome.FAILED: "the rules let it out, and then it failed",
}
_LATER_APPROVAL = {  # what has the verdict `ask` and goes on: nobody is asked about it itself
    Kind.DNS_DECIDED: "not the lookup: people are asked about what is sent to that name",
    Kind.CONNECTION_DECIDED: "not the connection: people are asked about each request on it",
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
        yield f"In all {attempts} attempts, {blocked} of them not let out."


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
    """Yield what was looked at and what it came to, of what was decided."""
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
        yield "mode: audit, which lets out what no rule decides"


def _describe_hold(event: "Event") -> str:
    """Say what waited for people, or will; nothing where nobody has to do with it."""
    if event.approval is not None:
        return f"people were asked about it, as approval {visible(event.approval.id)}"
    if event.verdict is Verdict.ASK:
        return _LATER_APPROVAL.get(event.kind, "")
    return "no, it is put up for review" if event.verdict is Verdict.FLAG else ""
