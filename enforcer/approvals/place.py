"""Where the registry listens, and what lies beside that. Imported by runs that need it alone."""

import os
import socket
from pathlib import Path
from typing import Final

from enforcer import state
from enforcer.errors import HostError

VARIABLE: Final = "EXEAT_APPROVALS"  # another place for the host's socket: root's registry and who asks it alike
_HOST: Final = "/run/exeat-approvals/socket"  # `/run/exeat` itself is closed to others
_BACKLOG: Final = 1024
_SOCKET, _LOCK, _LOG, _STORE = "socket", "lock", "log", "store"


def directory() -> Path:
    """Return the registry's directory: its socket, its lock, its log, and the store where that is a file."""
    return state.state_directory() / "approvals"


def made() -> Path:
    """Return it, made private where it wasn't there. Raises HostError."""
    state.make_private(state.state_directory())
    return state.make_private(directory())


def lock(of: Path) -> Path:
    """Return the file whose lock says whether there is a registry."""
    return of / _LOCK


def log(of: Path) -> Path:
    """Return where it says what nobody is there to hear."""
    return of / _LOG


def store(of: Path) -> Path:
    """Return where the store lies unless approvers.yaml says otherwise."""
    return of / _STORE


def host() -> Path | None:
    """Return where root's registry can be reached by everybody else; None: nowhere."""
    named = os.environ.get(VARIABLE, _HOST)
    return Path(named) if named.startswith("/") else None


def bind(directory: Path, mode: int, name: str = _SOCKET) -> socket.socket:
    """Return a socket that listens in a directory of ours, in the place of one that nobody listens on any more.

    Raises HostError. A path may be longer than an address holds (unix(7): 108 bytes), so it goes by the directory.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Each packet says who sent it, those too that come before anybody accepts the connection: it is inherited
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (directory / name).unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                sock.bind(f"/proc/self/fd/{at}/{name}")
            finally:
                os.umask(before)
            if mode != 0o600:
                (directory / name).chmod(mode)
            sock.listen(_BACKLOG)
        finally:
            os.close(at)
    except OSError as error:
        sock.close()
        raise HostError(f"cannot listen on `{directory / name}`: {error.strerror}") from error
    return sock


def connect(path: Path) -> socket.socket:
    """Connect to what listens there. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        at = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{at}/{path.name}")
        finally:
            os.close(at)
    except OSError:
        sock.close()
        raise
    return sock


def own_socket(of: Path) -> Path:
    """Return the socket's path."""
    return of / _SOCKET
