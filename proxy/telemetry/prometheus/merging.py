"""Several processes' and several tenants' numbers as one, for one scrape: added up, and passed on as JSON.

What a worker says is not believed more than a task's words would be (it reads hostile bytes all day): types, names and
sizes are checked where it is taken in, and whatever is not a number of ours is left out.
"""

from datetime import date
from typing import TYPE_CHECKING, Any, Final

from proxy.telemetry.events import Kind, Where
from proxy.telemetry.metrics import MOST_RULES, OTHER, Histogram, Metrics
from proxy.telemetry.prometheus.processes import ProcessUse
from proxy.telemetry.waiting import Waiting
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_POLICIES: Final = 64  # that are told apart
_LONGEST: Final = 200  # characters of a name
_LARGEST: Final = 1 << 63
_NOW: Final = ("connections_open", "sandboxes")  # what there is now, and no counter
TOTALS: Final = (
    "events_dropped",
    "journal_bytes",
    "datagrams_refused",
    "bytes_up",
    "bytes_down",
    "worker_restarts",
    "agent_records_refused",
    "tasks_tainted",
)
_SUMS: Final = (*TOTALS, *_NOW)
HISTOGRAMS: Final = ("connection_seconds", "decision_seconds", "peek_seconds", "sandbox_start_seconds")
_COUNTS: Final = ("packets_refused", "calls_refused", "datagrams_lost", "rules_loads", "tasks", "tasks_unusual")
BY_KEY: Final = (*_COUNTS, "decisions", "dns_queries", "events", "gate_errors")


class Used:
    """How much of rules' limits is used up, of many tenants: of each limit the most that one has used."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], float] = {}

    def used(self) -> dict[tuple[str, str], float]:
        """Return it, 0 to 1, by rule and field."""
        return self._used

    def note(self, used: "Mapping[tuple[str, str], float]") -> None:
        """Take in one tenant's."""
        for key, share in used.items():
            if key in self._used or len(self._used) < MOST_RULES:
                self._used[key] = max(share, self._used.get(key, 0.0))


def total() -> Metrics:
    """Return metrics to add others to."""
    metrics = Metrics()
    metrics.rules_valid = True
    metrics.limits = Used()
    return metrics


def add(to: Metrics, metrics: Metrics, *, ended: bool = False) -> None:
    """Add a tenant's numbers, or a worker's, to a total; `ended`: without what only holds while it is there."""
    for name in _SUMS:
        if not (ended and name in _NOW):
            setattr(to, name, _sum(getattr(to, name), getattr(metrics, name)))
    for name in BY_KEY:
        _add_counts(getattr(to, name), getattr(metrics, name))
    for (rule, verdict), count in metrics.rule_decisions.items():
        known = (rule, verdict) in to.rule_decisions or len(to.rule_decisions) < MOST_RULES
        key = (rule if known else OTHER, verdict)
        to.rule_decisions[key] = _sum(to.rule_decisions.get(key, 0), count)
    for name in HISTOGRAMS:
        _add_histogram(getattr(to, name), getattr(metrics, name))
    for result, histogram in metrics.dial_seconds.items():
        if result not in to.dial_seconds and len(to.dial_seconds) >= _LONGEST:
            continue
        _add_histogram(to.dial_seconds.setdefault(result, Histogram(histogram.bounds)), histogram)
    to.waiting.note(metrics.waiting, ended=ended)
    if not ended:
        _add_state(to, metrics)


def _add_state(to: Metrics, metrics: Metrics) -> None:
    assert isinstance(to.limits, Used)
    if metrics.limits is not None:
        to.limits.note(metrics.limits.used())
    to.known_rules |= metrics.known_rules
    if not to.in_force.keys() >= metrics.in_force.keys():  # a policy that many are under has its rules once
        to.rule_endings = (*to.rule_endings, *metrics.rule_endings)[:MOST_RULES]
    for revision, mode in metrics.in_force.items():
        if len(to.in_force) < MOST_POLICIES:
            to.in_force[revision] = mode
    to.rules_valid = to.rules_valid and (metrics.rules_valid or not metrics.in_force)
    to.flags = max(to.flags, metrics.flags)  # each says it of the whole journal
    times = [at for at in (to.rules_loaded_at, metrics.rules_loaded_at) if at is not None]
    to.rules_loaded_at = max(times, default=None)
    ends = [at for at in (to.ca_expiry, metrics.ca_expiry) if at is not None]
    to.ca_expiry = min(ends, default=None)
    to.processes.update(metrics.processes)


def _add_counts(to: dict[Any, int], counts: "Mapping[Any, int]") -> None:
    """Add counts by name. Names are few; where a process has invented others, they don't pile up."""
    for key, count in counts.items():
        if key not in to and len(to) >= (_LONGEST if isinstance(key, str) else 4 * MOST_RULES):
            continue
        to[key] = _sum(to.get(key, 0), count)


def _add_histogram(to: Histogram, histogram: Histogram) -> None:
    to.counts = [_sum(a, b) for a, b in zip(to.counts, histogram.counts, strict=True)]
    to.total = min(to.total + histogram.total, float(_LARGEST - 1024))


def _sum(a: int, b: int) -> int:
    """Add two counts. The sum can be read like each of them: one process's huge numbers must not hide all others."""
    return min(a + b, _LARGEST - 1)


def to_json(metrics: Metrics) -> dict[str, object]:
    """Return a total as what JSON can say."""
    used = metrics.limits.used() if metrics.limits is not None else {}
    return {
        **{name: getattr(metrics, name) for name in _SUMS},
        **{name: getattr(metrics, name) for name in _COUNTS},
        "decisions": [[*key, count] for key, count in metrics.decisions.items()],
        "rule_decisions": [[*key, count] for key, count in metrics.rule_decisions.items()],
        "dns_queries": [[*key, count] for key, count in metrics.dns_queries.items()],
        "events": [[kind, count] for kind, count in metrics.events.items()],
        "gate_errors": [[where, count] for where, count in metrics.gate_errors.items()],
        **{name: _histogram(getattr(metrics, name)) for name in HISTOGRAMS},
        "dial_seconds": {result: _histogram(each) for result, each in metrics.dial_seconds.items()},
        "waiting": metrics.waiting.to_json(),
        "flags": list(metrics.flags),
        "limits": [[*key, share] for key, share in used.items()],
        "in_force": dict(metrics.in_force),
        "rule_endings": [day.isoformat() for day in metrics.rule_endings],
        "rules_valid": metrics.rules_valid,
        "rules_loaded_at": metrics.rules_loaded_at,
        "ca_expiry": metrics.ca_expiry,
        "processes": {role: _use(use) for role, use in metrics.processes.items() if isinstance(use, ProcessUse)},
    }


def _histogram(histogram: Histogram) -> list[object]:
    return [histogram.counts, histogram.total]


def _use(use: ProcessUse) -> list[float | int | None]:
    return [
        use.cpu_seconds,
        use.resident_bytes,
        use.virtual_bytes,
        use.started,
        use.open_descriptors,
        use.most_descriptors,
    ]


def from_json(said: "Mapping[str, Any]", role: str) -> Metrics:
    """Read what `to_json` made of a total, in another process; its own use is shown as `role`'s, if it has one.

    Raises ValueError, TypeError, KeyError for anything else.
    """
    metrics = total()
    for name in _SUMS:
        setattr(metrics, name, _count(said[name]))
    for name in _COUNTS:
        setattr(metrics, name, _named(said[name]))
    metrics.waiting = Waiting.from_json(said["waiting"])
    unseen, oldest = said["flags"]
    metrics.flags = _count(unseen), _real(oldest)
    for kind, verdict, outcome, reason, count in said["decisions"]:
        metrics.decisions[Kind(kind), Verdict(verdict), Outcome(outcome), Reason(reason)] = _count(count)
    for rule, verdict, count in _some(said["rule_decisions"]):
        metrics.rule_decisions[_name(rule), Verdict(verdict)] = _count(count)
    for kind, verdict, count in said["dns_queries"]:
        metrics.dns_queries[_name(kind), Verdict(verdict)] = _count(count)
    metrics.events = {Kind(kind): _count(count) for kind, count in said["events"]}
    metrics.gate_errors = {Where(where): _count(count) for where, count in said["gate_errors"]}
    for name in HISTOGRAMS:
        _read_histogram(getattr(metrics, name), said[name])
    for result, each in said["dial_seconds"].items():
        bounds = Metrics.dial_histogram()
        _read_histogram(bounds, each)
        metrics.dial_seconds[_name(result)] = bounds
    assert isinstance(metrics.limits, Used)
    metrics.limits.note({(_name(rule), _name(field)): _real(share) for rule, field, share in _some(said["limits"])})
    metrics.known_rules = frozenset(rule for rule, _ in (*metrics.rule_decisions, *metrics.limits.used()))
    policies = list(said["in_force"].items())[:MOST_POLICIES]
    metrics.in_force = {_name(revision): Mode(mode) for revision, mode in policies}
    metrics.rule_endings = tuple(date.fromisoformat(day) for day in _some(said["rule_endings"]))
    metrics.rules_valid = said["rules_valid"] is True
    metrics.rules_loaded_at = _time(said["rules_loaded_at"])
    metrics.ca_expiry = _time(said["ca_expiry"])
    for name, use in list(said["processes"].items())[:_LONGEST]:
        metrics.processes[role or _name(name)] = _read_use(use)
    return metrics


def _read_use(use: Any) -> ProcessUse:
    cpu, resident, virtual, started, descriptors, most = use
    sizes = _count(resident), _count(virtual)
    return ProcessUse(_real(cpu), *sizes, _real(started), _maybe(descriptors), _maybe(most))


def _some(items: "Iterable[Any]") -> list[Any]:
    return list(items)[: 2 * MOST_RULES]


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise ValueError("not a count")
    return value


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LARGEST:
        raise ValueError("not a number of seconds, nor a share")
    return float(value)


def _maybe(value: object) -> int | None:
    return None if value is None else _count(value)


def _time(value: object) -> float | None:
    return None if value is None else _real(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError("not a name")
    return value


def _named(value: object) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > _LONGEST:
        raise ValueError("not counts by name")
    return {_name(name): _count(count) for name, count in value.items()}


def _read_histogram(histogram: Histogram, value: Any) -> None:
    counts, seconds = value
    if len(counts) != len(histogram.counts):
        raise ValueError("not this histogram")
    histogram.counts = [_count(count) for count in counts]
    histogram.total = _real(seconds)
