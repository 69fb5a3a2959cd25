"""Connecting to the first of several addresses that answers: Happy Eyeballs (RFC 8305 section 5), without tasks.

With one address, as nearly always, this is one socket and one event.
"""

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from proxy.poller import OUT
from proxy.relay import cut_if_killed
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.poller import Poller
    from rules.addresses import Address

ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried beside the one before it

_KIND: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class DialFailed(Exception):  # noqa: N818  past tense: what happened
    """No connection could be made, or may be. The text is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Connecting:
    """One race for a connection. `done` is called once, and never from within the constructor or `cancel`."""

    __slots__ = ("_addresses", "_done", "_open", "_over", "_poller", "_port", "_problem", "_timer")

    def __init__(
        self,
        poller: "Poller",
        addresses: "tuple[Address, ...]",
        port: int,
        done: "Callable[[socket.socket | DialFailed, Address | None], None]",
    ) -> None:
        self._poller = poller
        self._addresses = list(reversed(addresses))
        self._port = port
        self._done = done
        self._open: set[_Try] = set()
        self._over = False
        self._problem = "there is no address"
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def cancel(self) -> None:
        """Close whatever isn't connected. Harmless when it is over."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for attempt in self._open:
            attempt.close()
        self._open.clear()

    def _next(self) -> None:
        """Try one more address, and set a time for the one after it."""
        while self._addresses and not self._over:
            address = self._addresses.pop()
            try:
                self._open.add(_Try(self, self._poller, address, self._port))
            except OSError as error:
                self._problem = _said(error.errno, address)
                continue
            if self._addresses:
                self._timer = asyncio.get_running_loop().call_later(ATTEMPT_DELAY, self._next)
            return
        if not self._open and not self._over:
            asyncio.get_running_loop().call_soon(self._fail)

    def connected(self, attempt: "_Try") -> None:
        """End the race: this one has won."""
        self._open.discard(attempt)
        self.cancel()
        self._done(attempt.sock, attempt.address)

    def lost(self, attempt: "_Try", number: int) -> None:
        """Go on without this one: where it was the last one open, with the next address at once."""
        self._open.discard(attempt)
        attempt.close()
        self._problem = _said(number, attempt.address)
        if self._timer is not None:
            self._timer.cancel()
        self._next()

    def _fail(self) -> None:
        if not self._over:
            self._over = True
            self._done(DialFailed(Reason.UPSTREAM_FAILED, self._problem), None)


class _Try:
    """One socket on its way to one address."""

    __slots__ = ("_poller", "_race", "address", "sock")

    def __init__(self, race: Connecting, poller: "Poller", address: "Address", port: int) -> None:
        """Begin. Raises OSError."""
        self._race = race
        self._poller = poller
        self.address = address
        self.sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, _KIND)
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its sender has done any waiting
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent data stays in its place
            cut_if_killed(self.sock)
            with contextlib.suppress(BlockingIOError):  # EINPROGRESS: connect(2)
                self.sock.connect((str(address), port))
            poller.watch(self.sock.fileno(), OUT, self)
        except BaseException:
            self.sock.close()
            raise

    def ready(self, _events: int) -> None:
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._race.lost(self, number)
        else:
            self._poller.forget(self.sock.fileno())
            self._race.connected(self)

    def failed(self, _error: Exception) -> None:
        """`ready` raised, which is a bug: this attempt is over."""
        self._race.lost(self, errno.EIO)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self._poller.forget(self.sock.fileno())
            self.sock.close()


def _said(number: int | None, address: "Address") -> str:
    return f"{address}: {os.strerror(number or errno.EIO).lower()}"
