"""Packets written by hand, held against what the RFCs say of them, word by word."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.udp.sockets import datagram, port_unreachable

V4 = (ip_address("93.184.216.34"), 123), (ip_address("192.0.0.2"), 40000)
V6 = (ip_address("2606:2800:220:1::1"), 123), (ip_address("fd65:7865:6174::2"), 40000)
ENDS = {"IPv4": V4, "IPv6": V6}


def summed(data):
    """The one's complement sum of 16-bit words, as RFC 1071 section 1 describes it."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) if len(data) % 2 == 0 else summed(data + b"\0")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def parted(packet):
    """Source, destination, protocol and what follows the header, whose lengths are checked."""
    if packet[0] >> 4 == 4:
        assert packet[0] == 0x45
        assert int.from_bytes(packet[2:4]) == len(packet)
        return packet[12:16], packet[16:20], packet[9], packet[20:]
    assert packet[:4] == b"\x60\0\0\0"
    assert int.from_bytes(packet[4:6]) == len(packet) - 40
    return packet[8:24], packet[24:40], packet[6], packet[40:]


def pseudo(source, destination, protocol, body):
    return source + destination + struct.pack("!II", len(body), protocol)


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@given(payload=st.one_of(st.binary(max_size=64), st.sampled_from([b"\xff" * 6, b"\0" * 7, bytes(65507)])))
def test_datagram_has_the_headers_and_checksum_of_the_rfcs(ends, payload):
    source, destination = ends
    came_from, goes_to, protocol, body = parted(datagram(source, destination, payload))
    assert (came_from, goes_to, protocol) == (source[0].packed, destination[0].packed, 17)
    assert struct.unpack("!HHH", body[:6]) == (source[1], destination[1], 8 + len(payload))
    assert body[8:] == payload
    assert body[6:8] != b"\0\0"  # that would say that there is no checksum, which IPv6 refuses
    assert summed(pseudo(came_from, goes_to, 17, body)[:] + body) == 0xFFFF


def test_zero_checksum_is_written_as_all_ones():
    source, destination = V4
    for number in range(1 << 16):
        packet = datagram(source, destination, struct.pack("!H", number))
        if packet[26:28] == b"\xff\xff":
            return
    raise AssertionError("no payload has that checksum")


@pytest.mark.parametrize(("ends", "protocol", "kind"), [(V4, 1, b"\3\3"), (V6, 58, b"\1\4")], ids=ENDS)
@given(size=st.integers(0, 65507))
def test_icmp_error_carries_both_headers_of_the_datagram(ends, protocol, kind, size):
    asked, client = ends
    came_from, goes_to, number, body = parted(port_unreachable(asked, client, size))
    assert (came_from, goes_to, number) == (asked[0].packed, client[0].packed, protocol)
    assert (body[:2], body[4:8]) == (kind, bytes(4))
    assert summed((pseudo(came_from, goes_to, 58, body) if number == 58 else b"") + body) == 0xFFFF
    header = 20 if number == 1 else 40
    told, ports = body[8 : 8 + header], body[8 + header :]
    assert told[-len(asked[0].packed) :] == asked[0].packed
    assert told[-2 * len(asked[0].packed) :][: len(asked[0].packed)] == client[0].packed
    assert struct.unpack("!HHHH", ports) == (client[1], asked[1], 8 + size, 0)
    assert len(body) - 8 == header + 8  # RFC 792: of the datagram itself 64 bits
