"""One TCP connection of a task, from accept to close: the I/O of the state machine in `managed_connection`.

Home of invariant 2 for connections: whatever goes wrong ends in a reset and a recorded refusal. Nothing is consumed
from the client before it is decided. The address belongs to the decision: an address that may not be dialed is a
denial. So the decision is recorded between lookup and dial; from there on every end gives one close event.
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
from proxy.gate.decide import ConnectionDecision, GateAction, PeekWait, decide_again, deny_connection, still_holds
from proxy.gate.managed_connection import LIFETIME, WHERE, ManagedConnection, State
from proxy.gate.record import Handover
from proxy.gate.splice import Splice
from rules.decision import deny
from rules.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.connect_race import ConnectRace, Hop
    from proxy.dialing.proxy_connector import ProxyConnector
    from proxy.gate.client_hello import Seen
    from proxy.gate.listener import Gate
    from proxy.gate.record import ConnectionRecord
    from rules.decision import Decision

FIRST_WORDS: Final = 10.0  # seconds a client has for its first bytes, where only they can allow it
BRIEF: Final = 0.5  # seconds, where it may be waiting for its server
_LEAVING: Final = select.EPOLLRDHUP  # and what comes unasked: ERR and HUP (epoll_ctl(2))


class Connection(ManagedConnection["Gate"]):
    """One accepted socket, non-blocking, until it is closed or inspection takes it over."""

    __slots__ = (
        "_asleep",
        "_brief",
        "_by",
        "_client",
        "_connecting",
        "_had",
        "_handover",
        "_moved",
        "_quiet_since",
        "_said",
        "_splice",
    )  # fmt: skip

    def __init__(self, gate: "Gate", client: socket.socket, record: "ConnectionRecord") -> None:
        super().__init__(gate, record, State.ACCEPTED)
        self._client = client
        self._deadline = record.opened + FIRST_WORDS
        self._brief: asyncio.TimerHandle | None = None
        self._said = b""  # the first words, as they were judged, until they are passed on
        self._had = 0  # bytes that were there at the last look
        self._asleep = False  # it is in the poller, and receives no events
        self._connecting: ConnectRace | ProxyConnector | None = None
        self._splice: Splice | None = None
        self._quiet_since = 0.0
        self._moved = 0  # bytes that had been passed on when that was last looked at
        self._handover: Handover | None = None  # what inspection has
        self._by: Decision | None = None  # the later decision that ends what inspection has

    def begin(self) -> None:
        """Wait for the client's first bytes, if they matter for the decision."""
        waits = self._gate.decisions.peek_wait(self.record.wanted)
        if waits is PeekWait.NONE:
            self._decide(None)
            return
        if waits is PeekWait.BRIEF:
            self._brief = asyncio.get_running_loop().call_later(BRIEF, self._guarded, self.tick, self._deadline)
        self._enter(State.PEEKING)
        self._listen()

    def deny(self, reason: Reason) -> None:
        """Deny it before anything is read, for a reason of the gate itself."""
        self._stop_listening()
        self._enter(State.DECIDING)
        self._decided(deny_connection(self._gate.sandbox, self.record.wanted, reason))

    def ready(self, _events: int) -> None:
        """Handle events of the client's socket."""
        if self.state is State.PEEKING:
            self._peek()
        elif self._pending is not None:
            self._pending.client_left()

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
            self._resolved(DialError(Reason.UNRESOLVED, "the lookup took too long"), self._judgement)
        elif state is State.DIALING:
            self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED, detail=NO_ANSWER)

    def review(self) -> None:
        """Decide again. Inspection itself ends what the rules no longer allow."""
        if self.state is not State.INSPECTING:
            super().review()
        elif self._handover is not None and self._judgement.decision.outcome.passes:
            self._tell_inspection(
                self._handover, decide_again(self._gate.sandbox, self._judgement, can_inspect=True).decision
            )

    def abort(self) -> None:
        """End it now: the gate closes."""
        state = self.state
        if state is State.ACCEPTED or state is State.PEEKING:
            self.deny(Reason.GATE_ERROR)
        elif state is State.PENDING and self._pending is not None:
            self._pending.refuse(Reason.GATE_ERROR)
        elif state is State.SPLICING and self._gate.is_finishing:
            self._end(Outcome.PASSED, None)
        elif state in {State.RESOLVING, State.DIALING, State.SPLICING}:
            self._end(Outcome.FAILED, Reason.GATE_ERROR)
        self._refuse_now()  # inspection ends its own

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception. Never raises."""
        if self.state is State.INSPECTING and self._handover is not None:
            self.record.error(WHERE[self.state], error)
            self._tell_inspection(self._handover, deny(self._gate.sandbox.policy, Reason.GATE_ERROR))
        else:
            self._end(Outcome.FAILED, Reason.GATE_ERROR, error=error)

    # ACCEPTED, PEEKING

    def _listen(self) -> None:
        self._asleep = False
        self._gate.poller.watch(self._client.fileno(), IN | ONCE, self)

    def _peek(self) -> None:
        """Peek at the client's bytes; SO_RCVLOWAT (socket(7)) delays the next event until there are more."""
        self._asleep = True
        try:
            data = self._client.recv(FIRST_LOOK, socket.MSG_PEEK)
            if len(data) == FIRST_LOOK:
                data = self._client.recv(MOST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            self._listen()
            return
        except OSError:
            self.deny(Reason.PROTOCOL_MISMATCH)  # it closed before it sent enough
            return
        seen = recognise(data, whole_head=len(self.record.wanted.names) != 1)
        if not isinstance(seen, NeedMore):
            self._said = data
            self._decide(seen)
        elif len(data) > self._had:
            self._had = len(data)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen.bytes)
            self._listen()
        else:
            # Woken and nothing new: the client has ended, or urgent data is next, which no look gets past.
            self._decide(None)

    def _stop_listening(self) -> None:
        """Receive no more events. A socket that has just had one may stay registered: SO_RCVLOWAT keeps it quiet."""
        if self._brief is not None:
            self._brief.cancel()
        if not self._asleep:
            self._gate.poller.forget(self._client.fileno())
        if self._had:
            with contextlib.suppress(OSError):
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    # DECIDING

    def _decide(self, seen: "Seen | None") -> None:
        """Decide on the connection. `seen` None: nothing was sent, or it doesn't matter."""
        gate, record = self._gate, self.record
        self._stop_listening()
        self._enter(State.DECIDING)
        metrics = gate.recorder.metrics
        heard = time.monotonic()
        metrics.peek_seconds.observe(heard - record.opened)
        judgement = gate.decisions.decide(record.wanted, seen)
        metrics.decision_seconds.observe(time.monotonic() - heard)
        self._decided(judgement)

    def _decided(self, judgement: ConnectionDecision) -> None:
        """Carry out a decision; a denial may first wait for the connection's process (`record.attribution`)."""
        self._judgement = judgement
        attribution = self.record.attribution
        if attribution is not None and attribution.waiting and not judgement.decision.outcome.passes:
            attribution.then(self._refuse_now)
        else:
            self._carry_out()

    def _refuse_now(self) -> None:
        """Carry out a denial that waited. Never raises."""
        if self.state is State.DECIDING:
            self._guarded(self._carry_out)

    @property
    def _can_inspect(self) -> bool:
        return self._gate.inspection is not None

    def _ask(self) -> None:
        self._gate.poller.watch(self._client.fileno(), _LEAVING, self)
        super()._ask()

    def answered(self, judgement: ConnectionDecision) -> None:
        """Continue after an approval request; the client may end its side again."""
        self._gate.poller.forget(self._client.fileno())
        super().answered(judgement)

    def _conclude(self) -> None:
        """Record a decision that dials nothing; then reset the connection, or hand it to inspection."""
        gate, record, judgement, inspection = self._gate, self.record, self._judgement, self._gate.inspection
        gate.poller.forget(self._client.fileno())
        self._said = b""  # inspection reads it, and judges what it has read
        if judgement.way is GateAction.INSPECT and isinstance(judgement.attempt.target, HostName):
            record.address = None  # the name will be dialed; the address that the task chose never is (invariant 3)
        recorded = record.decided(judgement)
        if not recorded or judgement.way is GateAction.RESET or inspection is None:
            self._end(Outcome.FAILED, judgement.decision.reason)  # records nothing unless it was allowed
            return
        self._enter(State.INSPECTING)
        self._handover = Handover(gate.sandbox, self._client, record, judgement, self._inspected)
        try:
            inspection.adopt(self._handover)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing goes out
            record.error(WHERE[self.state], error)
            reset(self._client)
            self._inspected(0, 0, Reason.GATE_ERROR)

    # DIALING, SPLICING

    def _dial(self, hops: "tuple[Hop, ...]") -> None:
        """Record the decision, and dial."""
        record, gate = self.record, self._gate
        if not self._is_within_limits():
            return
        record.leads_to(hops[0])
        if not record.decided(self._judgement):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        if not self._may_read():
            return
        self._hop = hops[0]  # then the one that it leads to
        self._enter(State.DIALING)
        self._deadline = gate.clock() + CONNECT_TIMEOUT
        port = record.wanted.port
        self._connecting = connecting = gate.dialer.connect(hops, port, self._connected, at_once=True)
        there = connecting.take()
        if there is not None:
            self._connected(*there)

    def _connected(self, server: "socket.socket | DialError", address: "Hop | None") -> None:
        """Start to relay bytes; called by the poller or the loop."""
        self._connecting = None  # it is over
        if isinstance(server, DialError):
            self._end(Outcome.FAILED, server.reason, detail=server.detail)
            return
        try:
            if address is not None and address is not self._hop:
                self._hop = address
                self.record.leads_to(address)
            gate, self._quiet_since = self._gate, time.monotonic()
            self._splice = Splice(
                gate.poller, gate.buffers, self._client, server, self._spliced, meter=self._quota.meter
            )
            self._enter(State.SPLICING)
            if not still_holds(gate.sandbox, self._judgement, self._policy):
                self.review()  # before a byte leaves
            if not self._splice.done:
                said, self._said = self._said, b""
                self._splice.start(said)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)
            reset(server)

    def _spliced(self, error: Exception | None) -> None:
        """Record the end: both sides are closed."""
        if error is not None:
            self.failed(error)
        elif self._splice is not None and self._splice.over_limit:
            self._cut(self._quota.rule_over())
        elif self._splice is not None and self._splice.server_broke:
            self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)
        else:
            self._end(Outcome.PASSED, None)

    def _go_on(self) -> None:
        super()._go_on()
        if self._splice is not None and not self._splice.done:
            self._splice.count(self._quota.meter)

    def _tick_splice(self, now: float) -> None:
        moved = 0 if self._splice is None else sum(self._splice.passed())
        if moved != self._moved:
            self._moved, self._quiet_since = moved, now
        idle = now - self._quiet_since >= self._judgement.decision.idle_timeout
        if rule := self._quota.rule_over():
            self._cut(rule)
        elif idle or now - self.record.opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    # INSPECTING

    def _tell_inspection(self, handover: Handover, decision: "Decision") -> None:
        """Tell inspection the new decision, so that it ends what is no longer allowed."""
        inspection = self._gate.inspection
        assert inspection is not None
        if not decision.outcome.passes:
            self._by = decision
        inspection.review(handover, decision)

    def _inspected(self, up: int, down: int, reason: Reason | None) -> None:
        """Record the end of a connection that inspection had; only the first call counts."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        if self._by is not None:
            self.record.ended(up, down, Outcome.BLOCKED, self._by.reason, self._by)
        else:
            self.record.ended(up, down, Outcome.PASSED if reason is None else Outcome.FAILED, reason)
        self._gate.connections.discard(self)

    def _guarded(self, act: "Callable[..., None]", *arguments: object) -> None:
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
        if state is State.CLOSED or self._handover is not None:  # that is inspection's to close
            return
        self.state = State.CLOSED
        up, down = self._close()
        if error is not None:
            record.error(WHERE[state], error)
        try:
            if self._brief is not None:
                self._brief.cancel()
            if self._pending is not None:
                self._pending.drop()
            if self._connecting is not None:
                self._connecting.cancel()
            self._quota.end()
            if self._lease is not None:
                self._lease.end()
        finally:
            if record.judgement is None:
                record.decided(deny_connection(self._gate.sandbox, record.wanted, reason or Reason.GATE_ERROR))
            record.ended(up, down, outcome, reason, by, detail)
            self._gate.connections.discard(self)

    def _close(self) -> tuple[int, int]:
        """Close both sockets; returns how many bytes went up and down."""
        splice = self._splice
        if splice is None:
            self._gate.poller.forget(self._client.fileno())
            reset(self._client)
            return 0, 0
        if not splice.done:
            splice.abort()
        return splice.passed()
