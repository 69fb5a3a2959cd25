"""Gate listener: accepts every TCP connection of one sandbox, whatever its destination (invariant 1).

The sandbox is known from the socket, and the destination from getsockname() (invariant 4). The gate accepts, bounds,
and keeps the time; `connection` does the rest. The gate must never stop accepting for good, spin, or hold more
connections than it has descriptors for (invariant 11: one sandbox's flood costs that sandbox alone).
"""

import asyncio
import errno
import resource
import socket
import time
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from proxy.event_loop.poller import IN, PeriodicTarget, PeriodicTasks, for_each, prepare_listener, reset
from proxy.gate.connection import Connection
from proxy.gate.decide import DecisionCache, OriginalDestination, is_unroutable
from proxy.gate.dns_stream import DnsStream
from proxy.gate.record import ConnectionRecord
from proxy.gate.splice import BufferQuota
from proxy.telemetry.events import Component
from rules.values.addresses import Address, normalize
from rules.values.names import INFO_API
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.dialer import Dialer
    from proxy.dns.names import NameTable
    from proxy.dns.server import DnsServer
    from proxy.gate.record import Endpoint, FindProcess, Inspection
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.supervisor_channel.channel import Attribution

MOST_CONNECTIONS: Final = 4096
_DNS_PORT: Final = 53
_HTTP_PORT, _OTLP_PORT = 80, 4318
_INFO_API_PORTS: Final = frozenset({_HTTP_PORT, _OTLP_PORT})
_MAX_ACCEPTS: Final = 64  # connections accepted before other work gets its turn
_CONNECTIONS_PER_ACCEPT: Final = 16  # open connections for each connection accepted beyond the first
_RESERVED: Final = 64  # descriptors that no connection uses
_PER_CONNECTION: Final = 2  # descriptors that a connection takes: the client's and the server's
_REVIEW_SLICE: Final = 0.001  # seconds before other work gets its turn
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds without accepting when descriptors have run out
# accept(2): errors of one connection, which is gone already
_CONNECTION_ERRORS: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH}
    | {errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINTR, errno.EPERM}
)


def original_destination(sock: socket.socket) -> "Endpoint":
    """Return the destination of a connection caught by tproxy; a link-local address keeps its zone id."""
    name = sock.getsockname()
    return _address(name[0]), name[1]


class InfoApiHandler(PeriodicTarget, Protocol):
    """Handler of a connection to the info API, which the gate answers itself."""

    def begin(self) -> None:
        """Start to wait for its request."""


class Gate:
    """Gate of one sandbox. Made, started and closed within a running loop; the caller keeps the listener."""

    def __init__(
        self,
        listener: socket.socket,
        sandbox: "SandboxState",
        recorder: "Recorder",
        *,
        dialer: "Dialer",
        names: "NameTable",
        resolver: "DnsServer",
        info_api: "Callable[[Gate, socket.socket, ConnectionRecord], InfoApiHandler]",
        inspection: "Inspection | None" = None,
        attribute: "FindProcess | None" = None,
        destination_of: "Callable[[socket.socket], Endpoint]" = original_destination,
        most: int = MOST_CONNECTIONS,
        has_room: "Callable[[], bool]" = lambda: True,
    ) -> None:
        """Serve `listener`.

        `info_api` makes what serves a connection to the info API; `attribute` finds the process of a socket, if the
        sandbox has a supervisor; `destination_of` is for tests.

        `has_room` says whether the worker has descriptors for one more of this sandbox's (`DescriptorQuota`).
        """
        self.sandbox = sandbox
        self.recorder = recorder
        self.dialer = dialer
        self.names = names
        self.inspection = inspection
        self.poller = dialer.poller
        self.clock = time.monotonic
        self.decisions = DecisionCache(sandbox, can_inspect=inspection is not None)
        self.buffers = BufferQuota()
        self.most = min(most, _by_descriptors())
        self._has_room = has_room
        self._listener = listener
        # For socket.socket(); like socket.accept(), without looking up two enumeration members each time.
        self._kind = int(listener.family), int(listener.type), listener.proto
        self._resolver = resolver
        self._info_api = info_api
        self._attribute = attribute
        self._destination_of = destination_of
        self.is_finishing = False  # the task has ended, so no client is left
        self.connections: set[PeriodicTarget] = set()  # in every state
        self._pause = _SHORTEST_PAUSE
        self._resume_timer: asyncio.TimerHandle | None = None
        self._periodic_tasks = PeriodicTasks(sandbox.calendar.today, self.connections, self.review)
        self._unreviewed: list[PeriodicTarget] = []

    def start(self) -> None:
        """Start to accept connections."""
        prepare_listener(self._listener)
        self.poller.watch(self._listener.fileno(), IN, self)

    def finish(self) -> None:
        """Handle the end of the task: open connections have lost their client."""
        self.is_finishing = True

    def close(self) -> None:
        """Stop accepting, and end every connection that inspection doesn't have. Idempotent."""
        self.poller.forget(self._listener.fileno())
        if self._resume_timer is not None:
            self._resume_timer.cancel()
        self._periodic_tasks.stop()
        for_each(self.connections, lambda connection: connection.abort())

    def review(self) -> None:
        """Decide again on every open connection: the rules or the date have changed."""
        self.decisions.clear()
        self._unreviewed = list(self.connections)
        self._review_some()

    # for connections

    def replace(self, connection: PeriodicTarget, by: PeriodicTarget) -> None:
        """Register a connection's next handler; a review in progress reaches that, too."""
        self.connections.discard(connection)
        self.connections.add(by)
        if self._unreviewed:
            self._unreviewed.append(by)

    def forget(self, connection: PeriodicTarget) -> None:
        """Remove a closed connection."""
        self.connections.discard(connection)

    # for the poller

    def ready(self, _events: int) -> None:
        """Accept waiting connections, up to a bound; epoll reports the rest again."""
        for _ in range(min(1 + len(self.connections) // _CONNECTIONS_PER_ACCEPT, _MAX_ACCEPTS)):
            try:
                number, peer = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
                client = socket.socket(*self._kind, number)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _CONNECTION_ERRORS:
                    continue
                self._pause_accepting(error)
                return
            self._start(client, (_address(peer[0]), peer[1]), time.monotonic())
        self._pause = _SHORTEST_PAUSE
        self._periodic_tasks.keep_going()

    def failed(self, error: Exception) -> None:
        """Report an unexpected exception; later connections are served."""
        self.recorder.error(Component.ACCEPT, f"{type(error).__name__}: {error}")

    def _start(self, client: socket.socket, peer: "Endpoint", opened: float) -> None:
        """Start a connection that was accepted at `opened` (time.monotonic())."""
        client.setblocking(False)
        try:
            destination = self._original_destination(client)
        except Exception as error:  # noqa: BLE001 - there is no saying where it was to go
            self.failed(error)
            reset(client)
            return
        address = None if self.names.covers(destination.address) else destination.address
        record = ConnectionRecord(self.recorder, peer, destination, address, opened)
        connection = Connection(self, client, record)
        self.connections.add(connection)
        try:
            self._dispatch(connection, client, record)
        except Exception as error:  # noqa: BLE001 - the listener and the others go on
            connection.failed(error)

    def _dispatch(self, connection: Connection, client: socket.socket, record: ConnectionRecord) -> None:
        """Deny a connection, answer it, or decide on it."""
        destination = record.destination
        if len(self.connections) > self.most or not self._has_room():
            connection.deny(Reason.LIMIT_EXCEEDED)
        elif destination.port == _DNS_PORT:  # whatever the address, also one of the sandbox's own: no byte of it leaves
            stream = DnsStream(self.poller, self.sandbox, client, record, resolver=self._resolver, forget=self.forget)
            self.replace(connection, stream)
            stream.begin()
        elif is_unroutable(self.sandbox, destination):
            connection.deny(Reason.NON_PUBLIC_ADDRESS)
        elif INFO_API in destination.names and destination.port in _INFO_API_PORTS:
            served = self._info_api(self, client, record)
            self.replace(connection, served)
            served.begin()
        elif not destination.names and self.names.covers(destination.address):
            connection.deny(Reason.UNRESOLVED)  # the address stands for no name, or no longer does
        else:
            self.attribute(record)
            connection.begin()

    def attribute(self, record: ConnectionRecord) -> "Attribution | None":
        """Start to look up the process that opened a connection, where possible."""
        if self._attribute is not None:
            destination = record.destination
            record.attribution = self._attribute(record.peer, (destination.address, destination.port))
        return record.attribution

    def _original_destination(self, client: socket.socket) -> OriginalDestination:
        address, port = self._destination_of(client)
        return OriginalDestination(address, port, self.names.names_of(address))

    def _pause_accepting(self, error: OSError) -> None:
        """Pause accepting: there is no descriptor or memory, and epoll would report the queue without end."""
        self.recorder.error(Component.ACCEPT, f"{error.strerror}: no connections are accepted for {self._pause} s")
        self.poller.change(self._listener.fileno(), 0)
        self._resume_timer = asyncio.get_running_loop().call_later(self._pause, self._resume)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _resume(self) -> None:
        self.poller.change(self._listener.fileno(), IN)

    def _review_some(self) -> None:
        """Review some connections, then yield to other sockets."""
        until = time.monotonic() + _REVIEW_SLICE
        while self._unreviewed:
            connection = self._unreviewed.pop()
            if connection in self.connections:
                for_each((connection,), lambda connection: connection.review())
            if time.monotonic() >= until:
                break
        if self._unreviewed:
            asyncio.get_running_loop().call_soon(self._review_some)


@lru_cache(maxsize=1024)
def _address(text: str) -> Address:
    """Parse an address of the kernel; one with a zone id keeps it, so it matches no rule."""
    address = ip_address(text)
    return address if "%" in text else normalize(address)


def _by_descriptors() -> int:
    """Return how many connections this process has descriptors for."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max((soft - _RESERVED) // _PER_CONNECTION, 1)
