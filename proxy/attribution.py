"""Which socket is this: from a connection's addresses to the inode that the kernel knows it by.

The kernel is asked with the exact tuple (inet_diag, no capability needed) over a socket that belongs to the sandbox's
namespace; which process has that inode open is the watcher's to say (`enforcer.notify.whose`). Ask while the connection
waits on its decision: afterwards the process may be gone. Whatever is not certain is None, "unknown" and never a guess.
"""

import contextlib
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from proxy.netlink import HEADER, NLM_F_REQUEST, MalformedMessageError, message, messages

type Endpoint = tuple[IPv4Address | IPv6Address, int]

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states; then the id
_ID = struct.Struct("!HH16s16s")  # struct inet_diag_sockid: source port, destination port, source, destination
_ID_END = struct.Struct("=III")  # its interface, and the cookie: INET_DIAG_NOCOOKIE
_ANSWER_ID, _ANSWER_END = 4, struct.Struct("=IIIII")  # struct inet_diag_msg: expires, rqueue, wqueue, uid, inode
_ID_BYTES = _ID.size + _ID_END.size
_NO_COOKIE, _EVERY_STATE = 0xFFFFFFFF, 0xFFFFFFFF
_LO = 1  # the only interface of a sandbox; a socket bound to it is found only under it


class Owner(NamedTuple):
    """What the kernel knows of a socket: its inode, and the uid of its maker as the asking namespace sees it."""

    inode: int
    uid: int


def ask_owner(diag: socket.socket, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return whose socket has these two ends; None when that isn't known. Never blocks.

    `local` is the task's end (accept's peer), `remote` where it connected to (getsockname of the accepted socket).
    `protocol` is IPPROTO_TCP or IPPROTO_UDP.
    """
    for interface in (0, _LO):
        request = encode_query(protocol, local, remote, interface=interface)
        sequence = HEADER.unpack_from(request)[3]
        with contextlib.suppress(OSError, MalformedMessageError):
            diag.send(request, socket.MSG_DONTWAIT)
            while True:  # the kernel answers before send returns; what an earlier, failed question left is skipped
                data = diag.recv(8192, socket.MSG_DONTWAIT)
                answer = next(messages(data), None)
                if answer is not None and answer.sequence == sequence:
                    break
            if owner := parse_owner(data, protocol, local, remote):
                return owner
    return None


def encode_query(protocol: int, local: Endpoint, remote: Endpoint, *, interface: int = 0) -> bytes:
    """Return the netlink request for the one socket with these ends."""
    # The kernel swaps the two for UDP, "for historical reasons" (udp_diag.c, udp_dump_one).
    first, second = (local, remote) if protocol == socket.IPPROTO_TCP else (remote, local)
    family = socket.AF_INET if first[0].version == 4 else socket.AF_INET6
    tuple_ = _ID.pack(first[1], second[1], first[0].packed, second[0].packed)
    payload = (
        _REQUEST.pack(family, protocol, 0, _EVERY_STATE) + tuple_ + _ID_END.pack(interface, _NO_COOKIE, _NO_COOKIE)
    )
    return message(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, payload, int.from_bytes(os.urandom(4)))


def parse_owner(data: bytes, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return the owner that one answer names, if it is the answer for exactly these ends.

    Where no connection has them the kernel falls back to a listener on the port: that is another socket.
    """
    for answer in messages(data):
        if answer.kind != _SOCK_DIAG_BY_FAMILY or len(answer.payload) < _ANSWER_ID + _ID_BYTES + _ANSWER_END.size:
            continue
        family = answer.payload[0]
        sport, dport, source, destination = _ID.unpack_from(answer.payload, _ANSWER_ID)
        here, there = (_address(family, source), sport), (_address(family, destination), dport)
        exact = here == local and there == remote
        # An unconnected UDP socket has no remote end, and often no local address.
        unconnected = protocol == socket.IPPROTO_UDP and sport == local[1] and not dport
        if exact or (unconnected and (here == local or not int(here[0]))):
            *_, uid, inode = _ANSWER_END.unpack_from(answer.payload, _ANSWER_ID + _ID_BYTES)
            return Owner(inode, uid) if inode else None  # 0: the process has closed it
    return None


def _address(family: int, packed: bytes) -> IPv4Address | IPv6Address:
    if family == socket.AF_INET:
        return IPv4Address(packed[:4])
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
