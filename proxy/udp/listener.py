"""UDP gate of one sandbox: assigns datagrams to flows, and decides, records and counts each flow like a connection.

A flow is what one address and port of the sandbox sends to one address and port outside. Home of invariant 2 for UDP
(whatever goes wrong is a refusal, which the sandbox learns of at once) and of 11: flows, datagrams that wait for a
lookup, remembered refusals and recorded floods are bounded, and one sandbox's alone.
"""

import socket
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from proxy.event_loop.poller import IN, PeriodicTasks, for_each
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.gate.decide import ConnectionDecision, GateAction, OriginalDestination, is_unroutable, make_attempt
from proxy.gate.record import ConnectionRecord
from proxy.telemetry.events import Component
from proxy.udp.flow import Flow
from proxy.udp.sockets import allow_datagrams, block_datagrams, parse_destination, parse_source
from rules.attempt import Protocol
from rules.decision import deny
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.dialer import Dialer
    from proxy.dns.names import NameTable
    from proxy.gate.record import Endpoint
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.udp.sockets import ReplySocket

MOST_FLOWS: Final = 512
RESTED: Final = 2.0  # seconds of quiet after which a flow makes way for a new one
REMEMBERED: Final = (
    10.0  # seconds for which a refusal stands, undecided and untold; RESTED for one that may be over soon
)
_PASSING_BY: Final = (Reason.LIMIT_EXCEEDED, Reason.APPROVAL_TIMEOUT)
_MOST_REMEMBERED: Final = 1024
_TOLD_A_SECOND, _TOLD_AT_ONCE = 20, 100  # refusals, as in the kernel's own log (enforcer.network.ruleset)
_AT_ONCE: Final = 64  # datagrams before the others get their turn
_WHOLE_QUEUE: Final = 64  # times as many: more than the socket holds
_LARGEST: Final = 65535  # bytes
_ANCILLARY: Final = 256  # bytes

type Key = tuple[bytes, tuple[object, ...]]  # where to, as the kernel writes it, and who sends


class UdpGate:
    """UDP flows of one sandbox. For one thread; the caller keeps the socket, which is shut until `start`."""

    def __init__(
        self,
        sock: socket.socket,
        answers: "ReplySocket",
        sandbox: "SandboxState",
        recorder: "Recorder",
        *,
        dialer: "Dialer",
        names: "NameTable",
        most: int = MOST_FLOWS,
        has_room: "Callable[[], bool]" = lambda: True,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        self.sandbox = sandbox
        self.recorder = recorder
        self.dialer = dialer
        self.answers = answers
        self.poller = dialer.poller
        self.clock = clock
        self.waiting = 0  # bytes that wait for lookups
        self._sock = sock
        self._names = names
        self._most = most
        self._may_grow = has_room
        self.open_flows: OrderedDict[Key, Flow] = OrderedDict()  # the one that sent last comes last
        self._refused: OrderedDict[Key, float] = OrderedDict()  # until when
        self._may_tell = RateLimiter(_TOLD_AT_ONCE, _TOLD_A_SECOND, clock)
        self.rounds = PeriodicTasks(sandbox.calendar.today, self.open_flows.values(), self.review, clock)

    @property
    def flows(self) -> int:
        """Number of flows, resolving or open."""
        return len(self.open_flows)

    def start(self) -> None:
        """Start to receive datagrams, if a rule allows any."""
        self._sock.setblocking(False)
        self.poller.watch(self._sock.fileno(), IN, self)
        self._turn()

    def close(self) -> None:
        """Stop receiving, and end every flow. Idempotent."""
        self.poller.forget(self._sock.fileno())
        self.rounds.stop()
        for_each(self.open_flows.values(), Flow.abort)

    def finish(self) -> None:
        """Send what is queued, then end every flow: the task is over."""
        for _ in range(_WHOLE_QUEUE):
            if not self._take():
                break
        for_each(self.open_flows.values(), Flow.finish)

    def review(self) -> None:
        """Decide again on every flow: the rules or the date have changed."""
        self._refused.clear()
        for_each(self.open_flows.values(), Flow.review)
        self._turn()

    # for flows

    def forget(self, key: Key) -> None:
        """Remove a flow that has ended."""
        self.open_flows.pop(key, None)

    def refuse(self, record: ConnectionRecord, judgement: ConnectionDecision, key: Key, size: int) -> None:
        """Deny a new flow: record and remember that, and answer its datagram of `size` bytes."""
        self._remember(key, RESTED if judgement.decision.reason in _PASSING_BY else REMEMBERED)
        if self._may_tell.take():
            record.decided(judgement)
        self.turn_away((record.wanted.address, record.wanted.port), record.peer, size)

    def turn_away(self, asked: "Endpoint", client: "Endpoint", size: int) -> None:
        """Answer a denied datagram with an ICMP error."""
        self.recorder.metrics.datagrams_refused += 1
        self.answers.refuse(asked, client, size)

    def lost(self, direction: str) -> None:
        """Count an allowed datagram that could not be relayed; `direction` is `up` or `down`."""
        lost = self.recorder.metrics.datagrams_lost
        lost[direction] = lost.get(direction, 0) + 1

    # for the poller

    def ready(self, _events: int) -> None:
        """Handle the datagrams that have arrived, up to a bound."""
        self._take()
        self.rounds.keep_going()

    def _take(self) -> bool:
        """Handle some datagrams; returns whether there may be more. One that fails doesn't affect others."""
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _flags, client = self._sock.recvmsg(_LARGEST, _ANCILLARY)
            except OSError:  # nothing more, or the door could not be shut and is closed
                return False
            try:
                self._arrived(data, ancillary[0][2] if ancillary else b"", client)
            except Exception as error:  # noqa: BLE001
                self.failed(error)
        return True

    def failed(self, error: Exception) -> None:
        """Report an unexpected exception; later datagrams are served."""
        self.recorder.error(Component.ACCEPT, f"{type(error).__name__}: {error}")

    def _arrived(self, data: bytes, asked: bytes, client: "tuple[object, ...]") -> None:
        key = asked, client
        flow = self.open_flows.get(key)
        if flow is not None:
            self.open_flows.move_to_end(key)
            try:
                flow.pass_on(data)
            except Exception as error:  # noqa: BLE001 - the others go on
                flow.failed(error)
            return
        if self._is_refused(key):
            self.turn_away(parse_destination(asked), parse_source(client), len(data))
            return
        record = self._record(parse_destination(asked), parse_source(client))
        judgement = self._judge(record.wanted)
        goes_on = judgement.decision.passes or (
            judgement.decision.needs_approval and self.sandbox.approvals is not None
        )
        if goes_on and not self._has_room():
            decision = deny(self.sandbox.policy, Reason.LIMIT_EXCEEDED, judgement.decision)
            judgement, goes_on = judgement._replace(decision=decision), False
        if not goes_on:
            self.refuse(record, judgement, key, len(data))
            return
        flow = self.open_flows[key] = Flow(self, key, record, judgement)
        try:
            flow.begin(data)
        except Exception as error:  # noqa: BLE001 - the others go on
            flow.failed(error)

    def _record(self, asked: "Endpoint", client: "Endpoint") -> ConnectionRecord:
        address, port = asked
        wanted = OriginalDestination(address, port, self._names.names_of(address))
        return ConnectionRecord(
            self.recorder, client, wanted, None if self._names.covers(address) else address, time.monotonic()
        )

    def _judge(self, wanted: OriginalDestination) -> ConnectionDecision:
        """Decide on a flow from its destination; the gate reads no payload."""
        sandbox = self.sandbox
        attempt = make_attempt(sandbox, Protocol.UDP, wanted.target, wanted.port)
        if is_unroutable(sandbox, wanted):
            decision = deny(sandbox.policy, Reason.NON_PUBLIC_ADDRESS)
        elif not wanted.names and self._names.covers(wanted.address):
            decision = deny(sandbox.policy, Reason.UNRESOLVED)  # it stands for nothing, or does so no more
        else:
            decision = sandbox.policy.decide(attempt)
        return ConnectionDecision(attempt, decision, GateAction.SPLICE if decision.passes else GateAction.RESET)

    def _has_room(self) -> bool:
        """Whether there may be one more flow; the flow that has been idle longest may end for it."""
        if len(self.open_flows) < self._most and self._may_grow():
            return True
        quietest = next(iter(self.open_flows.values()), None)
        return quietest is not None and quietest.make_way(self.clock() - RESTED)

    def _is_refused(self, key: Key) -> bool:
        until = self._refused.get(key)
        if until is None:
            return False
        if until > self.clock():
            return True
        del self._refused[key]
        return False

    def _remember(self, key: Key, seconds: float) -> None:
        if len(self._refused) >= _MOST_REMEMBERED:
            self._refused.popitem(last=False)
        self._refused[key] = self.clock() + seconds

    def _turn(self) -> None:
        """Open or shut the socket as the rules require. One that can't be shut is closed for good."""
        sock = self._sock
        try:
            if self.sandbox.policy.needs.udp:
                allow_datagrams(sock)
            else:
                block_datagrams(sock, self.sandbox.own_addresses)
        except OSError as error:
            self.failed(error)
            self.poller.forget(sock.fileno())
            sock.close()
