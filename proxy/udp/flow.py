"""One UDP flow: looks its name up, checks its address, records it, and passes datagrams on until it is silent.

Home of invariant 3 for UDP: datagrams leave from a socket that is connected to one checked address, and only datagrams
from that address go back. Nothing reads their content. An ICMP error from a router ends the flow and is passed on, so
the client learns of it at once.
"""

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialFailed
from proxy.dialing.dialer import LOOKUP_TIMEOUT
from proxy.event_loop.poller import IN
from proxy.gate.decide import Judgement, Way, again, failing, holds
from proxy.gate.states import LIFETIME, NEXT_STATE, WHERE, State
from proxy.sandbox.rule_limits import Quota, budgets, cut_by, exceeded
from rules.decision import denied
from rules.settings import Via
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.approvals.leases import Grant, Lease
    from proxy.dialing.dialer import Hop
    from proxy.gate.pending import Pending
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


class Flow:
    """What one client sends to one place, and gets back."""

    __slots__ = (
        "_deadline", "_down", "_far", "_finishing", "_first_size", "_gate", "_judgement", "_key", "_lease", "_opened",
        "_pending", "_policy", "_quiet_since", "_quota", "_up", "_waiting", "_where", "record", "state",
    )  # fmt: skip

    def __init__(self, gate: "UdpGate", key: "Key", record: "ConnectionRecord", judgement: Judgement) -> None:
        self.state = State.DECIDING
        self.record = record
        self._gate = gate
        self._key = key
        self._judgement = judgement
        self._pending: Pending | None = None  # people's answer
        self._policy = gate.tenant.policy  # which allowed it, and checked the address
        self._waiting: deque[bytes] = deque()
        self._first_size = 0
        self._finishing = False
        self._far: socket.socket | None = None
        self._where: Address | None = None  # that it is connected to
        self._quota = Quota(gate.tenant.meters)
        self._lease: Lease | None = None  # where it passes under grants
        self._opened = self._quiet_since = gate.clock()
        self._deadline = 0.0  # of a lookup
        self._up = self._down = 0  # bytes of payload

    def begin(self, data: bytes) -> None:
        """Find out where it goes, with its first datagram."""
        self._first_size = len(data)
        self._wait(data)
        self._carry_out()

    def pass_on(self, data: bytes) -> None:
        """Take a datagram of the task's."""
        self._quiet_since = self._gate.clock()
        if self.state is State.SPLICING:
            self._send(data)
        else:
            self._wait(data)

    def ready(self, _events: int) -> None:
        """Hand back what has come from outside, up to a bound."""
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
        """End it after an exception that nobody expected."""
        self.record.error(WHERE[self.state], error)
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def abort(self) -> None:
        """End it now: the gate closes."""
        if self._finishing and self.state is State.SPLICING:
            self._end(Outcome.PASSED, None)
        else:
            self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def finish(self) -> None:
        """End as soon as everything has left: nobody is there any more who could ask or hear."""
        self._finishing = True
        if self.state is State.SPLICING:
            self._end(Outcome.PASSED, None)

    def make_way(self, before: float) -> bool:
        """End it if it has been quiet since `before`: another needs its place. Return whether it did."""
        if self._quiet_since > before:
            return False
        self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)
        return True

    def tick(self, now: float) -> None:
        """Look at the time.

        What keeps a flow open is what the task sends: nobody outside can keep it open (RFC 4787 section 4.3).
        """
        if self.state is State.PENDING and self._pending is not None:
            self._pending.tick(now)
        elif self.state is State.RESOLVING:
            if now >= self._deadline:
                self._resolved(DialFailed(Reason.UNRESOLVED, "the lookup took too long"), self._judgement)
        elif rule := self._quota.rule_over():
            self._over_limit(rule)
        elif now - self._quiet_since >= self._judgement.decision.idle_timeout:
            self._end(Outcome.PASSED, None)  # the only way in which a flow ever ends by itself
        elif now - self._opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    def review(self) -> None:
        """Decide again. What has not been told yet is simply decided anew; what was let out may have to end."""
        tenant = self._gate.tenant
        if self.state is State.PENDING and self._pending is not None:
            self._pending.review()
            return
        if self.state is State.CLOSED:
            return
        judgement = again(tenant, self._judgement, can_inspect=False)
        attempt, decision, policy = judgement.attempt, judgement.decision, tenant.policy
        if self.state is State.RESOLVING:
            self._enter(State.DECIDING)
            self._judgement = judgement
            self._carry_out()
            return
        problem = None
        if decision.passes and self._where is not None:
            problem = policy.check_address(attempt, self._where)
        if decision.passes and problem is None:
            self._judgement = judgement
            self._count_anew()
            return
        reason = problem or decision.reason
        self._end(Outcome.BLOCKED, reason, denied(policy, reason, decision))

    def answered(self, judgement: Judgement) -> None:
        """Go on with what came of asking people: a judgement that asks nobody."""
        self._pending = None
        self._judgement = judgement
        self._enter(State.DECIDING)
        self._carry_out()

    def _carry_out(self) -> None:
        gate, judgement = self._gate, self._judgement
        if judgement.decision.passes:
            self._resolve()
        elif judgement.decision.asks and gate.tenant.asking is not None:
            from proxy.gate.pending import Pending  # few rules ask

            self._enter(State.PENDING)  # what is sent meanwhile waits, a little of it
            self._pending = Pending(self, judgement, gate.tenant, gate.dialer, can_inspect=False, clock=gate.clock)
            self._pending.begin()
        else:
            self._refuse(judgement)

    def _take_lease(self, grants: "tuple[Grant, ...]") -> bool:
        """Pass under grants until the first of them ends; False: one has already, and that was told."""
        self._lease = self._gate.tenant.lease(grants, self._grant_over)
        if self._lease is None:
            self._may_not(DialFailed(Reason.EXPIRED, "its approval has ended meanwhile"))
        return self._lease is not None

    def _grant_over(self, grant: "Grant") -> None:
        """End it: its grant has ended. Called from the loop."""
        by = denied(self._gate.tenant.policy, Reason.EXPIRED)._replace(rules=(grant.rule,))
        self._end(Outcome.BLOCKED, by.reason, by)

    def _count_anew(self) -> None:
        """Go on under the limits of the rules that are in force now."""
        over = self._quota.go_on(self._judgement.decision.limits)
        if over is not None:
            self._over_limit(over.rule)

    def _wait(self, data: bytes) -> None:
        gate = self._gate
        if len(self._waiting) >= MOST_WAITING or gate.waiting + len(data) > _MOST_BYTES:
            gate.lost("up")
            return
        gate.waiting += len(data)
        self._waiting.append(data)

    def _resolve(self) -> None:
        """Find the address."""
        gate, judgement = self._gate, self._judgement
        self._enter(State.RESOLVING)
        self._policy = policy = gate.tenant.policy
        self._deadline = gate.clock() + LOOKUP_TIMEOUT
        try:
            addresses = gate.dialer.known(policy, judgement.attempt)
        except DialFailed as failure:
            self._resolved(failure, judgement)
            return
        if addresses is not None:
            self._resolved(addresses, judgement)
            return
        gate.dialer.find(policy, judgement.attempt, lambda found: self._resolved(found, judgement))

    def _resolved(self, found: "tuple[Hop, ...] | DialFailed", judgement: Judgement) -> None:
        """Go on with what a lookup for `judgement` gave; called from the loop."""
        if self.state is not State.RESOLVING or judgement is not self._judgement:
            return
        try:
            if not holds(self._gate.tenant, self._judgement, self._policy):
                self.review()
            elif isinstance(found, DialFailed):
                self._may_not(found)
            else:
                self._open(found)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _may_not(self, failure: DialFailed) -> None:
        """Refuse it after all, or ask people about its address."""
        judgement = failing(self._policy, self._judgement, failure, can_inspect=False)
        if failure.held is not None:
            judgement = judgement._replace(decision=failure.held)
        self._enter(State.DECIDING)
        self._judgement = judgement
        self._carry_out()

    def _open(self, hops: "tuple[Hop, ...]") -> None:
        """Connect, which sends nothing yet; tell; and let out what waits."""
        gate, record = self._gate, self.record
        try:
            self._far, self._where = connected(hops, record.wanted.port)
        except DialFailed as failure:
            self._may_not(failure)
            return
        decision, grants = self._judgement.decision, self._judgement.grants
        if grants and not self._take_lease(grants):
            return
        over = self._quota.begin(decision.limits, budgets(grants))
        if over is not None:
            self._refuse(self._judgement._replace(decision=exceeded(decision, over), way=Way.RESET))
            return
        record.leads_to(self._where)
        self._enter(State.DIALING)  # which sends nothing
        if not record.decided(self._judgement):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        if not gate.tenant.reads(decision, self._judgement.attempt.target, record.wanted.port, record.event):
            self._end(Outcome.BLOCKED, Reason.APPROVAL_UNAVAILABLE)
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
            self._over_limit(meter.rule_over())
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
            self._over_limit(meter.rule_over())
            return
        wanted = self.record.wanted
        if self._gate.answers.reply((wanted.address, wanted.port), self.record.peer, data):
            self._down += len(data)
        else:
            self._gate.lost("down")

    def _broken(self) -> None:
        self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)

    def _over_limit(self, rule: str | None) -> None:
        by = cut_by(self._judgement.decision, rule)
        self._end(Outcome.BLOCKED, by.reason, by)

    def _say_nobody_is_there(self) -> None:
        wanted = self.record.wanted
        self._gate.answers.refuse((wanted.address, wanted.port), self.record.peer, self._first_size)

    def _refuse(self, judgement: Judgement) -> None:
        """Deny what was not told yet."""
        self._close()
        self._gate.refuse(self.record, judgement, self._key, self._first_size)

    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None) -> None:
        """Close it and tell, once; and where something was wrong, tell the client too."""
        if self.state is State.CLOSED:
            return
        told = self.record.is_decided
        try:
            self._close()
        finally:
            self._tell_end(outcome, reason, by, told=told)

    def _tell_end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None", *, told: bool) -> None:
        if not told:
            judgement = self._judgement
            decision = denied(self._gate.tenant.policy, reason or Reason.GATE_ERROR, judgement.decision)
            self._gate.refuse(self.record, judgement._replace(decision=decision), self._key, self._first_size)
            return
        self.record.ended(self._up, self._down, outcome, reason, by)
        if outcome is not Outcome.PASSED:
            self._say_nobody_is_there()

    def _enter(self, state: State) -> None:
        self.state = NEXT_STATE[self.state, state]

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
    """Return a socket that is connected to the first address that this host has a way to. Raises DialFailed.

    Nothing is sent by making it.
    """
    problem = "no address"
    for address in hops:
        if isinstance(address, Via):
            continue  # the dialer gives none for datagrams
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            far = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            reason = Reason.LIMIT_EXCEEDED if error.errno in _OUT_OF_SOCKETS else Reason.UPSTREAM_FAILED
            raise DialFailed(reason, str(error.strerror)) from error
        try:
            far.connect((str(address), port))
        except OSError as error:
            far.close()
            problem = f"{address}: {error.strerror}"
        else:
            return far, address
    raise DialFailed(Reason.UPSTREAM_FAILED, problem)
