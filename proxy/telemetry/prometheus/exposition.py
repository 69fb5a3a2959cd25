"""The metrics as Prometheus reads them. The only module that imports prometheus_client, so only a scrape pays for it.

Every name and its meaning stand here once; docs/telemetry.md repeats them and a test holds the two together.
"""

import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from proxy.telemetry.events import DECISIONS, Kind, Where
from proxy.telemetry.masking import cut
from proxy.telemetry.prometheus.metrics import ANSWERS, BOUNDS, TASK_OUTCOMES, UNUSUAL, Histogram
from proxy.telemetry.prometheus.processes import read_process
from proxy.telemetry.visible import visible
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from proxy.telemetry.prometheus.metrics import Metrics
    from proxy.telemetry.prometheus.processes import ProcessUse

# What a scrape answers with: Prometheus' text format, which every version since 0.4 of it reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Shown before they happen: increase() sees no first time in a series that begins with it.
_UNTOLD = {(kind, Verdict.DENY, Outcome.BLOCKED, Reason.JOURNAL_FAILED): 0 for kind in DECISIONS}


def render(metrics: "Metrics") -> bytes:
    """Return all metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(_families(metrics)))
    registry.register(_Once(_process_families(metrics.processes)))
    return generate_latest(registry)


class _Once(Collector):
    """Families that were made before, under prometheus_client's interface."""

    def __init__(self, families: "Iterable[Metric]") -> None:
        self._families = families

    def describe(self) -> "Iterable[Metric]":
        """Return nothing: registering must not collect."""
        return ()

    def collect(self) -> "Iterable[Metric]":
        """Return the families."""
        return self._families


def _families(metrics: "Metrics") -> "Iterator[Metric]":
    yield from _attempts(metrics)
    yield from _traffic(metrics)
    yield from _rules(metrics)
    yield from _tasks(metrics)
    yield from _people(metrics)
    yield from _telling(metrics)


def _attempts(metrics: "Metrics") -> "Iterator[Metric]":
    yield _counter(
        "decisions",
        "Attempts decided (connections, requests, lookups).",
        ("kind", "verdict", "outcome", "reason"),
        (_UNTOLD | metrics.decisions).items(),
    )
    yield _counter(
        "rule_decisions", "Decisions by each rule they cite.", ("rule", "verdict"), _by_rule(metrics.rule_decisions)
    )
    yield _counter("dns_queries", "Queries that sandboxes sent.", ("type", "verdict"), metrics.dns_queries.items())
    yield _counter(
        "packets_refused",
        "Packets that the sandboxes' kernel rulesets rejected or dropped.",
        ("kind",),
        (((kind,), count) for kind, count in metrics.packets_refused.items()),
    )
    yield _counter(
        "datagrams_refused",
        "Datagrams that the gate turned away, of whatever flow.",
        (),
        (((), metrics.datagrams_refused),),
    )
    yield _counter(
        "calls_refused",
        "System calls that tasks were refused and that are told.",
        ("call",),
        (((call,), count) for call, count in metrics.calls_refused.items()),
    )
    yield _histogram("decision_seconds", "Time to decide an attempt.", {(): metrics.decision_seconds})
    yield _histogram("peek_seconds", "Time until a connection's first bytes told enough.", {(): metrics.peek_seconds})


def _traffic(metrics: "Metrics") -> "Iterator[Metric]":
    yield _gauge("connections_open", "Connections that are let out now.", metrics.connections_open)
    yield _histogram("connection_seconds", "How long connections lasted.", {(): metrics.connection_seconds})
    yield _counter(
        "bytes",
        "Payload of closed connections; up leaves a sandbox.",
        ("direction",),
        ((("up",), metrics.bytes_up), (("down",), metrics.bytes_down)),
    )
    yield _counter(
        "datagrams_lost",
        "Datagrams of open flows that could not be passed on; up leaves a sandbox.",
        ("direction",),
        (((direction,), metrics.datagrams_lost.get(direction, 0)) for direction in ("up", "down")),
    )
    yield _histogram(
        "dial_seconds",
        "Time to reach a destination, resolving it included, by what came of it.",
        {(result,): histogram for result, histogram in metrics.dial_seconds.items()},
        ("result",),
    )


def _rules(metrics: "Metrics") -> "Iterator[Metric]":
    mode = GaugeMetricFamily("exeat_mode_info", "1 for the mode in force.", labels=("mode",))
    if metrics.in_force:
        for each in Mode:
            mode.add_metric((each.value,), float(each in metrics.in_force.values()))
    yield mode
    info = GaugeMetricFamily("exeat_rules_info", "1 for the policy in force.", labels=("revision",))
    for revision in sorted(filter(None, metrics.in_force)):
        info.add_metric((revision,), 1.0)
    yield info
    yield _gauge("rules_valid", "Whether the rule files were fit to use when last read.", int(metrics.rules_valid))
    yield _counter(
        "rules_loads",
        "Times that rule files were read, by result.",
        ("result",),
        (((result,), metrics.rules_loads.get(result, 0)) for result in ("loaded", "rejected")),
    )
    today = datetime.now(UTC).date()
    yield _gauge("rules_expiring", "Rules that end within a week.", metrics.rules_expiring(today))
    used = GaugeMetricFamily(
        "exeat_limit_used_ratio", "How much of a rule's limit is used up, 0 to 1.", labels=("rule", "limit")
    )
    for (rule, field), share in _by_look(metrics.limits_used()).items():
        used.add_metric((rule, field), share)
    yield used
    yield _gauge("rules_loaded_timestamp_seconds", "When the policy in force was loaded.", metrics.rules_loaded_at)
    yield _gauge("ca_expiry_timestamp_seconds", "When the CA certificate expires.", metrics.ca_expiry)


def _tasks(metrics: "Metrics") -> "Iterator[Metric]":
    yield _gauge("sandboxes", "Sandboxes that exist now.", metrics.sandboxes)
    yield _histogram(
        "sandbox_start_seconds",
        "Time from the command to the task's first instruction.",
        {(): metrics.sandbox_start_seconds},
    )
    yield _counter(
        "tasks",
        "Tasks that ended.",
        ("outcome",),
        (((outcome,), metrics.tasks.get(outcome, 0)) for outcome in {*TASK_OUTCOMES, *metrics.tasks}),
    )
    yield _counter("worker_restarts", "Workers started again after one died.", (), (((), metrics.worker_restarts),))


def _people(metrics: "Metrics") -> "Iterator[Metric]":
    waiting = metrics.waiting
    yield _gauge("approvals_pending", "Attempts that are held until a person answers.", waiting.pending)
    yield _gauge("approvals_oldest_pending_seconds", "How long the oldest of them has been held.", waiting.age)
    yield _counter(
        "approvals",
        "Attempts that people were to be asked about, by what came of it.",
        ("answer",),
        (((answer,), waiting.answers.get(answer, 0)) for answer in ANSWERS),
    )
    held = Histogram(BOUNDS)
    held.counts, held.total = waiting.counts, waiting.seconds
    yield _histogram("approval_wait_seconds", "How long attempts were held.", {(): held})
    unseen, oldest = metrics.flags
    yield _gauge("flags_unreviewed", "Flagged events that nobody has looked at.", unseen)
    age = max(0.0, time.time() - oldest) if unseen else 0.0
    yield _gauge("flags_oldest_unreviewed_seconds", "How old the oldest of them is.", age)
    yield _counter(
        "tasks_tainted", "Tasks that have read from an untrusted source.", (), (((), metrics.tasks_tainted),)
    )
    yield _counter(
        "tasks_unusual",
        "What tasks did that tasks of their name don't usually do.",
        ("what",),
        (((what,), metrics.tasks_unusual.get(what, 0)) for what in {*UNUSUAL, *metrics.tasks_unusual}),
    )


def _telling(metrics: "Metrics") -> "Iterator[Metric]":
    yield _counter(
        "gate_errors",
        "Unexpected failures of the gate itself.",
        ("where",),
        (((where,), metrics.gate_errors.get(where, 0)) for where in {*Where, *metrics.gate_errors}),
    )
    yield _counter(
        "events",
        "Events written to the journal.",
        ("kind",),
        (((kind,), metrics.events.get(kind, 0)) for kind in Kind),
    )
    yield _counter(
        "events_dropped", "Events that could not be written.", ("sink",), ((("journal",), metrics.events_dropped),)
    )
    yield _counter(
        "agent_records_refused",
        "Records of tasks' own telemetry that there was no room for.",
        (),
        (((), metrics.agent_records_refused),),
    )
    yield _counter("journal_bytes", "Bytes written to the journal.", (), (((), metrics.journal_bytes),))
    build = GaugeMetricFamily("exeat_build_info", "1 for the version that runs.", labels=("version", "python"))
    build.add_metric((_version(), platform.python_version()), 1.0)
    yield build


def _process_families(processes: "Mapping[str, int | ProcessUse]") -> "Iterator[Metric]":
    """Yield the usual process_* of each process of ours; one that is gone or can't be read has no samples."""
    cpu = CounterMetricFamily("process_cpu_seconds", "User and system CPU time spent.", labels=("role",))
    resident = GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size.", labels=("role",))
    virtual = GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory size.", labels=("role",))
    started = GaugeMetricFamily("process_start_time_seconds", "Start time since the epoch.", labels=("role",))
    descriptors = GaugeMetricFamily("process_open_fds", "Open file descriptors.", labels=("role",))
    most = GaugeMetricFamily("process_max_fds", "Most open file descriptors allowed.", labels=("role",))
    for role, process in processes.items():
        found = read_process(process) if isinstance(process, int) else process
        if found is None:
            continue
        cpu.add_metric((role,), found.cpu_seconds)
        resident.add_metric((role,), found.resident_bytes)
        virtual.add_metric((role,), found.virtual_bytes)
        started.add_metric((role,), found.started)
        if found.open_descriptors is not None:
            descriptors.add_metric((role,), found.open_descriptors)
        if found.most_descriptors is not None:
            most.add_metric((role,), found.most_descriptors)
    yield from (cpu, resident, virtual, started, descriptors, most)


def _by_rule(counts: "Mapping[tuple[str, Verdict], int]") -> "Iterable[tuple[tuple[str, str], int]]":
    """Return counts under rule ids fit to be read; two that look the same are one: a scrape allows no twins."""
    shown: dict[tuple[str, str], int] = {}
    for (rule, verdict), count in counts.items():
        key = (visible(cut(rule)), verdict.value)
        shown[key] = shown.get(key, 0) + count
    return shown.items()


def _by_look(shares: "Mapping[tuple[str, str], float]") -> dict[tuple[str, str], float]:
    """Return shares under rule ids fit to be read; of two that look the same the larger one."""
    shown: dict[tuple[str, str], float] = {}
    for (rule, field), share in sorted(shares.items()):
        key = visible(cut(rule)), field
        shown[key] = max(share, shown.get(key, 0.0))
    return shown


def _counter(
    name: str, help_text: str, labels: tuple[str, ...], counts: "Iterable[tuple[tuple[str, ...], int]]"
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"exeat_{name}", help_text, labels=labels)
    for values, count in sorted(counts):
        family.add_metric(values, count)
    return family


def _gauge(name: str, help_text: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"exeat_{name}", help_text, labels=())
    if value is not None:
        family.add_metric((), value)
    return family


def _histogram(
    name: str,
    help_text: str,
    histograms: "Mapping[tuple[str, ...], Histogram]",
    labels: tuple[str, ...] = (),
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"exeat_{name}", help_text, labels=labels)
    for values, histogram in sorted(histograms.items()):
        buckets = []
        below = 0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(values, buckets, sum_value=histogram.total)
    return family


def _version() -> str:
    try:
        return version("exeat")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
