"""Socket that receives a sandbox's datagrams: how it is closed and opened to them, and both ends of each datagram.

A shut socket is connected to itself. Tproxy only delivers datagrams to an unconnected socket (nf_tproxy_core.h), so the
ruleset rejects, counts and logs them at once, whatever the gate does. The socket is created shut, and opened only while
a rule allows UDP (invariant 2). So the ruleset never changes, which a worker couldn't do (invariant 1).

An IPv6 socket that was connected once receives from its former peer's address only, from any port: the kernel forgets
the port and keeps the address (udp_disconnect in net/ipv4/udp.c, compute_score in net/ipv6/udp.c). So the peer is the
sandbox's own address, the source of everything it sends; datagrams that a task sends from ::1 are rejected.

The kernel gives both ends of a datagram: IP_RECVORIGDSTADDR (ip(7)) and recvmsg(2).
"""

import os
import socket
import struct
import sys
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from rules.addresses import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.gate.record import Endpoint
    from rules.addresses import Address


_LOOPBACK: Final = "127.0.0.1"
_NOBODY: Final = struct.pack("=H14x", 0)  # a struct sockaddr of AF_UNSPEC: connect(2), "dissolved"


def is_shut(door: socket.socket) -> bool:
    """Whether the kernel rejects the sandbox's datagrams."""
    try:
        door.getpeername()
    except OSError:
        return False
    return True


def shut(door: socket.socket, own_addresses: "Iterable[Address]") -> None:
    """Have the kernel reject the sandbox's datagrams. Idempotent. Raises OSError: close the socket instead."""
    if is_shut(door):
        return
    port = door.getsockname()[1]
    if door.family == socket.AF_INET:
        door.connect((_LOOPBACK, port))
        return
    own = next((str(own) for own in own_addresses if own.version == 6), "::1")
    try:
        door.connect((own, port))
    except OSError:  # IPv6 is switched off here: nothing comes over it
        door.connect((f"::ffff:{_LOOPBACK}", port))


def unlock(door: socket.socket | int) -> None:
    """Receive datagrams from the whole sandbox. Idempotent. Raises OSError: the socket stays shut.

    `door` may be the socket's descriptor.
    """
    import ctypes  # `socket` knows no address of another family than its own

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = door if isinstance(door, int) else door.fileno()
    if libc.connect(descriptor, _NOBODY, len(_NOBODY)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot open the door for datagrams: {os.strerror(number)}")


_SIZE_OF_IPV4: Final = 16  # struct sockaddr_in
_SIZE_OF_IPV6: Final = 28  # struct sockaddr_in6


def endpoint_asked(sockaddr: bytes) -> "Endpoint":
    """Parse the destination of a datagram; a zone id stays, so that no rule matches. Raises ValueError."""
    port = int.from_bytes(sockaddr[2:4])
    if len(sockaddr) == _SIZE_OF_IPV4:
        return IPv4Address(sockaddr[4:8]), port
    if len(sockaddr) == _SIZE_OF_IPV6:
        address, zone = IPv6Address(sockaddr[8:24]), int.from_bytes(sockaddr[24:28], sys.byteorder)
        return IPv6Address(f"{address}%{zone}") if zone else normalize(address), port
    raise ValueError(f"the kernel said with {len(sockaddr)} bytes where a datagram was sent to")


def endpoint_of(name: "tuple[object, ...]") -> "Endpoint":
    """Parse the name of a socket."""
    return _address(str(name[0])), int(str(name[1]))


@lru_cache(maxsize=64)
def _address(text: str) -> "Address":
    return normalize(ip_address(text.partition("%")[0]))
