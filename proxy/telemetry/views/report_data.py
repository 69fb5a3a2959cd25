"""Data of a report, gathered from the journal in one pass: tasks, destinations, refusals, warnings, times.

Bounded: a task can try any number of names, so a report lists a limited number and counts the rest. A task can't choose
what is left out: destinations with the least traffic, and refusals and warnings of the largest groups. Texts stay as
the journal has them; the page escapes them.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.telemetry.events import APPROVALS, ATTEMPTS, STOPPED, Kind
from proxy.telemetry.journal.query import fair_share
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.telemetry.events import Event

MOST: Final = 1000  # tasks, places, refusals and warnings that are told apart, each
_FINEST: Final = 20_000  # moments that are told apart
_WARNINGS: Final = frozenset({
    Kind.TAMPERING_DETECTED, Kind.SECRET_DETECTED, Kind.GATE_ERROR, Kind.RULES_REJECTED, Kind.TASK_LIMITED,
    Kind.SYSCALL_DENIED, Kind.JOURNAL_REPAIRED, Kind.JOURNAL_REMOVED, Kind.TASK_TAINTED, Kind.ANOMALY_DETECTED,
    Kind.APPROVAL_ANSWERED, Kind.APPROVAL_EXPIRED, Kind.APPROVAL_REFUSED,
})  # fmt: skip


@dataclass(slots=True)
class Span:
    """When something was first and last seen: ns since 1970."""

    first: int
    last: int

    def stretch(self, time: int) -> None:
        """Let it reach to `time` as well."""
        self.first, self.last = min(self.first, time), max(self.last, time)


@dataclass(slots=True)
class Run:
    """One task, as far as the journal tells of it."""

    id: str
    name: str
    span: Span
    labels: dict[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    ending: str = ""  # in words; empty: it has not ended, as far as is known
    attempts: Counter[Outcome] = field(default_factory=Counter)


@dataclass(slots=True)
class DestinationStats:
    """Attempts to reach one destination, counted by outcome."""

    span: Span
    attempts: Counter[Outcome] = field(default_factory=Counter)
    up: int = 0  # bytes that left for it
    down: int = 0
    rules: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Refusal:
    """Attempts that were stopped in the same way: the last one's event, and how many there were."""

    event: "Event"
    span: Span
    count: int = 0


class AttemptTimes:
    """Attempts over time, by outcome; the longer the report, the wider the intervals."""

    __slots__ = ("counts", "width")

    def __init__(self) -> None:
        self.width = 1_000_000  # ns
        self.counts: Counter[tuple[int, Outcome]] = Counter()  # by the number of widths since 1970

    def add(self, time: int, outcome: Outcome) -> None:
        """Count one, at `time` (ns since 1970)."""
        self.counts[time // self.width, outcome] += 1
        if len(self.counts) > _FINEST:
            self.width *= 2
            finer, self.counts = self.counts, Counter()
            for (number, which), count in finer.items():
                self.counts[number // 2, which] += count


@dataclass(slots=True)
class ReportData:
    """Data of a report. `left_out` counts what exceeded `MOST`."""

    span: Span | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    places: dict[tuple[str, int | None, str], DestinationStats] = field(default_factory=dict)  # name, port, protocol
    refusals: dict[tuple[object, ...], Refusal] = field(default_factory=dict)
    warnings: list["Event"] = field(default_factory=list)
    policies: dict[str, "Event"] = field(default_factory=dict)  # the first event under each, by revision
    moments: AttemptTimes = field(default_factory=AttemptTimes)  # of each attempt
    left_out: Counter[str] = field(default_factory=Counter)
    events: int = 0


def gather(events: "Iterable[Event]") -> ReportData:
    """Read events in the order in which they happened."""
    all_ = ReportData()
    for event in events:
        if max(len(all_.places), len(all_.refusals), len(all_.warnings)) >= 2 * MOST:
            _make_room(all_)
        all_.events += 1
        all_.span = all_.span or Span(event.time, event.time)
        all_.span.stretch(event.time)
        _run(all_, event)
        if event.kind in _WARNINGS:
            all_.warnings.append(event)
        if event.revision:
            _policy(all_, event)
        if event.kind in ATTEMPTS and event.outcome is not None:
            all_.moments.add(event.time, event.outcome)
            place = _place(all_, event)
            place.attempts[event.outcome] += 1
            place.rules.update(dict.fromkeys(event.rules[: MOST - len(place.rules)]))
        # What people said is told beside the attempt that they were asked about
        if event.outcome in STOPPED and event.reason is not None and event.kind not in APPROVALS:
            _refusal(all_, event)
        if event.kind is Kind.CONNECTION_CLOSED:
            place = _place(all_, event)
            if event.bytes is not None:
                place.up += event.bytes.up
                place.down += event.bytes.down
    _make_room(all_)
    return all_


def target(event: "Event") -> tuple[str, int | None, str]:
    """Return where an attempt wanted to go: name or address, port, and by which protocol."""
    if event.kind is Kind.DNS_DECIDED and event.dns is not None:
        return event.dns.question, None, "dns"
    if event.kind is Kind.COMMAND_DECIDED:
        return " ".join(event.argv[:1]), None, "command"
    where = event.destination
    name = (where.name or where.address or "") if where is not None else ""
    return name, where.port if where is not None else None, event.protocol.value if event.protocol else ""


def _run(all_: ReportData, event: "Event") -> None:
    task = event.task.id
    if not task:
        return
    if task not in all_.runs and len(all_.runs) >= MOST:
        all_.left_out["tasks"] += 1
        return
    new = Run(task, event.task.name, Span(event.time, event.time), dict(event.task.labels))
    run = all_.runs.setdefault(task, new)
    run.span.stretch(event.time)
    if event.kind is Kind.TASK_STARTED:
        run.argv = event.argv
    elif event.kind is Kind.TASK_ENDED:
        run.ending = _ending(event)
    elif event.kind in ATTEMPTS and event.outcome is not None:
        run.attempts[event.outcome] += 1


def _ending(event: "Event") -> str:
    ending = event.ending
    if ending is not None and ending.signal is not None:
        return f"killed by signal {ending.signal}"
    if ending is not None and ending.status is not None:
        return f"ended with status {ending.status}"
    return "ended" if event.outcome is Outcome.PASSED else "failed"


def _place(all_: ReportData, event: "Event") -> DestinationStats:
    place = all_.places.setdefault(target(event), DestinationStats(Span(event.time, event.time)))
    place.span.stretch(event.time)
    return place


def _refusal(all_: ReportData, event: "Event") -> None:
    key = event.task.id, *target(event), event.outcome, event.reason, event.rules
    known = all_.refusals.setdefault(key, Refusal(event, Span(event.time, event.time)))
    known.event, known.count = event, known.count + 1
    known.span.stretch(event.time)


def _policy(all_: ReportData, event: "Event") -> None:
    known = all_.policies.get(event.revision)
    if known is None and len(all_.policies) >= MOST:
        all_.left_out["policies"] += 1
    elif known is None or (event.kind is Kind.RULES_LOADED and known.kind is not Kind.RULES_LOADED):
        all_.policies[event.revision] = event  # which says what it was read from


def _make_room(all_: ReportData) -> None:
    """Leave out what is beyond `MOST`, and count it. What a flood is made of makes room for what it isn't."""
    places = sorted(all_.places.items(), key=_weight, reverse=True)
    all_.places = dict(places[:MOST])
    all_.left_out["places"] += sum(place.attempts.total() for _, place in places[MOST:])
    refusals = sorted(all_.refusals.items(), key=lambda item: -item[1].count)
    kept = fair_share(refusals, MOST, lambda item: (item[0][0], item[1].event.kind, item[1].event.reason))
    all_.refusals = dict(kept)
    all_.left_out["refusals"] += sum(each.count for _, each in refusals) - sum(each.count for _, each in kept)
    warnings, all_.warnings = all_.warnings, fair_share(all_.warnings, MOST, lambda event: (event.task.id, event.kind))
    all_.left_out["warnings"] += len(warnings) - len(all_.warnings)
    all_.left_out = +all_.left_out


def _weight(item: tuple[tuple[str, int | None, str], DestinationStats]) -> tuple[int, int, int, int]:
    """Put what let out most first; a lookup lets out nothing."""
    (_, _, protocol), place = item
    reached = place.attempts[Outcome.PASSED] + place.attempts[Outcome.WOULD_BLOCK] if protocol != "dns" else 0
    return place.up, place.down, reached, place.attempts.total()
