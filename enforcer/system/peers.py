"""Identifies the process at the other end of a unix socket (unix(7), SO_PEERCRED).

Only who could do it without the service may: the same user, in the same namespaces, with the same groups. A task run by
a user has that user's uid, but a user namespace of its own: it is refused whatever door it came through.
"""

import os
import signal
import socket
import struct
from typing import NamedTuple

from enforcer.system.control_socket import is_alive

_SO_PEERGROUPS = 59  # asm-generic/socket.h
_MOST_GROUPS = 256  # more than Python's getsockopt takes: such a caller does without
_NAMESPACES = ("user", "mnt", "net", "pid")


class Refused(Exception):  # noqa: N818  what happened
    """This peer is not served. `declined`: it may do without."""

    def __init__(self, why: str, *, declined: bool = False) -> None:
        super().__init__(why)
        self.declined = declined


class Peer(NamedTuple):
    """A process at the other end of a connection, as it was when it connected."""

    pid: int
    uid: int
    gid: int


def check(connection: socket.socket) -> Peer:
    """Return who it is. Raises Refused."""
    peer = Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))
    if peer.uid != os.geteuid():
        raise Refused(f"this service is uid {os.geteuid()}'s, and serves nobody else")
    try:
        apart = [name for name in _NAMESPACES if namespace(str(peer.pid), name) != namespace("self", name)]
    except OSError as error:
        raise Refused(f"whether you are in a sandbox can't be told: {error.strerror}") from error
    if not is_alive(connection):  # else the number may be another's by now
        raise Refused("who asked is gone")
    if "user" in apart:
        raise Refused("you are in another user namespace")
    if apart:
        raise Refused(f"you are in another {apart[0]} namespace than the service", declined=True)
    try:
        groups = _groups(connection)
    except OSError:
        groups = set()
    if peer.gid != os.getegid() or groups != set(os.getgroups()):
        raise Refused("you have other groups than the service", declined=True)
    return peer


def namespace(pid: str, name: str) -> str:
    """Return which namespace of a kind a process is in. Raises OSError where that may not be known."""
    return os.readlink(f"/proc/{pid}/ns/{name}")


def _groups(connection: socket.socket) -> set[int]:
    data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    return set(struct.unpack(f"{len(data) // 4}I", data))


def runs(process: int) -> bool:
    """Whether a process is there still, by a descriptor of it (pidfd_open(2))."""
    try:
        signal.pidfd_send_signal(process, 0)
    except PermissionError:
        return True  # it is there, and another user's
    except OSError:
        return False
    return True
