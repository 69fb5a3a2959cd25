"""The metrics say what the journal says, while it happens; and no task gets to see them, whatever the rules let out."""

import time
from collections import Counter

import pytest

from proxy.telemetry.events import Kind
from tests.lab import Name
from tests.support.ports import free_port

from .attempt_network import HOST, RULES, names
from .lab_runner import DECISIONS, Journal, by_the_gate

DATAGRAMS = 3
# Names for this host's own addresses, and rules that mean them as far as rules can: in the clear, and as anything.
HERE = {"four": "127.0.0.1", "six": "::1", "far": HOST, "other": "127.0.0.2"}
LISTED = {"far": HOST}  # no rule can list the loopback
BINDINGS = {"127.0.0.1": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]", HOST: HOST}  # and where each is scraped


def _rules_about(port):
    lines = [RULES]
    for way in ("web", "raw"):
        protocol = "http" if way == "web" else "tcp"
        for where, address in HERE.items():
            listed = f'resolves_to: ["{address}"], ' if where in LISTED else ""
            lines.append(
                f'  - {{id: {way}-{where}, to: "{way}.here-{where}.example", ports: [{port}/{protocol}], '
                f"{listed}action: allow}}\n"
            )
    for number, target in enumerate((HOST, "host.exeat.internal")):
        lines.append(f'  - {{id: target-{number}, to: "{target}", ports: [{port}/http, {port}/tcp], action: allow}}\n')
    return "".join(lines)


def _names():
    here = {f"*.here-{where}.example": Name.at(address) for where, address in HERE.items()}
    return {key: value for key, value in names().items() if key != "*.here.example"} | here


@pytest.fixture(scope="module")
def watched(place):
    """A scrape of a running task and the journal as it was then, and the same again when packets had been refused."""
    place.lab.origin.name(_names())
    port = free_port()
    rules = place.rules(_rules_about(port), "watched.yaml")
    seen = {}
    with place.stepping("watched", rules, "watched", options=("--metrics", f"127.0.0.1:{port}")) as steps:
        seen["said"] = steps("everything")
        seen["scrape"], seen["journal"] = _settled(place, port)
        seen["refused"] = steps("datagrams", DATAGRAMS)
        wanted = DATAGRAMS + 2
        while sum((last := place.scrape(port)).of("exeat_packets_refused_total", "kind").values()) < wanted:
            time.sleep(0.2)
        seen["last scrape"] = last
        seen["last journal"] = Journal(place.journal("watched"))
    return seen


def _settled(place, port):
    """A scrape and a journal between which nothing happened: the ends of connections come when they come."""
    while True:
        before = len(Journal(place.journal("watched")).events)
        scrape = place.scrape(port)
        journal = Journal(place.journal("watched"))
        if len(journal.events) == before and scrape.of("exeat_connections_open")[()] == 1:
            return scrape, journal


def _counted(journal, *path):
    return Counter(tuple(event[key] for key in path) for event in journal.decisions())


def test_every_kind_of_decision_was_tried(watched):
    assert watched["said"] == [200] * 4
    outcomes = {key[2] for key in _counted(watched["journal"], "kind", "verdict", "outcome", "reason")}
    assert outcomes == {"passed", "blocked"}
    assert {event["kind"] for event in watched["journal"].decisions()} == set(DECISIONS)


def test_decision_counts_equal_the_journal(watched):
    labels = ("kind", "verdict", "outcome", "reason")
    for scrape, journal in (("scrape", "journal"), ("last scrape", "last journal")):
        assert watched[scrape].of("exeat_decisions_total", *labels) == _counted(watched[journal], *labels)


def test_decision_counts_by_rule_equal_the_journal(watched):
    told = Counter(
        (rule, event["verdict"]) for event in watched["journal"].decisions() for rule in event.get("rules", ())
    )
    assert watched["scrape"].of("exeat_rule_decisions_total", "rule", "verdict") == told


def test_dns_query_counts_equal_the_journal(watched):
    told = Counter((event["dns"]["type"], event["verdict"]) for event in watched["journal"].of(kind="dns.decided"))
    told["other", "deny"] = told.pop(("TYPE65280", "deny"))
    assert watched["scrape"].of("exeat_dns_queries_total", "type", "verdict") == told


def test_byte_and_connection_counts_equal_the_journal(watched):
    closed = watched["journal"].of(kind="connection.closed")
    told = {(way,): sum(event["bytes"][way] for event in closed) for way in ("up", "down")}
    assert told["down",] > 10_000
    assert watched["scrape"].of("exeat_bytes_total", "direction") == told
    passed = watched["journal"].of(kind="connection.decided", outcome="passed")
    assert len(passed) - len(closed) == watched["scrape"].of("exeat_connections_open")[()] == 1
    assert watched["scrape"].of("exeat_connection_seconds_count") == {(): len(closed)}


def test_event_counts_equal_the_journal(watched):
    """But for what the command itself tells before and after the task."""
    own = {"rules.loaded", "task.started", "task.ended"}
    told = Counter((event["kind"],) for event in watched["journal"].events if event["kind"] not in own)
    counted = watched["scrape"].of("exeat_events_total", "kind")
    assert {kind: count for kind, count in counted.items() if kind[0] not in own} == told
    assert watched["scrape"].of("exeat_events_dropped_total") == watched["scrape"].of("exeat_gate_errors_total") == {}


def test_refused_packet_counts_equal_the_packets_sent(watched):
    """What the kernel counted is what was sent, and what its log told."""
    assert watched["refused"] == ["ECONNREFUSED"] * (DATAGRAMS + 1) + ["TimeoutError"]
    refused = watched["last scrape"].of("exeat_packets_refused_total", "kind")
    assert refused == {("udp",): DATAGRAMS, ("quic",): 1, ("dns_destination",): 1}
    reasons = Counter(
        event["reason"] for event in watched["last journal"].of(kind="connection.decided", protocol="udp")
    )
    assert reasons == {"udp": DATAGRAMS, "quic": 1, "address_not_listed": 1}


def test_metric_labels_have_no_text_of_the_task(watched):
    """No name, path or task that a task chose is in a scrape."""
    values = {
        value
        for family in watched["last scrape"].families
        for sample in family.samples
        for value in sample.labels.values()
    }
    values -= {kind.value for kind in Kind}
    assert [value for value in values if "example" in value or "task" in value or value.startswith("/")] == []


@pytest.fixture(scope="module", params=BINDINGS)
def knocked(request, place):
    """What a task got from the metrics port, wherever it listens, under rules that allow every way there."""
    place.lab.origin.name(_names())
    port = free_port()
    rules = place.rules(_rules_about(port), "knocked.yaml")
    name = f"knocked-{list(BINDINGS).index(request.param)}"
    with place.stepping(name, rules, "watched", options=("--metrics", f"{request.param}:{port}")) as steps:
        said = steps("knock", port)
        counted = place.scrape(port, BINDINGS[request.param])
    return said, counted, Journal(place.journal(name))


@by_the_gate
def test_task_cannot_read_the_metrics(knocked):
    said, counted, _ = knocked
    assert {place for place, got in said.items() if "SEEN" in got} == set()
    assert counted.of("exeat_sandboxes") == {(): 1}


@by_the_gate
def test_attempts_on_the_metrics_port_are_recorded(knocked):
    """But for knocks at the sandbox's own loopback, which refuses them itself: they never were on their way out."""
    said, _, journal = knocked
    inside = {place for place, got in said.items() if got == "ECONNREFUSED"}
    assert inside == {"127.0.0.1", "::1", "0.0.0.0", "127.0.0.2", "::ffff:127.0.0.1", "localhost"}
    assert len(journal.of(kind="connection.decided")) == len(set(said) - inside)
    assert journal.of(kind="gate.error") == []
