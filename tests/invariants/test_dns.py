"""Lookups carry nothing out: only a connection that is let out asks anybody, and it asks for that one name."""

import pytest

from .attempt_network import address_of
from .lab_runner import shape
from .task.attempts import EVERY
from .task.dns import DATA, TYPES

ANSWERED = ("udp 8.8.8.8", "udp ::1", "tcp 8.8.8.8", "tcp ::1")
UNREACHED = {"tcp ff02::1": "ENETUNREACH", "tcp 255.255.255.255": "ENETUNREACH"}
SILENT = ("udp ff02::1", "udp 255.255.255.255")  # no answer can come from these


@pytest.mark.parametrize(
    ("attempt", "outcome", "reason"),
    [
        ("data_under_a_denied_name", "blocked", "rule"),
        ("data_under_an_unknown_name", "blocked", "dns_denied"),
        ("data_under_an_allowed_wildcard", "passed", "rule"),
    ],
)
def test_data_in_dns_labels_is_not_forwarded(tried, attempt, outcome, reason):
    said = tried.said[attempt]
    pool = "198.18." if outcome == "passed" else "198.19.252."
    for server in ANSWERED:
        assert said[server]["address"].startswith(pool)
    assert {server: said[server] for server in UNREACHED} == UNREACHED
    assert {said[server] for server in SILENT} == {"TimeoutError"}
    asked = [event for event in tried.journal.during(attempt) if event["kind"] == "dns.decided"]
    assert [shape(event) for event in asked] == [("dns", outcome, reason)] * len(ANSWERED)
    assert [name for name, *_ in tried.queries if DATA.lower() in name or attempt.replace("_", "-") in name] == []
    assert tried.packets_to("8.8.8.8", "ff02::1", "255.255.255.255", address_of(attempt)) == 0


@pytest.mark.parametrize("server", ["ff02::1", "255.255.255.255"])
def test_multicast_and_broadcast_dns_queries_are_recorded(tried, server):
    told = [event for event in tried.journal.of(destination__address=server) if event["destination"]["port"] == 53]
    assert [shape(event) for event in told] == [("connection", "blocked", "address_not_listed")] * 3


def test_only_a_connection_resolves_its_name_upstream(tried):
    _, reached = tried.said["only_a_connection_resolves"]
    assert reached["echo"]["destination"][0] == address_of("only_a_connection_resolves")
    host = EVERY["only_a_connection_resolves"].host
    assert sorted({asked for asked, *_ in tried.queries if asked.endswith(host)}) == [f"used.{host}"]


def test_denied_request_resolves_nothing(tried):
    assert tried.said["a_denied_request_resolves_nothing"]["reason"] == "name_mismatch"
    host = EVERY["a_denied_request_resolves_nothing"].host
    assert [asked for asked, *_ in tried.queries if asked == host] == []


def test_every_upstream_query_belongs_to_an_allowed_connection(tried):
    """Of all that was looked up in a whole run, nothing else ever left."""
    connected = {event["destination"].get("name") for event in tried.journal.of(kind="connection.decided")}
    assert {asked for asked, *_ in tried.queries} <= connected


@pytest.mark.parametrize(("attempt", "reason"), [("every_type", "dns_type"), ("every_type_of_a_denied_name", "rule")])
def test_dns_types_other_than_addresses_are_denied(tried, attempt, reason):
    said = tried.said[attempt]
    assert {name: one["answers"] for name, one in said.items()} == {name: int(name == "A") for name in TYPES}
    denied = set(TYPES) if reason == "rule" else set(TYPES) - {"A", "AAAA", "SVCB", "HTTPS"}
    told = {event["dns"]["type"]: shape(event) for event in tried.journal.during(attempt)}
    assert {kind for kind, one in told.items() if one == ("dns", "blocked", reason)} == denied
    assert len(tried.journal.during(attempt)) == len(TYPES)


def test_numeric_names_are_refused_as_invalid(tried):
    said = tried.said["spelled_addresses_as_names"]
    assert {name: one["rcode"] for name, one in said.items()} == {
        "2130706433": 3,
        "0x7f.1": 3,
        "localhost": 0,
        "127.0.0.1": 3,
    }
    told = [shape(event) for event in tried.journal.during("spelled_addresses_as_names")]
    assert told == [("dns", "blocked", "invalid_name")] * 3


def test_tcp_other_than_dns_to_port_53_is_reset(tried):
    """Even where a rule lets TCP out to that port of that name."""
    assert tried.said["port_53_for_something_else"] == ["ECONNRESET"] * 3
    told = [
        shape(event) for event in tried.journal.during("port_53_for_something_else") if event["kind"] != "dns.decided"
    ]
    assert told == [("connection", "blocked", "protocol_mismatch")] * 3
    assert tried.packets_to(address_of("port_53_for_something_else")) == 0
