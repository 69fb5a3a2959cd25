"""Connecting to the first of several addresses that answers: Happy Eyeballs (RFC 8305 section 5), without tasks.

With one address, as nearly always, this is one socket and one event.
"""

import asyncio
import errno
import os
import socket
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from proxy.event_loop.poller import OUT, cut_if_killed
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.event_loop.poller import Poller
    from proxy.sandbox.quotas import DescriptorQuota
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.settings import Via

type Hop = Address | Via  # what is dialled
type Done = Callable[[socket.socket | DialFailed, Hop | None], None]  # a connected socket and where to, or why not

ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried beside the one before it

_MOST_WRITTEN: Final = 1024
_written: "dict[int, tuple[Address, str]]" = {}  # by where they lie: comparing takes longer than writing
_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)  # plain numbers: a socket reads enumerations slowly
_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)


class DialFailed(Exception):  # noqa: N818  past tense: what happened
    """No connection could be made, or may be. The texts are for people: what is wrong, and what can be done about it.

    `advice` is empty where it is what the reason has anyway. `held`: the decision by which people are to be asked
    before the address may be dialled. `address`: the one that may not be.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        advice: str = "",
        held: "Decision | None" = None,
        address: "Address | None" = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.advice = advice
        self.held = held
        self.address = address


def written(address: "Address") -> str:
    """Return the text of an address; that of one that is dialled again and again is kept."""
    known = _written.get(id(address))
    if known is None:
        if len(_written) >= _MOST_WRITTEN:
            _written.clear()
        known = _written[id(address)] = address, str(address)  # kept with its text: nothing else will lie there
    return known[1]


class Connecting:
    """One race for a connection. `done` is called once, and never from within the constructor or `cancel`.

    With `at_once` the first address may be connected when the constructor is done, as those near by are: `take` it
    then, or `done` is never called. It saves being put to sleep and woken again.
    """

    __slots__ = (
        "_addresses",
        "_at_once",
        "_descriptors",
        "_done",
        "_extra",
        "_metrics",
        "_open",
        "_over",
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
        self._descriptors = descriptors
        self._extra = 0  # sockets beside the first, as they are counted
        self._at_once = at_once
        self._addresses = list(addresses)
        self._port = port
        self._done = done
        self._metrics = metrics
        self._started = time.monotonic()
        self._open: list[_Try] = []
        self._over = False
        self._problem = "there is no address"
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def take(self) -> "tuple[socket.socket, Address] | None":
        """Return the connection that was there at once and where it leads, if it was; that ends the race."""
        if len(self._open) != 1 or not self._open[0].connected:
            return None
        attempt = self._open.pop()
        self._over = True  # and there is no timer: it is set only for one that isn't connected
        del self._done  # who asked has us: nothing goes round, so all of it is freed at once
        self._count(None)
        return attempt.sock, attempt.address

    def cancel(self) -> None:
        """Close whatever isn't connected. Harmless when it is over."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        while self._open:
            self._open.pop().close()
        self._count_sockets()

    def connected(self, attempt: "_Try") -> None:
        """End the race: this one has won."""
        self._open.remove(attempt)
        self.cancel()
        self._tell(attempt.sock, attempt.address)

    def lost(self, attempt: "_Try", number: int) -> None:
        """Go on without this one: with the next address at once."""
        if attempt not in self._open:
            return  # it has won or was given up before
        self._open.remove(attempt)
        attempt.close()
        self._count_sockets()
        self._problem = said(number, attempt.address)
        if self._timer is not None:
            self._timer.cancel()
        self._next()

    def _next(self) -> None:
        """Try one more address, and set a time for the one after it; beside others only where there is room for it."""
        if self._open and not self._over and self._descriptors is not None and not self._descriptors.has_room():
            self._wait()
            return
        while self._addresses and not self._over:
            address = self._addresses.pop(0)
            try:
                attempt = _Try(self, self._poller, address, self._port, at_once=self._at_once)
            except OSError as error:
                self._problem = said(error.errno, address)
                continue
            self._at_once = False  # only within the constructor is there somebody to take it
            self._open.append(attempt)
            self._count_sockets()
            if not attempt.connected:
                self._wait()
            return
        self._at_once = False
        if not self._open and not self._over:
            asyncio.get_running_loop().call_soon(self._fail)

    def _wait(self) -> None:
        """Give those that are tried a while before the next one, if there is one."""
        if self._addresses:
            self._timer = asyncio.get_running_loop().call_later(ATTEMPT_DELAY, self._next)

    def _fail(self) -> None:
        if not self._over:
            self._over = True
            self._tell(DialFailed(Reason.UPSTREAM_FAILED, self._problem), None)

    def _tell(self, result: "socket.socket | DialFailed", address: "Address | None") -> None:
        self._count(result.reason if isinstance(result, DialFailed) else None)
        done = self._done
        del self._done
        done(result, address)

    def _count_sockets(self) -> None:
        extra = max(len(self._open) - 1, 0)
        if self._descriptors is not None:
            self._descriptors.extra += extra - self._extra
        self._extra = extra

    def _count(self, reason: Reason | None) -> None:
        if self._metrics is not None:
            self._metrics.dialled(reason, time.monotonic() - self._started)


class _Try:
    """One socket on its way to one address."""

    __slots__ = ("_fd", "_poller", "_race", "address", "connected", "sock")

    def __init__(self, race: Connecting, poller: "Poller", address: "Address", port: int, *, at_once: bool) -> None:
        """Begin. Raises OSError."""
        self._race = race
        self._poller = poller
        self.address = address
        self.sock = sock = socket.socket(_INET if isinstance(address, IPv4Address) else _INET6, _KIND)
        self._fd = sock.fileno()
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its sender has done any waiting
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent data stays in its place
            cut_if_killed(sock)
            number = sock.connect_ex((written(address), port))
            if number != errno.EINPROGRESS:
                _check(number)
            self.connected = at_once and _is_connected(sock)
            if not self.connected:
                poller.watch(self._fd, OUT, self)
        except BaseException:
            sock.close()
            raise

    def ready(self, _events: int) -> None:
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._race.lost(self, number)
        else:
            self._poller.forget(self._fd)
            self._race.connected(self)

    def failed(self, _error: Exception) -> None:
        """`ready` raised, which is a bug: this attempt is over."""
        self._race.lost(self, errno.EIO)

    def close(self) -> None:
        self._poller.forget(self._fd)
        self.sock.close()


def _check(number: int) -> None:
    """Raise OSError for an errno of connect(2) that is one."""
    if number:
        raise OSError(number, os.strerror(number))


def _is_connected(sock: socket.socket) -> bool:
    """Whether connect(2) came to its end while it was asked to begin: over loopback it does."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def said(number: int | None, address: "Address") -> str:
    """Say why an address could not be connected to."""
    return f"{address}: {os.strerror(number or errno.EIO).lower()}"
