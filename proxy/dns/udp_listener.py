"""DNS over UDP for a sandbox: one socket receives queries to any address and answers from that address."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from proxy.dns.wire import LARGEST_QUERY
from proxy.event_loop.poller import IN
from proxy.telemetry.events import Component
from rules.attempt import Protocol
from rules.values.addresses import normalize

if TYPE_CHECKING:
    from proxy.dns.server import DnsServer
    from proxy.event_loop.poller import Poller
    from proxy.sandbox.recorder import Recorder
    from rules.values.addresses import Address

_AT_ONCE: Final = 64  # queries before other work gets a turn
_ANCILLARY: Final = 256  # bytes
# linux/in.h, linux/in6.h
_IP_PKTINFO, _IP_ORIGDSTADDR, _IPV6_PKTINFO, _IPV6_ORIGDSTADDR = 8, 20, 50, 74

type _Ancillary = tuple[int, int, bytes]


class DnsUdpListener:
    """Answers DNS queries over UDP. The caller keeps the socket, which has IPV6_RECVORIGDSTADDR set."""

    __slots__ = ("_poller", "_recorder", "_resolver", "_sock")

    def __init__(self, sock: socket.socket, resolver: "DnsServer", recorder: "Recorder", poller: "Poller") -> None:
        self._sock = sock
        self._resolver = resolver
        self._recorder = recorder
        self._poller = poller

    def start(self) -> None:
        """Start to answer queries."""
        self._sock.setblocking(False)
        self._poller.watch(self._sock.fileno(), IN, self)

    def close(self) -> None:
        """Stop answering. Idempotent."""
        self._poller.forget(self._sock.fileno())

    def ready(self, _events: int) -> None:
        """Answer the queries that have arrived, up to a bound. A query that fails doesn't affect others."""
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _flags, client = self._sock.recvmsg(LARGEST_QUERY, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                continue  # an earlier answer could not be delivered: ip(7), "Error handling"
            try:
                self._answer(data, ancillary, client)
            except Exception as error:  # noqa: BLE001
                self.failed(error)

    def failed(self, error: Exception) -> None:
        """Report an unexpected exception."""
        self._recorder.error(Component.RESOLVER, f"{type(error).__name__}: {error}")

    def _answer(self, data: bytes, ancillary: list[_Ancillary], client: tuple[str, int]) -> None:
        server_address = _destination(ancillary)
        control_messages = [] if server_address is None else [_source_message(server_address, self._sock.family)]

        def reply(answer: bytes) -> None:
            try:
                self._sock.sendmsg([answer], control_messages, 0, client)
            except OSError:
                # An answer can't be sent from a multicast, broadcast or link-local address (EINVAL), or to a full or
                # closed socket. The client may repeat its query.
                return

        self._resolver.ask(data, server_address, Protocol.UDP, reply)


def _destination(ancillary: list[_Ancillary]) -> "Address | None":
    """Return the address that a datagram was sent to, from a struct sockaddr_in or sockaddr_in6."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_ORIGDSTADDR):
            return IPv4Address(data[4:8])
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_ORIGDSTADDR):
            return normalize(IPv6Address(data[8:24]))
    return None


def _source_message(address: "Address", family: int) -> _Ancillary:
    """Return the control message that sends from `address`: in_pktinfo or in6_pktinfo without an interface."""
    if family == socket.AF_INET:
        return socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("I4s4x", 0, address.packed)
    packed = address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed
    return socket.IPPROTO_IPV6, _IPV6_PKTINFO, packed + struct.pack("I", 0)
