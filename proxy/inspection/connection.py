"""One inspected client connection, from handover to its last event: sockets, turns, dials, and its end.

Home of invariant 2 for inspected connections: whatever raises, in HTTP or in a decision, ends the connection with
resets and is recorded as gate.error. Nothing but the origin that the gate decided on is ever dialed.
"""

import asyncio
import math
import time
from time import thread_time
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError
from proxy.event_loop.poller import reset
from proxy.event_loop.turn import SLICE
from proxy.gate.managed_connection import LIFETIME
from proxy.inspection.connection_ends import ClientEnd, ServerEnd, ServerFailure
from proxy.inspection.http1 import Codec
from proxy.inspection.pipeline import Pipeline
from proxy.inspection.router import Begun, HttpRouter
from proxy.inspection.session import Session
from proxy.inspection.tls import HTTP2, ClientTls, ServerTls
from proxy.inspection.transport import Transport
from proxy.telemetry.events import Component
from rules.settings import ProxyDestination
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from proxy.dialing.connect_race import Hop
    from proxy.event_loop.turn import Sliced
    from proxy.gate.record import Handover
    from proxy.inspection.engine import Engine
    from proxy.inspection.pipeline import Found
    from proxy.inspection.stream import Stream
    from proxy.request.messages import WebOrigin
    from rules.attempt import Attempt
    from rules.decision import Decision

SILENCE: Final = 10.0  # seconds that a client has after a handshake without ALPN; one of HTTP speaks at once
HEAD_TIMEOUT: Final = 60.0  # seconds from the first byte of a request's head, or of a connection over TLS, to its last


class InspectedConnection:
    """A client connection and the server connections of its requests."""

    def __init__(self, engine: "Engine", handover: "Handover", origin: "WebOrigin") -> None:
        gate_decision = handover.gate_decision
        refused = None if gate_decision.decision.outcome.passes else gate_decision.decision
        self._engine = engine
        self._handover = handover
        self.session = Session(
            engine.recorder, origin, handover.event, refused, gate_decision.detail, gate_decision.advice,
            handover.record.attribution, gate_decision.approval,
        )  # fmt: skip
        self.session.approvals.changed = self._watch_for_client_end
        self.session.cut = lambda keys: self._do(self._http.revoke, keys)
        self._pipeline = Pipeline(self.session, self._addresses)
        self._client = client = ClientEnd(origin)
        self._http: HttpRouter = HttpRouter(client, self.session, engine.memory_quota, self, self.decide)
        tls = (
            ClientTls(self.session, engine.tls_contexts, client, handover.shown_host, handover.sni)
            if origin.tls
            else None
        )
        client.transport = Transport[ClientEnd | ServerEnd](
            engine.loop, engine.poller, handover.client, self, client, client=True, tls=tls
        )
        self.transports: list[Transport[ClientEnd | ServerEnd]] = [client.transport]  # those with an open socket
        self._dials: dict[ServerEnd, Callable[[], None]] = {}  # functions that cancel dials, by their server
        self._counted = 0  # server connections beyond the one that is counted with the client
        self._extra_sockets = engine.extra_sockets()  # counts those towards the sandbox's descriptors
        self._review: Sliced[frozenset[str]] | None = None  # a review under other rules, which comes before other work
        self._busy = self._over = False
        self._is_postponed = False  # work waits for the next turn; until then nothing is begun or read
        self._pending_decisions: set[asyncio.Future[None]] = set()  # tasks; while there are any, it isn't idle
        self._up = self._down = 0  # bytes of server connections that have ended
        self._last = time.monotonic()  # of the last activity
        self._idle_timeout = gate_decision.decision.idle_timeout
        self._head: int | None = 0  # number of the incomplete head, or 0 for the handshake; None: no head has begun
        self._head_due = self._last + HEAD_TIMEOUT  # when it has to be complete (time.monotonic())
        self._leaving = False  # the client's connection is being closed
        self.kept = 0  # buffered bytes that `MemoryQuota` has been told of

    def start(self) -> None:
        """Start to read."""
        if not self.session.origin.tls:
            self._do(self._http.start)
        try:
            if not self._over:
                self._client.transport.watch()
        except OSError as error:
            self.crashed(error)

    # --- what transports report ---

    def received(self, transport: Transport[ClientEnd | ServerEnd], data: bytes) -> None:
        """Parse received bytes as HTTP."""
        self._last = time.monotonic()
        self._do(self._http.receive, transport.connection, data)

    def opened(self, transport: Transport[ClientEnd | ServerEnd], problem: str | None) -> None:
        """Start HTTP after the TLS handshake, or report why it failed."""
        connection = transport.connection
        if problem is not None:
            connection.can_read = False
            self.close(connection)
        if type(connection) is ServerEnd:
            self._do(self._http.opened, connection, problem)
        elif problem is None:
            self._do(self._http.start)
        else:
            self._turn()

    def finished(self, transport: Transport[ClientEnd | ServerEnd], *, broken: bool) -> None:
        """Handle the peer's close_notify, or a TLS error: then the data may be incomplete."""
        connection = transport.connection
        connection.cut = connection.cut or broken
        connection.can_read = False
        self._do(self._broken if broken else self._http.receive_end, connection)

    def _broken(self, connection: ClientEnd | ServerEnd) -> Begun:
        """Reset a connection whose TLS failed, before its requests see an orderly end."""
        connection.can_write = False
        if type(connection) is ServerEnd:
            connection.over = True
        else:
            self._leaving = True
        if connection.transport is not None:
            connection.transport.cut_off()
        return self._http.receive_end(connection)

    def ended(self, transport: Transport[ClientEnd | ServerEnd]) -> None:
        """Handle the end of the peer's data."""
        connection, tls = transport.connection, transport.tls
        connection.cut = transport.cut
        connection.can_read = False
        connection.can_write = connection.can_write and not transport.cut
        self.session.client_left = self.session.client_left or connection is self._client
        if tls is None:
            self._do(self._http.receive_end, connection)
        elif not tls.has_ended:  # after a close_notify it is old news, without one it is a cut (invariant 12)
            tls.has_ended = True
            if tls.is_open:
                connection.cut = True
                self._do(self._http.receive_end, connection)
            else:
                self.opened(transport, "connection closed")
        if transport.cut and not transport.over:
            transport.reset()

    def relieved(self, _link: Transport[ClientEnd | ServerEnd]) -> None:
        """Continue after a full socket has taken its data."""
        self._do(self._http.continue_after_call)

    def leaving(self, transport: Transport[ClientEnd | ServerEnd]) -> None:
        """Handle a client that leaves while an approval is pending."""
        if transport.connection is self._client:
            self.session.approvals.end_for_client()

    def gone(self, transport: Transport[ClientEnd | ServerEnd]) -> None:
        """Remove a closed socket; without the client's the connection ends."""
        connection = transport.connection
        self.transports.remove(transport)
        connection.can_read = connection.can_write = False
        if type(connection) is ServerEnd:
            self._up += transport.up
            self._down += transport.down
            connection.over = True
            self._count_servers()
        else:
            self._finish()

    # --- turns ---

    def _do[*A](self, function: "Callable[[*A], Begun]", *arguments: *A) -> None:
        """Run work now, or after the work that is queued."""
        self._http.todo.append((function, arguments))
        self._turn()

    def resume(self) -> None:
        """Continue postponed work (`Engine.postpone`)."""
        if self._is_postponed:
            self._is_postponed = False
            self._last = time.monotonic()  # nothing was read meanwhile
            self._turn()

    def _turn(self) -> None:
        """Run queued work for one turn; the rest waits, and nothing is read meanwhile."""
        idle = not (self._busy or self._over or self._is_postponed)
        if not idle:
            return
        self._busy = True
        until = thread_time() + SLICE
        try:
            done = self._http.work(until)
            while self._review is not None and self._reviewed(self._review, until):
                done = self._http.work(until)
            self._is_postponed = not (done or self._over)
            for transport in [transport for transport in self.transports if transport.new]:
                transport.flush()
            if self._is_postponed:
                for transport in self.transports:
                    transport.pause(paused=True)
                self._engine.postpone(self)
                self._engine.memory_quota.note(self, self._http.weigh(exactly=False))
            elif self._leaving:
                self._leave_servers()
            elif not self._over:
                self._balance()
        except Exception as error:  # noqa: BLE001  whatever it is
            self.crashed(error)
        finally:
            self._busy = False
            if self._over:
                self._http.drop_all()

    def _reviewed(self, review: "Sliced[frozenset[str]]", until: float) -> bool:
        """Continue a review; returns whether it is complete."""
        while not self._over:
            try:
                next(review)
            except StopIteration as done:
                self._review = None
                self._http.stopped = False
                if done.value:
                    self._http.todo.appendleft((self._http.revoke, (done.value,)))
                return True
            if thread_time() >= until:
                return False
        return False

    def review(self, decision: "Decision") -> None:
        """Apply other rules, whose `decision` on the connection is given; denied requests end with a reset."""
        if self._over or self.session.refused is not None:
            return
        try:
            if not decision.outcome.passes:
                self.session.revoke_all(decision)
                self.abort()
                return
            self._idle_timeout = decision.idle_timeout
            self.session.approvals.decide_again()
            self._review = self.session.reviewing(self._http.under_way())
            self._http.stopped = True  # nothing more is begun before
            self._turn()
        except Exception as error:  # noqa: BLE001  what can't be decided again doesn't go on
            self.crashed(error)

    def tick(self, now: float) -> None:
        """Reset the connection if it takes too long (`now`: time.monotonic()).

        That is an incomplete head or handshake, an idle connection, and one that has reached its lifetime.
        """
        ends = min(self._last + self._idle_timeout, self._handover.record.opened + LIFETIME)
        if not self._is_postponed and (self._engine.memory_quota.is_tight or self._http.stinted):
            self._balance()  # sockets may have taken bytes since, so there may be memory to read more
        if now >= self._last + SILENCE and self._http.is_unspoken():
            self._do(self._http.refuse_silent)
        elif (now >= self._head_due and not self._is_postponed) or (now >= ends and not self._pending_decisions):
            self.session.ending = Reason.LIMIT_EXCEEDED
            self.abort()

    def _balance(self) -> None:
        """Read only from peers whose data can be forwarded, and set the deadline of an incomplete head."""
        if (kept := self._http.weigh(exactly=False)) != self.kept:
            self._engine.memory_quota.note(self, kept)
        if (head := self._http.balance()) != self._head:  # it has only so long to come
            self._head = head
            self._head_due = math.inf if head is None else time.monotonic() + HEAD_TIMEOUT

    def weigh(self) -> int:
        """Return the bytes buffered here (`MemoryQuota`)."""
        return self._http.weigh(exactly=True)

    # --- what the router calls ---

    def decide(self, stream: "Stream") -> bool:
        """Decide on a request; returns whether that is done, else the request continues later."""
        pending = self._pipeline.decide(stream.request)
        if pending is not None:
            task = asyncio.ensure_future(pending)
            self._pending_decisions.add(task)
            task.add_done_callback(lambda finished: self._resume_decided(stream, finished))
        elif self._client.alpn == HTTP2:  # frames received with it may cancel it
            self._http.todo.append((self._http.resume, (stream,)))
        else:
            return True
        return False

    def _resume_decided(self, stream: "Stream", task: "asyncio.Future[None]") -> None:
        self._pending_decisions.discard(task)
        if task.cancelled() or self._over:
            return
        self._last = time.monotonic()  # nothing was read while the decision was pending
        error = task.exception()
        if error is None:
            self._do(self._http.resume, stream)
        elif isinstance(error, Exception):
            self.crashed(error)
        else:
            raise error

    def _watch_for_client_end(self, waits: bool) -> None:  # noqa: FBT001  it is called with nothing else
        """Watch for a client that leaves while an approval is pending, also where nothing is read from it."""
        self._client.transport.watch_out(on=waits)

    def _addresses(self, attempt: "Attempt") -> "Found | Awaitable[Found]":
        """Return the addresses to dial for a request, those with an open connection first."""
        policy = self._engine.recorder.sandbox.policy
        for server in self._http.servers:
            address = server.dialled
            if address and self._http.usable(server) and server.is_good(policy, attempt, address):
                return (address,)
        return self._engine.addresses(policy, attempt)

    def open(self, server: ServerEnd) -> None:
        """Dial the server at an address that was checked for this request."""
        origin = self.session.origin
        if server.origin != origin:
            raise RuntimeError("the router wants to dial somewhere else")
        if self.session.refused is not None or not server.addresses:
            raise RuntimeError("the router wants to dial without a decision")

        def done(got: "socket.socket | DialError", address: "Hop | None") -> None:
            self._dials.pop(server, None)
            try:
                self._dialled(server, got, address)
            except Exception as error:  # noqa: BLE001  the dialer has no use for it
                self.crashed(error)
                if not isinstance(got, DialError):
                    reset(got)

        if self._count_servers() and not self._extra_sockets.has_room():
            done(DialError(Reason.LIMIT_EXCEEDED, "the task has too many open connections"), None)
        elif cancel := self._engine.connect(server.addresses, origin.port, done):
            self._dials[server] = cancel
            self._count_servers()

    def _count_servers(self) -> int:
        """Count server connections beside the one counted with the client; returns their number."""
        servers = len(self._dials) + sum([not transport.client for transport in self.transports])
        if (beside := max(servers - (not self._over), 0)) != self._counted:
            self._counted = beside
            self._extra_sockets.set(beside)
        return servers

    def _dialled(self, server: ServerEnd, got: "socket.socket | DialError", address: "Hop | None") -> None:
        if isinstance(got, DialError):
            server.over = True
            self._count_servers()
            self._do(self._http.opened, server, ServerFailure(got.reason, got.detail))
            return
        tls = ServerTls(self.session, self._engine.tls_contexts, self._client, server) if server.origin.tls else None
        transport = Transport[ClientEnd | ServerEnd](
            self._engine.loop, self._engine.poller, got, self, server, client=False, tls=tls
        )
        transport.watch()
        server.transport = transport
        self.transports.append(transport)
        self._count_servers()
        server.can_read = server.can_write = True
        server.dialled = address
        if address is not None:
            self._handover.record.set_hop(address)
        server.relayed = isinstance(address, ProxyDestination) and address.relayed
        server.login = self._engine.login if server.relayed else None
        if tls is None:
            self._do(self._http.opened, server, None)
        else:
            transport.shake_hands()

    def end_sending(self, connection: ClientEnd | ServerEnd) -> None:
        """End our side only."""
        connection.can_write = False
        if connection.transport is not None:
            connection.transport.end_sending()

    def close(self, connection: ClientEnd | ServerEnd) -> None:
        """Send buffered data, then close; closing the client also closes the servers. Idempotent."""
        self._end(connection)
        if connection.transport is not None:
            connection.transport.close()

    def reset(self, connection: ClientEnd | ServerEnd, *, at_once: bool = False) -> None:
        """Cut a connection: what was being sent on it is not complete (invariant 12).

        What was sent before is delivered first, unless it is `at_once`: the gate's own refusals let nothing more
        through.
        """
        self._end(connection)
        if connection.transport is not None:
            if at_once:
                connection.transport.reset()
            else:
                connection.transport.cut_off()

    def _end(self, connection: ClientEnd | ServerEnd) -> None:
        """Mark a connection as closed by us: nothing more is read from it."""
        if type(connection) is ServerEnd:
            connection.over = True
            if cancel := self._dials.pop(connection, None):
                cancel()
                self._count_servers()
        else:
            self._leaving = True
        codec = connection.codec
        if isinstance(codec, Codec):
            codec.stop()
        elif codec is not None and connection.can_read:  # requests on it have to hear of its end
            self._http.todo.append((self._http.receive_end, (connection,)))
        connection.can_read = connection.can_write = False

    # --- the end ---

    def abort(self) -> None:
        """Reset everything."""
        for transport in tuple(self.transports):
            self._try(transport.reset)
        self._finish()

    def crashed(self, error: Exception) -> None:
        """Reset everything and record a gate error: nothing may pass after an exception."""
        if not self._over:
            self.session.ending = Reason.GATE_ERROR
            self._tell_error(error)
            self.abort()

    def overflow(self) -> None:
        """Reset everything: it buffers more than the quota allows (`MemoryQuota`)."""
        self.session.ending = Reason.LIMIT_EXCEEDED
        self.abort()

    def _leave_servers(self, *, cut: bool = False) -> None:
        """Close the server connections of a client that is leaving.

        `cut`: reset them, as the client's end didn't reach its requests (invariant 12).
        """
        for cancel in self._dials.values():
            self._try(cancel)
        self._dials.clear()
        self._count_servers()
        for transport in tuple(self.transports):
            if not transport.client:
                self._try(transport.cut_off if cut else transport.close)

    def _finish(self) -> None:
        """Record the end, once."""
        if self._over:
            return
        self._over = self._http.stopped = True
        for task in self._pending_decisions:
            task.cancel()
        self._review = None
        if not self._busy:
            self._try(self._http.drop_all)
        cut = self._client.cut or self._client.transport.cut  # which may have come behind an end
        self._try(self._leave_servers, cut=cut and self._is_postponed and not self._busy)
        self._try(self.session.end)
        up, down = self._up, self._down
        for transport in self.transports:
            up, down = up + transport.up, down + transport.down
        self._count_servers()
        self._engine.forget(self)
        self._handover.closed(up, down, self.session.ending)

    def _try[**P](self, step: "Callable[P, None]", *arguments: P.args, **named: P.kwargs) -> None:
        """Run one step of the end; an exception is recorded, and the next steps still run."""
        try:
            step(*arguments, **named)
        except Exception as error:  # noqa: BLE001  whatever it is
            self.session.ending = Reason.GATE_ERROR
            self._tell_error(error)

    def _tell_error(self, error: Exception) -> None:
        self._engine.recorder.error(
            Component.INSPECTION, f"{type(error).__name__}: {error}", cause=self.session.connection_event
        )
