"""Path of the service's control socket. Every `exeat run` imports it, so it imports nothing slow.

A user's service serves that user, and root's serves root: who asks is known from the socket (`peers`), and who answers
is checked too, because a request has the caller's environment in it and a descriptor of the directory it is in.
"""

import _signal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

VARIABLE = "EXEAT_CONTROL"  # another place for the socket; for who starts the service and who asks it alike
_NAME = "control"
_SOL_SOCKET, _SO_PEERCRED, _UCRED, _SO_PEERPIDFD = 1, 17, 12, 77  # asm-generic/socket.h
_ENOPROTOOPT, _LARGEST = 92, 1 << 14
_PATIENCE = 30.0  # seconds


def control() -> str:
    """Return the path of the control socket; empty where there is no place for one."""
    if named := os.environ.get(VARIABLE):
        return named if named.startswith("/") else ""
    if os.geteuid() == 0:
        return f"/run/exeat/{_NAME}"
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    # The XDG Base Directory Specification: a relative path is invalid and is ignored.
    return f"{base}/exeat/{_NAME}" if base.startswith("/") else ""


def is_there() -> bool:
    """Whether a service of the caller's listens. Nothing is asked."""
    import _socket  # not for `control`, which every run asks for

    if not (path := control()):
        return False
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
        return is_ours(connection)
    except OSError:
        return False
    finally:
        connection.close()


def is_ours(connection: "_socket.socket") -> bool:
    """Whether who listens is who we are, and in no sandbox: a task of an ordinary user's has that user's uid.

    What tells it apart is a user namespace or a pid namespace of its own. Both are looked up where anybody may read
    them: a service manager that has a capability more than we have keeps its links in /proc to itself (ptrace(2)).
    """
    who = connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _UCRED)
    pid, uid = (int.from_bytes(who[at : at + 4], sys.byteorder) for at in (0, 4))
    try:
        return uid == os.geteuid() and _namespaces(str(pid)) == _namespaces("self") and is_alive(connection)
    except OSError:
        return False


def _namespaces(process: str) -> tuple[bytes, int]:
    """Return the map of its user namespace, and how far below ours its pid namespace is (proc_pid_status(5), NSpid)."""
    _, _, ids = _read(f"/proc/{process}/status").partition(b"\nNSpid:")
    return _read(f"/proc/{process}/uid_map"), ids.partition(b"\n")[0].count(b"\t")


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _LARGEST)
    finally:
        os.close(file)


def is_alive(connection: "_socket.socket") -> bool:
    """Whether the process at the other end is the one that connected, or began to listen: else it is another's number.

    Linux 6.5 tells; with an older one it counts as there.
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
