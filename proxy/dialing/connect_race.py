"""Connects to the first of several addresses that answers: Happy Eyeballs (RFC 8305 section 5), without tasks.

Most names have one address, which takes one socket and one event.
"""

import asyncio
import errno
import os
import socket
import time
from functools import lru_cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError
from proxy.event_loop.poller import OUT, cut_if_killed
from proxy.sandbox.sandbox_state import DescriptorQuota, ExtraSockets
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.event_loop.poller import Poller
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.settings import ProxyDestination
    from rules.values.addresses import Address

type Hop = Address | ProxyDestination  # address or proxy to dial
type Done = Callable[[socket.socket | DialError, Hop | None], None]  # a connected socket and its address, or the error

ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried in parallel

address_text: Final = lru_cache(maxsize=1024)(
    str
)  # text of an address; cached, since few addresses get most connections
_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)  # plain numbers: socket() is slower with enumerations
_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)


class ConnectRace:
    """Happy Eyeballs race of connections to several addresses. `done` is called once, never from the constructor.

    With `at_once`, the first address may be connected when the constructor returns, as with local servers: then call
    `take`, and `done` is not called. That saves a round of the event loop.
    """

    __slots__ = (
        "_addresses",
        "_at_once",
        "_attempts",
        "_done",
        "_extra_sockets",
        "_is_over",
        "_metrics",
        "_poller",
        "_port",
        "_problem",
        "_started",
        "_timer",
    )

    def __init__(
        self,
        poller: "Poller",
        addresses: "Iterable[Address]",
        port: int,
        done: "Done",
        metrics: "Metrics | None" = None,
        *,
        at_once: bool = False,
        descriptors: "DescriptorQuota | None" = None,
    ) -> None:
        self._poller = poller
        self._extra_sockets = ExtraSockets(descriptors or DescriptorQuota())  # all sockets but the first
        self._at_once = at_once
        self._addresses = list(addresses)
        self._port = port
        self._done = done
        self._metrics = metrics
        self._started = time.monotonic()
        self._attempts: list[_ConnectAttempt] = []
        self._is_over = False
        self._problem = "there is no address"
        self._timer: asyncio.TimerHandle | None = None
        self._start_next()

    def take(self) -> "tuple[socket.socket, Address] | None":
        """Return the socket that was connected at once and its address, if any; that ends the race."""
        if len(self._attempts) != 1 or not self._attempts[0].connected:
            return None
        attempt = self._attempts.pop()
        self._is_over = True  # no timer is set: that only happens for an attempt that isn't connected
        del self._done  # breaks the reference cycle with the caller, so that all is freed at once
        if self._metrics is not None:
            self._metrics.dialled(None, time.monotonic() - self._started)
        return attempt.sock, attempt.address

    def cancel(self) -> None:
        """Close all sockets that aren't connected. Idempotent."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        while self._attempts:
            self._attempts.pop().close()
        self._extra_sockets.set(len(self._attempts) - 1)

    def connected(self, attempt: "_ConnectAttempt") -> None:
        """End the race: this attempt has won."""
        self._attempts.remove(attempt)
        self.cancel()
        self._report(attempt.sock, attempt.address)

    def lost(self, attempt: "_ConnectAttempt", errno_: int) -> None:
        """Drop a failed attempt and try the next address at once."""
        if attempt not in self._attempts:
            return  # it has won or was cancelled
        self._attempts.remove(attempt)
        attempt.close()
        self._extra_sockets.set(len(self._attempts) - 1)
        self._problem = describe_error(errno_, attempt.address)
        if self._timer is not None:
            self._timer.cancel()
        self._start_next()

    def _start_next(self) -> None:
        """Try one more address and set the timer for the next; beside other attempts only if the quota allows."""
        if self._attempts and not self._is_over and not self._extra_sockets.has_room():
            self._schedule_next()
            return
        while self._addresses and not self._is_over:
            address = self._addresses.pop(0)
            try:
                attempt = _ConnectAttempt(self, self._poller, address, self._port, at_once=self._at_once)
            except OSError as error:
                self._problem = describe_error(error.errno, address)
                continue
            self._at_once = False  # `take` is only called after the constructor
            self._attempts.append(attempt)
            if len(self._attempts) > 1:
                self._extra_sockets.set(len(self._attempts) - 1)
            if not attempt.connected:
                self._schedule_next()
            return
        self._at_once = False
        if not self._attempts and not self._is_over:
            asyncio.get_running_loop().call_soon(self._fail)

    def _schedule_next(self) -> None:
        """Set the timer for the next address, if there is one."""
        if self._addresses:
            self._timer = asyncio.get_running_loop().call_later(ATTEMPT_DELAY, self._start_next)

    def _fail(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._report(DialError(Reason.UPSTREAM_FAILED, self._problem), None)

    def _report(self, result: "socket.socket | DialError", address: "Address | None") -> None:
        if self._metrics is not None:
            reason = result.reason if isinstance(result, DialError) else None
            self._metrics.dialled(reason, time.monotonic() - self._started)
        done = self._done
        del self._done
        done(result, address)


class _ConnectAttempt:
    """One socket connecting to one address."""

    __slots__ = ("_fd", "_poller", "_race", "address", "connected", "sock")

    def __init__(self, race: ConnectRace, poller: "Poller", address: "Address", port: int, *, at_once: bool) -> None:
        """Start to connect. Raises OSError."""
        self._race = race
        self._poller = poller
        self.address = address
        self.sock = sock = socket.socket(_INET if isinstance(address, IPv4Address) else _INET6, _KIND)
        self._fd = sock.fileno()
        try:
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # the client's kernel has coalesced segments already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent data stays in the stream
            cut_if_killed(sock)
            errno_ = sock.connect_ex((address_text(address), port))
            if errno_ != errno.EINPROGRESS:
                _raise_errno(errno_)
            self.connected = at_once and _is_connected(sock)
            if not self.connected:
                poller.watch(self._fd, OUT, self)
        except BaseException:
            sock.close()
            raise

    def ready(self, _events: int) -> None:
        errno_ = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if errno_:
            self._race.lost(self, errno_)
        else:
            self._poller.forget(self._fd)
            self._race.connected(self)

    def failed(self, _error: Exception) -> None:
        """Drop this attempt: `ready` raised, which is a bug."""
        self._race.lost(self, errno.EIO)

    def close(self) -> None:
        self._poller.forget(self._fd)
        self.sock.close()


def _raise_errno(errno_: int) -> None:
    """Raise OSError if an errno of connect(2) is an error."""
    if errno_:
        raise OSError(errno_, os.strerror(errno_))


def _is_connected(sock: socket.socket) -> bool:
    """Whether a non-blocking connect(2) has finished at once, as over loopback."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def describe_error(errno_: int | None, address: "Address") -> str:
    """Describe why connecting to an address failed."""
    return f"{address}: {os.strerror(errno_ or errno.EIO).lower()}"
