"""DNS over TCP for a sandbox (RFC 7766): connections to port 53 of any address reach its own resolver."""

from typing import TYPE_CHECKING, Final

from proxy.dns.wire import LARGEST_QUERY
from proxy.event_loop.poller import finish
from proxy.gate.decide import deny_connection
from proxy.gate.served_connection import ServedConnection
from proxy.telemetry.events import Component
from rules.attempt import Protocol
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.dns.server import DnsServer
    from proxy.event_loop.poller import Poller
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import SandboxState

_AT_ONCE: Final = 1024  # bytes read before the others get their turn


class DnsStream(ServedConnection):
    """One DNS connection; each query follows its length in two bytes (RFC 1035 section 4.2.2).

    Each question is an attempt of its own; a connection without a question is recorded as a connection.
    """

    __slots__ = ("_kept", "_questions", "_resolver", "_sandbox")

    where = Component.RESOLVER

    def __init__(
        self,
        poller: "Poller",
        sandbox: "SandboxState",
        client: "socket.socket",
        record: "ConnectionRecord",
        *,
        resolver: "DnsServer",
        forget: "Callable[[ServedConnection], None]",
    ) -> None:
        super().__init__(poller, client, record, forget)
        self._sandbox = sandbox
        self._resolver = resolver
        self._kept = b""  # the beginning of a question
        self._questions = 0

    def ready(self, _events: int) -> None:
        """Answer the queries that have arrived, up to a bound."""
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
            if not self._resolver.ask(message, self._record.destination.address, Protocol.TCP, self._reply):
                self.abort()  # it is not DNS that is spoken here
                return
            self._questions += 1
            self._heard()

    def _reply(self, answer: bytes) -> None:
        """Send a whole answer, or close: a client that reads no answers gets none."""
        if self._over:
            return
        framed = len(answer).to_bytes(2) + answer
        try:
            sent = self._client.send(framed)
        except OSError:
            sent = 0
        if sent < len(framed):
            self.abort()

    def _ended(self) -> None:
        if not self._questions:
            self._record.record_decision(
                deny_connection(self._sandbox, self._record.destination, Reason.PROTOCOL_MISMATCH)
            )
