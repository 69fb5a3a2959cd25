"""Writes metrics in the Prometheus text format. Only this module imports prometheus_client.

`_FAMILIES` has every name and its help text; a test compares docs/reference/metrics.md with it.
"""

import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from proxy.telemetry.events import DECISIONS, Component, Kind
from proxy.telemetry.masking import cut
from proxy.telemetry.prometheus.metrics import ANSWERS, BOUNDS, TASK_OUTCOMES, UNUSUAL, Histogram, read_process
from proxy.telemetry.visible import visible
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from proxy.telemetry.prometheus.metrics import Metrics, ProcessUse

# Prometheus' text format 0.0.4, which every version of Prometheus reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Series that exist before the first event: increase() misses the first count of a new series.
_ZERO_SERIES = {(kind, Verdict.DENY, Outcome.BLOCKED, Reason.JOURNAL_FAILED): 0 for kind in DECISIONS}


def render(metrics: "Metrics") -> bytes:
    """Return all metrics as text."""
    families = [*(_make_family(each, metrics) for each in _FAMILIES), *_process_families(metrics.processes)]
    return generate_latest(_Families(families))


class _Families(Collector):
    """Adapter: existing families in prometheus_client's collector interface."""

    def __init__(self, families: "Iterable[Metric]") -> None:
        self._families = families

    def collect(self) -> "Iterable[Metric]":
        """Return the families."""
        return self._families


type _Value = float | Histogram | None  # None: no sample
type _Class = type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]


class _Family(NamedTuple):
    """One metric. By default its value is the attribute of the same name; several labels are a tuple."""

    kind: _Class
    name: str  # without `exeat_`
    help: str
    labels: tuple[str, ...] = ()
    values: Callable[["Metrics"], _Value | Mapping[Any, _Value]] | None = None


def _make_family(each: _Family, metrics: "Metrics") -> "Metric":
    family = each.kind(f"exeat_{each.name}", each.help, labels=each.labels)
    value: Any = each.values(metrics) if each.values is not None else getattr(metrics, each.name)
    series = value if isinstance(value, Mapping) else {(): value}
    samples = [(key if isinstance(key, tuple) else (key,), value) for key, value in series.items()]
    for labels, value in samples if each.kind is _GAUGE else sorted(samples):
        if isinstance(family, HistogramMetricFamily):
            family.add_metric(labels, _buckets(value), sum_value=value.total)
        elif value is not None:
            family.add_metric(labels, value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = (*map(str, histogram.bounds), "+Inf")
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))


def _process_families(processes: "Mapping[str, int | ProcessUse]") -> "Iterator[Metric]":
    """Yield the process_* families of our processes; an ended or unreadable process has no samples."""
    uses = {role: read_process(each) if isinstance(each, int) else each for role, each in processes.items()}
    for kind, name, text, field in _PROCESS_FAMILIES:
        family = kind(f"process_{name}", text, labels=("role",))
        for role, use in uses.items():
            if use is not None and (value := getattr(use, field)) is not None:
                family.add_metric((role,), value)
        yield family


def _select[K](names: "Iterable[K]", counts: "Mapping[K, int]") -> dict[K, int]:
    """Return the counts of exactly these names; 0 where nothing was counted."""
    return {name: counts.get(name, 0) for name in names}


def _with_zeros[K](names: "Iterable[K]", counts: "Mapping[K, int]") -> dict[K, int]:
    """Return all counts, with 0 for each of these names that has none."""
    return {**dict.fromkeys(names, 0), **counts}


def _decisions_by_rule(counts: "Mapping[tuple[str, Verdict], int]") -> dict[tuple[str, str], int]:
    """Return counts by escaped rule id; add up ids that look the same, as a scrape allows no duplicates."""
    escaped: dict[tuple[str, str], int] = {}
    for (rule, verdict), count in counts.items():
        key = (visible(cut(rule)), verdict.value)
        escaped[key] = escaped.get(key, 0) + count
    return escaped


def _limit_use_by_rule(shares: "Mapping[tuple[str, str], float]") -> dict[tuple[str, str], float]:
    """Return shares by escaped rule id; of ids that look the same, the largest share."""
    escaped: dict[tuple[str, str], float] = {}
    for (rule, field), share in sorted(shares.items()):
        key = visible(cut(rule)), field
        escaped[key] = max(share, escaped.get(key, 0.0))
    return escaped


def _wait_histogram(metrics: "Metrics") -> Histogram:
    histogram = Histogram(BOUNDS)
    histogram.counts, histogram.total = metrics.waiting.counts, metrics.waiting.seconds
    return histogram


def _flags_age(metrics: "Metrics") -> float:
    unseen, oldest = metrics.flags
    return max(0.0, time.time() - oldest) if unseen else 0.0


def _build_info(_metrics: "Metrics") -> dict[tuple[str, str], float]:
    try:
        exeat_version = version("exeat")
    except PackageNotFoundError:  # a checkout that is not installed
        exeat_version = "unknown"
    return {(exeat_version, platform.python_version()): 1.0}


_COUNTER, _GAUGE, _HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
_FAMILIES: Final = (
    # Attempts
    _Family(
        _COUNTER, "decisions", "Attempts decided (connections, requests, lookups).",
        ("kind", "verdict", "outcome", "reason"), lambda metrics: _ZERO_SERIES | metrics.decisions,
    ),
    _Family(
        _COUNTER, "rule_decisions", "Decisions by each rule they cite.", ("rule", "verdict"),
        lambda metrics: _decisions_by_rule(metrics.rule_decisions),
    ),
    _Family(_COUNTER, "dns_queries", "Queries that sandboxes sent.", ("type", "verdict")),
    _Family(
        _COUNTER, "packets_refused", "Packets that the sandboxes' kernel rulesets rejected or dropped.", ("kind",)
    ),
    _Family(_COUNTER, "datagrams_refused", "Datagrams that the gate refused."),
    _Family(_COUNTER, "calls_refused", "Denied system calls of the recorded kinds.", ("call",)),
    _Family(_HISTOGRAM, "decision_seconds", "Time to decide an attempt."),
    _Family(_HISTOGRAM, "peek_seconds", "Time until the first bytes of a connection were sufficient for a decision."),
    # Traffic
    _Family(_GAUGE, "connections_open", "Allowed connections that are open now."),
    _Family(_HISTOGRAM, "connection_seconds", "Duration of connections."),
    _Family(
        _COUNTER, "bytes", "Payload of closed connections; up leaves a sandbox.", ("direction",),
        lambda metrics: {"up": metrics.bytes_up, "down": metrics.bytes_down},
    ),
    _Family(
        _COUNTER, "datagrams_lost", "Lost datagrams of open flows; up leaves a sandbox.",
        ("direction",), lambda metrics: _select(("up", "down"), metrics.datagrams_lost),
    ),
    _Family(
        _HISTOGRAM, "dial_seconds", "Time to resolve and reach a destination, by result.",
        ("result",),
    ),
    # Rules
    _Family(
        _GAUGE, "mode_info", "1 for the mode in force.", ("mode",),
        lambda metrics: {mode: float(mode in metrics.in_force.values()) for mode in Mode if metrics.in_force},
    ),
    _Family(
        _GAUGE, "rules_info", "1 for the policy in force.", ("revision",),
        lambda metrics: dict.fromkeys(sorted(filter(None, metrics.in_force)), 1.0),
    ),
    _Family(_GAUGE, "rules_valid", "Whether the rule files were valid when last read."),
    _Family(
        _COUNTER, "rules_loads", "Reads of the rule files, by result.", ("result",),
        lambda metrics: _select(("loaded", "rejected"), metrics.rules_loads),
    ),
    _Family(
        _GAUGE, "rules_expiring", "Rules that end within a week.", (),
        lambda metrics: metrics.rules_expiring(datetime.now(UTC).date()),
    ),
    _Family(
        _GAUGE, "limit_used_ratio", "Use of a rule's limit, 0 to 1.", ("rule", "limit"),
        lambda metrics: _limit_use_by_rule(metrics.limits_used()),
    ),
    _Family(
        _GAUGE, "rules_loaded_timestamp_seconds", "Load time of the policy in force.", (),
        lambda metrics: metrics.rules_loaded_at,
    ),
    _Family(
        _GAUGE, "ca_expiry_timestamp_seconds", "Expiry time of the CA certificate.", (),
        lambda metrics: metrics.ca_expiry,
    ),
    # Tasks
    _Family(_GAUGE, "sandboxes", "Sandboxes that exist now."),
    _Family(_HISTOGRAM, "sandbox_start_seconds", "Time from the command to the task's first instruction."),
    _Family(
        _COUNTER, "tasks", "Tasks that ended.", ("outcome",), lambda metrics: _with_zeros(TASK_OUTCOMES, metrics.tasks)
    ),
    _Family(_COUNTER, "worker_restarts", "Workers started again after one died."),
    # People
    _Family(
        _GAUGE, "approvals_pending", "Attempts that wait for an approval.", (),
        lambda metrics: metrics.waiting.pending,
    ),
    _Family(
        _GAUGE, "approvals_oldest_pending_seconds", "Wait of the oldest pending attempt.", (),
        lambda metrics: metrics.waiting.age,
    ),
    _Family(
        _COUNTER, "approvals", "Attempts that needed an approval, by result.", ("answer",),
        lambda metrics: _select(ANSWERS, metrics.waiting.answers),
    ),
    _Family(_HISTOGRAM, "approval_wait_seconds", "Duration of waits for an approval.", (), _wait_histogram),
    _Family(
        _GAUGE, "flags_unreviewed", "Unreviewed flagged events.", (), lambda metrics: metrics.flags[0]
    ),
    _Family(_GAUGE, "flags_oldest_unreviewed_seconds", "Age of the oldest unreviewed flagged event.", (), _flags_age),
    _Family(_COUNTER, "tasks_tainted", "Tasks that have read from an untrusted source."),
    _Family(
        _COUNTER, "tasks_unusual", "Anomalies of tasks.", ("what",),
        lambda metrics: _with_zeros(UNUSUAL, metrics.tasks_unusual),
    ),
    # The gate and its journal
    _Family(
        _COUNTER, "gate_errors", "Unexpected errors of the gate.", ("where",),
        lambda metrics: _with_zeros(Component, metrics.gate_errors),
    ),
    _Family(
        _COUNTER, "events", "Events written to the journal.", ("kind",), lambda metrics: _select(Kind, metrics.events)
    ),
    _Family(
        _COUNTER, "events_dropped", "Events that could not be written.", ("sink",),
        lambda metrics: {"journal": metrics.events_dropped},
    ),
    _Family(_COUNTER, "agent_records_refused", "Dropped records of tasks' own telemetry."),
    _Family(_COUNTER, "journal_bytes", "Bytes written to the journal."),
    _Family(_GAUGE, "build_info", "1 for the running version.", ("version", "python"), _build_info),
)  # fmt: skip
_PROCESS_FAMILIES: Final = (
    (_COUNTER, "cpu_seconds", "User and system CPU time spent.", "cpu_seconds"),
    (_GAUGE, "resident_memory_bytes", "Resident memory size.", "resident_bytes"),
    (_GAUGE, "virtual_memory_bytes", "Virtual memory size.", "virtual_bytes"),
    (_GAUGE, "start_time_seconds", "Start time since the epoch.", "started"),
    (_GAUGE, "open_fds", "Open file descriptors.", "open_descriptors"),
    (_GAUGE, "max_fds", "Most open file descriptors allowed.", "most_descriptors"),
)
