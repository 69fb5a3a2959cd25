"""The control socket: one service at a time, reached by its own user alone.

The lock says whether there is a service, not the socket: a socket that a killed service left behind is in nobody's way.
"""

import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from enforcer.system import control_socket
from enforcer.system.errors import HostError

_BACKLOG: Final = 1024


class Control:
    """The listening socket, and the lock that makes this the only service here. Close it."""

    def __init__(self, given: socket.socket | None = None) -> None:
        """Listen, or take over a socket that systemd has `given`. Raises HostError, which says who is there already."""
        path = control_socket.control()
        if not path:
            raise HostError(
                "there is no place for the service's socket",
                f"set XDG_RUNTIME_DIR (pam_systemd does), or {control_socket.VARIABLE} to an absolute path",
            )
        self.path = Path(path)
        _private(self.path.parent)
        self._lock = _locked(self.path.with_name(f"{self.path.name}.lock"))
        self._ours = given is None
        self.socket = _listen(self.path) if given is None else given
        _check_kind(self.socket)
        self.socket.setblocking(False)

    def close(self) -> None:
        """Listen no more."""
        if self._ours:
            self.path.unlink(missing_ok=True)
        self.socket.close()
        os.close(self._lock)


def _private(directory: Path) -> None:
    """Make the directory ours and nobody else's. Raises HostError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise HostError(
                f"`{directory}` is not a directory of yours", f"name another place with {control_socket.VARIABLE}"
            )
        directory.chmod(0o700)
    except OSError as error:
        raise HostError(f"cannot make the directory `{directory}`: {error.strerror}") from error


def _locked(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise HostError(f"the service runs already, as process {pid}", "see `exeat status`") from error
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)  # of a service that was killed: the lock is ours
        sock.bind(str(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise HostError(f"cannot listen on `{path}`: {error.strerror}") from error
    finally:
        os.umask(mask)
    return sock


def _check_kind(sock: socket.socket) -> None:
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise HostError(
            "the socket that systemd passes is of another kind", "write `ListenSequentialPacket=` in its unit"
        )
