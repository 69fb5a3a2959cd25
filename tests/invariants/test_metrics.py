"""Metrics equal the journal while a task runs, and no task can read them under any rules."""

import time
from collections import Counter

import pytest

from proxy.telemetry.events import Kind
from tests.lab import Name
from tests.support.ports import free_port

from .attempt_network import HOST, RULES, dns_names
from .lab_runner import DECISIONS, Journal, only_as_ordinary_user

DATAGRAMS = 3
# Names for addresses of this host, and rules that allow them as far as rules can, as HTTP and as TCP.
HOST_ADDRESSES = {"four": "127.0.0.1", "six": "::1", "far": HOST, "other": "127.0.0.2"}
LISTED = {"far": HOST}  # no rule can list the loopback
BINDINGS = {"127.0.0.1": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]", HOST: HOST}  # and where each is scraped


def _rules_about(port):
    lines = [RULES]
    for way in ("web", "raw"):
        protocol = "http" if way == "web" else "tcp"
        for where, address in HOST_ADDRESSES.items():
            listed = f'resolves_to: ["{address}"], ' if where in LISTED else ""
            lines.append(
                f'  - {{id: {way}-{where}, to: "{way}.here-{where}.example", ports: [{port}/{protocol}], '
                f"{listed}action: allow}}\n"
            )
    for number, target in enumerate((HOST, "host.exeat.internal")):
        lines.append(f'  - {{id: target-{number}, to: "{target}", ports: [{port}/http, {port}/tcp], action: allow}}\n')
    return "".join(lines)


def _names():
    here = {f"*.here-{where}.example": Name.at(address) for where, address in HOST_ADDRESSES.items()}
    return {key: value for key, value in dns_names().items() if key != "*.here.example"} | here


@pytest.fixture(scope="module")
def metrics_run(runner):
    """A scrape and the journal of a running task, and both again after packets were refused."""
    runner.lab.origin.name(_names())
    port = free_port()
    rules = runner.rules(_rules_about(port), "watched.yaml")
    seen = {}
    with runner.start_steps("watched", rules, "watched", options=("--metrics", f"127.0.0.1:{port}")) as steps:
        seen["said"] = steps("everything")
        seen["scrape"], seen["journal"] = _settled(runner, port)
        seen["refused"] = steps("datagrams", DATAGRAMS)
        expected = DATAGRAMS + 2
        while sum((last := runner.scrape(port)).of("exeat_packets_refused_total", "kind").values()) < expected:
            time.sleep(0.2)
        seen["last scrape"] = last
        seen["last journal"] = Journal(runner.journal("watched"))
    return seen


def _settled(runner, port):
    """Return a scrape and the journal from a moment without new events."""
    while True:
        before = len(Journal(runner.journal("watched")).events)
        scrape = runner.scrape(port)
        journal = Journal(runner.journal("watched"))
        if len(journal.events) == before and scrape.of("exeat_connections_open")[()] == 1:
            return scrape, journal


def _counted(journal, *path):
    return Counter(tuple(event[key] for key in path) for event in journal.decisions())


def test_every_kind_of_decision_was_tried(metrics_run):
    assert metrics_run["said"] == [200] * 4
    outcomes = {key[2] for key in _counted(metrics_run["journal"], "kind", "verdict", "outcome", "reason")}
    assert outcomes == {"passed", "blocked"}
    assert {event["kind"] for event in metrics_run["journal"].decisions()} == set(DECISIONS)


def test_decision_counts_equal_the_journal(metrics_run):
    labels = ("kind", "verdict", "outcome", "reason")
    for scrape, journal in (("scrape", "journal"), ("last scrape", "last journal")):
        assert metrics_run[scrape].of("exeat_decisions_total", *labels) == _counted(metrics_run[journal], *labels)


def test_decision_counts_by_rule_equal_the_journal(metrics_run):
    recorded = Counter(
        (rule, event["verdict"]) for event in metrics_run["journal"].decisions() for rule in event.get("rules", ())
    )
    assert metrics_run["scrape"].of("exeat_rule_decisions_total", "rule", "verdict") == recorded


def test_dns_query_counts_equal_the_journal(metrics_run):
    recorded = Counter(
        (event["dns"]["type"], event["verdict"]) for event in metrics_run["journal"].of(kind="dns.decided")
    )
    recorded["other", "deny"] = recorded.pop(("TYPE65280", "deny"))
    assert metrics_run["scrape"].of("exeat_dns_queries_total", "type", "verdict") == recorded


def test_byte_and_connection_counts_equal_the_journal(metrics_run):
    closed = metrics_run["journal"].of(kind="connection.closed")
    recorded = {(way,): sum(event["bytes"][way] for event in closed) for way in ("up", "down")}
    assert recorded["down",] > 10_000
    assert metrics_run["scrape"].of("exeat_bytes_total", "direction") == recorded
    passed = metrics_run["journal"].of(kind="connection.decided", outcome="passed")
    assert len(passed) - len(closed) == metrics_run["scrape"].of("exeat_connections_open")[()] == 1
    assert metrics_run["scrape"].of("exeat_connection_seconds_count") == {(): len(closed)}


def test_event_counts_equal_the_journal(metrics_run):
    """Without the events that the command records before and after the task."""
    own = {"rules.loaded", "task.started", "task.ended"}
    recorded = Counter((event["kind"],) for event in metrics_run["journal"].events if event["kind"] not in own)
    counted = metrics_run["scrape"].of("exeat_events_total", "kind")
    assert {kind: count for kind, count in counted.items() if kind[0] not in own} == recorded
    assert (
        metrics_run["scrape"].of("exeat_events_dropped_total")
        == metrics_run["scrape"].of("exeat_gate_errors_total")
        == {}
    )


def test_refused_packet_counts_equal_the_packets_sent(metrics_run):
    """The counters of the kernel equal the packets sent and the entries of its log."""
    assert metrics_run["refused"] == ["ECONNREFUSED"] * (DATAGRAMS + 1) + ["TimeoutError"]
    refused = metrics_run["last scrape"].of("exeat_packets_refused_total", "kind")
    assert refused == {("udp",): DATAGRAMS, ("quic",): 1, ("dns_destination",): 1}
    reasons = Counter(
        event["reason"] for event in metrics_run["last journal"].of(kind="connection.decided", protocol="udp")
    )
    assert reasons == {"udp": DATAGRAMS, "quic": 1, "address_not_listed": 1}


def test_metric_labels_have_no_text_of_the_task(metrics_run):
    """No name, path or task label in a scrape comes from the task."""
    values = {
        value
        for family in metrics_run["last scrape"].families
        for sample in family.samples
        for value in sample.labels.values()
    }
    values -= {kind.value for kind in Kind}
    assert [value for value in values if "example" in value or "task" in value or value.startswith("/")] == []


@pytest.fixture(scope="module", params=BINDINGS)
def metrics_port_run(request, runner):
    """Results of a task for the metrics port on each binding, under rules that allow everything possible."""
    runner.lab.origin.name(_names())
    port = free_port()
    rules = runner.rules(_rules_about(port), "knocked.yaml")
    name = f"knocked-{list(BINDINGS).index(request.param)}"
    with runner.start_steps(name, rules, "watched", options=("--metrics", f"{request.param}:{port}")) as steps:
        results = steps("knock", port)
        counted = runner.scrape(port, BINDINGS[request.param])
    return results, counted, Journal(runner.journal(name))


@only_as_ordinary_user
def test_task_cannot_read_the_metrics(metrics_port_run):
    results, counted, _ = metrics_port_run
    assert {address for address, got in results.items() if "SEEN" in got} == set()
    assert counted.of("exeat_sandboxes") == {(): 1}


@only_as_ordinary_user
def test_attempts_on_the_metrics_port_are_recorded(metrics_port_run):
    """Except attempts on the loopback of the sandbox, which never reach the gate."""
    results, _, journal = metrics_port_run
    inside = {address for address, got in results.items() if got == "ECONNREFUSED"}
    assert inside == {"127.0.0.1", "::1", "0.0.0.0", "127.0.0.2", "::ffff:127.0.0.1", "localhost"}
    assert len(journal.of(kind="connection.decided")) == len(set(results) - inside)
    assert journal.of(kind="gate.error") == []
