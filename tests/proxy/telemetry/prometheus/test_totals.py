"""Totals of many sandboxes and workers: sums, JSON reports, and their checks."""

import json
from datetime import date

import pytest

from proxy.telemetry.events import Kind
from proxy.telemetry.prometheus.metrics import Metrics, ProcessUse
from proxy.telemetry.prometheus.totals import ReportedMetrics, add, from_json, pieces, to_json, total
from proxy.wire import strict_json
from rules.verdicts import Mode, Outcome, Reason, Verdict

NOW = 1.7e9


def sandbox(revision, rules=("r:a",), endings=()):
    metrics = Metrics()
    metrics.rules_loaded(revision, rules, Mode.ENFORCE, NOW, endings)
    metrics.decided(Kind.CONNECTION_DECIDED, Verdict.DENY, Outcome.BLOCKED, Reason.NO_RULE)
    metrics.decided(Kind.REQUEST_DECIDED, Verdict.ALLOW, Outcome.PASSED, Reason.RULE, rules)
    metrics.dns_query("A", Verdict.ALLOW)
    metrics.dialled(None, 0.2)
    metrics.sandbox_started(0.1)
    metrics.connections_open, metrics.bytes_up = 2, 100
    metrics.refused_packets({"udp": 3})
    return metrics


def test_totals_are_sums_and_ended_parts_keep_only_counters():
    counted = total()
    add(counted, sandbox("one"))
    add(counted, sandbox("two", ("r:b",)))
    add(counted, sandbox("three"), ended=True)
    assert set(counted.decisions.values()) == {3}
    assert (counted.connections_open, counted.sandboxes, counted.bytes_up) == (4, 2, 300)
    assert counted.packets_refused == {"udp": 9}
    assert set(counted.in_force) == {"one", "two"}
    assert counted.dial_seconds["connected"].total == pytest.approx(0.6)


def test_shared_policy_counts_its_rule_endings_once():
    counted = total()
    for _ in range(3):
        add(counted, sandbox("same", endings=[date(2030, 1, 1)]))
    assert counted.rule_endings == (date(2030, 1, 1),)


def test_metrics_survive_json():
    counted = total()
    add(counted, sandbox("one"))
    counted.processes["worker"] = ProcessUse(1.5, 10, 20, NOW, 5, None)
    read = from_json(json.loads(json.dumps(to_json(counted))), "worker-2")
    assert read.processes["worker-2"] == ProcessUse(1.5, 10, 20, NOW, 5, None)
    assert read.render().replace(b"worker-2", b"worker") == counted.render()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes_up", -1),
        ("bytes_up", "1"),
        ("bytes_up", 1 << 70),
        ("decisions", [["connection.decided", "deny", "blocked", "no such reason", 1]]),
        ("rule_decisions", [["x" * 1000, "deny", 1]]),
        ("tasks", {str(number): 1 for number in range(1000)}),
        ("peek_seconds", [[1], 0.0]),
        ("in_force", {"r": "no mode"}),
        ("rules_loaded_at", "soon"),
        ("processes", {"worker": [1]}),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "value",
)
def test_malformed_reports_are_refused(key, value):
    said = to_json(sandbox_total())
    said[key] = value
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_json(json.loads(json.dumps(said)), "worker")


def sandbox_total():
    counted = total()
    add(counted, sandbox("one"))
    return counted


def test_totals_of_largest_counts_are_valid_and_names_bounded():
    counted = total()
    for number in range(3):
        worker = sandbox_total()
        worker.bytes_up = worker.decision_seconds.counts[0] = (1 << 63) - 1
        worker.decision_seconds.total = 9e18
        worker.tasks = {f"{number}-{at}": (1 << 63) - 1 for at in range(150)}
        worker.dns_queries = {(f"{number}-{at}", Verdict.ALLOW): 1 for at in range(3000)}
        worker.dial_seconds = {f"{number}-{at}": Metrics.dial_histogram() for at in range(150)}
        add(counted, worker)
    read = from_json(strict_json.loads(json.dumps(to_json(counted))), "")
    assert read.bytes_up == read.decision_seconds.counts[0] == (1 << 63) - 1
    assert (len(read.tasks), len(read.dns_queries), len(read.dial_seconds)) == (200, 4000, 200)


def test_report_is_sent_in_pieces_and_an_incomplete_one_is_dropped():
    reported, metrics = ReportedMetrics(), sandbox("one", [f"r:{'x' * 150}{number}" for number in range(1000)])
    whole = list(pieces(metrics))
    assert len(whole) > 2
    reported.take(whole[0])
    for piece in whole:
        assert reported.counts is None
        reported.take(piece)
    assert reported.counts.rule_decisions == metrics.rule_decisions
    for said in (
        {"metrics": 1, "left": 0},
        {"metrics": "{}", "left": 0},
        {"metrics": "[" * 9999, "left": 0},
        {"left": 0},
    ):
        reported.take(said)
    for left in range(99, -1, -1):
        reported.take({"metrics": " " * 60_000, "left": left})
    assert reported.counts.bytes_up == 100
    metrics.bytes_up = 101
    for piece in pieces(metrics):
        reported.take(piece)
    assert reported.counts.bytes_up == 101


@pytest.mark.parametrize("back", ["bytes_up", "decisions", "dns_queries", "rule_decisions", "decision_seconds"])
def test_report_with_decreased_counters_is_ignored(back):
    steady, metrics = ReportedMetrics(steady=True), sandbox("one")
    metrics.decision_seconds.observe(0.1)
    for metrics.connections_open in (2, 1):
        for piece in pieces(metrics):
            steady.take(piece)
    assert steady.counts.connections_open == 1
    setattr(metrics, back, getattr(Metrics(), back))
    metrics.connections_open = 7
    for piece in pieces(metrics):
        steady.take(piece)
    assert (steady.counts.connections_open, steady.counts.bytes_up) == (1, 100)


def test_removed_rules_are_no_decreased_counters():
    steady, metrics = ReportedMetrics(steady=True), sandbox("one")
    for rules in (["r:a"], ["r:b"]):
        metrics.rules_loaded("two", rules, Mode.ENFORCE, NOW)
        for piece in pieces(metrics):
            steady.take(piece)
    assert steady.counts.rule_decisions == {("other", Verdict.ALLOW): 1}
