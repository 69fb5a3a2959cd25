"""What was refused, told packet by packet and counted: the kernel's log, its parser, the counters."""

import contextlib
import errno
import random
import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.network.gate_sockets import open_counter_socket, open_refusal_log, read_counters
from proxy.wire.netlink import MalformedMessageError, attribute, message
from proxy.wire.refusal_log import NFULNL_MSG_PACKET, Kind, RefusedPacket, parse_refusal
from tests.enforcer.network.netns_harness import outcome


def send(address, port, number=socket.IPPROTO_UDP):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = number != socket.IPPROTO_UDP
    with socket.socket(family, socket.SOCK_RAW if raw else socket.SOCK_DGRAM, number if raw else 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(bytes(100), socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])


REFUSED = [
    ("8.8.8.8", 443, Kind.QUIC),
    ("2606::1", 443, Kind.QUIC),
    ("8.8.8.8", 123, Kind.UDP),
    ("2606::1", 123, Kind.UDP),
    ("255.255.255.255", 53, Kind.DNS_DESTINATION),
    ("ff02::1%lo", 53, Kind.DNS_DESTINATION),
]


@pytest.mark.parametrize(("address", "port", "kind"), REFUSED)
def test_refused_datagram_is_logged_with_both_ends(network, address, port, kind):
    network.run(lambda: send(address, port))
    (packet,) = parse_refusal(network.sockets.refusal_log.recv(65536))
    own = "fd65:7865:6174::2" if ":" in address else "192.0.0.2"
    assert packet.kind is kind
    assert (str(packet.address), packet.port) == (address.partition("%")[0], port)
    assert str(packet.source) == own
    assert packet.source_port > 0
    assert packet.protocol_number == socket.IPPROTO_UDP


@pytest.mark.parametrize(("number", "kind"), [(socket.IPPROTO_ICMP, Kind.ICMP), (132, Kind.OTHER), (47, Kind.OTHER)])
def test_other_protocols_are_logged_by_number(network, number, kind):
    network.as_owner(lambda: send("8.8.8.8", 0, number))
    (packet,) = parse_refusal(network.sockets.refusal_log.recv(65536))
    assert (packet.kind, packet.address, packet.protocol_number) == (kind, ip_address("8.8.8.8"), number)
    assert packet.port in ({None} if number in {1, 47} else {0})


def test_refused_connection_is_logged(network):
    network.sockets.tcp.close()
    network.run(lambda: outcome(lambda: socket.create_connection(("8.8.8.8", 22))))
    (packet,) = parse_refusal(network.sockets.refusal_log.recv(65536))
    assert (packet.kind, packet.port, packet.protocol_number) == (Kind.TCP, 22, socket.IPPROTO_TCP)


def test_log_is_read_without_capabilities_once_per_packet(network):
    network.run(lambda: [send("8.8.8.8", port) for port in (1001, 1002, 1003)])
    network.sockets.refusal_log.settimeout(0)
    told = []
    while not isinstance(data := outcome(lambda: network.sockets.refusal_log.recv(65536)), int):
        told += [packet.port for packet in parse_refusal(data)]
    assert data == errno.EAGAIN
    assert told == [1001, 1002, 1003]


def test_flood_is_counted_and_logged_up_to_a_limit(network):
    """What went untold is the difference: counters minus `logged`. And another kind is still told meanwhile."""

    def flood():
        for _ in range(3000):
            send("8.8.8.8", 123)
        send("8.8.8.8", 443)

    network.run(flood)

    def read():
        with open_counter_socket() as sock:
            return read_counters(sock)

    counters = network.as_owner(read)
    assert (counters["udp"], counters["quic"]) == (3000, 1)
    assert 100 < counters["logged"] < 2000
    network.sockets.refusal_log.settimeout(0)
    kinds = []
    while not isinstance(data := outcome(lambda: network.sockets.refusal_log.recv(65536)), int):
        kinds += [packet.kind for packet in parse_refusal(data)]
    assert kinds.count(Kind.QUIC) == 1
    assert len(kinds) == counters["logged"]


def test_counters_rise_by_kind(network):
    network.run(lambda: [send("8.8.8.8", 443), send("8.8.8.8", 80), send("2606::1", 81)])
    network.as_owner(lambda: send("8.8.8.8", 0, socket.IPPROTO_ICMP))
    assert network.counters() == {"quic": 1, "udp": 2, "icmp": 1}
    assert network.counters() == {"quic": 1, "udp": 2, "icmp": 1}


def test_every_kind_has_a_counter_from_the_start(network):
    def read_twice():
        with open_counter_socket() as sock:
            return read_counters(sock), read_counters(sock)

    first, second = network.as_owner(read_twice)
    assert set(first) == {*Kind, "logged"}
    assert first == second


def test_second_log_in_a_namespace_is_refused(network):
    with pytest.raises(OSError, match="cannot bind the refusal log") as caught:
        network.as_owner(open_refusal_log)
    assert caught.value.errno == errno.EPERM  # the group belongs to the first


def log_message(packet, prefix=b"udp\0", uid=None):
    parts = attribute(10, prefix) + attribute(9, packet)
    parts += b"" if uid is None else attribute(11, struct.pack("!I", uid))
    return message(NFULNL_MSG_PACKET, 0, bytes(4) + parts)


UDP = struct.pack("!HHHH", 5555, 443, 8, 0)
IPV4 = bytes.fromhex("4500001c00000000401100000a00000108080808")
IPV6 = bytes.fromhex("6000000000081140") + ip_address("fd00::1").packed + ip_address("2606::1").packed


def test_uid_is_logged_where_known():
    (packet,) = parse_refusal(log_message(IPV4 + UDP, uid=1000))
    assert packet == RefusedPacket(Kind.UDP, ip_address("8.8.8.8"), 443, ip_address("10.0.0.1"), 5555, 17, 1000)


def test_several_messages_in_one_datagram_are_parsed():
    first, second = parse_refusal(log_message(IPV4 + UDP) + log_message(IPV6 + UDP, b"quic\0"))
    assert (first.kind, second.kind) == (Kind.UDP, Kind.QUIC)
    assert second.address == ip_address("2606::1")


@pytest.mark.parametrize("prefix", [b"", b"\0", b"nonsense\0", b"\xff\xfe\0", b"UDP\0"])
def test_unknown_prefix_is_the_other_kind(prefix):
    assert parse_refusal(log_message(IPV4 + UDP, prefix))[0].kind is Kind.OTHER


def extension(protocol, length=0):
    return bytes([protocol, length]) + bytes(6 + 8 * length)


@pytest.mark.parametrize(
    ("headers", "first", "port"),
    [
        (b"", 17, 443),
        (extension(17), 0, 443),
        (extension(60) + extension(17, 1), 0, 443),
        (b"".join(extension(43) for _ in range(7)) + extension(17), 43, 443),
        (b"".join(extension(43) for _ in range(20)) + extension(17), 43, None),  # more than is followed
        (bytes([17, 0, 0, 1, 0, 0, 0, 0]), 44, 443),  # the first fragment
        (bytes([17, 0, 0, 9, 0, 0, 0, 0]), 44, None),  # a later one: no ports in it
        (extension(17, 255)[:40], 0, None),  # says that it is longer than what was logged
        (b"", 50, None),  # encrypted
    ],
)
def test_ipv6_extension_headers_are_followed(headers, first, port):
    packet = IPV6[:6] + bytes([first]) + IPV6[7:] + headers + UDP
    assert parse_refusal(log_message(packet))[0].port == port


def test_ipv4_options_and_fragments_are_parsed():
    with_options = b"\x47" + IPV4[1:] + bytes(8) + UDP
    later_fragment = IPV4[:6] + b"\0\x01" + IPV4[8:] + UDP
    too_short = b"\x44" + IPV4[1:] + UDP
    assert [parse_refusal(log_message(packet))[0].port for packet in (with_options, later_fragment, too_short)] == [
        443,
        None,
        None,
    ]


@pytest.mark.parametrize("packet", [IPV4 + UDP, IPV6 + extension(17)[:0] + UDP])
def test_truncated_packet_yields_what_is_left(packet):
    for length in range(len(packet)):
        (found,) = parse_refusal(log_message(packet[:length]))
        whole = len(packet) - 8
        assert (found.address is not None) == (length >= whole)
        assert (found.port is not None) == (length >= whole + 4)


def test_other_messages_are_skipped():
    assert parse_refusal(message(3, 0, b"")) == []
    assert parse_refusal(b"") == []


def test_truncated_message_is_an_error_or_partial():
    whole = log_message(IPV4 + UDP, uid=7)
    for length in range(1, len(whole)):
        with pytest.raises(MalformedMessageError):
            parse_refusal(whole[:length])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_the_documented_error(data):
    for candidate in (data, log_message(data), message(NFULNL_MSG_PACKET, 0, bytes(4) + data)):
        outcome_of(candidate)


def test_changed_bytes_raise_only_the_documented_error():
    rng, whole = random.Random(1), log_message(IPV6 + extension(17) + UDP, uid=7)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        outcome_of(bytes(data))


def outcome_of(data):
    with contextlib.suppress(MalformedMessageError):
        assert all(isinstance(packet, RefusedPacket) for packet in parse_refusal(data))
