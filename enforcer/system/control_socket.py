"""Path of the service's control socket, and whether the process at its other end is the user's own service.

A user's service serves that user, and root's serves root. The client checks the service too: a request contains the
caller's environment and a descriptor of its directory. Every `exeat run` imports this, so it imports nothing slow.
"""

import _signal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

VARIABLE = "EXEAT_CONTROL"  # overrides the path of the socket, for the service and its clients
_NAME = "control"
_SOL_SOCKET, _SO_PEERCRED, _UCRED, _SO_PEERPIDFD = 1, 17, 12, 77  # asm-generic/socket.h
_ENOPROTOOPT, _LARGEST = 92, 1 << 14
_PATIENCE = 30.0  # seconds


def control_path() -> str:
    """Return the path of the control socket; empty where no directory is known for it."""
    if named := os.environ.get(VARIABLE):
        return named if named.startswith("/") else ""
    if os.geteuid() == 0:
        return f"/run/exeat/{_NAME}"
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    # The XDG Base Directory Specification: a relative path is invalid and is ignored.
    return f"{base}/exeat/{_NAME}" if base.startswith("/") else ""


def is_service_running() -> bool:
    """Whether the caller's own service listens. Connects, and sends no request."""
    import _socket  # every run imports this module, for `control_path` alone

    if not (path := control_path()):
        return False
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
        return is_own_service(connection)
    except OSError:
        return False
    finally:
        connection.close()


def is_own_service(connection: "_socket.socket") -> bool:
    """Whether the listening process has our uid and is in no sandbox. A user's task has that user's uid, too.

    A task has a user or pid namespace of its own. Both are read from /proc/PID/uid_map and /proc/PID/status, which
    every process may read: the links in /proc/PID/ns may be closed to us (ptrace(2)).
    """
    who = connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _UCRED)
    pid, uid = (int.from_bytes(who[at : at + 4], sys.byteorder) for at in (0, 4))
    try:
        return uid == os.geteuid() and _namespaces(str(pid)) == _namespaces("self") and is_peer_alive(connection)
    except OSError:
        return False


def _namespaces(process: str) -> tuple[bytes, int]:
    """Return a process's uid map, and how many pid namespaces it is below ours (proc_pid_status(5), NSpid)."""
    _, _, ids = _read(f"/proc/{process}/status").partition(b"\nNSpid:")
    return _read(f"/proc/{process}/uid_map"), ids.partition(b"\n")[0].count(b"\t")


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _LARGEST)
    finally:
        os.close(file)


def is_peer_alive(connection: "_socket.socket") -> bool:
    """Whether the peer process still runs, so that its pid isn't another process's by now.

    Uses SO_PEERPIDFD (Linux 6.5); True on an older kernel.
    """
    try:
        pidfd = int.from_bytes(connection.getsockopt(_SOL_SOCKET, _SO_PEERPIDFD, 4), sys.byteorder)
    except OSError as error:
        return error.errno == _ENOPROTOOPT
    try:
        _signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True
