"""DNS lookups carry no data out: only an allowed connection resolves upstream, and only its own name."""

import pytest

from .attempt_network import address_of
from .lab_runner import summary
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
def test_data_in_dns_labels_is_not_forwarded(attempt_results, attempt, outcome, reason):
    results = attempt_results.client[attempt]
    pool = "198.18." if outcome == "passed" else "198.19.252."
    for server in ANSWERED:
        assert results[server]["address"].startswith(pool)
    assert {server: results[server] for server in UNREACHED} == UNREACHED
    assert {results[server] for server in SILENT} == {"TimeoutError"}
    queried = [event for event in attempt_results.journal.decisions_during(attempt) if event["kind"] == "dns.decided"]
    assert [summary(event) for event in queried] == [("dns", outcome, reason)] * len(ANSWERED)
    assert [
        name for name, *_ in attempt_results.queries if DATA.lower() in name or attempt.replace("_", "-") in name
    ] == []
    assert attempt_results.packets_to("8.8.8.8", "ff02::1", "255.255.255.255", address_of(attempt)) == 0


@pytest.mark.parametrize("server", ["ff02::1", "255.255.255.255"])
def test_multicast_and_broadcast_dns_queries_are_recorded(attempt_results, server):
    recorded = [
        event for event in attempt_results.journal.of(destination__address=server) if event["destination"]["port"] == 53
    ]
    assert [summary(event) for event in recorded] == [("connection", "blocked", "address_not_listed")] * 3


def test_only_a_connection_resolves_its_name_upstream(attempt_results):
    _, reached = attempt_results.client["only_a_connection_resolves"]
    assert reached["echo"]["destination"][0] == address_of("only_a_connection_resolves")
    host = EVERY["only_a_connection_resolves"].host
    assert sorted({queried for queried, *_ in attempt_results.queries if queried.endswith(host)}) == [f"used.{host}"]


def test_denied_request_resolves_nothing(attempt_results):
    assert attempt_results.client["a_denied_request_resolves_nothing"]["reason"] == "name_mismatch"
    host = EVERY["a_denied_request_resolves_nothing"].host
    assert [queried for queried, *_ in attempt_results.queries if queried == host] == []


def test_every_upstream_query_belongs_to_an_allowed_connection(attempt_results):
    """Holds for all lookups of the whole run."""
    connected = {event["destination"].get("name") for event in attempt_results.journal.of(kind="connection.decided")}
    assert {queried for queried, *_ in attempt_results.queries} <= connected


@pytest.mark.parametrize(("attempt", "reason"), [("every_type", "dns_type"), ("every_type_of_a_denied_name", "rule")])
def test_dns_types_other_than_addresses_are_denied(attempt_results, attempt, reason):
    results = attempt_results.client[attempt]
    assert {name: one["answers"] for name, one in results.items()} == {name: int(name == "A") for name in TYPES}
    denied = set(TYPES) if reason == "rule" else set(TYPES) - {"A", "AAAA", "SVCB", "HTTPS"}
    recorded = {event["dns"]["type"]: summary(event) for event in attempt_results.journal.decisions_during(attempt)}
    assert {kind for kind, one in recorded.items() if one == ("dns", "blocked", reason)} == denied
    assert len(attempt_results.journal.decisions_during(attempt)) == len(TYPES)


def test_numeric_names_are_refused_as_invalid(attempt_results):
    results = attempt_results.client["spelled_addresses_as_names"]
    assert {name: one["rcode"] for name, one in results.items()} == {
        "2130706433": 3,
        "0x7f.1": 3,
        "localhost": 0,
        "127.0.0.1": 3,
    }
    recorded = [summary(event) for event in attempt_results.journal.decisions_during("spelled_addresses_as_names")]
    assert recorded == [("dns", "blocked", "invalid_name")] * 3


def test_tcp_other_than_dns_to_port_53_is_reset(attempt_results):
    """Even where a rule allows TCP to that port of that name."""
    assert attempt_results.client["port_53_for_something_else"] == ["ECONNRESET"] * 3
    recorded = [
        summary(event)
        for event in attempt_results.journal.decisions_during("port_53_for_something_else")
        if event["kind"] != "dns.decided"
    ]
    assert recorded == [("connection", "blocked", "protocol_mismatch")] * 3
    assert attempt_results.packets_to(address_of("port_53_for_something_else")) == 0
