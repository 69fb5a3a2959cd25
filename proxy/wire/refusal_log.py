"""Parses the kernel's log (NFLOG) of packets that a sandbox's ruleset rejected.

Pure: the bytes come from a socket that the enforcer opened inside the sandbox's namespace and passed out. The packets
in them were written by a task: every length is checked, and a field that is cut off or invalid is reported as None.
The log is rate-limited in the kernel, so it names what was refused; the counters say how often.
"""

import struct
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from proxy.wire.netlink import attributes, messages

NFULNL_MSG_PACKET = 4 << 8  # NFNL_SUBSYS_ULOG (linux/netfilter/nfnetlink_log.h)
_NFULA_PAYLOAD, _NFULA_PREFIX, _NFULA_UID = 9, 10, 11
_NFGENMSG = 4

_IPPROTO_WITH_PORTS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite: ports come first in each
_IPV6_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})  # each: next header, length in 8 bytes less one (RFC 6564)
_IPV6_FRAGMENT = 44
_MOST_EXTENSIONS = 8  # followed; a task may chain more


class Kind(StrEnum):
    """Kind of a rejected packet. The value is the counter's name and the log prefix in the ruleset."""

    OTHER = "other"
    TCP = "tcp"  # no gate listened
    UDP = "udp"
    QUIC = "quic"  # UDP to port 443
    ICMP = "icmp"
    DNS_DESTINATION = "dns_destination"  # a query to an address that can't answer: multicast, broadcast, link-local


class RefusedPacket(NamedTuple):
    """One rejected packet. None: the bytes don't contain the field."""

    kind: Kind
    address: IPv4Address | IPv6Address | None
    port: int | None
    source: IPv4Address | IPv6Address | None
    source_port: int | None
    protocol_number: int | None  # IANA's, as in IPv4's protocol field
    uid: int | None  # of the sending socket, where the kernel still knew it


def parse_refusal(data: bytes) -> list[RefusedPacket]:
    """Return the rejected packets of one datagram of the log. Raises MalformedMessageError."""
    return [_parse_packet(message.payload) for message in messages(data) if message.kind == NFULNL_MSG_PACKET]


def _parse_packet(payload: bytes) -> RefusedPacket:
    found = dict(attributes(payload[_NFGENMSG:]))
    prefix = found.get(_NFULA_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace")
    kind = Kind(prefix) if prefix in Kind else Kind.OTHER
    uid = found.get(_NFULA_UID, b"")
    sender = struct.unpack("!I", uid)[0] if len(uid) == 4 else None
    packet = found.get(_NFULA_PAYLOAD, b"")
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return _parse_ipv4(kind, packet, sender)
    if version == 6 and len(packet) >= 40:
        return _parse_ipv6(kind, packet, sender)
    return RefusedPacket(kind, None, None, None, None, None, sender)


def _parse_ipv4(kind: Kind, packet: bytes, uid: int | None) -> RefusedPacket:
    """Parse an IPv4 packet (RFC 791 section 3.1)."""
    first_fragment = not int.from_bytes(packet[6:8]) & 0x1FFF
    source_port, port = _parse_ports(packet, (packet[0] & 15) * 4, packet[9]) if first_fragment else (None, None)
    return RefusedPacket(
        kind, IPv4Address(packet[16:20]), port, IPv4Address(packet[12:16]), source_port, packet[9], uid
    )


def _parse_ipv6(kind: Kind, packet: bytes, uid: int | None) -> RefusedPacket:
    """Parse an IPv6 packet with extension headers (RFC 8200 sections 3 and 4)."""
    protocol, at, first_fragment = packet[6], 40, True
    for _ in range(_MOST_EXTENSIONS):
        if len(packet) < at + 8:
            break
        if protocol == _IPV6_FRAGMENT:
            first_fragment = not int.from_bytes(packet[at + 2 : at + 4]) & 0xFFF8
            protocol, at = packet[at], at + 8
        elif protocol in _IPV6_EXTENSIONS:
            protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
        else:
            break
    source_port, port = _parse_ports(packet, at, protocol) if first_fragment else (None, None)
    return RefusedPacket(kind, IPv6Address(packet[24:40]), port, IPv6Address(packet[8:24]), source_port, protocol, uid)


def _parse_ports(packet: bytes, at: int, protocol: int) -> tuple[int | None, int | None]:
    if protocol not in _IPPROTO_WITH_PORTS or at < 20 or len(packet) < at + 4:
        return None, None
    source, destination = struct.unpack_from("!HH", packet, at)
    return source, destination
