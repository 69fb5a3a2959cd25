"""Base of TCP connections and UDP flows: their states, and how they are decided, resolved, limited and reviewed.

    ACCEPTED -> PEEKING -> DECIDING -> PENDING -> RESOLVING -> DIALING -> SPLICING or INSPECTING -> CLOSED

A flow begins at DECIDING, since the gate reads nothing of it. A transition that `TRANSITIONS` doesn't have raises, and
any exception ends the connection (invariant 2). Every state may end in CLOSED, and no state follows it.

Subclasses do the I/O: `Connection` for TCP, `proxy.udp.flow.Flow` for UDP. Home of invariant 3: an address that may not
be dialed is a denial, so nothing is recorded before the lookup.
"""

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from proxy.dialing.address_check import DialError
from proxy.dialing.dialer import LOOKUP_TIMEOUT
from proxy.gate.decide import GateAction, decide_again, deny_after_dial, still_holds
from proxy.sandbox.rule_limits import Quota, budgets, cut_by, exceeded
from proxy.sandbox.sandbox_state import TAINT_NOT_RECORDED
from proxy.telemetry.events import Component
from rules.decision import deny
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.leases import Grant, Lease
    from proxy.dialing.connect_race import Hop
    from proxy.dialing.dialer import Dialer
    from proxy.gate.decide import ConnectionDecision
    from proxy.gate.pending import Pending
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.decision import Decision

LIFETIME: Final = 24 * 3600.0  # seconds that a connection or a flow may live


class State(StrEnum):
    """State of a connection."""

    CLOSED = "closed"  # both sockets are closed, and its end is recorded
    ACCEPTED = "accepted"  # nothing of it has been read or decided
    PEEKING = "peeking"  # its first bytes are awaited, and consumed by nobody
    DECIDING = "deciding"  # the evaluator is asked; a refusal waits here for the process that opened the connection
    PENDING = "pending"  # people are asked; nothing is read, dialed or recorded
    RESOLVING = "resolving"  # the checked name is looked up, and each of its addresses checked
    DIALING = "dialing"  # its decision is recorded, and an address is dialed
    SPLICING = "splicing"  # bytes pass in both directions
    INSPECTING = "inspecting"  # inspection has it, or serves the page of its refusal


TRANSITIONS: Final = {
    State.CLOSED: (),
    State.ACCEPTED: (State.PEEKING, State.DECIDING, State.CLOSED),
    State.PEEKING: (State.DECIDING, State.CLOSED),
    State.DECIDING: (State.PENDING, State.RESOLVING, State.INSPECTING, State.CLOSED),
    State.PENDING: (State.DECIDING, State.CLOSED),  # after an answer the policy of that moment decides
    State.RESOLVING: (State.DECIDING, State.DIALING, State.CLOSED),  # other rules; an address that may not be dialed
    State.DIALING: (State.SPLICING, State.CLOSED),
    State.SPLICING: (State.CLOSED,),
    State.INSPECTING: (State.CLOSED,),
}

WHERE: Final = {  # in the gate a connection is, for `gate.error` events
    State.CLOSED: Component.OTHER,
    State.ACCEPTED: Component.PEEK,
    State.PEEKING: Component.PEEK,
    State.DECIDING: Component.PEEK,
    State.PENDING: Component.APPROVALS,
    State.RESOLVING: Component.DECIDE,
    State.DIALING: Component.DIAL,
    State.SPLICING: Component.RELAY,
    State.INSPECTING: Component.INSPECTION,
}


class TransitionError(Exception):
    """A transition that the table doesn't have; a bug."""


class _Table(dict[tuple[State, State], State]):
    def __missing__(self, key: tuple[State, State]) -> State:
        state, following = key
        raise TransitionError(f"a connection that is {state.name} can't become {following.name}")


# By a state and the one that is to follow it: that one, if it may. Raises TransitionError.
NEXT_STATE: Final = _Table({(state, each): each for state, following in TRANSITIONS.items() for each in following})


class GateState(Protocol):
    """The fields of `Gate` and `UdpGate` that a connection or flow uses."""

    sandbox: "SandboxState"
    dialer: "Dialer"
    clock: "Callable[[], float]"


class ManagedConnection[G: GateState](ABC):
    """One connection or flow. `_judgement` is set from the state DECIDING on."""

    __slots__ = (
        "_deadline", "_gate", "_hop", "_judgement", "_lease", "_pending", "_policy", "_quota", "record", "state",
    )  # fmt: skip
    _judgement: "ConnectionDecision"

    def __init__(self, gate: G, record: "ConnectionRecord", state: State) -> None:
        self.state = state
        self.record = record
        self._gate = gate
        self._deadline = 0.0  # of the state that it is in, by the gate's clock
        self._pending: Pending | None = None  # people's answer
        self._policy = gate.sandbox.policy  # which allowed it, and checked the addresses
        self._hop: Hop | None = None  # where it leads
        self._quota = Quota(gate.sandbox.meters)
        self._lease: Lease | None = None  # where it passes under grants

    def answered(self, judgement: "ConnectionDecision") -> None:
        """Continue after an approval request; `judgement` needs no further approval."""
        self._pending = None
        self._judgement = judgement
        self._enter(State.DECIDING)
        self._carry_out()

    def review(self) -> None:
        """Decide again: the rules, the date or the taint have changed. An allowed connection may end."""
        state = self.state
        if state is State.PENDING and self._pending is not None:
            self._pending.review()
        elif state is State.RESOLVING:
            self._enter(State.DECIDING)
            self._judgement = decide_again(self._gate.sandbox, self._judgement, can_inspect=self._can_inspect)
            self._carry_out()
        elif state is State.DIALING or state is State.SPLICING:
            self._review_allowed()

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception. Never raises."""

    @property
    def _can_inspect(self) -> bool:
        """Whether inspection can take it over."""
        return False

    @abstractmethod
    def _conclude(self) -> None:
        """Record a decision that dials nothing, and carry it out."""

    @abstractmethod
    def _dial(self, hops: "tuple[Hop, ...]") -> None:
        """Record the decision, and dial."""

    @abstractmethod
    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None, *, detail: str = "") -> None:
        """Close all sockets and record the end, once."""

    def _carry_out(self) -> None:
        judgement = self._judgement
        if judgement.way is GateAction.SPLICE:
            self._resolve()
        elif judgement.decision.needs_approval and self._gate.sandbox.approvals is not None:
            self._ask()
        else:
            self._conclude()

    def _ask(self) -> None:
        from proxy.gate.pending import Pending  # few connections are held

        gate = self._gate
        self._enter(State.PENDING)
        self._pending = Pending(
            self, self._judgement, gate.sandbox, gate.dialer, can_inspect=self._can_inspect, clock=gate.clock
        )
        self._pending.begin()

    def _resolve(self) -> None:
        """Look up the addresses to dial."""
        gate, judgement = self._gate, self._judgement
        if judgement.decision.verdict is Verdict.ASK or not judgement.decision.outcome.passes:
            raise RuntimeError("this attempt still needs an approval, so it must not be dialed")
        self._enter(State.RESOLVING)
        self._policy = policy = gate.sandbox.policy
        try:
            hops = gate.dialer.known(policy, judgement.attempt)
        except DialError as failure:
            self._cannot_dial(failure)
            return
        if hops is not None:
            self._dial(hops)
            return
        self._deadline = gate.clock() + LOOKUP_TIMEOUT
        gate.dialer.find(policy, judgement.attempt, lambda found: self._resolved(found, judgement))

    def _resolved(self, found: "tuple[Hop, ...] | DialError", judgement: "ConnectionDecision") -> None:
        """Continue with the result of the lookup for `judgement`; called from the loop."""
        if self.state is not State.RESOLVING or judgement is not self._judgement:
            return
        try:
            if not still_holds(self._gate.sandbox, judgement, self._policy):
                self.review()
            elif isinstance(found, DialError):
                self._cannot_dial(found)
            else:
                self._dial(found)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _cannot_dial(self, failure: DialError) -> None:
        """Deny it after all, or submit an approval request for its address."""
        judgement = deny_after_dial(self._gate.sandbox.policy, self._judgement, failure, can_inspect=self._can_inspect)
        self.record.may_not_lead_to(failure.address)
        self._enter(State.DECIDING)
        self._judgement = judgement if failure.held is None else judgement._replace(decision=failure.held)
        self._carry_out()

    def _is_within_limits(self) -> bool:
        """Count it against its grants and the limits of its rules; False: one was exceeded, and it is denied."""
        judgement = self._judgement
        decision, grants = judgement.decision, judgement.grants
        if grants:
            self._lease = self._gate.sandbox.lease(grants, self._grant_over)
            if self._lease is None:
                self._cannot_dial(DialError(Reason.EXPIRED, "its approval has ended"))
                return False
        over = self._quota.begin(decision.limits, budgets(grants))
        if over is None:
            return True
        if self._lease is not None:
            self._lease.end()  # inspection may serve the page of this refusal for longer
        self._judgement = judgement._replace(decision=exceeded(decision, over))
        self._cannot_dial(DialError(Reason.LIMIT_EXCEEDED, str(over)))
        return False

    def _grant_over(self, grant: "Grant") -> None:
        """End it because its grant has ended. Called from the loop."""
        by = deny(self._gate.sandbox.policy, Reason.EXPIRED)._replace(rules=(grant.rule,))
        self._end(Outcome.BLOCKED, by.reason, by, detail=f"the approval {grant.approval} has ended")

    def _may_read(self) -> bool:
        """Record a read from an untrusted source; False: that could not be recorded, so the connection has ended."""
        decision, record, sandbox = self._judgement.decision, self.record, self._gate.sandbox
        if sandbox.record_read(decision, self._judgement.attempt.target, record.wanted.port, record.event):
            return True
        by = deny(sandbox.policy, Reason.APPROVAL_UNAVAILABLE, decision)
        self._end(Outcome.BLOCKED, by.reason, by, detail=TAINT_NOT_RECORDED)
        return False

    def _review_allowed(self) -> None:
        """Continue under the rules and limits now in force, or end it."""
        sandbox = self._gate.sandbox
        judgement = decide_again(sandbox, self._judgement, can_inspect=self._can_inspect)
        problem = None
        if self.state is State.SPLICING and judgement.way is GateAction.SPLICE and self._hop is not None:
            problem = sandbox.policy.check_address(judgement.attempt, self._hop)
        if judgement.way is GateAction.SPLICE and problem is None:
            self._judgement = judgement
            if self._may_read():  # its source may be untrusted by now
                self._go_on()
            return
        # Also what may only go on while it is read: nobody knows what was sent on it before.
        reason = problem or (Reason.RULE if judgement.decision.outcome.passes else judgement.decision.reason)
        self._end(Outcome.BLOCKED, reason, deny(sandbox.policy, reason, judgement.decision))

    def _go_on(self) -> None:
        """Continue under the limits now in force, unless one is used up."""
        over = self._quota.go_on(self._judgement.decision.limits)
        if over is not None:
            by = exceeded(self._judgement.decision, over)
            self._end(Outcome.BLOCKED, by.reason, by, detail=str(over))

    def _cut(self, rule: str | None) -> None:
        """End it because a rule's limit is used up."""
        by = cut_by(self._judgement.decision, rule)
        self._end(Outcome.BLOCKED, by.reason, by)

    def _enter(self, state: State) -> None:
        self.state = NEXT_STATE[self.state, state]
