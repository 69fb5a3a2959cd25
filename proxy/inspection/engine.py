"""Inspection engine of one sandbox: its inspected connections, their certificates, dials and turns.

A connection without a certificate waits for it, unread, and the others continue. The limit on new certificates is far
lower for a sandbox than for its worker, so a task that tries endless names uses up no other sandbox's share (invariant
11).

Imported only when the first connection is to be inspected: mitmproxy takes a quarter of a second.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from proxy.certificates.signer import NEW_NAMES, NEW_NAMES_A_SECOND
from proxy.dialing.address_check import DialError
from proxy.dialing.dialer import CONNECT_TIMEOUT, LOOKUP_TIMEOUT
from proxy.event_loop.poller import EVERY
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.inspection.connection import InspectedConnection
from proxy.inspection.connection_ends import MemoryQuota
from proxy.inspection.tls import ClientContexts, KnownProtocols, ServerContexts, TlsContexts
from proxy.request.messages import WebOrigin
from proxy.sandbox.sandbox_state import ExtraSockets
from proxy.telemetry.events import Component
from rules.attempt import Protocol
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from proxy.certificates.leaf_certificates import LeafCertificates
    from proxy.dialing.connect_race import Hop
    from proxy.dialing.dialer import Dialer
    from proxy.dialing.proxy_auth import Login
    from proxy.gate.record import Handover
    from proxy.inspection.pipeline import Found
    from proxy.sandbox.recorder import Recorder
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.matching.policy import Policy


class Engine:
    """Engine of one sandbox's inspected connections. For one thread, within its running loop."""

    def __init__(
        self, leaves: "LeafCertificates", dialer: "Dialer", recorder: "Recorder", trusted: ServerContexts
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.recorder = recorder
        self.poller = dialer.poller
        self.tls_contexts = TlsContexts(ClientContexts(leaves), trusted, KnownProtocols())
        self._leaves = leaves
        self._new_names = RateLimiter(NEW_NAMES, NEW_NAMES_A_SECOND)
        self._awaiting_certificate: dict[str, Handover] = {}  # connections that wait for a certificate, by their events
        self._dialer = dialer
        self._connections: dict[str, InspectedConnection] = {}  # by the event of the connection
        self._round: asyncio.TimerHandle | None = None
        self.memory_quota = MemoryQuota(self._connections.values)
        self._postponed: dict[InspectedConnection, None] = {}  # connections with postponed work, oldest first
        self._is_scheduled = False  # the loop will call `_run_next_postponed`

    @property
    def login(self) -> "Login | None":
        """Login for the upstream proxy, if there is one."""
        return self._dialer.login

    def extra_sockets(self) -> ExtraSockets:
        """Return the counter of a client's extra server connections."""
        return ExtraSockets(self._dialer.descriptors)

    def adopt(self, handover: "Handover") -> None:
        """Take a connection over. If this raises, nothing was started."""
        origin = origin_of(handover)
        host = handover.shown_host
        if not origin.tls or self._leaves.is_fresh(host):
            self._begin(handover, origin)
        elif self._new_names.take():
            self._awaiting_certificate[handover.event] = handover
            self._leaves.ask(host, lambda problem: self._begin_with_certificate(handover, origin, problem))
        else:
            handover.give_up(Reason.LIMIT_EXCEEDED)

    def _begin_with_certificate(self, handover: "Handover", origin: WebOrigin, problem: str) -> None:
        """Start a connection whose certificate has come; with a `problem`, end it. Never raises."""
        if self._awaiting_certificate.pop(handover.event, None) is None:  # it has ended already
            return
        try:
            if not problem:
                self._begin(handover, origin)
                return
        except Exception as error:  # noqa: BLE001  whatever it is: closed when broken (invariant 2)
            problem = f"{type(error).__name__}: {error}"
        self.recorder.error(Component.INSPECTION, problem, cause=handover.event)
        handover.give_up(Reason.GATE_ERROR)

    def _begin(self, handover: "Handover", origin: WebOrigin) -> None:
        connection = InspectedConnection(self, handover, origin)
        self._connections[handover.event] = connection
        connection.start()
        if self._round is None:
            self._round = self.loop.call_later(EVERY, self._go_round)

    def review(self, handover: "Handover", decision: "Decision") -> None:
        """Apply other rules, whose `decision` on the connection is given."""
        if connection := self._connections.get(handover.event):
            connection.review(decision)
        elif handover.event in self._awaiting_certificate and not decision.outcome.passes:
            del self._awaiting_certificate[handover.event]
            handover.give_up(decision.reason)

    def postpone(self, connection: InspectedConnection) -> None:
        """Continue a connection's postponed work after the turns of all others."""
        self._postponed[connection] = None
        self._schedule_postponed()

    def _schedule_postponed(self) -> None:
        if not self._is_scheduled and self._postponed:
            self._is_scheduled = True
            self.loop.call_soon(self._run_next_postponed)

    def _run_next_postponed(self) -> None:
        self._is_scheduled = False
        connection = next(iter(self._postponed), None)
        if connection is None:
            return
        del self._postponed[connection]
        self._schedule_postponed()
        connection.resume()  # it handles its own exceptions, and may postpone work again

    def forget(self, connection: InspectedConnection) -> None:
        """Remove a connection that has ended."""
        if self._connections.get(connection.session.connection_event) is connection:
            del self._connections[connection.session.connection_event]
        self.memory_quota.leave(connection)
        self._postponed.pop(connection, None)

    def close(self) -> None:
        """Reset every connection."""
        if self._round is not None:
            self._round.cancel()
        awaiting, self._awaiting_certificate = self._awaiting_certificate, {}
        for handover in awaiting.values():
            handover.give_up(None)
        for connection in list(self._connections.values()):
            connection.abort()

    def _go_round(self) -> None:
        """Check the deadlines of all connections: one timer, and none without connections."""
        self._round = None
        now = time.monotonic()
        for connection in list(self._connections.values()):
            try:
                connection.tick(now)
            except Exception as error:  # noqa: BLE001  the others have their time, too
                connection.crashed(error)
        if self._connections:
            self._round = self.loop.call_later(EVERY, self._go_round)

    def addresses(self, policy: "Policy", attempt: "Attempt") -> "Found | Awaitable[Found]":
        """Look up the addresses to dial for an attempt, or the error; at once if known."""
        try:
            known = self._dialer.known(policy, attempt)
        except DialError as failure:
            return failure
        if known is not None:
            return known
        answer: asyncio.Future[Found] = self.loop.create_future()

        def found(addresses: "Found") -> None:
            timer.cancel()
            if not answer.done():
                answer.set_result(addresses)

        too_late = DialError(Reason.UNRESOLVED, "the lookup took too long")
        timer = self.loop.call_later(LOOKUP_TIMEOUT, found, too_late)
        self._dialer.find(policy, attempt, found)
        return answer

    def connect(
        self,
        addresses: "tuple[Hop, ...]",
        port: int,
        done: "Callable[[socket.socket | DialError, Hop | None], None]",
    ) -> "Callable[[], None] | None":
        """Connect within a timeout; returns a function that cancels. `done` may be called before this returns."""

        def too_late() -> None:
            connecting.cancel()
            done(DialError(Reason.UPSTREAM_FAILED, f"no answer within {CONNECT_TIMEOUT:.0f} seconds"), None)

        def connected(got: "socket.socket | DialError", address: "Hop | None") -> None:
            timer.cancel()
            done(got, address)

        def call_off() -> None:
            timer.cancel()
            connecting.cancel()

        connecting = self._dialer.connect(addresses, port, connected, at_once=True)
        there = connecting.take()
        if there is not None:
            done(*there)
            return None
        timer = self.loop.call_later(CONNECT_TIMEOUT, too_late)
        return call_off


def origin_of(handover: "Handover") -> WebOrigin:
    """Return the origin of a connection. Raises ValueError if it is not inspected."""
    attempt = handover.gate_decision.attempt
    if attempt.protocol not in (Protocol.TLS, Protocol.HTTP):
        raise ValueError(f"{attempt.protocol} is not inspected")
    return WebOrigin(attempt.target, attempt.port, tls=attempt.protocol is Protocol.TLS)
