"""One UDP flow: resolve, check the address, record, and relay datagrams until it is idle.

Home of invariant 3 for UDP: datagrams leave from a socket that is connected to one checked address, and only datagrams
from that address go back. Nothing reads their content. An ICMP error from a router ends the flow and is passed
on to the client.
"""

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError
from proxy.event_loop.poller import IN
from proxy.gate.managed_connection import COMPONENT_OF_STATE, LIFETIME, ManagedConnection, State
from rules.decision import deny
from rules.settings import ProxyDestination
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.dialing.connect_race import Hop
    from proxy.gate.decide import GateDecision
    from proxy.gate.record import ConnectionRecord
    from proxy.udp.listener import Key, UdpGate
    from rules.decision import Decision
    from rules.values.addresses import Address

MAX_QUEUED: Final = 16  # datagrams of one flow that wait for its lookup
_MAX_QUEUED_BYTES: Final = 1 << 20  # of all flows' that wait
_AT_ONCE: Final = 32  # datagrams before other work gets its turn
_MAX_DATAGRAM: Final = 65535  # bytes
_OUT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_DATAGRAM_ERRORS: Final = frozenset({errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM})  # send(2)


class Flow(ManagedConnection["UdpGate"]):
    """Datagrams between one client address and one destination."""

    __slots__ = (
        "_down",
        "_first_size",
        "_is_finishing",
        "_key",
        "_opened",
        "_queued",
        "_quiet_since",
        "_server",
        "_up",
    )  # fmt: skip

    def __init__(self, gate: "UdpGate", key: "Key", record: "ConnectionRecord", gate_decision: "GateDecision") -> None:
        super().__init__(gate, record, State.DECIDING)
        self._key = key
        self._gate_decision = gate_decision
        self._queued: deque[bytes] = deque()
        self._first_size = 0
        self._is_finishing = False
        self._server: socket.socket | None = None
        self._opened = self._quiet_since = gate.clock()
        self._up = self._down = 0  # bytes of payload

    def begin(self, data: bytes) -> None:
        """Resolve the destination; the first datagram waits."""
        self._first_size = len(data)
        self._queue(data)
        self._apply_decision()

    def relay(self, data: bytes) -> None:
        """Relay a datagram of the task."""
        self._quiet_since = self._gate.clock()
        if self.state is State.SPLICING:
            self._send(data)
        else:
            self._queue(data)

    def ready(self, _events: int) -> None:
        """Relay replies to the task, up to a bound."""
        server = self._server
        for _ in range(_AT_ONCE):
            if server is None or self.state is not State.SPLICING:
                return
            try:
                data = server.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                self._end_failed()  # an ICMP error: udp(7), "Error handling"
                return
            self._reply(data)

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception."""
        self.record.record_error(COMPONENT_OF_STATE[self.state], error)
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def abort(self) -> None:
        """End it now: the gate closes."""
        if self._is_finishing and self.state is State.SPLICING:
            self._end(Outcome.PASSED, None)
        else:
            self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def finish(self) -> None:
        """End it once everything is sent: the task is over."""
        self._is_finishing = True
        if self.state is State.SPLICING:
            self._end(Outcome.PASSED, None)

    def end_if_idle(self, before: float) -> bool:
        """End it, for another flow, if it has been idle since `before`; returns whether it ended."""
        if self._quiet_since > before:
            return False
        self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)
        return True

    def tick(self, now: float) -> None:
        """Check the idle time.

        Only datagrams of the task keep a flow open; replies don't (RFC 4787 section 4.3).
        """
        if self.state is State.PENDING and self._pending is not None:
            self._pending.tick(now)
        elif self.state is State.RESOLVING:
            if now >= self._deadline:
                self._handle_lookup_result(
                    DialError(Reason.UNRESOLVED, "the lookup took too long"), self._gate_decision
                )
        elif rule := self._quota.rule_over():
            self._end_over_limit(rule)
        elif now - self._quiet_since >= self._gate_decision.decision.idle_timeout:
            self._end(Outcome.PASSED, None)  # a flow has no other end of its own
        elif now - self._opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    def _queue(self, data: bytes) -> None:
        gate = self._gate
        if len(self._queued) >= MAX_QUEUED or gate.queued_bytes + len(data) > _MAX_QUEUED_BYTES:
            gate.count_lost("up")
            return
        gate.queued_bytes += len(data)
        self._queued.append(data)

    def _dial(self, hops: "tuple[Hop, ...]") -> None:
        """Connect, which sends nothing; record the decision; then send the datagrams that wait."""
        gate, record = self._gate, self.record
        try:
            self._server, self._hop = connect_first_reachable(hops, record.destination.port)
        except DialError as failure:
            self._deny_or_request_approval(failure)
            return
        if not self._count_against_limits():
            return
        record.set_hop(self._hop)
        self._enter(State.DIALING)  # which sends nothing
        if not record.record_decision(self._gate_decision):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        if not self._record_untrusted_read():
            return
        self._enter(State.SPLICING)
        gate.poller.watch(self._server.fileno(), IN, self)
        while self._queued and self.state is State.SPLICING:
            data = self._queued.popleft()
            gate.queued_bytes -= len(data)
            self._send(data)
        if self._is_finishing:
            self._end(Outcome.PASSED, None)

    def _send(self, data: bytes) -> None:
        meter = self._quota.meter
        if meter is not None and not meter.up(len(data)):
            self._end_over_limit(meter.rule_over())
            return
        assert self._server is not None
        try:
            self._server.send(data)
        except OSError as error:
            if error.errno in _DATAGRAM_ERRORS:
                self._gate.count_lost("up")
            else:
                self._end_failed()
            return
        self._up += len(data)

    def _reply(self, data: bytes) -> None:
        meter = self._quota.meter
        if meter is not None and not meter.down(len(data)):
            self._end_over_limit(meter.rule_over())
            return
        destination = self.record.destination
        if self._gate.reply_socket.reply((destination.address, destination.port), self.record.peer, data):
            self._down += len(data)
        else:
            self._gate.count_lost("down")

    def _end_failed(self) -> None:
        self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)

    def _send_icmp_error(self) -> None:
        destination = self.record.destination
        self._gate.reply_socket.refuse((destination.address, destination.port), self.record.peer, self._first_size)

    def _record_and_reset_or_inspect(self) -> None:
        """Record a denial. A flow is never inspected."""
        self._close()
        self._gate.refuse(self.record, self._gate_decision, self._key, self._first_size)

    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None, *, detail: str = "") -> None:
        """Close it and record the end, once; after a failure also send the client an ICMP error."""
        if self.state is State.CLOSED:
            return
        is_recorded = self.record.gate_decision is not None
        try:
            self._close()
        finally:
            if is_recorded:
                self.record.record_end(self._up, self._down, outcome, reason, by, detail)
                if outcome is not Outcome.PASSED:
                    self._send_icmp_error()
            else:
                gate_decision = self._gate_decision
                decision = deny(self._gate.sandbox.policy, reason or Reason.GATE_ERROR, gate_decision.decision)
                self._gate.refuse(self.record, gate_decision._replace(decision=decision), self._key, self._first_size)

    def _close(self) -> None:
        self.state = State.CLOSED
        gate = self._gate
        gate.forget(self._key)
        if self._server is not None:  # first: no datagram is relayed, whatever fails below
            gate.poller.forget(self._server.fileno())
            self._server.close()
        gate.queued_bytes -= sum(map(len, self._queued))
        self._queued.clear()
        self._quota.end()
        if self._pending is not None:
            self._pending.withdraw()
        if self._lease is not None:
            self._lease.end()


def connect_first_reachable(hops: "tuple[Hop, ...]", port: int) -> "tuple[socket.socket, Address]":
    """Return a socket connected to the first address that this host has a route to. Raises DialError.

    Connecting a UDP socket sends nothing.
    """
    problem = "no address"
    for address in hops:
        if isinstance(address, ProxyDestination):
            continue  # the dialer returns no proxy for UDP
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            server = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            reason = Reason.LIMIT_EXCEEDED if error.errno in _OUT_OF_SOCKETS else Reason.UPSTREAM_FAILED
            raise DialError(reason, str(error.strerror)) from error
        try:
            server.connect((str(address), port))
        except OSError as error:
            server.close()
            problem = f"{address}: {error.strerror}"
        else:
            return server, address
    raise DialError(Reason.UPSTREAM_FAILED, problem)
