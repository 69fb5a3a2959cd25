"""Metrics: values, closed sets of labels, and text that Prometheus accepts."""

import os
import re
import subprocess
import sys

import pytest

from proxy.telemetry.events import Component, Dns, Kind, Process
from proxy.telemetry.prometheus.metrics import MOST_RULES, Histogram, Metrics
from rules.attempt import Protocol
from rules.decision import Decision
from rules.verdicts import Mode, Outcome, Reason, Verdict
from tests.support.telemetry_lab import ALLOWED, DENIED, HOSTILE, REVISION, close, connect, find_program, recorder_lab


def series(metrics):
    """Every sample as `name{labels}`: its value."""
    lines = metrics.render().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def busy(tmp_path):
    """Metrics with something in every family."""
    lab = recorder_lab(tmp_path)
    metrics = lab.metrics
    lab.recorder.rules_loaded()
    close(lab.recorder, connect(lab.recorder), up=3, down=5)
    connect(lab.recorder)
    connect(lab.recorder, DENIED)
    lab.recorder.decided(
        Kind.DNS_DECIDED,
        DENIED,
        name="a",
        address=None,
        port=53,
        protocol=Protocol.UDP,
        dns=Dns("a", "A"),
    )
    lab.recorder.error(Component.DIAL, "x")
    lab.recorder.task_ended(None, seconds=1.0, status=0)
    metrics.decision_seconds.observe(3e-6)
    metrics.peek_seconds.observe(0.002)
    metrics.dialled(None, 0.02)
    metrics.dialled(Reason.UNRESOLVED, 0.3)
    metrics.refused_packets({"tcp": 1, "quic": 2})
    metrics.sandbox_started(0.11)
    metrics.ca_expiry = 2e9
    metrics.worker_restarts = 1
    metrics.watch("worker", os.getpid())
    return metrics


def test_metrics_count_recorded_events(tmp_path):
    got = series(busy(tmp_path))
    expected = {
        'exeat_decisions_total{kind="connection.decided",outcome="passed",reason="rule",verdict="allow"}': 2,
        'exeat_decisions_total{kind="connection.decided",outcome="blocked",reason="no_rule",verdict="deny"}': 1,
        'exeat_rule_decisions_total{rule="web:pages",verdict="allow"}': 2,
        'exeat_dns_queries_total{type="A",verdict="deny"}': 1,
        'exeat_packets_refused_total{kind="quic"}': 2,
        "exeat_connections_open": 1,
        'exeat_connection_seconds_bucket{le="0.25"}': 0,
        'exeat_connection_seconds_bucket{le="1.0"}': 1,
        "exeat_connection_seconds_sum": 0.5,
        'exeat_bytes_total{direction="up"}': 3,
        'exeat_bytes_total{direction="down"}': 5,
        'exeat_dial_seconds_count{result="connected"}': 1,
        'exeat_dial_seconds_bucket{le="0.25",result="unresolved"}': 0,
        'exeat_dial_seconds_bucket{le="0.5",result="unresolved"}': 1,
        'exeat_dial_seconds_bucket{le="+Inf",result="unresolved"}': 1,
        "exeat_decision_seconds_count": 1,
        "exeat_peek_seconds_count": 1,
        'exeat_mode_info{mode="enforce"}': 1,
        'exeat_mode_info{mode="audit"}': 0,
        f'exeat_rules_info{{revision="{REVISION}"}}': 1,
        "exeat_rules_valid": 1,
        'exeat_rules_loads_total{result="loaded"}': 1,
        'exeat_rules_loads_total{result="rejected"}': 0,
        "exeat_ca_expiry_timestamp_seconds": 2e9,
        "exeat_sandboxes": 1,
        "exeat_sandbox_start_seconds_sum": 0.11,
        'exeat_tasks_total{outcome="passed"}': 1,
        "exeat_worker_restarts_total": 1,
        'exeat_gate_errors_total{where="dial"}': 1,
        'exeat_events_total{kind="connection.closed"}': 1,
        'exeat_events_dropped_total{sink="journal"}': 0,
        'process_max_fds{role="worker"}': os.sysconf("SC_OPEN_MAX"),
    }
    assert {name: got.get(name) for name in expected} == expected
    assert got["exeat_journal_bytes_total"] == sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl"))
    assert got['process_resident_memory_bytes{role="worker"}'] > 1_000_000
    assert 0 < got['process_open_fds{role="worker"}'] < 10_000
    assert 1.7e9 < got['process_start_time_seconds{role="worker"}'] < 1e10


def test_unknown_values_have_no_samples():
    got = series(Metrics())
    assert got["exeat_rules_valid"] == 0
    assert not [name for name in got if name.startswith(("exeat_mode", "exeat_rules_info", "exeat_ca", "process_"))]


def test_promtool_accepts_the_metrics(tmp_path):
    promtool = find_program("promtool")
    for metrics in (Metrics(), busy(tmp_path)):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=metrics.render(), capture_output=True, check=False, timeout=30
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_names_tasks_and_rules_add_no_series(tmp_path):
    """What a sandbox or a rule file can choose never becomes a label without bound."""
    lab = recorder_lab(tmp_path)
    lab.recorder.rules_loaded()
    lab.recorder.error("made up", "x")

    def attempt(n, task):
        text = f"name-{n}.example"
        denied = Decision(Verdict.DENY, Outcome.BLOCKED, Reason.RULE, (f"made-up:{n}",), REVISION)
        task.decided(
            Kind.DNS_DECIDED,
            denied,
            name=text,
            address=text,
            port=n,
            protocol=Protocol.UDP,
            dns=Dns(text, f"TYPE{n}"),
        )
        lab.metrics.refused_packets({text: n})

    attempt(0, lab.recorder)
    before = series(lab.metrics).keys()
    for n in range(2_000):
        attempt(n, lab.recorder)
    for n in range(20):
        other = recorder_lab(tmp_path, task=f"task-{n}", name=f"name-{n}").recorder
        other.metrics = lab.metrics
        attempt(n, other)
        other.error(f"where-{n}", "x")
    after = series(lab.metrics)
    assert after.keys() == before
    assert after['exeat_rule_decisions_total{rule="other",verdict="deny"}'] == 2_021


def test_hundred_thousand_values_add_no_series():
    metrics = Metrics()
    metrics.rules_loaded(REVISION, ["web:pages"], Mode.ENFORCE, 0.0)

    def all_of(n):
        text = f"{n}.example"
        metrics.decided(Kind.REQUEST_DECIDED, Verdict.DENY, Outcome.PASSED, Reason.RULE, (text, "web:pages"))
        metrics.dns_query(text, Verdict.DENY)
        metrics.refused_packets({text: n})
        metrics.refused_call(text, 1)
        metrics.failed(Component.OTHER)

    for n in range(1_000):  # labels with a limited number of values, such as system calls
        all_of(n)
    before = series(metrics).keys()
    for n in range(1_000, 100_000):
        all_of(n)
    assert series(metrics).keys() == before
    assert len(before) < 1_500


def test_rules_have_up_to_a_thousand_series_until_removed():
    metrics = Metrics()
    rules = [f"web:r{n}" for n in range(3 * MOST_RULES)]
    for reload in range(5):
        metrics.rules_loaded(REVISION, [f"{rule}-{reload}" for rule in rules], Mode.ENFORCE, 0.0)
        metrics.decided(
            Kind.REQUEST_DECIDED, Verdict.ALLOW, Outcome.PASSED, Reason.RULE, [f"{rule}-{reload}" for rule in rules]
        )
        assert len(metrics.rule_decisions) == MOST_RULES + 1
    assert sum(metrics.rule_decisions.values()) == 5 * len(rules)
    assert metrics.rule_decisions["web:r0-4", Verdict.ALLOW] == 1


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_label_stays_one_label(text):
    """An admin's rule id is the one free text among the labels; it is a slug, and even if it weren't."""
    metrics = Metrics()
    metrics.rules_loaded(REVISION, [text], Mode.ENFORCE, 0.0)
    metrics.decided(Kind.REQUEST_DECIDED, Verdict.ALLOW, Outcome.PASSED, Reason.RULE, [text])
    rendered = metrics.render()
    samples = [line for line in rendered.split(b"\n") if line.startswith(b"exeat_rule_decisions_total")]
    assert len(samples) == 1
    assert re.fullmatch(rb'exeat_rule_decisions_total\{rule="([^"\\\n]|\\[\\"n])*",verdict="allow"\} 1\.0', samples[0])


def test_packet_counts_are_totals_and_unknown_kinds_are_other():
    metrics = Metrics()
    metrics.refused_packets({"tcp": 5})
    metrics.refused_packets({"tcp": 7, "sctp": 1, "made up": 2})
    assert metrics.packets_refused == {"tcp": 7, "other": 3}


def test_observation_on_a_bound_counts_below_it():
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.0, 1.0, 1.5, 2.0, 2.1, float("inf")):
        histogram.observe(seconds)
    assert histogram.counts == [2, 2, 2]


def test_ended_process_has_no_samples():
    metrics = Metrics()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pid = child.pid
    metrics.watch("launcher", pid)
    assert 'role="launcher"' not in metrics.render().decode()


def test_counting_does_not_import_prometheus_client():
    program = (
        "import sys\nfrom proxy.telemetry.prometheus.metrics import Metrics\nmetrics = Metrics(); metrics.sandbox_started(0.1)\n"
        "print('prometheus_client' in sys.modules); metrics.render(); print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"


def test_allowed_and_denied_attempts_have_separate_series(tmp_path):
    lab = recorder_lab(tmp_path)
    connect(lab.recorder, ALLOWED)
    connect(lab.recorder, DENIED)
    assert len(lab.metrics.decisions) == 2


def test_command_decision_counts_without_rules(tmp_path):
    """Rules with a series of their own are about the network; a command isn't one of them."""
    lab = recorder_lab(tmp_path)
    by_rule = DENIED._replace(rules=("web:no-rm",))
    lab.recorder.command_decided(by_rule, ["rm", "x"], Process(7, "/bin/sh"))
    assert lab.metrics.decisions == {(Kind.COMMAND_DECIDED, DENIED.verdict, DENIED.outcome, DENIED.reason): 1}
    assert lab.metrics.rule_decisions == {}
