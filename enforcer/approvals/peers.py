"""Who is at the other end: known from the socket for each packet, never from what it says (unix(7), SCM_CREDENTIALS).

A task has its user's uid, but a user namespace of its own: it is refused. So is whoever has come by another process's
connection: a packet counts only from who has connected.
"""

import os
import socket
import struct
from typing import Final, NamedTuple

from enforcer.service.peers import is_alive, namespace

_SCM_CREDENTIALS: Final = 2  # bits/socket.h
_CREDENTIALS = struct.Struct("3i")
_LARGEST: Final = 1 << 16  # bytes of a packet
_MOST_DESCRIPTORS: Final = 2


class Stranger(Exception):  # noqa: N818  what it is
    """Who asks is not served."""


class Peer(NamedTuple):
    """The process at the other end."""

    pid: int
    uid: int


class Packet(NamedTuple):
    """What it sent; nothing at all is its end."""

    data: bytes
    descriptors: list[int]


def check(connection: socket.socket, *, stranger: bool = False) -> Peer:
    """Return who has connected. `stranger`: it may be another user. Raises Stranger."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid() and not stranger:
        raise Stranger(f"this registry is uid {os.geteuid()}'s, and serves nobody else here")
    try:
        apart = namespace(str(pid), "user") != namespace("self", "user")
        alive = is_alive(connection)  # else the number may be another's by now
    except OSError as error:
        raise Stranger(f"whether you are in a sandbox can't be told: {error.strerror}") from error
    if not alive:
        raise Stranger("who asked is gone")
    if apart:
        raise Stranger("you are in another user namespace")
    return Peer(pid, uid)


def receive(connection: socket.socket, peer: Peer) -> Packet:
    """Return the next packet of a peer's. Raises BlockingIOError, OSError, and Stranger for one of somebody else's.

    The connection has SO_PASSCRED from its listener (`place.bind`): a packet without a sender is a stranger's.
    """
    space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
    data, ancillary, flags, _ = connection.recvmsg(_LARGEST, space, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    sender: tuple[int, ...] = ()
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        elif (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS):
            sender = _CREDENTIALS.unpack(content)
    whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    if data and (sender[:2] != peer or not whole):
        for descriptor in descriptors:
            os.close(descriptor)
        raise Stranger("this connection is another process's" if whole else "that is too long")
    return Packet(data, descriptors)
