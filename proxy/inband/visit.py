"""One connection to the desk: one request, one answer, the end. Its socket is in no poller yet when it begins."""

import contextlib
import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from proxy.inband.desk import Answer, refused
from proxy.inband.requests import MOST_HEAD, Asked, Bad, Counter, parse
from proxy.poller import IN, OUT
from proxy.relay import finish, reset
from proxy.telemetry.events import Where

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.account import Account
    from proxy.gate import Gate

_LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
PATIENCE: Final = 10.0  # seconds for the request, and for taking the answer
_AT_ONCE: Final = 65536  # bytes


class Office(Protocol):
    """Who answers at a port, and how many visits it bears at once."""

    counter: Counter
    most_visits: int
    visits: int

    def answer(self, asked: Asked) -> Answer:
        """Answer a request. Must not raise for what a task has written."""
        ...


class Visit:
    """A connection, from its first byte to its last."""

    __slots__ = ("_account", "_client", "_gate", "_kept", "_left", "_office", "_over", "_since")

    def __init__(self, gate: "Gate", client: socket.socket, account: "Account", office: Office) -> None:
        self._gate = gate
        self._client = client
        self._account = account
        self._office = office
        self._kept = b""
        self._left = b""  # of the answer
        self._since = account.opened
        self._over = False

    def begin(self) -> None:
        """Wait for the request, if there is room for one more."""
        self._office.visits += 1
        self._gate.poller.watch(self._client.fileno(), IN, self)
        if self._office.visits > self._office.most_visits:
            self._answer(refused(Bad(HTTPStatus.SERVICE_UNAVAILABLE, "too many at once: ask again in a second")))

    def ready(self, _events: int) -> None:
        """Read on, or go on sending."""
        if self._left:
            self._send()
            return
        try:
            data = self._client.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not data:
            self.abort()
            return
        self._kept += data
        try:
            asked = parse(self._kept, self._office.counter)
        except Bad as bad:
            self._answer(refused(bad))
            return
        if asked is not None:
            self._answer(self._office.answer(asked), bare=asked.method == "HEAD")

    def tick(self, now: float) -> None:
        """Look at the time (time.monotonic())."""
        if now - self._since >= PATIENCE:
            self.abort()

    def review(self) -> None:
        """Do nothing: what is answered is what holds when it is asked."""

    def abort(self) -> None:
        """End it now."""
        self._end(reset)

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected."""
        self._account.error(Where.DESK, error)
        self.abort()

    def _answer(self, answer: Answer, *, bare: bool = False) -> None:
        retry = "Retry-After: 1\r\n" if answer.status in _LATER else ""
        head = (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.kind}\r\n"
            f"Content-Length: {len(answer.body)}\r\n{retry}Cache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self._left = head.encode() + (b"" if bare else answer.body)
        self._since = time.monotonic()
        self._gate.poller.change(self._client.fileno(), OUT)
        self._send()

    def _send(self) -> None:
        try:
            self._left = self._left[self._client.send(self._left) :]
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not self._left:
            self._drain()

    def _drain(self) -> None:
        """End in peace. What the task has sent besides is read first: it would turn the end into a reset."""
        with contextlib.suppress(OSError):  # nothing is there, or nobody
            self._client.recv(2 * MOST_HEAD)
        self._end(finish)

    def _end(self, close: "Callable[[socket.socket], None]") -> None:
        if self._over:
            return
        self._over = True
        self._office.visits -= 1
        self._gate.poller.forget(self._client.fileno())
        close(self._client)
        self._gate.forget(self)
