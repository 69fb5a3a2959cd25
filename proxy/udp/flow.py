"""One flow of datagrams: its name looked up, its address checked, told, and passed on both ways until it falls silent.

Home of invariant 3 for UDP: what leaves, leaves from a socket that is connected to one address that was checked, and
nothing but what comes from there goes back. Nobody reads what passes. An error that a router sends ends the flow, and
is handed on: a client that asks nobody hears so at once.
"""

import errno
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.deciding import Judgement, Way, after_asking, again, denied, failing, holds, in_vain, unanswered
from proxy.dialling.connecting import DialFailed
from proxy.dialling.dial import LOOKUP_TIMEOUT
from proxy.gate.connection import LIFETIME
from proxy.limits import Quota, budgets, cut_by, exceeded
from proxy.poller import IN
from proxy.telemetry.events import Where
from proxy.udp.far import connected
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    import socket

    from proxy.approvals.asking import Ticket
    from proxy.approvals.passes import Grant, Lease
    from proxy.approvals.wire import Answer
    from proxy.dialling.connecting import Hop
    from proxy.gate.record import ConnectionRecord
    from proxy.udp.gate import Key, UdpGate
    from rules.addresses import Address
    from rules.decision import Decision

MOST_WAITING: Final = 16  # datagrams of one flow that wait for its lookup
_MOST_BYTES: Final = 1 << 20  # of all flows' that wait
_AT_ONCE: Final = 32  # datagrams before the others get their turn
_LARGEST: Final = 65535  # bytes
_JUST_THIS_ONE: Final = frozenset({errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM})  # send(2)


class _Stage(Enum):
    ASKING = Where.APPROVALS
    LOOKING_UP = Where.DECIDE
    OPEN = Where.RELAY
    OVER = Where.OTHER


class Flow:
    """What one client sends to one place, and gets back."""

    __slots__ = (
        "_asked",
        "_checking",
        "_down",
        "_far",
        "_finishing",
        "_first_size",
        "_gate",
        "_judgement",
        "_key",
        "_lease",
        "_opened",
        "_policy",
        "_quiet_since",
        "_quota",
        "_record",
        "_stage",
        "_ticket",
        "_up",
        "_waiting",
        "_where",
    )  # fmt: skip

    def __init__(self, gate: "UdpGate", key: "Key", record: "ConnectionRecord", judgement: Judgement) -> None:
        self._gate = gate
        self._key = key
        self._record = record
        self._judgement = judgement
        self._stage = _Stage.LOOKING_UP
        self._policy = gate.tenant.policy  # which let it out, and checked the address
        self._waiting: deque[bytes] = deque()
        self._first_size = 0
        self._finishing = False
        self._far: socket.socket | None = None
        self._where: Address | None = None  # that it is connected to
        self._quota = Quota(gate.tenant.meters)
        self._asked = 0  # times
        self._ticket: Ticket | None = None
        self._checking: Judgement | None = None  # whose name is looked up before anybody is asked
        self._lease: Lease | None = None  # where it passes under grants
        self._opened = self._quiet_since = gate.clock()
        self._up = self._down = 0  # bytes of payload

    def begin(self, data: bytes) -> None:
        """Find out where it goes, with its first datagram."""
        self._first_size = len(data)
        self._wait(data)
        if self._judgement.decision.asks:
            self._ask()
        else:
            self._find()

    def pass_on(self, data: bytes) -> None:
        """Take a datagram of the task's."""
        self._quiet_since = self._gate.clock()
        if self._stage is _Stage.OPEN:
            self._send(data)
        else:
            self._wait(data)

    def ready(self, _events: int) -> None:
        """Hand back what has come from outside, up to a bound."""
        far = self._far
        for _ in range(_AT_ONCE):
            if far is None or self._stage is not _Stage.OPEN:
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
        self._record.error(self._stage.value, error)
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def abort(self) -> None:
        """End it now: the gate closes."""
        if self._finishing and self._stage is _Stage.OPEN:
            self._end(Outcome.PASSED, None)
        else:
            self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def finish(self) -> None:
        """End as soon as everything has left: nobody is there any more who could ask or hear."""
        self._finishing = True
        if self._stage is _Stage.OPEN:
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
        if self._stage is _Stage.ASKING:
            if self._checking is not None and now - self._opened >= LOOKUP_TIMEOUT:
                self._checked(self._checking, DialFailed(Reason.UNRESOLVED, "the lookup took too long"))
            return  # an answer comes in time, or its lack is one
        if self._stage is _Stage.LOOKING_UP:
            if now - self._opened >= LOOKUP_TIMEOUT:
                self._found(DialFailed(Reason.UNRESOLVED, "the lookup took too long"), self._judgement)
        elif rule := self._quota.rule_over():
            self._over_limit(rule)
        elif now - self._quiet_since >= self._judgement.decision.idle_timeout:
            self._end(Outcome.PASSED, None)  # the only way in which a flow ever ends by itself
        elif now - self._opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    def review(self) -> None:
        """Decide again. What has not been told yet is simply decided anew; what was let out may have to end."""
        tenant = self._gate.tenant
        if self._stage is _Stage.OVER:
            return
        if self._stage is _Stage.ASKING:
            self._decide_held()
            return
        judgement = again(tenant, self._judgement, can_inspect=False)
        attempt, decision, policy = judgement.attempt, judgement.decision, tenant.policy
        if self._stage is _Stage.LOOKING_UP:
            self._judgement = judgement
            if decision.passes:
                self._find()
            elif decision.asks:
                self._ask()
            else:
                self._refuse(judgement)
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

    def _ask(self) -> None:
        """Ask people, unless an approval would open nothing; what is sent meanwhile waits, a little of it."""
        from proxy.preflight import check  # few rules ask

        judgement, policy = self._judgement, self._gate.tenant.policy
        self._stage = _Stage.ASKING
        self._checking = judgement
        self._opened = self._gate.clock()  # the lookup of this question has its own deadline
        check(
            self._gate.dialer,
            policy,
            judgement.attempt,
            judgement.decision,
            lambda failure: self._checked(judgement, failure),
        )

    def _checked(self, judgement: Judgement, failure: DialFailed | None) -> None:
        if self._stage is not _Stage.ASKING or judgement is not self._checking:
            return
        self._checking = None
        try:
            if failure is None:
                self._put()
            else:
                self._refuse(in_vain(self._gate.tenant, self._judgement, failure, can_inspect=False))
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _put(self) -> None:
        from proxy.approvals.putting import ROUNDS, about_connection  # few rules ask

        gate, judgement = self._gate, self._judgement
        asking = gate.tenant.asking
        self._asked += 1
        if asking is None or self._asked > ROUNDS:
            self._refuse(unanswered(gate.tenant, judgement, Reason.APPROVAL_UNAVAILABLE, can_inspect=False))
            return
        question = about_connection(gate.tenant, judgement.attempt, judgement.decision, self._record.process)
        self._ticket = asking.ask(question, self._answered)

    def _answered(self, answer: "Answer") -> None:
        """Go on with what people said; called from the loop."""
        from proxy.approvals.putting import reason_of
        from proxy.approvals.wire import Result

        ticket, self._ticket = self._ticket, None
        if self._stage is not _Stage.ASKING:
            return
        try:
            known = "" if ticket is None else ticket.approval
            tenant, judgement = self._gate.tenant, self._judgement._replace(approval=answer.approval or known)
            if answer.result is not Result.GRANTED or tenant.asking is None:
                refused = unanswered(tenant, judgement, reason_of(answer), can_inspect=False)
                self._refuse(refused._replace(detail=answer.why))
                return
            grants = tenant.asking.passes.grants(answer.approval, answer.grants)
            self._judgement = judgement._replace(grants=(*judgement.grants, *grants))
            self._decide_held()
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _decide_held(self) -> None:
        """Decide under the rules of now. Where they ask the same as before the question stands."""
        before = self._judgement
        self._judgement = judgement = after_asking(self._gate.tenant, before, can_inspect=False)
        if not judgement.decision.asks:
            self._drop_question()
            self._stage = _Stage.LOOKING_UP
            self._opened = self._gate.clock()
            if judgement.decision.passes:
                self._find()
            else:
                self._refuse(judgement)
        elif self._ticket is None or judgement.decision.approval != before.decision.approval:
            self._drop_question()
            self._ask()

    def _drop_question(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.drop()

    def _enter(self, grants: "tuple[Grant, ...]") -> bool:
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

    def _find(self) -> None:
        gate, judgement = self._gate, self._judgement
        self._policy = gate.tenant.policy
        try:
            addresses = gate.dialer.known(self._policy, judgement.attempt)
        except DialFailed as failure:
            self._found(failure, judgement)
            return
        if addresses is not None:
            self._found(addresses, judgement)
            return
        gate.dialer.find(self._policy, judgement.attempt, lambda found: self._found(found, judgement))

    def _found(self, found: "tuple[Hop, ...] | DialFailed", judgement: Judgement) -> None:
        """Go on with what a lookup for `judgement` gave; called from the loop."""
        if self._stage is not _Stage.LOOKING_UP or judgement is not self._judgement:
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
        if failure.held is not None:
            self._judgement = self._judgement._replace(decision=failure.held)
            self._ask()
            return
        self._refuse(failing(self._policy, self._judgement, failure, can_inspect=False))

    def _open(self, hops: "tuple[Hop, ...]") -> None:
        """Connect, which sends nothing yet; tell; and let out what waits."""
        gate, record = self._gate, self._record
        try:
            self._far, self._where = connected(hops, record.wanted.port)
        except DialFailed as failure:
            self._may_not(failure)
            return
        decision, grants = self._judgement.decision, self._judgement.grants
        if grants and not self._enter(grants):
            return
        over = self._quota.begin(decision.limits, budgets(grants))
        if over is not None:
            self._refuse(self._judgement._replace(decision=exceeded(decision, over), way=Way.RESET))
            return
        record.leads_to(self._where)
        if not record.decided(self._judgement):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        if not gate.tenant.reads(decision, self._judgement.attempt.target, record.wanted.port, record.event):
            self._end(Outcome.BLOCKED, Reason.APPROVAL_UNAVAILABLE)
            return
        self._stage = _Stage.OPEN
        gate.poller.watch(self._far.fileno(), IN, self)
        while self._waiting and self._stage is _Stage.OPEN:
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
        wanted = self._record.wanted
        if self._gate.answers.reply((wanted.address, wanted.port), self._record.peer, data):
            self._down += len(data)
        else:
            self._gate.lost("down")

    def _broken(self) -> None:
        self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)

    def _over_limit(self, rule: str | None) -> None:
        by = cut_by(self._judgement.decision, rule)
        self._end(Outcome.BLOCKED, by.reason, by)

    def _say_nobody_is_there(self) -> None:
        wanted = self._record.wanted
        self._gate.answers.refuse((wanted.address, wanted.port), self._record.peer, self._first_size)

    def _refuse(self, judgement: Judgement) -> None:
        """Deny what was not told yet."""
        self._close()
        self._gate.refuse(self._record, judgement, self._key, self._first_size)

    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None) -> None:
        """Close it and tell, once; and where something was wrong, tell the client too."""
        if self._stage is _Stage.OVER:
            return
        told = self._record.is_decided
        try:
            self._close()
        finally:
            self._tell_end(outcome, reason, by, told=told)

    def _tell_end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None", *, told: bool) -> None:
        if not told:
            judgement = self._judgement
            decision = denied(self._gate.tenant.policy, reason or Reason.GATE_ERROR, judgement.decision)
            self._gate.refuse(self._record, judgement._replace(decision=decision), self._key, self._first_size)
            return
        self._record.ended(self._up, self._down, outcome, reason, by)
        if outcome is not Outcome.PASSED:
            self._say_nobody_is_there()

    def _close(self) -> None:
        self._stage = _Stage.OVER
        gate = self._gate
        gate.forget(self._key)
        if self._far is not None:  # first of all: whatever goes wrong with the rest, nothing passes any more
            gate.poller.forget(self._far.fileno())
            self._far.close()
        gate.waiting -= sum(map(len, self._waiting))
        self._waiting.clear()
        self._quota.end()
        self._drop_question()
        if self._lease is not None:
            self._lease.end()
