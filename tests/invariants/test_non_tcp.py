"""Invariant 1, the network's part: what is not TCP does not leave, is refused at once, and is told."""

import pytest

from .attempt_network import NEVER
from .lab_runner import shape
from .task.wire import EVIL

EVIL6 = "2606:4700::66"


def _told(tried, address, port):
    events = tried.journal.of(kind="connection.decided", destination__address=address)
    return [
        shape(event)[1:]
        for event in events
        if event["destination"].get("port") == port and event.get("protocol") == "udp"
    ]


def test_udp_is_refused_at_once(tried):
    assert tried.said["udp"] == ["ECONNREFUSED", "ECONNREFUSED"]
    assert tried.said["udp_to_an_allowed_name"] == "ECONNREFUSED"
    assert _told(tried, EVIL, 9999) == _told(tried, EVIL6, 9999) == [("blocked", "udp")]
    assert _told(tried, EVIL, 9998) == [("blocked", "udp")]
    assert tried.packets_to(*NEVER) == 0


def test_quic_is_refused_at_once(tried):
    assert tried.said["quic"] == ["ECONNREFUSED"] * 3
    assert _told(tried, EVIL, 443) == _told(tried, EVIL6, 443) == [("blocked", "quic")]
    named = tried.journal.of(kind="connection.decided", destination__name="quic.allowed.example")
    assert [shape(event)[1:] for event in named] == [("blocked", "quic")]
    assert tried.packets_to(*NEVER) == 0


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_sockets_of_other_protocols_are_refused(tried, family):
    said = tried.said["sockets_of_other_protocols"]
    refused = {name for name in said if said[name] == "EACCES" and name.endswith(f" {family}")}
    assert refused == {
        f"{name} {family}" for name in ("icmp", "ping", "sctp", "sctp-seqpacket", "dccp", "udplite", "raw")
    }
    assert said[f"mptcp {family}"] == "ECONNRESET"  # it is TCP to the gate
    assert tried.packets_to(*NEVER) == 0


def test_denied_socket_calls_are_recorded(tried):
    """The filter has no rule and no reason but itself: it names the call, and who made it."""
    told = tried.journal.of(kind="syscall.denied", call="socket")
    assert [(event["outcome"], "python" in event["process"]["exe"]) for event in told] == [("blocked", True)]


@pytest.mark.parametrize("attempt", ["udp_from_another_address", "tcp_from_another_address"])
def test_packets_from_a_spoofed_address_are_dropped(tried, attempt):
    events = [event for event in tried.journal.events if event.get("destination", {}).get("address") == "93.184.219.67"]
    assert {shape(event) for event in events} == {("connection", "blocked", "protocol_mismatch")}
    assert tried.said[attempt] in (15, {"error": "TimeoutError"})
    assert tried.packets_to("93.184.219.67") == 0


def test_data_in_a_syn_is_not_forwarded(tried):
    assert tried.said["tcp_fast_open"][1] == "ECONNRESET"
    assert tried.packets_to(EVIL) == 0


def test_only_tcp_and_dns_packets_reach_the_internet(tried):
    """Over the whole run: TCP to hosts of rules, UDP to the resolver of the host itself."""
    others = {(one.destination, one.protocol, one.port) for one in tried.packets if one.protocol != 6}
    kernel = {other for other in others if other[0].startswith("ff02::")} | {
        other for other in others if other[1] == 58
    }
    # Neighbours and groups are the host's kernel's to look for; and it tells the resolver of the host (ICMP, port
    # unreachable) when an answer comes that the gate waits for no more.
    assert others - kernel <= {("203.0.113.53", 17, 53), ("203.0.113.53", 1, 0)}
