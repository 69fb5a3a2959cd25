"""Identifies the process at the other end of a unix socket (unix(7), SO_PEERCRED), and checks it against the service's.

The service serves only processes that could do the same without it: same user, same namespaces, same groups. A user's
task has that user's uid, but another user namespace, and is refused.
"""

import os
import signal
import socket
import struct
from typing import NamedTuple

from enforcer.system.control_socket import is_peer_alive

_SO_PEERGROUPS = 59  # asm-generic/socket.h
_MOST_GROUPS = 256  # the most that Python's getsockopt takes: a caller with more is declined
_NAMESPACES = ("user", "mnt", "net", "pid")


class PeerRefusedError(Exception):
    """The service refuses this peer. `declined`: the client may run its task without the service."""

    def __init__(self, reason: str, *, declined: bool = False) -> None:
        super().__init__(reason)
        self.declined = declined


class Peer(NamedTuple):
    """The process at the other end of a connection, at the time it connected."""

    pid: int
    uid: int
    gid: int


def check(connection: socket.socket) -> Peer:
    """Return the peer of a connection. Raises PeerRefusedError for one that the service doesn't serve."""
    peer = Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))
    if peer.uid != os.geteuid():
        raise PeerRefusedError(f"the service runs as uid {os.geteuid()} and serves only that user, not uid {peer.uid}")
    try:
        apart = [name for name in _NAMESPACES if namespace(str(peer.pid), name) != namespace("self", name)]
    except OSError as error:
        raise PeerRefusedError(f"the service can't read the caller's namespaces in /proc: {error.strerror}") from error
    if not is_peer_alive(connection):  # the pid may be another process's by now
        raise PeerRefusedError("the calling process has ended")
    if "user" in apart:
        raise PeerRefusedError("the caller is in another user namespace than the service")
    if apart:
        raise PeerRefusedError(f"the caller is in another {apart[0]} namespace than the service", declined=True)
    try:
        groups = _groups(connection)
    except OSError:
        groups = set()
    if peer.gid != os.getegid() or groups != set(os.getgroups()):
        raise PeerRefusedError("the caller has other groups than the service", declined=True)
    return peer


def namespace(pid: str, name: str) -> str:
    """Return the namespace of one kind that a process is in, as `KIND:[INODE]`. Raises OSError if it isn't readable."""
    return os.readlink(f"/proc/{pid}/ns/{name}")


def _groups(connection: socket.socket) -> set[int]:
    data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    return set(struct.unpack(f"{len(data) // 4}I", data))


def is_running(process: int) -> bool:
    """Whether the process of a pidfd (pidfd_open(2)) still runs."""
    try:
        signal.pidfd_send_signal(process, 0)
    except PermissionError:
        return True  # it runs, as another user
    except OSError:
        return False
    return True
