"""Sends UDP replies and ICMP errors into a sandbox, from the address that the task sent to.

Every packet goes to one of the sandbox's own addresses: one for each datagram of the task that is denied, and one for
each reply of a flow's peer. A task can't make the gate send to anything else.
"""

import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

    from proxy.gate.record import Endpoint
    from rules.addresses import Address

_UDP, _ICMP, _ICMPV6 = 17, 1, 58  # IANA's protocol numbers
LARGEST: Final = {4: 65535 - 20 - 8, 6: 65535 - 8}  # bytes that a datagram holds, by version (lengths have 16 bits)
_HOPS: Final = 64
_ALL_ONES: Final = 0xFFFF
_BROADCAST: Final = IPv4Address("255.255.255.255")


class ReplySocket:
    """Raw sockets `ipv4` and `ipv6` in a sandbox's network; the caller keeps them."""

    __slots__ = ("_ipv4", "_ipv6", "_own")

    def __init__(
        self, ipv4: "socket.socket", ipv6: "socket.socket | None", own_addresses: "Collection[Address]"
    ) -> None:
        self._ipv4 = ipv4
        self._ipv6 = ipv6
        self._own = frozenset(own_addresses)

    def reply(self, asked: "Endpoint", client: "Endpoint", payload: bytes) -> bool:
        """Send a datagram from `asked` to `client`. False: it was dropped, as UDP allows."""
        if not self._leads_back(asked, client) or len(payload) > LARGEST[asked[0].version]:
            return False
        return self._send(datagram(asked, client, payload), client)

    def refuse(self, asked: "Endpoint", client: "Endpoint", size: int) -> None:
        """Send an ICMP error for a datagram of `size` bytes.

        None is sent for broadcast and multicast (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
        """
        for_many = asked[0].is_multicast or asked[0] == _BROADCAST
        if self._leads_back(asked, client) and not for_many:
            self._send(port_unreachable(asked, client, size), client)

    def _leads_back(self, asked: "Endpoint", client: "Endpoint") -> bool:
        return asked[0].version == client[0].version and (client[0].is_loopback or client[0] in self._own)

    def _send(self, packet: bytes, client: "Endpoint") -> bool:
        sock = self._ipv4 if client[0].version == 4 else self._ipv6
        if sock is None:
            return False
        try:
            sock.sendto(packet, (str(client[0]), 0))
        except OSError:  # no room, or longer than the sandbox's own device takes
            return False
        return True


def datagram(source: "Endpoint", destination: "Endpoint", payload: bytes) -> bytes:
    """Return an IP packet with a UDP datagram (RFC 768). Both ends are of one family."""
    head = _udp_header(source[1], destination[1], len(payload))
    check = _checksum(_pseudo(source[0], destination[0], _UDP, len(head) + len(payload)), head, payload)
    body = head[:6] + struct.pack("!H", check) + payload
    return _ip_header(source[0], destination[0], _UDP, len(body)) + body


def port_unreachable(asked: "Endpoint", client: "Endpoint", size: int) -> bytes:
    """Return an ICMP port unreachable from `asked` to `client` (RFC 792 page 4, RFC 4443 section 3.1).

    `size` is the payload of the client's datagram. The error carries both headers of that datagram.
    """
    told = _ip_header(client[0], asked[0], _UDP, 8 + size) + _udp_header(client[1], asked[1], size)
    if asked[0].version == 4:
        before, kind, code, protocol = b"", 3, 3, _ICMP
    else:
        before, kind, code, protocol = _pseudo(asked[0], client[0], _ICMPV6, 8 + len(told)), 1, 4, _ICMPV6
    check = _checksum(before, struct.pack("!BBHI", kind, code, 0, 0), told)
    body = struct.pack("!BBHI", kind, code, check, 0) + told
    return _ip_header(asked[0], client[0], protocol, len(body)) + body


def _udp_header(source: int, destination: int, size: int) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + size, 0)


def _ip_header(source: "Address", destination: "Address", protocol: int, size: int) -> bytes:
    """Return a header for `size` bytes: RFC 791 section 3.1 (the kernel sets the checksum), RFC 8200 section 3."""
    if source.version == 4:
        length = 20 + size
        return struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, _HOPS, protocol, 0, source.packed, destination.packed
        )
    return struct.pack("!IHBB16s16s", 6 << 28, size, protocol, _HOPS, source.packed, destination.packed)


def _pseudo(source: "Address", destination: "Address", protocol: int, size: int) -> bytes:
    """Return the pseudo header for the checksum (RFC 768, RFC 8200 section 8.1)."""
    return struct.pack("!II", protocol, size) + source.packed + destination.packed


def _checksum(*parts: bytes) -> int:
    """Return the complement of the sum of all 16-bit words (RFC 1071), which is what is left of them modulo 2**16 - 1.

    Every part but the last has an even length. Zero has two spellings there, and UDP wants the one of all ones.
    """
    words = b"".join(parts)
    return _ALL_ONES - int.from_bytes(words + b"\0" if len(words) % 2 else words) % _ALL_ONES
