"""Report of what tasks tried, as one HTML page: readable offline, light and dark, with a chart in SVG and no scripts.

`gather` reads the journal in one pass and bounds what a report lists: a task can try any number of names. A task can't
choose what is left out: destinations with the least traffic, and refusals and warnings of the largest groups.

`report.html` is the page. Home of invariant 7 for it: every value that it prints goes through `_escape`, which spells
out invisible characters, and is then escaped for HTML; the page's policy forbids scripts and external resources.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from proxy.telemetry.descriptions import describe
from proxy.telemetry.events import APPROVALS, ATTEMPTS, STOPPED, Kind
from proxy.telemetry.journal.query import fair_share
from proxy.telemetry.summary import OUTCOME_WORDS
from proxy.telemetry.visible import visible
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.telemetry.events import Event


MOST: Final = 1000  # rows of each table
_MOST_INTERVALS: Final = 20_000  # intervals in the chart data
_WARNINGS: Final = frozenset({
    Kind.TAMPERING_DETECTED, Kind.SECRET_DETECTED, Kind.GATE_ERROR, Kind.RULES_REJECTED, Kind.TASK_LIMITED,
    Kind.SYSCALL_DENIED, Kind.JOURNAL_REPAIRED, Kind.JOURNAL_REMOVED, Kind.TASK_TAINTED, Kind.ANOMALY_DETECTED,
    Kind.APPROVAL_ANSWERED, Kind.APPROVAL_EXPIRED, Kind.APPROVAL_REFUSED,
})  # fmt: skip


@dataclass(slots=True)
class Span:
    """First and last time of something: ns since 1970."""

    first: int
    last: int

    def stretch(self, time: int) -> None:
        """Extend the span to `time`."""
        self.first, self.last = min(self.first, time), max(self.last, time)


@dataclass(slots=True)
class Run:
    """Task, as far as the journal records it."""

    id: str
    name: str
    span: Span
    labels: dict[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    ending: str = ""  # in words; empty: no end recorded
    attempts: Counter[Outcome] = field(default_factory=Counter)


@dataclass(slots=True)
class DestinationStats:
    """Attempts to reach one destination, counted by outcome."""

    span: Span
    attempts: Counter[Outcome] = field(default_factory=Counter)
    up: int = 0  # bytes sent to it
    down: int = 0
    rules: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Refusal:
    """Attempts blocked in the same way: the last event, and their number."""

    event: "Event"
    span: Span
    count: int = 0


class AttemptTimes:
    """Attempts over time, by outcome; the longer the report, the wider the intervals."""

    __slots__ = ("counts", "width")

    def __init__(self) -> None:
        self.width = 1_000_000  # ns
        self.counts: Counter[tuple[int, Outcome]] = Counter()  # by interval number since 1970

    def add(self, time: int, outcome: Outcome) -> None:
        """Count an attempt at `time` (ns since 1970)."""
        self.counts[time // self.width, outcome] += 1
        if len(self.counts) > _MOST_INTERVALS:
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
    moments: AttemptTimes = field(default_factory=AttemptTimes)  # times of attempts
    left_out: Counter[str] = field(default_factory=Counter)
    events: int = 0


def gather(events: "Iterable[Event]") -> ReportData:
    """Gather the data of a report from events in order of time."""
    data = ReportData()
    for event in events:
        if max(len(data.places), len(data.refusals), len(data.warnings)) >= 2 * MOST:
            _apply_bounds(data)
        data.events += 1
        data.span = data.span or Span(event.time, event.time)
        data.span.stretch(event.time)
        _add_to_run(data, event)
        if event.kind in _WARNINGS:
            data.warnings.append(event)
        if event.revision:
            _add_policy(data, event)
        if event.kind in ATTEMPTS and event.outcome is not None:
            data.moments.add(event.time, event.outcome)
            place = _destination_stats(data, event)
            place.attempts[event.outcome] += 1
            place.rules.update(dict.fromkeys(event.rules[: MOST - len(place.rules)]))
        # The answer to an approval is shown with its attempt
        if event.outcome in STOPPED and event.reason is not None and event.kind not in APPROVALS:
            _add_refusal(data, event)
        if event.kind is Kind.CONNECTION_CLOSED:
            place = _destination_stats(data, event)
            if event.bytes is not None:
                place.up += event.bytes.up
                place.down += event.bytes.down
    _apply_bounds(data)
    return data


def target(event: "Event") -> tuple[str, int | None, str]:
    """Return the destination of an attempt: name or address, port, and protocol."""
    if event.kind is Kind.DNS_DECIDED and event.dns is not None:
        return event.dns.question, None, "dns"
    if event.kind is Kind.COMMAND_DECIDED:
        return " ".join(event.argv[:1]), None, "command"
    destination = event.destination
    name = (destination.name or destination.address or "") if destination is not None else ""
    return name, destination.port if destination is not None else None, event.protocol.value if event.protocol else ""


def _add_to_run(data: ReportData, event: "Event") -> None:
    task = event.task.id
    if not task:
        return
    if task not in data.runs and len(data.runs) >= MOST:
        data.left_out["tasks"] += 1
        return
    new = Run(task, event.task.name, Span(event.time, event.time), dict(event.task.labels))
    run = data.runs.setdefault(task, new)
    run.span.stretch(event.time)
    if event.kind is Kind.TASK_STARTED:
        run.argv = event.argv
    elif event.kind is Kind.TASK_ENDED:
        run.ending = _describe_exit(event)
    elif event.kind in ATTEMPTS and event.outcome is not None:
        run.attempts[event.outcome] += 1


def _describe_exit(event: "Event") -> str:
    ending = event.ending
    if ending is not None and ending.signal is not None:
        return f"killed by signal {ending.signal}"
    if ending is not None and ending.status is not None:
        return f"ended with status {ending.status}"
    return "ended" if event.outcome is Outcome.PASSED else "failed"


def _destination_stats(data: ReportData, event: "Event") -> DestinationStats:
    place = data.places.setdefault(target(event), DestinationStats(Span(event.time, event.time)))
    place.span.stretch(event.time)
    return place


def _add_refusal(data: ReportData, event: "Event") -> None:
    key = event.task.id, *target(event), event.outcome, event.reason, event.rules
    known = data.refusals.setdefault(key, Refusal(event, Span(event.time, event.time)))
    known.event, known.count = event, known.count + 1
    known.span.stretch(event.time)


def _add_policy(data: ReportData, event: "Event") -> None:
    known = data.policies.get(event.revision)
    if known is None and len(data.policies) >= MOST:
        data.left_out["policies"] += 1
    elif known is None or (event.kind is Kind.RULES_LOADED and known.kind is not Kind.RULES_LOADED):
        data.policies[event.revision] = event  # that event names the rule files


def _apply_bounds(data: ReportData) -> None:
    """Drop rows beyond `MOST` and count them; the groups of a flood lose rows first."""
    places = sorted(data.places.items(), key=_traffic_weight, reverse=True)
    data.places = dict(places[:MOST])
    data.left_out["places"] += sum(place.attempts.total() for _, place in places[MOST:])
    refusals = sorted(data.refusals.items(), key=lambda item: -item[1].count)
    kept = fair_share(refusals, MOST, lambda item: (item[0][0], item[1].event.kind, item[1].event.reason))
    data.refusals = dict(kept)
    data.left_out["refusals"] += sum(each.count for _, each in refusals) - sum(each.count for _, each in kept)
    warnings, data.warnings = data.warnings, fair_share(data.warnings, MOST, lambda event: (event.task.id, event.kind))
    data.left_out["warnings"] += len(warnings) - len(data.warnings)
    data.left_out = +data.left_out


def _traffic_weight(item: tuple[tuple[str, int | None, str], DestinationStats]) -> tuple[int, int, int, int]:
    """Sort key: traffic first, then allowed attempts (a lookup reaches nothing), then all attempts."""
    (_, _, protocol), place = item
    reached = place.attempts[Outcome.PASSED] + place.attempts[Outcome.WOULD_BLOCK] if protocol != "dns" else 0
    return place.up, place.down, reached, place.attempts.total()


_LONGEST: Final = 300  # characters of one text
_VISIBLE_ROWS: Final = 25  # rows shown without a click
_STACK_ORDER: Final = (Outcome.PASSED, Outcome.WOULD_BLOCK, Outcome.FAILED, Outcome.BLOCKED)  # of a bar
_WORDS: Final = {outcome: OUTCOME_WORDS[outcome] for outcome in _STACK_ORDER}
_COLUMNS: Final = 120
_WIDTH, _HEIGHT = 960, 160  # units of the chart
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800)  # seconds
_MOST_LABELS: Final = 6


def page(data: "ReportData", about: str, version: str) -> str:
    """Return the page. `about` names its subject in words."""
    return _environment().get_template("report.html").render(
        all=data,
        about=about,
        version=version,
        words=_WORDS,
        numbers={"count", "bytes sent", "bytes received", *_WORDS.values()},
        open_rows=_VISIBLE_ROWS,
        target=target,
        cards=_cards(data),
        chart=_chart(data.moments),
        refusals=sorted(data.refusals.values(), key=lambda each: -each.count),
        places=sorted(data.places.items(), key=_bytes_then_attempts),
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": "{:,}".format,
        "moment": _format_time,
        "span": _format_span,
        "details": _details,
    }
    return environment


def _escape(value: Any) -> Any:
    """Escape invisible characters and cut a text; markup of the template and numbers stay unchanged."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    cut = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}… [{len(value) - _LONGEST} more]"
    return visible(cut)


def _cards(data: "ReportData") -> "list[tuple[str, int, str]]":
    """Return the cards at the top: style, count and word."""
    totals: Counter[Outcome] = Counter()
    for (_, outcome), count in data.moments.counts.items():
        totals[outcome] += count
    kinds = Counter(event.kind for event in data.warnings)
    return [
        *((outcome.value, totals[outcome], word) for outcome, word in reversed(_WORDS.items())),
        ("blocked", kinds[Kind.TAMPERING_DETECTED], "tampering"),
        ("blocked", kinds[Kind.SECRET_DETECTED], "leaks"),
        ("would_block", kinds[Kind.ANOMALY_DETECTED], "unusual"),
        ("would_block", kinds[Kind.TASK_TAINTED], "tainted"),
    ]


def _details(event: "Event") -> str:
    if event.kind in APPROVALS or event.kind is Kind.ANOMALY_DETECTED:
        return describe(event)
    return event.detail or (event.fault.detail if event.fault else "") or "; ".join(event.problems)


def _bytes_then_attempts(item: "tuple[object, DestinationStats]") -> tuple[int, int]:
    """Sort key: most bytes sent first, then most attempts."""
    return -item[1].up, -item[1].attempts.total()


def _format_span(span: "Span | None") -> str:
    if span is None:
        return "no events"
    first, last = _format_time(span.first), _format_time(span.last)
    if first == last:
        return first
    return f"{first} to {last[11:] if first[:10] == last[:10] else last}"


def _format_time(time: int) -> str:
    return datetime.fromtimestamp(time // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


class _Bar(NamedTuple):
    outcome: Outcome
    attempts: int
    x: str
    y: str
    width: str
    height: str


class _Chart(NamedTuple):
    """Attempts over time: at most `highest` in a column of `seconds`."""

    highest: int
    seconds: str
    bars: list[_Bar]
    labels: list[tuple[str, str]]


def _chart(moments: "AttemptTimes") -> _Chart | None:
    if not moments.counts:
        return None
    numbers = [number for number, _ in moments.counts]
    first, last = min(numbers) * moments.width, (max(numbers) + 1) * moments.width
    width = -(-(last - first) // _COLUMNS)  # ns a column
    columns: list[Counter[Outcome]] = [Counter() for _ in range(_COLUMNS)]
    for (number, outcome), count in moments.counts.items():
        columns[(number * moments.width - first) // width][outcome] += count
    highest = max(column.total() for column in columns)
    bars = list(_bars(columns, highest))
    return _Chart(highest, f"{width / 1e9:.3g}", bars, list(_time_labels(first, width * _COLUMNS)))


def _bars(columns: list[Counter[Outcome]], highest: int) -> "Iterator[_Bar]":
    bar_width = _WIDTH / _COLUMNS
    for number, column in enumerate(columns):
        bottom = 0.0
        for outcome in _WORDS:
            if count := column[outcome]:
                bar_height = max(1.5, count / highest * (_HEIGHT - 10))  # a single one stays visible
                bottom += bar_height
                x, y = f"{number * bar_width:.1f}", f"{_HEIGHT - bottom:.1f}"
                yield _Bar(outcome, count, x, y, f"{bar_width - 1:.1f}", f"{bar_height:.1f}")


def _time_labels(first: int, span: int) -> "Iterator[tuple[str, str]]":
    """Yield labels of the time axis: position and a round time (UTC)."""
    seconds = span / 1e9
    weeks = -(-int(seconds) // (_MOST_LABELS * _STEPS[-1]))
    step = next((each for each in _STEPS if seconds / each <= _MOST_LABELS), weeks * _STEPS[-1])
    at = -(-first // (step * 10**9)) * step
    form = "%m-%d" if step >= 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    while (at * 10**9 - first) < span:
        x = (at * 10**9 - first) / span * _WIDTH
        yield f"{min(max(x, 18), _WIDTH - 24):.0f}", datetime.fromtimestamp(at, UTC).strftime(form)
        at += step
