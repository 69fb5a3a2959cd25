"""UDP gate of one sandbox: assigns datagrams to flows, and decides, records and counts each flow like a connection.

A flow is what one address and port of the sandbox sends to one address and port outside. Home of invariant 2 for UDP
(any failure is a denial, which the sandbox learns of at once) and of 11: flows, datagrams that wait for a
lookup, remembered refusals and recorded floods are bounded, and one sandbox's alone.
"""

import socket
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from proxy.event_loop.poller import IN, PeriodicTasks, for_each
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.gate.decide import GateAction, GateDecision, OriginalDestination, is_unroutable, make_attempt
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
IDLE_BEFORE_EVICTION: Final = 2.0  # idle seconds after which a new flow may replace it
# Seconds for which a denial of a flow stands without a new decision or event; IDLE_BEFORE_EVICTION if it may end soon.
REMEMBERED: Final = 10.0
_SHORT_LIVED: Final = (Reason.LIMIT_EXCEEDED, Reason.APPROVAL_TIMEOUT)
_MOST_REMEMBERED: Final = 1024
_RECORDS_A_SECOND, _RECORDS_AT_ONCE = 20, 100  # refusals, as in the kernel's own log (enforcer.network.ruleset)
_AT_ONCE: Final = 64  # datagrams before other work gets its turn
_WHOLE_QUEUE: Final = 64  # times as many: more than the socket holds
_LARGEST: Final = 65535  # bytes
_ANCILLARY: Final = 256  # bytes

type Key = tuple[bytes, tuple[object, ...]]  # destination as a struct sockaddr, and the client's socket name


class UdpGate:
    """UDP flows of one sandbox. For one thread; the caller keeps the socket, which is shut until `start`."""

    def __init__(
        self,
        sock: socket.socket,
        reply_socket: "ReplySocket",
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
        self.reply_socket = reply_socket
        self.poller = dialer.poller
        self.clock = clock
        self.queued_bytes = 0  # bytes that wait for lookups
        self._sock = sock
        self._names = names
        self._most = most
        self._has_descriptors = has_room
        self.open_flows: OrderedDict[Key, Flow] = OrderedDict()  # by the time of the last datagram
        self._refused: OrderedDict[Key, float] = OrderedDict()  # until when
        self._record_limiter = RateLimiter(_RECORDS_AT_ONCE, _RECORDS_A_SECOND, clock)
        self.periodic_tasks = PeriodicTasks(sandbox.calendar.today, self.open_flows.values(), self.review, clock)

    @property
    def flows(self) -> int:
        """Number of flows, resolving or open."""
        return len(self.open_flows)

    def start(self) -> None:
        """Start to receive datagrams, if a rule allows any."""
        self._sock.setblocking(False)
        self.poller.watch(self._sock.fileno(), IN, self)
        self._block_or_allow()

    def close(self) -> None:
        """Stop receiving, and end every flow. Idempotent."""
        self.poller.forget(self._sock.fileno())
        self.periodic_tasks.stop()
        for_each(self.open_flows.values(), Flow.abort)

    def finish(self) -> None:
        """Send what is queued, then end every flow: the task is over."""
        for _ in range(_WHOLE_QUEUE):
            if not self._receive():
                break
        for_each(self.open_flows.values(), Flow.finish)

    def review(self) -> None:
        """Decide again on every flow: the rules or the date have changed."""
        self._refused.clear()
        for_each(self.open_flows.values(), Flow.review)
        self._block_or_allow()

    # for flows

    def forget(self, key: Key) -> None:
        """Remove a flow that has ended."""
        self.open_flows.pop(key, None)

    def refuse(self, record: ConnectionRecord, gate_decision: GateDecision, key: Key, size: int) -> None:
        """Deny a new flow: record and remember that, and answer its datagram of `size` bytes."""
        self._remember(key, IDLE_BEFORE_EVICTION if gate_decision.decision.reason in _SHORT_LIVED else REMEMBERED)
        if self._record_limiter.take():
            record.record_decision(gate_decision)
        self.refuse_datagram((record.destination.address, record.destination.port), record.peer, size)

    def refuse_datagram(self, destination_name: "Endpoint", client: "Endpoint", size: int) -> None:
        """Answer a denied datagram with an ICMP error."""
        self.recorder.metrics.datagrams_refused += 1
        self.reply_socket.refuse(destination_name, client, size)

    def count_lost(self, direction: str) -> None:
        """Count an allowed datagram that could not be relayed; `direction` is `up` or `down`."""
        counts = self.recorder.metrics.datagrams_lost
        counts[direction] = counts.get(direction, 0) + 1

    # for the poller

    def ready(self, _events: int) -> None:
        """Handle the datagrams that have arrived, up to a bound."""
        self._receive()
        self.periodic_tasks.keep_going()

    def _receive(self) -> bool:
        """Handle some datagrams; returns whether there may be more. One that fails doesn't affect others."""
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _flags, client = self._sock.recvmsg(_LARGEST, _ANCILLARY)
            except OSError:  # no more datagrams, or the socket was closed
                return False
            try:
                self._handle_datagram(data, ancillary[0][2] if ancillary else b"", client)
            except Exception as error:  # noqa: BLE001
                self.failed(error)
        return True

    def failed(self, error: Exception) -> None:
        """Report an unexpected exception; later datagrams are served."""
        self.recorder.error(Component.ACCEPT, f"{type(error).__name__}: {error}")

    def _handle_datagram(self, data: bytes, destination_name: bytes, client: "tuple[object, ...]") -> None:
        key = destination_name, client
        flow = self.open_flows.get(key)
        if flow is not None:
            self.open_flows.move_to_end(key)
            try:
                flow.relay(data)
            except Exception as error:  # noqa: BLE001 - other flows must go on
                flow.failed(error)
            return
        if self._is_refused(key):
            self.refuse_datagram(parse_destination(destination_name), parse_source(client), len(data))
            return
        record = self._record(parse_destination(destination_name), parse_source(client))
        gate_decision = self._decide(record.destination)
        may_open = gate_decision.decision.passes or (
            gate_decision.decision.needs_approval and self.sandbox.approvals is not None
        )
        if may_open and not self._has_room():
            decision = deny(self.sandbox.policy, Reason.LIMIT_EXCEEDED, gate_decision.decision)
            gate_decision, may_open = gate_decision._replace(decision=decision), False
        if not may_open:
            self.refuse(record, gate_decision, key, len(data))
            return
        flow = self.open_flows[key] = Flow(self, key, record, gate_decision)
        try:
            flow.begin(data)
        except Exception as error:  # noqa: BLE001 - other flows must go on
            flow.failed(error)

    def _record(self, destination_name: "Endpoint", client: "Endpoint") -> ConnectionRecord:
        address, port = destination_name
        destination = OriginalDestination(address, port, self._names.names_of(address))
        return ConnectionRecord(
            self.recorder, client, destination, None if self._names.covers(address) else address, time.monotonic()
        )

    def _decide(self, destination: OriginalDestination) -> GateDecision:
        """Decide on a flow from its destination; the gate reads no payload."""
        sandbox = self.sandbox
        attempt = make_attempt(sandbox, Protocol.UDP, destination.target, destination.port)
        if is_unroutable(sandbox, destination):
            decision = deny(sandbox.policy, Reason.NON_PUBLIC_ADDRESS)
        elif not destination.names and self._names.covers(destination.address):
            decision = deny(sandbox.policy, Reason.UNRESOLVED)  # the address stands for no name, or no longer does
        else:
            decision = sandbox.policy.decide(attempt)
        return GateDecision(attempt, decision, GateAction.SPLICE if decision.passes else GateAction.RESET)

    def _has_room(self) -> bool:
        """Whether there may be one more flow; the flow that has been idle longest may end for it."""
        if len(self.open_flows) < self._most and self._has_descriptors():
            return True
        oldest = next(iter(self.open_flows.values()), None)
        return oldest is not None and oldest.end_if_idle(self.clock() - IDLE_BEFORE_EVICTION)

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

    def _block_or_allow(self) -> None:
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
