"""Invariant 1 for the network: traffic other than TCP is refused at once and recorded."""

import pytest

from .attempt_network import UNREACHABLE
from .lab_runner import summary
from .task.wire import EVIL

EVIL6 = "2606:4700::66"


def _decisions(attempt_results, address, port):
    events = attempt_results.journal.of(kind="connection.decided", destination__address=address)
    return [
        summary(event)[1:]
        for event in events
        if event["destination"].get("port") == port and event.get("protocol") == "udp"
    ]


def test_udp_is_refused_at_once(attempt_results):
    assert attempt_results.client["udp"] == ["ECONNREFUSED", "ECONNREFUSED"]
    assert attempt_results.client["udp_to_an_allowed_name"] == "ECONNREFUSED"
    assert _decisions(attempt_results, EVIL, 9999) == _decisions(attempt_results, EVIL6, 9999) == [("blocked", "udp")]
    assert _decisions(attempt_results, EVIL, 9998) == [("blocked", "udp")]
    assert attempt_results.packets_to(*UNREACHABLE) == 0


def test_quic_is_refused_at_once(attempt_results):
    assert attempt_results.client["quic"] == ["ECONNREFUSED"] * 3
    assert _decisions(attempt_results, EVIL, 443) == _decisions(attempt_results, EVIL6, 443) == [("blocked", "quic")]
    named = attempt_results.journal.of(kind="connection.decided", destination__name="quic.allowed.example")
    assert [summary(event)[1:] for event in named] == [("blocked", "quic")]
    assert attempt_results.packets_to(*UNREACHABLE) == 0


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_sockets_of_other_protocols_are_refused(attempt_results, family):
    results = attempt_results.client["sockets_of_other_protocols"]
    refused = {name for name in results if results[name] == "EACCES" and name.endswith(f" {family}")}
    assert refused == {
        f"{name} {family}" for name in ("icmp", "ping", "sctp", "sctp-seqpacket", "dccp", "udplite", "raw")
    }
    assert results[f"mptcp {family}"] == "ECONNRESET"  # it is TCP to the gate
    assert attempt_results.packets_to(*UNREACHABLE) == 0


def test_denied_socket_calls_are_recorded(attempt_results):
    """The event names the system call and the process."""
    recorded = attempt_results.journal.of(kind="syscall.denied", call="socket")
    assert [(event["outcome"], "python" in event["process"]["exe"]) for event in recorded] == [("blocked", True)]


@pytest.mark.parametrize("attempt", ["udp_from_another_address", "tcp_from_another_address"])
def test_packets_from_a_spoofed_address_are_dropped(attempt_results, attempt):
    events = [
        event
        for event in attempt_results.journal.events
        if event.get("destination", {}).get("address") == "93.184.219.67"
    ]
    assert {summary(event) for event in events} == {("connection", "blocked", "protocol_mismatch")}
    assert attempt_results.client[attempt] in (15, {"error": "TimeoutError"})
    assert attempt_results.packets_to("93.184.219.67") == 0


def test_data_in_a_syn_is_not_forwarded(attempt_results):
    assert attempt_results.client["tcp_fast_open"][1] == "ECONNRESET"
    assert attempt_results.packets_to(EVIL) == 0


def test_only_tcp_and_dns_packets_reach_the_internet(attempt_results):
    """Over the whole run: TCP to hosts of rules, and UDP of the gate to the resolver of the host."""
    others = {(one.destination, one.protocol, one.port) for one in attempt_results.packets if one.protocol != 6}
    kernel = {other for other in others if other[0].startswith("ff02::")} | {
        other for other in others if other[1] == 58
    }
    # The kernel of the host sends neighbour discovery and multicast, and ICMP port unreachable to the resolver
    # when an answer arrives too late for the gate.
    assert others - kernel <= {("203.0.113.53", 17, 53), ("203.0.113.53", 1, 0)}
