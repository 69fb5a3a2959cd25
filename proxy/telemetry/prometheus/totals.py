"""Adds up the metrics of several processes and sandboxes for one scrape, and sends them as JSON in pieces.

A worker is not trusted more than a task, as it reads hostile bytes: `from_json` checks types, names and sizes of a
report, and drops unknown values.
"""

import contextlib
from collections import Counter
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, MsgspecError, Struct, convert, to_builtins
from msgspec.structs import fields

from proxy.telemetry.events import Component, Count, Kind
from proxy.telemetry.prometheus.metrics import (
    MOST_RULES,
    OTHER,
    ApprovalWaits,
    Histogram,
    Metrics,
    PendingCounts,
    ProcessUse,
)
from proxy.wire import message, strict_json
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_POLICIES: Final = 64  # with separate series
_LONGEST: Final = 200  # characters of a name
_LARGEST: Final = 1 << 63
_MOST_SERIES: Final = 2 * MOST_RULES
Real = Annotated[float, Meta(ge=0, lt=float(_LARGEST))]
Name = Annotated[str, Meta(max_length=_LONGEST)]
Counts = Annotated[dict[Name, Count], Meta(max_length=_LONGEST)]
_Observed = tuple[list[Count], Real]


class _Report(Struct, frozen=True):
    """`Metrics` of one process as a message: sums, counts by name, histograms, and current state."""

    events_dropped: Count
    journal_bytes: Count
    datagrams_refused: Count
    bytes_up: Count
    bytes_down: Count
    worker_restarts: Count
    agent_records_refused: Count
    tasks_tainted: Count
    connections_open: Count
    sandboxes: Count
    packets_refused: Counts
    calls_refused: Counts
    datagrams_lost: Counts
    rules_loads: Counts
    tasks: Counts
    tasks_unusual: Counts
    decisions: list[tuple[Kind, Verdict, Outcome, Reason, Count]]
    rule_decisions: list[tuple[Name, Verdict, Count]]
    dns_queries: list[tuple[Name, Verdict, Count]]
    events: dict[Kind, Count]
    gate_errors: dict[Component, Count]
    connection_seconds: _Observed
    decision_seconds: _Observed
    peek_seconds: _Observed
    sandbox_start_seconds: _Observed
    dial_seconds: dict[Name, _Observed]
    waiting: PendingCounts
    flags: tuple[Count, Real]
    limits: list[tuple[Name, Name, Real]]
    in_force: dict[Name, Mode]
    rule_endings: tuple[date, ...]
    rules_valid: bool
    rules_loaded_at: Real | None
    ca_expiry: Real | None
    processes: dict[Name, ProcessUse]


def _fields_of_type(kind: object) -> tuple[str, ...]:
    """Return the names of the report's fields of a type."""
    return tuple(field.name for field in fields(_Report) if field.type == kind)


_SUMS: Final = _fields_of_type(Count)
_STATE_FIELDS: Final = ("connections_open", "sandboxes")  # current state, not counters
_COUNTS: Final = _fields_of_type(Counts)
_HISTOGRAMS: Final = _fields_of_type(_Observed)
_BY_TUPLE: Final = ("decisions", "rule_decisions", "dns_queries")
_PLAIN_FIELDS: Final = (  # in a report
    *_SUMS, *_COUNTS, "events", "gate_errors", "flags", "in_force", "rule_endings", "rules_valid", "rules_loaded_at",
    "ca_expiry",
)  # fmt: skip
_BY_KEY: Final = (*_COUNTS, "decisions", "dns_queries", "events", "gate_errors")


class HighestLimitUse:
    """Highest use of each rule limit over many sandboxes."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], float] = {}

    def used(self) -> dict[tuple[str, str], float]:
        """Return the highest use, 0 to 1, by rule and field."""
        return self._used

    def note(self, used: "Mapping[tuple[str, str], float]") -> None:
        """Add the use of one sandbox."""
        for key, share in used.items():
            if key in self._used or len(self._used) < MOST_RULES:
                self._used[key] = max(share, self._used.get(key, 0.0))


def total() -> Metrics:
    """Return empty metrics for a sum."""
    metrics = Metrics()
    metrics.rules_valid = True
    metrics.limits = HighestLimitUse()
    return metrics


def add(to: Metrics, metrics: Metrics, *, ended: bool = False) -> None:
    """Add the metrics of a sandbox or a worker to a total; `ended`: without its current state."""
    for name in _SUMS:
        if not (ended and name in _STATE_FIELDS):
            setattr(to, name, _sum(getattr(to, name), getattr(metrics, name)))
    for name in _BY_KEY:
        _add_counts(getattr(to, name), getattr(metrics, name))
    for (rule, verdict), count in metrics.rule_decisions.items():
        known = (rule, verdict) in to.rule_decisions or len(to.rule_decisions) < MOST_RULES
        key = (rule if known else OTHER, verdict)
        to.rule_decisions[key] = _sum(to.rule_decisions.get(key, 0), count)
    for name in _HISTOGRAMS:
        _add_histogram(getattr(to, name), getattr(metrics, name))
    for result, histogram in metrics.dial_seconds.items():
        if result not in to.dial_seconds and len(to.dial_seconds) >= _LONGEST:
            continue
        _add_histogram(to.dial_seconds.setdefault(result, Histogram(histogram.bounds)), histogram)
    to.waiting.merge(metrics.waiting, ended=ended)
    if not ended:
        _add_state(to, metrics)


def _add_state(to: Metrics, metrics: Metrics) -> None:
    assert isinstance(to.limits, HighestLimitUse)
    if metrics.limits is not None:
        to.limits.note(metrics.limits.used())
    to.known_rules |= metrics.known_rules
    if not to.in_force.keys() >= metrics.in_force.keys():  # count the rules of a shared policy once
        to.rule_endings = (*to.rule_endings, *metrics.rule_endings)[:MOST_RULES]
    for revision, mode in metrics.in_force.items():
        if len(to.in_force) < MOST_POLICIES:
            to.in_force[revision] = mode
    to.rules_valid = to.rules_valid and (metrics.rules_valid or not metrics.in_force)
    to.flags = max(to.flags, metrics.flags)  # each has the number for the whole journal
    to.rules_loaded_at = max(_present(to.rules_loaded_at, metrics.rules_loaded_at), default=None)
    to.ca_expiry = min(_present(to.ca_expiry, metrics.ca_expiry), default=None)
    to.processes.update(metrics.processes)


def _present(*times: float | None) -> list[float]:
    return [at for at in times if at is not None]


def _add_counts(to: dict[Any, int], counts: "Mapping[Any, int]") -> None:
    """Add counts by name, up to a limit: a process may invent names."""
    for key, count in counts.items():
        if key not in to and len(to) >= (_LONGEST if isinstance(key, str) else 4 * MOST_RULES):
            continue
        to[key] = _sum(to.get(key, 0), count)


def _add_histogram(to: Histogram, histogram: Histogram) -> None:
    to.counts = [_sum(a, b) for a, b in zip(to.counts, histogram.counts, strict=True)]
    to.total = min(to.total + histogram.total, float(_LARGEST - 1024))


def _sum(a: int, b: int) -> int:
    """Add two counts, up to the largest valid count, so that one huge count can't make the report invalid."""
    return min(a + b, _LARGEST - 1)


def to_json(metrics: Metrics) -> dict[str, Any]:
    """Return a total as JSON values: the fields of a `_Report`."""
    used = metrics.limits.used() if metrics.limits is not None else {}
    dial_histograms = {result: (each.counts, each.total) for result, each in metrics.dial_seconds.items()}
    found: dict[str, Any] = to_builtins(
        {name: getattr(metrics, name) for name in _PLAIN_FIELDS}
        | {name: [(*key, count) for key, count in getattr(metrics, name).items()] for name in _BY_TUPLE}
        | {name: (getattr(metrics, name).counts, getattr(metrics, name).total) for name in _HISTOGRAMS}
        | {"dial_seconds": dial_histograms, "waiting": metrics.waiting.to_message()}
        | {"limits": [(*key, share) for key, share in used.items()]}
        | {"processes": {role: use for role, use in metrics.processes.items() if isinstance(use, ProcessUse)}}
    )
    return found


def from_json(said: object, role: str) -> Metrics:
    """Read the result of `to_json` from another process, with its process metrics under `role`, if given.

    Raises ValueError for any other value.
    """
    try:
        report = convert(said, _Report)
    except MsgspecError as error:
        raise ValueError(f"not a report of metrics: {error}") from error
    metrics = total()
    for name in _PLAIN_FIELDS:
        setattr(metrics, name, getattr(report, name))
    for name in _BY_TUPLE:
        setattr(metrics, name, {tuple(key): count for *key, count in getattr(report, name)})
    for name in _HISTOGRAMS:
        _read_histogram(getattr(metrics, name), getattr(report, name))
    for result, each in report.dial_seconds.items():
        metrics.dial_seconds[result] = Metrics.dial_histogram()
        _read_histogram(metrics.dial_seconds[result], each)
    metrics.waiting = ApprovalWaits.from_message(report.waiting)
    metrics.rule_decisions = dict(islice(metrics.rule_decisions.items(), _MOST_SERIES))
    assert isinstance(metrics.limits, HighestLimitUse)
    metrics.limits.note({(rule, field): share for rule, field, share in report.limits[:_MOST_SERIES]})
    metrics.known_rules = frozenset(rule for rule, _ in (*metrics.rule_decisions, *metrics.limits.used()))
    metrics.in_force = dict(islice(report.in_force.items(), MOST_POLICIES))
    metrics.rule_endings = report.rule_endings[:_MOST_SERIES]
    metrics.processes = {role or name: use for name, use in islice(report.processes.items(), _LONGEST)}
    return metrics


def _read_histogram(histogram: Histogram, said: _Observed) -> None:
    counts, seconds = said
    if len(counts) != len(histogram.counts):
        raise ValueError("wrong number of buckets")
    histogram.counts, histogram.total = counts, seconds


_PIECE: Final = 60_000  # characters: encoded again as JSON they fit a message
_LONGEST_REPORT: Final = 4 << 20  # characters of a report


def pieces(metrics: "Metrics") -> "Iterator[dict[str, object]]":
    """Yield the messages of a report: `metrics` is a piece of JSON, `left` the number of following pieces."""
    text = message.as_text(to_json(metrics))
    count = -(-len(text) // _PIECE)
    for number in range(count):
        yield {"metrics": text[number * _PIECE : (number + 1) * _PIECE], "left": count - 1 - number}


class ReportedMetrics:
    """Last metrics of another process, which is not trusted: types and sizes are checked."""

    def __init__(self, role: str = "", *, steady: bool = False) -> None:
        """`role` labels the process metrics. `steady`: ignore reports whose counters went back."""
        self.counts: Metrics | None = None  # None: no report yet
        self._empty = total()
        self._role = role
        self._requires_growth = steady
        self._text = ""
        self._pieces_left = 0

    def take(self, said: "Mapping[str, object]") -> None:
        """Add a piece. The last piece of a valid report replaces the counts."""
        piece, pieces_left = said.get("metrics"), said.get("left")
        if not isinstance(piece, str) or not isinstance(pieces_left, int):
            return
        if pieces_left >= self._pieces_left:  # a new report; the previous one may be incomplete
            self._text = ""
        self._pieces_left = pieces_left
        if len(self._text) + len(piece) <= _LONGEST_REPORT:
            self._text += piece
        if pieces_left > 0:
            return
        text, self._text = self._text, ""
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            counts = from_json(strict_json.loads(text), self._role)
            if not self._requires_growth or self.counts is None or _counters(self.counts) <= _counters(counts):
                self.counts = counts

    def render(self) -> bytes:
        """Return the counts in Prometheus' text format."""
        return (self.counts or self._empty).render()

    def failed(self, where: Component) -> None:
        """Count something unexpected."""
        (self.counts or self._empty).failed(where)


def _counters(metrics: "Metrics") -> Counter[object]:
    """Return all counters. Rules count together, as the counts of removed rules move to `other`."""
    found: Counter[object] = Counter({"rules": sum(metrics.rule_decisions.values())})
    found.update({name: getattr(metrics, name) for name in _SUMS if name not in _STATE_FIELDS})
    for name in _BY_KEY:
        found.update({(name, key): count for key, count in getattr(metrics, name).items()})
    for name in _HISTOGRAMS:
        found.update({(name, at): count for at, count in enumerate(getattr(metrics, name).counts)})
    return found
