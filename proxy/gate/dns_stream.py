"""DNS over TCP for a sandbox (RFC 7766): connections to port 53 of any address reach its own resolver."""

import socket
import time
from typing import TYPE_CHECKING, Final

from proxy.dns.wire import LARGEST_QUERY
from proxy.event_loop.poller import IN, finish, reset
from proxy.gate.decide import refuse
from proxy.telemetry.events import Where
from rules.attempt import Protocol
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dns.resolver import Resolver
    from proxy.event_loop.poller import Poller
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import Tenant

PATIENCE: Final = 10.0  # seconds between questions (RFC 7766 section 6.2.3 asks for some)
_AT_ONCE: Final = 1024  # bytes read before the others get their turn


class Stream:
    """One connection with questions on it, each after its length in two bytes. Its socket is in no poller yet.

    Each question is an attempt of its own; a connection without a question is recorded as a connection.
    """

    __slots__ = (
        "_client", "_forget", "_heard", "_kept", "_over", "_poller", "_questions", "_record", "_resolver", "_tenant",
    )  # fmt: skip

    def __init__(
        self,
        poller: "Poller",
        tenant: "Tenant",
        client: socket.socket,
        record: "ConnectionRecord",
        *,
        resolver: "Resolver",
        forget: "Callable[[Stream], None]",
    ) -> None:
        self._poller = poller
        self._tenant = tenant
        self._forget = forget  # called once it is closed
        self._client = client
        self._record = record
        self._resolver = resolver
        self._kept = b""  # the beginning of a question
        self._questions = 0
        self._heard = record.opened
        self._over = False

    def begin(self) -> None:
        """Wait for questions."""
        self._poller.watch(self._client.fileno(), IN, self)

    def ready(self, _events: int) -> None:
        """Answer what has come, up to a bound."""
        try:
            data = self._client.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not data:
            self._end(finish)
            return
        self._kept += data
        while not self._over and len(self._kept) >= 2:
            length = int.from_bytes(self._kept[:2])
            if length > LARGEST_QUERY:
                self.abort()
                return
            message = self._kept[2 : 2 + length]
            if len(message) < length:
                return
            self._kept = self._kept[2 + length :]
            if not self._resolver.ask(message, self._record.wanted.address, Protocol.TCP, self._reply):
                self.abort()  # it is not DNS that is spoken here
                return
            self._questions += 1
            self._heard = time.monotonic()

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected."""
        self._record.error(Where.RESOLVER, error)
        self.abort()

    def tick(self, now: float) -> None:
        """Look at the time (time.monotonic())."""
        if now - self._heard >= PATIENCE:
            self.abort()

    def review(self) -> None:
        """Do nothing: each question is decided by itself."""

    def abort(self) -> None:
        """End it now."""
        self._end(reset)

    def _reply(self, answer: bytes) -> None:
        """Send an answer whole or not at all: a client that doesn't read its answers needs none."""
        if self._over:
            return
        framed = len(answer).to_bytes(2) + answer
        try:
            sent = self._client.send(framed)
        except OSError:
            sent = 0
        if sent < len(framed):
            self.abort()

    def _end(self, close: "Callable[[socket.socket], None]") -> None:
        if self._over:
            return
        self._over = True
        self._poller.forget(self._client.fileno())
        close(self._client)
        if not self._questions:
            self._record.decided(refuse(self._tenant, self._record.wanted, Reason.PROTOCOL_MISMATCH))
        self._forget(self)
