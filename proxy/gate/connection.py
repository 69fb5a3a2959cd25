"""One TCP connection of a task, from accept to close: the I/O of the state machine in `managed_connection`.

Home of invariant 2 for connections: whatever goes wrong ends in a reset and a recorded refusal. Nothing is consumed
from the client before it is decided. The address belongs to the decision: an address that may not be dialed is a
denial. So the decision is recorded between lookup and dial. After that, every end gives one close event.
"""

import asyncio
import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError
from proxy.dialing.dialer import CONNECT_TIMEOUT, NO_ANSWER
from proxy.event_loop.poller import IN, ONCE, reset
from proxy.gate.client_hello import FIRST_LOOK, MOST_BYTES, NeedMore, recognise
from proxy.gate.decide import GateAction, GateDecision, PeekWait, decide_again, deny_connection, still_holds
from proxy.gate.managed_connection import COMPONENT_OF_STATE, LIFETIME, ManagedConnection, State
from proxy.gate.record import Handover
from proxy.gate.splice import Splice
from rules.decision import deny
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.connect_race import ConnectRace, Hop
    from proxy.dialing.proxy_connector import ProxyConnector
    from proxy.gate.client_hello import Seen
    from proxy.gate.listener import Gate
    from proxy.gate.record import ConnectionRecord, Inspection
    from rules.decision import Decision

FIRST_BYTES_TIMEOUT: Final = 10.0  # seconds a client has for its first bytes, where only they can allow it
BRIEF_PEEK: Final = 0.5  # seconds, where it may be waiting for its server
_CLIENT_END: Final = select.EPOLLRDHUP  # ERR and HUP come without being requested (epoll_ctl(2))


class Connection(ManagedConnection["Gate"]):
    """One accepted socket, non-blocking, until it is closed or inspection takes it over."""

    __slots__ = (
        "_bytes_at_last_tick",
        "_bytes_seen",
        "_client",
        "_connecting",
        "_ending_decision",
        "_first_bytes",
        "_handover",
        "_is_disarmed",
        "_peek_timer",
        "_quiet_since",
        "_splice",
    )  # fmt: skip

    def __init__(self, gate: "Gate", client: socket.socket, record: "ConnectionRecord") -> None:
        super().__init__(gate, record, State.ACCEPTED)
        self._client = client
        self._deadline = record.opened + FIRST_BYTES_TIMEOUT
        self._peek_timer: asyncio.TimerHandle | None = None
        self._first_bytes = b""  # peeked bytes that the decision was made on, until they are relayed
        self._bytes_seen = 0  # by the last peek
        self._is_disarmed = False  # registered in the poller, but its one event (ONCE) has come
        self._connecting: ConnectRace | ProxyConnector | None = None
        self._splice: Splice | None = None
        self._quiet_since = 0.0
        self._bytes_at_last_tick = 0  # relayed in both directions
        self._handover: Handover | None = None  # set once inspection serves it
        self._ending_decision: Decision | None = None  # of a review: it ends an inspected connection

    def begin(self) -> None:
        """Wait for the client's first bytes, if they matter for the decision."""
        wait = self._gate.decisions.peek_wait(self.record.destination)
        if wait is PeekWait.NONE:
            self._decide(None)
            return
        if wait is PeekWait.BRIEF:
            self._peek_timer = asyncio.get_running_loop().call_later(
                BRIEF_PEEK, self._run_guarded, self.tick, self._deadline
            )
        self._enter(State.PEEKING)
        self._watch_client()

    def deny(self, reason: Reason) -> None:
        """Deny it before anything is read, for a reason of the gate itself."""
        self._stop_watching_client()
        self._enter(State.DECIDING)
        self._start_decision(deny_connection(self._gate.sandbox, self.record.destination, reason))

    def ready(self, _events: int) -> None:
        """Handle events of the client's socket."""
        if self.state is State.PEEKING:
            self._peek()
        elif self._pending is not None:
            self._pending.deny_after_client_end()

    def tick(self, now: float) -> None:
        """Check the deadline (time.monotonic())."""
        state = self.state
        if state is State.SPLICING:
            self._tick_splice(now)
        elif state is State.PENDING and self._pending is not None:
            self._pending.tick(now)
        elif now < self._deadline:
            return
        elif state is State.PEEKING:
            self._decide(None)
        elif state is State.RESOLVING:
            self._handle_lookup_result(DialError(Reason.UNRESOLVED, "the lookup took too long"), self._gate_decision)
        elif state is State.DIALING:
            self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED, detail=NO_ANSWER)

    def review(self) -> None:
        """Decide again. Inspection itself ends what the rules no longer allow."""
        if self.state is not State.INSPECTING:
            super().review()
        elif self._handover is not None and self._gate_decision.decision.outcome.passes:
            self._review_inspected(
                self._handover, decide_again(self._gate.sandbox, self._gate_decision, can_inspect=True).decision
            )

    def abort(self) -> None:
        """End it now: the gate closes."""
        state = self.state
        if state is State.ACCEPTED or state is State.PEEKING:
            self.deny(Reason.GATE_ERROR)
        elif state is State.PENDING and self._pending is not None:
            self._pending.deny(Reason.GATE_ERROR)
        elif state is State.SPLICING and self._gate.is_finishing:
            self._end(Outcome.PASSED, None)
        elif state in {State.RESOLVING, State.DIALING, State.SPLICING}:
            self._end(Outcome.FAILED, Reason.GATE_ERROR)
        self._apply_waiting_denial()  # inspected connections are ended by inspection

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception. Never raises."""
        if self.state is State.INSPECTING and self._handover is not None:
            self.record.record_error(COMPONENT_OF_STATE[self.state], error)
            self._review_inspected(self._handover, deny(self._gate.sandbox.policy, Reason.GATE_ERROR))
        else:
            self._end(Outcome.FAILED, Reason.GATE_ERROR, error=error)

    # ACCEPTED, PEEKING

    def _watch_client(self) -> None:
        self._is_disarmed = False
        self._gate.poller.watch(self._client.fileno(), IN | ONCE, self)

    def _peek(self) -> None:
        """Peek at the client's bytes; SO_RCVLOWAT (socket(7)) delays the next event until there are more."""
        self._is_disarmed = True
        try:
            data = self._client.recv(FIRST_LOOK, socket.MSG_PEEK)
            if len(data) == FIRST_LOOK:
                data = self._client.recv(MOST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            self._watch_client()
            return
        except OSError:
            self.deny(Reason.PROTOCOL_MISMATCH)  # it closed before it sent enough
            return
        seen = recognise(data, whole_head=len(self.record.destination.names) != 1)
        if not isinstance(seen, NeedMore):
            self._first_bytes = data
            self._decide(seen)
        elif len(data) > self._bytes_seen:
            self._bytes_seen = len(data)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen.bytes)
            self._watch_client()
        else:
            # An event without new bytes: the client has ended, or urgent data is next, which MSG_PEEK doesn't pass.
            self._decide(None)

    def _stop_watching_client(self) -> None:
        """Receive no more events. A socket that has just had one may stay registered: SO_RCVLOWAT keeps it quiet."""
        if self._peek_timer is not None:
            self._peek_timer.cancel()
        if not self._is_disarmed:
            self._gate.poller.forget(self._client.fileno())
        if self._bytes_seen:
            with contextlib.suppress(OSError):
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    # DECIDING

    def _decide(self, seen: "Seen | None") -> None:
        """Decide on the connection. `seen` None: nothing was sent, or it doesn't matter."""
        gate, record = self._gate, self.record
        self._stop_watching_client()
        self._enter(State.DECIDING)
        metrics = gate.recorder.metrics
        peeked_at = time.monotonic()
        metrics.peek_seconds.observe(peeked_at - record.opened)
        gate_decision = gate.decisions.decide(record.destination, seen)
        metrics.decision_seconds.observe(time.monotonic() - peeked_at)
        self._start_decision(gate_decision)

    def _start_decision(self, gate_decision: GateDecision) -> None:
        """Apply a decision. A denial first waits for the lookup of the connection's process (`record.attribution`)."""
        self._gate_decision = gate_decision
        attribution = self.record.attribution
        if attribution is not None and attribution.waiting and not gate_decision.decision.outcome.passes:
            attribution.then(self._apply_waiting_denial)
        else:
            self._apply_decision()

    def _apply_waiting_denial(self) -> None:
        """Apply a denial that waited for the process lookup. Never raises."""
        if self.state is State.DECIDING:
            self._run_guarded(self._apply_decision)

    @property
    def _can_inspect(self) -> bool:
        return self._gate.inspection is not None

    def _request_approval(self) -> None:
        self._gate.poller.watch(self._client.fileno(), _CLIENT_END, self)
        super()._request_approval()

    def continue_with(self, gate_decision: GateDecision) -> None:
        """Continue after an approval request; stop watching for the client's end."""
        self._gate.poller.forget(self._client.fileno())
        super().continue_with(gate_decision)

    def _record_and_reset_or_inspect(self) -> None:
        """Record a decision that dials nothing; then reset the connection, or hand it to inspection.

        Inspection serves a connection that it is to read, and the block page of a denied one.
        """
        gate, record, gate_decision, inspection = self._gate, self.record, self._gate_decision, self._gate.inspection
        gate.poller.forget(self._client.fileno())
        self._first_bytes = b""  # inspection reads the bytes again, and decides on those
        if gate_decision.action is GateAction.INSPECT and isinstance(gate_decision.attempt.target, HostName):
            record.address = None  # the name will be dialed; the address that the task chose never is (invariant 3)
        recorded = record.record_decision(gate_decision)
        if not recorded or gate_decision.action is GateAction.RESET or inspection is None:
            # A denial is recorded by now, and has no close event: then this only closes the socket.
            self._end(Outcome.FAILED, gate_decision.decision.reason)
            return
        self._hand_to_inspection(inspection)

    def _hand_to_inspection(self, inspection: "Inspection") -> None:
        """Let inspection serve the connection, or the block page of its denial."""
        record = self.record
        self._enter(State.INSPECTING)
        self._handover = Handover(
            self._gate.sandbox, self._client, record, self._gate_decision, self._record_inspection_end
        )
        try:
            inspection.adopt(self._handover)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing goes out
            record.record_error(COMPONENT_OF_STATE[self.state], error)
            reset(self._client)
            self._record_inspection_end(0, 0, Reason.GATE_ERROR)

    # DIALING, SPLICING

    def _dial(self, hops: "tuple[Hop, ...]") -> None:
        """Record the decision, and dial."""
        record, gate = self.record, self._gate
        if not self._count_against_limits():
            return
        record.set_hop(hops[0])
        if not record.record_decision(self._gate_decision):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        if not self._record_untrusted_read():
            return
        self._hop = hops[0]  # until another address answers first
        self._enter(State.DIALING)
        self._deadline = gate.clock() + CONNECT_TIMEOUT
        port = record.destination.port
        self._connecting = connecting = gate.dialer.connect(hops, port, self._start_splice, at_once=True)
        connected = connecting.take()
        if connected is not None:
            self._start_splice(*connected)

    def _start_splice(self, server: "socket.socket | DialError", address: "Hop | None") -> None:
        """Start to relay bytes, or end after a failed dial; called by the poller or the loop."""
        self._connecting = None  # it is over
        if isinstance(server, DialError):
            self._end(Outcome.FAILED, server.reason, detail=server.detail)
            return
        try:
            if address is not None and address is not self._hop:
                self._hop = address
                self.record.set_hop(address)
            gate, self._quiet_since = self._gate, time.monotonic()
            self._splice = Splice(
                gate.poller, gate.buffers, self._client, server, self._record_splice_end, meter=self._quota.meter
            )
            self._enter(State.SPLICING)
            if not still_holds(gate.sandbox, self._gate_decision, self._policy):
                self.review()  # before any byte is sent
            if not self._splice.is_done:
                first_bytes, self._first_bytes = self._first_bytes, b""
                self._splice.start(first_bytes)
        except Exception as error:  # noqa: BLE001 - no caller catches it
            self.failed(error)
            reset(server)

    def _record_splice_end(self, error: Exception | None) -> None:
        """Record the end of the splice, which has closed both sockets.

        Only the server or the gate can fail it. A client that resets the connection ends it as it may: PASSED.
        """
        if error is not None:
            self.failed(error)
        elif self._splice is not None and self._splice.over_limit:
            self._end_over_limit(self._quota.rule_over())
        elif self._splice is not None and self._splice.server_broke:
            self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)
        else:
            self._end(Outcome.PASSED, None)

    def _apply_changed_limits(self) -> None:
        super()._apply_changed_limits()
        if self._splice is not None and not self._splice.is_done:
            self._splice.set_meter(self._quota.meter)

    def _tick_splice(self, now: float) -> None:
        """End a splice that is over a limit, idle or too old; the last two have not failed: PASSED, with the reason."""
        relayed = 0 if self._splice is None else sum(self._splice.byte_counts())
        if relayed != self._bytes_at_last_tick:
            self._bytes_at_last_tick, self._quiet_since = relayed, now
        idle = now - self._quiet_since >= self._gate_decision.decision.idle_timeout
        if rule := self._quota.rule_over():
            self._end_over_limit(rule)
        elif idle or now - self.record.opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    # INSPECTING

    def _review_inspected(self, handover: Handover, decision: "Decision") -> None:
        """Pass a new decision to inspection, which ends what is no longer allowed."""
        inspection = self._gate.inspection
        assert inspection is not None
        if not decision.outcome.passes:
            self._ending_decision = decision
        inspection.review(handover, decision)

    def _record_inspection_end(self, up: int, down: int, reason: Reason | None) -> None:
        """Record the end of an inspected connection; only the first call counts."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        if self._ending_decision is not None:
            self.record.record_end(up, down, Outcome.BLOCKED, self._ending_decision.reason, self._ending_decision)
        else:
            self.record.record_end(up, down, Outcome.PASSED if reason is None else Outcome.FAILED, reason)
        self._gate.connections.discard(self)

    def _run_guarded(self, act: "Callable[..., None]", *arguments: object) -> None:
        """Run a callback of the loop or a timer, and end the connection if it raises."""
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def _end(
        self,
        outcome: Outcome,
        reason: Reason | None,
        by: "Decision | None" = None,
        *,
        detail: str = "",
        error: Exception | None = None,
    ) -> None:
        """Close all sockets and record the end, once; nothing is relayed any more, whatever fails here."""
        state, record = self.state, self.record
        if state is State.CLOSED or self._handover is not None:  # inspection closes it
            return
        self.state = State.CLOSED
        up, down = self._close()
        if error is not None:
            record.record_error(COMPONENT_OF_STATE[state], error)
        try:
            if self._peek_timer is not None:
                self._peek_timer.cancel()
            if self._pending is not None:
                self._pending.withdraw()
            if self._connecting is not None:
                self._connecting.cancel()
            self._quota.end()
            if self._lease is not None:
                self._lease.end()
        finally:
            if record.gate_decision is None:
                record.record_decision(
                    deny_connection(self._gate.sandbox, record.destination, reason or Reason.GATE_ERROR)
                )
            record.record_end(up, down, outcome, reason, by, detail)
            self._gate.connections.discard(self)

    def _close(self) -> tuple[int, int]:
        """Close both sockets; returns how many bytes went up and down."""
        splice = self._splice
        if splice is None:
            self._gate.poller.forget(self._client.fileno())
            reset(self._client)
            return 0, 0
        if not splice.is_done:
            splice.abort()
        return splice.byte_counts()
