"""Opens the gate's sockets inside a sandbox's network namespace, and reads the counters of denied packets.

A process with CAP_NET_ADMIN over the namespace opens them and passes them on (SCM_RIGHTS); using them takes no
privilege. SO_REUSEPORT and SO_REUSEADDR are never set: with the first, a task of the same uid could join the gate's
port and take its connections; without either, no bind of the port succeeds while the gate holds it.
"""

import errno
import os
import socket
import struct
from contextlib import ExitStack
from typing import NamedTuple

from enforcer.network.constants import OWN_ADDRESSES, REFUSAL_GROUP, TABLE, MakeSocket
from proxy.udp.sockets import block_datagrams
from proxy.wire.netlink import (
    NETLINK_NETFILTER,
    NETLINK_SOCK_DIAG,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    message,
    messages,
)

_DNS_PORT = 53
_BACKLOG = 4096  # somaxconn's default in a new namespace
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
_IP_RECVORIGDSTADDR, _IPV6_RECVORIGDSTADDR = 20, 74

# linux/netfilter/nfnetlink_log.h
_NFULNL_MSG_CONFIG = 4 << 8 | 1
_CFG_COMMAND, _CFG_MODE, _CFG_BUFFER, _CFG_THRESHOLD = 1, 2, 3, 5
_BIND, _COPY_PACKET = 1, 2
_COPY_BYTES, _BUFFER_BYTES = 256, 512  # the ruleset's snaplen is the real bound; a small buffer lets more packets wait
_RECEIVE_BUFFER = 1 << 20  # the kernel grants at most rmem_max
_TIMEOUT = 5.0  # seconds; the kernel answers before send returns


_NETFILTER = (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
_DIAG = (socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
# All sockets on a kernel with every feature, and one for the counters.
SOCKETS = (
    (socket.AF_INET6, socket.SOCK_STREAM, 0),
    *((socket.AF_INET6, socket.SOCK_DGRAM, 0),) * 2,
    *((family, socket.SOCK_RAW, socket.IPPROTO_RAW) for family in (socket.AF_INET, socket.AF_INET6)),
    _DIAG,
    *(_NETFILTER,) * 2,
)


class GateSockets(NamedTuple):
    """The gate's sockets in a namespace. `refusal_log` is None on a kernel without NFLOG."""

    tcp: socket.socket  # listening, transparent: getsockname() of an accepted connection is its original destination
    dns_udp: socket.socket  # with the destination address in every datagram's ancillary data
    udp: socket.socket  # likewise, for all other datagrams; shut (proxy.udp.sockets)
    diag: socket.socket  # NETLINK_SOCK_DIAG: finds the inode of a socket
    answers: socket.socket  # raw, for sending only: packets to the task, from the address that it queried
    answers6: socket.socket | None
    refusal_log: socket.socket | None

    def named(self) -> dict[str, socket.socket]:
        """Return the sockets that this kernel has, by name."""
        return {name: sock for name, sock in self._asdict().items() if sock is not None}

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        for sock in self.named().values():
            sock.close()


def open_gate_sockets(
    port: int, *, refusal_log: bool = True, ipv6: bool | None = None, make: MakeSocket = socket.socket
) -> GateSockets:
    """Open all sockets in the namespace that `make` makes sockets in, non-blocking.

    `refusal_log`: what `execute` returned for this kernel; `ipv6`: whether to make dual-stack sockets (None: if the
    kernel has IPv6). Raises OSError that says what failed; then none stays open.
    """
    if ipv6 is None:
        ipv6 = _kernel_has_ipv6(make)
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with ExitStack() as stack:
        tcp = stack.enter_context(_open_transparent(make, family, socket.SOCK_STREAM, port))
        tcp.listen(_BACKLOG)
        dns_udp = stack.enter_context(_open_transparent(make, family, socket.SOCK_DGRAM, _DNS_PORT))
        _receive_destination_address(dns_udp)
        udp = stack.enter_context(_open_transparent(make, family, socket.SOCK_DGRAM, port))
        _receive_destination_address(udp)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        block_datagrams(udp, OWN_ADDRESSES if ipv6 else ())
        answers = stack.enter_context(_open_raw(make, socket.AF_INET))
        answers6 = stack.enter_context(_open_raw(make, socket.AF_INET6)) if ipv6 else None
        diag = stack.enter_context(make(*_DIAG))
        diag.settimeout(0)
        log = open_refusal_log(make) if refusal_log else None
        sockets = GateSockets(tcp, dns_udp, udp, diag, answers, answers6, log)
        stack.pop_all()
    return sockets


def open_refusal_log(make: MakeSocket = socket.socket) -> socket.socket | None:
    """Return a socket that receives every denied packet that the ruleset logs; None on a kernel without NFLOG."""
    with ExitStack() as stack:
        sock = stack.enter_context(make(*_NETFILTER))
        sock.settimeout(_TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((0, 0))
        sock.send(_BIND_REQUEST)
        number = next(answer.errno for answer in messages(sock.recv(65536)) if answer.kind == NLMSG_ERROR)
        if number in (errno.EINVAL, errno.EOPNOTSUPP):  # nfnetlink has no such subsystem
            return None
        if number:
            raise OSError(number, f"cannot bind the refusal log: {os.strerror(number)}")
        sock.settimeout(0)
        stack.pop_all()
    return sock


def _open_transparent(make: MakeSocket, family: int, kind: int, port: int) -> socket.socket:
    with ExitStack() as stack:
        sock = stack.enter_context(make(family, kind, 0))
        try:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # regardless of net.ipv6.bindv6only
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        except OSError as error:
            number = error.errno or errno.EIO
            raise OSError(number, f"cannot open the gate's port {port}: {os.strerror(number)}") from error
        sock.settimeout(0)
        stack.pop_all()
    return sock


def _open_raw(make: MakeSocket, family: int) -> socket.socket:
    """Return a socket for sending whole packets (raw(7): IPPROTO_RAW receives nothing and writes no header).

    One serves every flow: sockets bound to the queried address would take one descriptor each, and binding a port below
    1024 takes a privilege that the gate doesn't have.
    """
    try:
        sock = make(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"cannot open a raw socket: {os.strerror(number)}") from error
    sock.settimeout(0)
    return sock


def _receive_destination_address(sock: socket.socket) -> None:
    """Receive the destination address with each datagram: the answer must come from it."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)


def _kernel_has_ipv6(make: MakeSocket) -> bool:
    try:
        make(socket.AF_INET6, socket.SOCK_DGRAM, 0).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True


_BIND_REQUEST = message(
    _NFULNL_MSG_CONFIG,
    NLM_F_REQUEST | NLM_F_ACK,
    struct.pack("!BBH", socket.AF_UNSPEC, 0, REFUSAL_GROUP)
    + attribute(_CFG_COMMAND, struct.pack("B", _BIND))
    + attribute(_CFG_MODE, struct.pack("!IBx", _COPY_BYTES, _COPY_PACKET))
    + attribute(_CFG_BUFFER, struct.pack("!I", _BUFFER_BYTES))
    + attribute(_CFG_THRESHOLD, struct.pack("!I", 1)),
)


# linux/netfilter/nf_tables.h
_NFT = 10 << 8
_NEWOBJ, _GETOBJ = _NFT | 18, _NFT | 19
_INET, _OBJECT_COUNTER = 1, 1
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA = 1, 2, 3, 4
_COUNTER_PACKETS = 2
_NFGENMSG = 4
_READ_TIMEOUT = 5.0  # seconds

_REQUEST = message(
    _GETOBJ,
    NLM_F_REQUEST | NLM_F_DUMP,
    struct.pack("!BBH", _INET, 0, 0)
    + attribute(_OBJ_TABLE, TABLE.encode() + b"\0")
    + attribute(_OBJ_TYPE, struct.pack("!I", _OBJECT_COUNTER)),
)


def open_counter_socket(make: MakeSocket = socket.socket) -> socket.socket:
    """Return a socket in the namespace of `make`, for `read_counters`."""
    sock = make(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.settimeout(_READ_TIMEOUT)
    return sock


def read_counters(sock: socket.socket) -> dict[str, int]:
    """Return the packets counted since the start, by `Kind`, and `logged`. Raises OSError."""
    sock.send(_REQUEST)
    counters: dict[str, int] = {}
    while True:
        for answer in messages(sock.recv(65536)):
            if answer.kind == NLMSG_ERROR:
                raise OSError(answer.errno, f"cannot read the refusal counters: {os.strerror(answer.errno)}")
            if answer.kind == NLMSG_DONE:
                return counters
            if answer.kind == _NEWOBJ:
                name, packets = _parse_counter(answer.payload)
                counters[name] = packets


def _parse_counter(payload: bytes) -> tuple[str, int]:
    fields = dict(attributes(payload[_NFGENMSG:]))
    data = dict(attributes(fields[_OBJ_DATA]))
    return fields[_OBJ_NAME].rstrip(b"\0").decode("ascii"), int.from_bytes(data[_COUNTER_PACKETS])
