"""Control server of the service: its socket, the requests that arrive on it, and the protocol of systemd.

One service of a user listens at a time, and only that user reaches it. A lock, not the socket, shows whether one runs:
a killed service may leave its socket behind. Clients can't block the service: a limited number may be connected without
a request, each for a limited time, and answers are short.
"""

import contextlib
import errno
import fcntl
import json
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from enforcer.service import protocol
from enforcer.service.start_queue import decline
from enforcer.system import control_socket, peers
from enforcer.system.errors import ExeatError, HostError
from proxy.wire import strict_json

_BACKLOG: Final = 1024
_MOST_PENDING: Final = 256  # connections without a request
_REQUEST_TIMEOUT: Final = 5.0  # seconds for the request to arrive
_ACCEPT_PAUSE: Final = 0.2  # seconds
_ANSWER_TIMEOUT: Final = 0.5  # seconds for a slow client to read an answer

type Run = Callable[[socket.socket, list[int]], None]
type Answers = Callable[[dict[str, Any], list[int]], Sequence[Mapping[str, object]]]


class Control:
    """The listening socket, and the lock that makes this the only service of its user."""

    def __init__(self, passed: socket.socket | None = None) -> None:
        """Listen, or take over a socket from systemd (`passed`). Raises HostError, also if a service runs already."""
        path = control_socket.control_path()
        if not path:
            raise HostError(
                "the path of the service's socket is unknown",
                f"set XDG_RUNTIME_DIR (pam_systemd does), or {control_socket.VARIABLE} to an absolute path",
            )
        self.path = Path(path)
        _make_private(self.path.parent)
        self._lock = _take_lock(self.path.with_name(f"{self.path.name}.lock"))
        self._is_own_socket = passed is None
        self.socket = _listen(self.path) if passed is None else passed
        _check_kind(self.socket)
        self.socket.setblocking(False)

    def close(self) -> None:
        """Close the socket, and release the lock."""
        if self._is_own_socket:
            self.path.unlink(missing_ok=True)
        self.socket.close()
        os.close(self._lock)


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise HostError(
                f"`{directory}` is not a directory of yours", f"set {control_socket.VARIABLE} to another path"
            )
        directory.chmod(0o700)
    except OSError as error:
        raise HostError(f"cannot make the directory `{directory}`: {error.strerror}") from error


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise HostError(f"a service of yours already runs, as process {pid}", "see `exeat status`") from error
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)  # left by a killed service: the lock is ours
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
        raise HostError("the socket from systemd has the wrong type", "use `ListenSequentialPacket=` in its unit")


class _PendingConnection(NamedTuple):
    """A connection without a request so far."""

    connection: socket.socket
    deadline: float


class ControlServer:
    """Accepts connections. `run` gets requests for runs, `answers` all others."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector, run: Run, answers: Answers) -> None:
        self._listener = listener
        self._selector = selector
        self._run = run
        self._answers = answers
        self._pending: dict[int, _PendingConnection] = {}
        self._accepting = False
        self._closed = False
        self._paused_until = 0.0  # until then no connection is accepted: accept(2) failed
        self.turn()

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        now = time.monotonic()
        due = [pending.deadline - now for pending in self._pending.values()]
        return min([_REQUEST_TIMEOUT, *due, *([] if self._accepting else [_ACCEPT_PAUSE])])

    def turn(self) -> None:
        """Close connections past their deadline, and accept others while there is room."""
        now = time.monotonic()
        for number, pending in tuple(self._pending.items()):
            if now >= pending.deadline:
                self._handle_request(number)  # a request may have arrived meanwhile
        room = len(self._pending) < _MOST_PENDING and now >= self._paused_until and not self._closed
        if room and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif self._accepting and not room:
            self._selector.unregister(self._listener)
        self._accepting = room

    def close(self) -> None:
        """Accept no more requests. Idempotent."""
        self._closed = True
        self.turn()
        for number in tuple(self._pending):
            self._remove(number).close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            self._paused_until = time.monotonic() + _ACCEPT_PAUSE  # clients wait in the listener's queue
            return
        try:
            peers.check(connection)
        except peers.PeerRefusedError as refused:
            word = b"declined" if refused.declined else b"refused"
            with contextlib.suppress(OSError):
                connection.send(word + b" " + str(refused).encode())
            connection.close()
            return
        connection.setblocking(False)
        self._pending[connection.fileno()] = _PendingConnection(connection, time.monotonic() + _REQUEST_TIMEOUT)
        number = connection.fileno()
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._handle_request(number))
        if _has_data(connection):  # mostly the request is there by now
            self._handle_request(number)

    def _remove(self, number: int) -> socket.socket:
        connection = self._pending.pop(number).connection
        self._selector.unregister(connection)
        return connection

    def _handle_request(self, number: int) -> None:
        connection = self._remove(number)
        descriptors: list[int] = []
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, protocol.LARGEST_PACKET, protocol.MOST_DESCRIPTORS)
            request_data = protocol.packet_request(packet)
            if request_data == protocol.RUN:
                self._run(connection, descriptors)
            else:
                self._answer(connection, request_data.removeprefix(protocol.ASK), descriptors)
        except (protocol.MalformedRequestError, ExeatError) as error:
            decline(connection, str(error))
        except OSError as error:  # the client is gone, or its descriptors don't fit
            decline(connection, error.strerror or str(error))
        finally:
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
        try:
            request = strict_json.loads(data)
        except ValueError:
            raise protocol.MalformedRequestError("the request is not valid JSON") from None
        if not isinstance(request, dict):
            raise protocol.MalformedRequestError("the request is not a JSON object")
        answers = self._answers(request, descriptors)
        connection.settimeout(_ANSWER_TIMEOUT)
        with contextlib.suppress(OSError):
            for answer in answers:
                connection.send(b"answer " + json.dumps(answer).encode())


def _has_data(connection: socket.socket) -> bool:
    """Whether data has arrived, or the peer is gone."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True


_FIRST: Final = 3  # SD_LISTEN_FDS_START
_LARGEST: Final = 64  # descriptors


class Notifier:
    """Sends state to systemd, if systemd asks for it (sd_notify(3))."""

    def __init__(self) -> None:
        """Read systemd's variables, once."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        seconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        is_ours = not pid or pid == str(os.getpid())
        self.watchdog = (
            int(seconds) / 2e6 if seconds.isdigit() and is_ours else None
        )  # seconds: twice as often as asked

    def notify(self, *lines: str) -> None:
        """Send assignments such as `READY=1`. Best effort."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(lines).encode(), address)


def passed_sockets() -> list[tuple[str, socket.socket]]:
    """Return the sockets that systemd has opened for this process, with their names (sd_listen_fds(3))."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for number in range(min(int(count), _LARGEST)):
        descriptor = _FIRST + number
        os.set_inheritable(descriptor, False)
        found.append((names[number] if number < len(names) else "", socket.socket(fileno=descriptor)))
    return found
