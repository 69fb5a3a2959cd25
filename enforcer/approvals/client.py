"""Client of the approvals server: starts it where there is none, connects to it, and sends one request a connection.

The starter takes the lock and listens before it starts the server, and passes both on: there is never more than one,
and clients wait in its queue meanwhile. It outlives its starter.

Requests: `{"exeat": 1, "what": ..., ...}`, with a `token` where a person is known by that and not by the uid. Answers:
any number of `{"answer": {...}}`, or one `{"failed": text, "status": exit status}`; then the connection ends. A long
one comes in pieces of its text: `{"piece": text, "more": whether it goes on}`.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from enforcer.system import linux, state
from enforcer.system.errors import ExeatError, HostError
from proxy.wire import message, strict_json

VARIABLE: Final = "EXEAT_APPROVALS"  # another path of the host's socket, for root's registry and for its clients
_HOST: Final = "/run/exeat-approvals/socket"  # `/run/exeat` itself is closed to others
_BACKLOG: Final = 1024
SOCKET, LOCK_FILE, LOG, STORE = "socket", "lock", "log", "store"  # in its directory


def approvals_directory() -> Path:
    """Return the registry's directory: its socket, its lock, its log, and the store where that is a file."""
    return state.state_directory() / "approvals"


def host_socket() -> Path | None:
    """Return where root's registry can be reached by everybody else; None: nowhere."""
    named = os.environ.get(VARIABLE, _HOST)
    return Path(named) if named.startswith("/") else None


def bind(directory: Path, mode: int, name: str = SOCKET) -> socket.socket:
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


LOCK, LISTENER = 3, 4  # its descriptors
_OURS: Final = "EXEAT_"  # where approvers.yaml says `secret: {env: NAME}`, NAME begins with this
PATIENCE: Final = 10.0  # seconds for one that is just ending
_BETWEEN: Final = 0.02  # seconds
_LARGEST_LOG: Final = 1 << 20  # bytes
# What it has of its starter's environment: no secret of a caller's is in a process that goes on for days.
_TAKEN: Final = (
    *("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "PYTHONPATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ", "USER"),
    *("XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
    *(f"PG{name}" for name in ("HOST", "PORT", "USER", "DATABASE", "PASSFILE", "SERVICE", "SERVICEFILE")),
    *(f"PGSSL{name}" for name in ("MODE", "ROOTCERT", "CERT", "KEY")),
)


def connected(patience: float = PATIENCE) -> socket.socket:
    """Return a connection to this user's registry, started if there is none. Raises HostError.

    `patience`: how many seconds to wait for one that is just ending.
    """
    state.make_private(state.state_directory())
    directory = state.make_private(approvals_directory())
    deadline = time.monotonic() + patience
    while (connection := there(directory / SOCKET)) is None:
        if not start(directory):
            if time.monotonic() > deadline:
                raise HostError("the approvals server neither answers nor ends", f"see `{directory / LOG}`")
            time.sleep(_BETWEEN)
    return connection


def there(path: Path, owner: int | None = None) -> socket.socket | None:
    """Return a connection to the registry that listens there; None: there is none. `owner`: whose it is, if not ours.

    Raises HostError where another user owns it.
    """
    try:
        connection = connect(path)
    except OSError:
        return None
    wanted = os.geteuid() if owner is None else owner
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != wanted:
        connection.close()
        raise HostError(f"who listens on `{path}` is uid {uid}, and not {wanted}")
    return connection


def start(directory: Path) -> bool:
    """Start a registry; False where there is one already, or one that is just ending. Raises HostError."""
    if not sys.executable:
        raise HostError("cannot start the approvals server: the path of this Python is unknown")
    try:
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"cannot start the approvals server in `{directory}`: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with bind(directory, 0o600) as listener:
            pid = os.fork()
            if pid == 0:
                _leave(directory, lock, listener)
            os.waitpid(pid, 0)
    finally:
        os.close(lock)
    return True


def _leave(directory: Path, lock: int, listener: socket.socket) -> NoReturn:
    """Be the registry: a daemon in its own session, with no descriptor or directory of its starter."""
    try:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            os.umask(0o077)
            log = _open_log(directory)
            null = os.open(os.devnull, os.O_RDWR)
            # Above where they are about to be put
            high = [fcntl.fcntl(each, fcntl.F_DUPFD, 16) for each in (null, null, log, lock, listener.fileno())]
            for number, descriptor in enumerate(high):
                os.dup2(descriptor, number, inheritable=True)
            linux.keep_only(set(range(len(high))))
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            variables = {name: value for name, value in os.environ.items() if name in _TAKEN or name.startswith(_OURS)}
            # -P: nothing of the directory that somebody happens to be in is imported.
            # -B: no bytecode is left that workers, under this umask, couldn't read and would compile at each start.
            os.execve(
                sys.executable, [sys.executable, "-P", "-B", "-m", "enforcer.approvals", str(directory)], variables
            )
    finally:
        os._exit(0)


def _open_log(directory: Path) -> int:
    path = directory / LOG
    with contextlib.suppress(OSError):
        if path.stat().st_size > _LARGEST_LOG:
            path.unlink()
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


VERSION: Final = 1
_ANSWER: Final = 30.0  # seconds
_LARGEST: Final = 1 << 18  # bytes
_TRIES: Final = 3  # of registries that end in this very moment


class ServerRefusedError(ExeatError):
    """The approvals server refused the request; the text is the server's."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def packet(what: Mapping[str, object]) -> bytes:
    """Return a request as it is sent."""
    return json.dumps({"exeat": VERSION, **what}, ensure_ascii=False).encode("utf-8", "surrogatepass")


def ask(what: Mapping[str, object]) -> list[dict[str, Any]]:
    """Ask this user's registry, started if there is none, and return all answers. Raises ExeatError."""
    for _ in range(_TRIES):
        if answers := list(_answers(connected(), what)):
            return answers
    raise HostError("the approvals server does not answer", f"see `{approvals_directory() / LOG}`")


def is_running() -> bool:
    """Whether this user has a server now. Raises ExeatError."""
    connection = there(approvals_directory() / SOCKET)
    if connection is not None:
        connection.close()
    return connection is not None


def ask_running(what: Mapping[str, object]) -> list[dict[str, Any]] | None:
    """Ask this user's server if there is one; None: there is none. Raises ExeatError."""
    return list(_answers(there(approvals_directory() / SOCKET), what)) or None


def ask_host(what: Mapping[str, object]) -> list[dict[str, Any]] | None:
    """Ask root's server, which other users reach too; None: there is none. Raises ExeatError."""
    return list(_answers(_host(), what)) or None


def follow(what: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Ask this user's server for what happens from now on, until it ends. Raises ExeatError."""
    return _answers(connected(), what, patience=None)


def follow_host(what: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Ask root's server, if there is one, for what happens from now on, until it ends. Raises ExeatError."""
    return _answers(_host(), what, patience=None)


def _host() -> socket.socket | None:
    path = host_socket()
    return None if path is None else there(path, owner=0)


def _answers(
    connection: socket.socket | None, what: Mapping[str, object], patience: float | None = _ANSWER
) -> Iterator[dict[str, Any]]:
    """Send a request over a connection, which is closed at the end, and yield its answers; None: there are none."""
    if connection is None:
        return
    connection.settimeout(patience)
    try:
        with contextlib.suppress(BrokenPipeError):  # it may have said why it is leaving
            connection.send(packet(what))
        text = ""
        while data := message.packet(connection, _LARGEST)[0]:
            said = strict_json.loads(data)
            if "piece" in said:
                text += said["piece"]
                if said["more"]:
                    continue
                said, text = strict_json.loads(text), ""
            if "failed" in said:
                raise ServerRefusedError(str(said["failed"]), int(said.get("status", HostError.status)))
            yield said["answer"]
    except ConnectionError:
        return  # it ended
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError("the approvals server does not answer", "see its log") from error
    finally:
        connection.close()
