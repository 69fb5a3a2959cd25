"""One UDP flow: resolve, check the address, record, and relay datagrams until it is idle.

Home of invariant 3 for UDP: datagrams leave from a socket that is connected to one checked address, and only datagrams
from that address go back. Nothing reads their content. An ICMP error from a router ends the flow and is passed on, so
the client learns of it at once.
"""

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError
from proxy.event_loop.poller import IN
from proxy.gate.managed_connection import LIFETIME, WHERE, ManagedConnection, State
from rules.decision import deny
from rules.settings import ProxyDestination
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.dialing.connect_race import Hop
    from proxy.gate.decide import ConnectionDecision
    from proxy.gate.record import ConnectionRecord
    from proxy.udp.listener import Key, UdpGate
    from rules.addresses import Address
    from rules.decision import Decision

MOST_WAITING: Final = 16  # datagrams of one flow that wait for its lookup
_MOST_BYTES: Final = 1 << 20  # of all flows' that wait
_AT_ONCE: Final = 32  # datagrams before the others get their turn
_LARGEST: Final = 65535  # bytes
_OUT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_JUST_THIS_ONE: Final = frozenset({errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM})  # send(2)


class Flow(ManagedConnection["UdpGate"]):
    """Datagrams between one client address and one destination."""

    __slots__ = (
        "_down", "_far", "_finishing", "_first_size", "_key", "_opened", "_quiet_since", "_up", "_waiting",
    )  # fmt: skip

    def __init__(
        self, gate: "UdpGate", key: "Key", record: "ConnectionRecord", judgement: "ConnectionDecision"
    ) -> None:
        super().__init__(gate, record, State.DECIDING)
        self._key = key
        self._judgement = judgement
        self._waiting: deque[bytes] = deque()
        self._first_size = 0
        self._finishing = False
        self._far: socket.socket | None = None
        self._opened = self._quiet_since = gate.clock()
        self._up = self._down = 0  # bytes of payload

    def begin(self, data: bytes) -> None:
        """Resolve the destination; the first datagram waits."""
        self._first_size = len(data)
        self._wait(data)
        self._carry_out()

    def pass_on(self, data: bytes) -> None:
        """Relay a datagram of the task."""
        self._quiet_since = self._gate.clock()
        if self.state is State.SPLICING:
            self._send(data)
        else:
            self._wait(data)

    def ready(self, _events: int) -> None:
        """Relay replies to the task, up to a bound."""
        far = self._far
        for _ in range(_AT_ONCE):
            if far is None or self.state is not State.SPLICING:
                return
            try:
                data = far.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                self._broken()  # an ICMP error: udp(7), "Error handling"
                return
            self._hand_back(data)

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception."""
        self.record.error(WHERE[self.state], error)
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def abort(self) -> None:
        """End it now: the gate closes."""
        if self._finishing and self.state is State.SPLICING:
            self._end(Outcome.PASSED, None)
        else:
            self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def finish(self) -> None:
        """End it once everything is sent: the task is over."""
        self._finishing = True
        if self.state is State.SPLICING:
            self._end(Outcome.PASSED, None)

    def make_way(self, before: float) -> bool:
        """End it if it has been idle since `before`, as another flow needs its place; returns whether it ended."""
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
                self._resolved(DialError(Reason.UNRESOLVED, "the lookup took too long"), self._judgement)
        elif rule := self._quota.rule_over():
            self._cut(rule)
        elif now - self._quiet_since >= self._judgement.decision.idle_timeout:
            self._end(Outcome.PASSED, None)  # the only way in which a flow ever ends by itself
        elif now - self._opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    def _wait(self, data: bytes) -> None:
        gate = self._gate
        if len(self._waiting) >= MOST_WAITING or gate.waiting + len(data) > _MOST_BYTES:
            gate.lost("up")
            return
        gate.waiting += len(data)
        self._waiting.append(data)

    def _dial(self, hops: "tuple[Hop, ...]") -> None:
        """Connect, which sends nothing; record the decision; then send the datagrams that wait."""
        gate, record = self._gate, self.record
        try:
            self._far, self._hop = connected(hops, record.wanted.port)
        except DialError as failure:
            self._cannot_dial(failure)
            return
        if not self._is_within_limits():
            return
        record.leads_to(self._hop)
        self._enter(State.DIALING)  # which sends nothing
        if not record.decided(self._judgement):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        if not self._may_read():
            return
        self._enter(State.SPLICING)
        gate.poller.watch(self._far.fileno(), IN, self)
        while self._waiting and self.state is State.SPLICING:
            data = self._waiting.popleft()
            gate.waiting -= len(data)
            self._send(data)
        if self._finishing:
            self._end(Outcome.PASSED, None)

    def _send(self, data: bytes) -> None:
        meter = self._quota.meter
        if meter is not None and not meter.up(len(data)):
            self._cut(meter.rule_over())
            return
        assert self._far is not None
        try:
            self._far.send(data)
        except OSError as error:
            if error.errno in _JUST_THIS_ONE:
                self._gate.lost("up")
            else:
                self._broken()
            return
        self._up += len(data)

    def _hand_back(self, data: bytes) -> None:
        meter = self._quota.meter
        if meter is not None and not meter.down(len(data)):
            self._cut(meter.rule_over())
            return
        wanted = self.record.wanted
        if self._gate.answers.reply((wanted.address, wanted.port), self.record.peer, data):
            self._down += len(data)
        else:
            self._gate.lost("down")

    def _broken(self) -> None:
        self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)

    def _say_nobody_is_there(self) -> None:
        wanted = self.record.wanted
        self._gate.answers.refuse((wanted.address, wanted.port), self.record.peer, self._first_size)

    def _conclude(self) -> None:
        """Record a denial."""
        self._close()
        self._gate.refuse(self.record, self._judgement, self._key, self._first_size)

    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None, *, detail: str = "") -> None:
        """Close it and record the end, once; after a failure also send the client an ICMP error."""
        if self.state is State.CLOSED:
            return
        told = self.record.judgement is not None
        try:
            self._close()
        finally:
            if told:
                self.record.ended(self._up, self._down, outcome, reason, by, detail)
                if outcome is not Outcome.PASSED:
                    self._say_nobody_is_there()
            else:
                judgement = self._judgement
                decision = deny(self._gate.sandbox.policy, reason or Reason.GATE_ERROR, judgement.decision)
                self._gate.refuse(self.record, judgement._replace(decision=decision), self._key, self._first_size)

    def _close(self) -> None:
        self.state = State.CLOSED
        gate = self._gate
        gate.forget(self._key)
        if self._far is not None:  # first of all: whatever goes wrong with the rest, nothing passes any more
            gate.poller.forget(self._far.fileno())
            self._far.close()
        gate.waiting -= sum(map(len, self._waiting))
        self._waiting.clear()
        self._quota.end()
        if self._pending is not None:
            self._pending.drop()
        if self._lease is not None:
            self._lease.end()


def connected(hops: "tuple[Hop, ...]", port: int) -> "tuple[socket.socket, Address]":
    """Return a socket connected to the first address that this host has a route to. Raises DialError.

    Connecting a UDP socket sends nothing.
    """
    problem = "no address"
    for address in hops:
        if isinstance(address, ProxyDestination):
            continue  # the dialer gives none for datagrams
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            far = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            reason = Reason.LIMIT_EXCEEDED if error.errno in _OUT_OF_SOCKETS else Reason.UPSTREAM_FAILED
            raise DialError(reason, str(error.strerror)) from error
        try:
            far.connect((str(address), port))
        except OSError as error:
            far.close()
            problem = f"{address}: {error.strerror}"
        else:
            return far, address
    raise DialError(Reason.UPSTREAM_FAILED, problem)
