"""UDP sockets of a sandbox: receives its datagrams, blocked or not, and sends replies and ICMP errors into it.

A blocked socket is connected to itself. Tproxy only delivers datagrams to an unconnected socket (nf_tproxy_core.h), so
the ruleset rejects, counts and logs them at once, whatever the gate does. The socket is created blocked, and receives
only while a rule allows UDP (invariant 2). So the ruleset never changes, which a worker couldn't do (invariant 1).

An IPv6 socket that was connected once receives from its former peer's address only, from any port: the kernel forgets
the port and keeps the address (udp_disconnect in net/ipv4/udp.c, compute_score in net/ipv6/udp.c). So the peer is the
sandbox's own address, the source of everything it sends; datagrams that a task sends from ::1 are rejected.

The kernel gives source and destination of a datagram: IP_RECVORIGDSTADDR (ip(7)) and recvmsg(2).

Replies and errors only go to the sandbox's own addresses: one error for each denied datagram of the task, and one reply
for each datagram of a flow's peer. A task can't make the gate send to anything else.
"""

import os
import socket
import struct
import sys
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from rules.values.addresses import normalize

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from proxy.gate.record import Endpoint
    from rules.values.addresses import Address

_LOOPBACK: Final = "127.0.0.1"
_NO_PEER: Final = struct.pack("=H14x", 0)  # a struct sockaddr of AF_UNSPEC: connect(2), "dissolved"


def blocks_datagrams(sock: socket.socket) -> bool:
    """Whether the kernel rejects the sandbox's datagrams."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def block_datagrams(sock: socket.socket, own_addresses: "Iterable[Address]") -> None:
    """Have the kernel reject the sandbox's datagrams. Idempotent. Raises OSError: close the socket instead."""
    if blocks_datagrams(sock):
        return
    port = sock.getsockname()[1]
    if sock.family == socket.AF_INET:
        sock.connect((_LOOPBACK, port))
        return
    own = next((str(own) for own in own_addresses if own.version == 6), "::1")
    try:
        sock.connect((own, port))
    except OSError:  # IPv6 is disabled here, so nothing arrives over it
        sock.connect((f"::ffff:{_LOOPBACK}", port))


def allow_datagrams(sock: socket.socket | int) -> None:
    """Receive datagrams from the whole sandbox. Idempotent. Raises OSError: the socket stays blocked.

    `sock` may be the socket's descriptor.
    """
    import ctypes  # `socket` knows no address of another family than its own

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = sock if isinstance(sock, int) else sock.fileno()
    if libc.connect(descriptor, _NO_PEER, len(_NO_PEER)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the socket for datagrams cannot be disconnected: {os.strerror(number)}")


_SIZE_OF_IPV4: Final = 16  # struct sockaddr_in
_SIZE_OF_IPV6: Final = 28  # struct sockaddr_in6


def parse_destination(sockaddr: bytes) -> "Endpoint":
    """Parse the destination of a datagram; a zone id stays, so that no rule matches. Raises ValueError."""
    port = int.from_bytes(sockaddr[2:4])
    if len(sockaddr) == _SIZE_OF_IPV4:
        return IPv4Address(sockaddr[4:8]), port
    if len(sockaddr) == _SIZE_OF_IPV6:
        address, zone = IPv6Address(sockaddr[8:24]), int.from_bytes(sockaddr[24:28], sys.byteorder)
        return IPv6Address(f"{address}%{zone}") if zone else normalize(address), port
    raise ValueError(f"the kernel gave a destination of {len(sockaddr)} bytes for a datagram")


def parse_source(name: "tuple[object, ...]") -> "Endpoint":
    """Parse the name of a socket."""
    return _address(str(name[0])), int(str(name[1]))


@lru_cache(maxsize=64)
def _address(text: str) -> "Address":
    return normalize(ip_address(text.partition("%")[0]))


_UDP, _ICMP, _ICMPV6 = 17, 1, 58  # IANA's protocol numbers
LARGEST: Final = {4: 65535 - 20 - 8, 6: 65535 - 8}  # bytes that a datagram holds, by version (lengths have 16 bits)
_HOPS: Final = 64
_ALL_ONES: Final = 0xFFFF
_BROADCAST: Final = IPv4Address("255.255.255.255")


class ReplySocket:
    """Raw sockets `ipv4` and `ipv6` in a sandbox's network; the caller keeps them."""

    __slots__ = ("_ipv4", "_ipv6", "_own")

    def __init__(self, ipv4: socket.socket, ipv6: socket.socket | None, own_addresses: "Collection[Address]") -> None:
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
