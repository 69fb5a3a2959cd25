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
from proxy.gate.decide import GateAction, decide_again, deny_before_dial, still_holds
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
    from proxy.gate.decide import GateDecision
    from proxy.gate.pending import Pending
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.decision import Decision

LIFETIME: Final = 24 * 3600.0  # seconds that a connection or a flow may live


class State(StrEnum):
    """State of a connection."""

    CLOSED = "closed"  # both sockets are closed, and its end is recorded
    ACCEPTED = "accepted"  # nothing of it has been read or decided
    PEEKING = "peeking"  # the gate waits for its first bytes, and consumes none
    DECIDING = "deciding"  # the policy decides; a denial waits here for the lookup of the process that opened it
    PENDING = "pending"  # an approval request is pending; nothing is read, dialed or recorded
    RESOLVING = "resolving"  # the checked name is looked up, and each of its addresses checked
    DIALING = "dialing"  # its decision is recorded, and an address is dialed
    SPLICING = "splicing"  # bytes are relayed in both directions
    INSPECTING = "inspecting"  # inspection serves it, or the block page of its denial


TRANSITIONS: Final = {
    State.CLOSED: (),
    State.ACCEPTED: (State.PEEKING, State.DECIDING, State.CLOSED),
    State.PEEKING: (State.DECIDING, State.CLOSED),
    State.DECIDING: (State.PENDING, State.RESOLVING, State.INSPECTING, State.CLOSED),
    State.PENDING: (State.DECIDING, State.CLOSED),  # after an answer the policy of that moment decides
    State.RESOLVING: (State.DECIDING, State.DIALING, State.CLOSED),  # other rules, or an address that may not be dialed
    State.DIALING: (State.SPLICING, State.CLOSED),
    State.SPLICING: (State.CLOSED,),
    State.INSPECTING: (State.CLOSED,),
}

# The component that a `gate.error` event names for an error in this state. An error while the policy decides is still
# `peek`, and `decide` is an error while the decided name is looked up: journals and alerts know these words.
COMPONENT_OF_STATE: Final = {
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


# By the present and the next state: the next state, if the transition is allowed. Raises TransitionError.
NEXT_STATE: Final = _Table({(state, each): each for state, following in TRANSITIONS.items() for each in following})


class GateState(Protocol):
    """The fields of `Gate` and `UdpGate` that a connection or flow uses."""

    sandbox: "SandboxState"
    dialer: "Dialer"
    clock: "Callable[[], float]"


class ManagedConnection[G: GateState](ABC):
    """One connection or flow. `_gate_decision` is set from the state DECIDING on."""

    __slots__ = (
        "_deadline",
        "_gate",
        "_gate_decision",
        "_hop",
        "_lease",
        "_pending",
        "_policy",
        "_quota",
        "record",
        "state",
    )  # fmt: skip
    _gate_decision: "GateDecision"

    def __init__(self, gate: G, record: "ConnectionRecord", state: State) -> None:
        self.state = state
        self.record = record
        self._gate = gate
        self._deadline = 0.0  # of the present state, by the gate's clock
        self._pending: Pending | None = None  # the approval request
        self._policy = gate.sandbox.policy  # that the decision was made under
        self._hop: Hop | None = None  # the address or proxy it is connected to
        self._quota = Quota(gate.sandbox.meters)
        self._lease: Lease | None = None  # on the grants that allow it

    def continue_with(self, gate_decision: "GateDecision") -> None:
        """Continue after an approval request; `gate_decision` needs no further approval."""
        self._pending = None
        self._gate_decision = gate_decision
        self._enter(State.DECIDING)
        self._apply_decision()

    def review(self) -> None:
        """Decide again: the rules, the date or the taint have changed. An allowed connection may end."""
        state = self.state
        if state is State.PENDING and self._pending is not None:
            self._pending.review()
        elif state is State.RESOLVING:
            self._enter(State.DECIDING)
            self._gate_decision = decide_again(self._gate.sandbox, self._gate_decision, can_inspect=self._can_inspect)
            self._apply_decision()
        elif state is State.DIALING or state is State.SPLICING:
            self._review_allowed()

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception. Never raises."""

    @property
    def _can_inspect(self) -> bool:
        """Whether inspection can serve it."""
        return False

    @abstractmethod
    def _record_and_reset_or_inspect(self) -> None:
        """Record a decision that dials nothing; then reset the connection, or hand it to inspection.

        Inspection also serves denied ones: their block page.
        """

    @abstractmethod
    def _dial(self, hops: "tuple[Hop, ...]") -> None:
        """Record the decision, and dial."""

    @abstractmethod
    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None, *, detail: str = "") -> None:
        """Close all sockets and record the end, once."""

    def _apply_decision(self) -> None:
        gate_decision = self._gate_decision
        if gate_decision.action is GateAction.SPLICE:
            self._resolve()
        elif gate_decision.decision.needs_approval and self._gate.sandbox.approvals is not None:
            self._request_approval()
        else:
            self._record_and_reset_or_inspect()

    def _request_approval(self) -> None:
        from proxy.gate.pending import Pending  # imported late: few connections need an approval

        gate = self._gate
        self._enter(State.PENDING)
        self._pending = Pending(
            self, self._gate_decision, gate.sandbox, gate.dialer, can_inspect=self._can_inspect, clock=gate.clock
        )
        self._pending.begin()

    def _resolve(self) -> None:
        """Look up the addresses to dial."""
        gate, gate_decision = self._gate, self._gate_decision
        if gate_decision.decision.verdict is Verdict.ASK or not gate_decision.decision.outcome.passes:
            raise RuntimeError("this attempt still needs an approval, so it must not be dialed")
        self._enter(State.RESOLVING)
        self._policy = policy = gate.sandbox.policy
        try:
            hops = gate.dialer.known(policy, gate_decision.attempt)
        except DialError as failure:
            self._deny_or_request_approval(failure)
            return
        if hops is not None:
            self._dial(hops)
            return
        self._deadline = gate.clock() + LOOKUP_TIMEOUT
        gate.dialer.find(policy, gate_decision.attempt, lambda found: self._handle_lookup_result(found, gate_decision))

    def _handle_lookup_result(self, found: "tuple[Hop, ...] | DialError", gate_decision: "GateDecision") -> None:
        """Continue with the result of the lookup for `gate_decision`; called from the loop."""
        if self.state is not State.RESOLVING or gate_decision is not self._gate_decision:
            return
        try:
            if not still_holds(self._gate.sandbox, gate_decision, self._policy):
                self.review()
            elif isinstance(found, DialError):
                self._deny_or_request_approval(found)
            else:
                self._dial(found)
        except Exception as error:  # noqa: BLE001 - no caller catches it
            self.failed(error)

    def _deny_or_request_approval(self, failure: DialError) -> None:
        """Deny an allowed connection before its dial, or submit an approval request for its address.

        `failure` says why: the lookup, the address, a grant that has ended, or a rule's limit that is used up.
        """
        gate_decision = deny_before_dial(
            self._gate.sandbox.policy, self._gate_decision, failure, can_inspect=self._can_inspect
        )
        self.record.set_denied_address(failure.address)
        self._enter(State.DECIDING)
        if failure.pending_decision is not None:
            gate_decision = gate_decision._replace(decision=failure.pending_decision)
        self._gate_decision = gate_decision
        self._apply_decision()

    def _count_against_limits(self) -> bool:
        """Count it against its grants and its rules' limits; False: one is exceeded, and it is denied."""
        gate_decision = self._gate_decision
        decision, grants = gate_decision.decision, gate_decision.grants
        if grants:
            self._lease = self._gate.sandbox.lease(grants, self._end_with_grant)
            if self._lease is None:
                self._deny_or_request_approval(DialError(Reason.EXPIRED, "its approval has ended"))
                return False
        over = self._quota.begin(decision.limits, budgets(grants))
        if over is None:
            return True
        if self._lease is not None:
            self._lease.end()  # inspection may serve the page of this refusal for longer
        self._gate_decision = gate_decision._replace(decision=exceeded(decision, over))
        self._deny_or_request_approval(DialError(Reason.LIMIT_EXCEEDED, str(over)))
        return False

    def _end_with_grant(self, grant: "Grant") -> None:
        """End it because its grant has ended. Called from the loop."""
        by = deny(self._gate.sandbox.policy, Reason.EXPIRED)._replace(rules=(grant.rule,))
        self._end(Outcome.BLOCKED, by.reason, by, detail=f"the approval {grant.approval} has ended")

    def _record_untrusted_read(self) -> bool:
        """Record a read from an untrusted source; False: that could not be recorded, so the connection has ended."""
        decision, record, sandbox = self._gate_decision.decision, self.record, self._gate.sandbox
        if sandbox.record_read(decision, self._gate_decision.attempt.target, record.destination.port, record.event):
            return True
        by = deny(sandbox.policy, Reason.APPROVAL_UNAVAILABLE, decision)
        self._end(Outcome.BLOCKED, by.reason, by, detail=TAINT_NOT_RECORDED)
        return False

    def _review_allowed(self) -> None:
        """Continue under the rules and limits now in force, or end it."""
        sandbox = self._gate.sandbox
        gate_decision = decide_again(sandbox, self._gate_decision, can_inspect=self._can_inspect)
        problem = None
        if self.state is State.SPLICING and gate_decision.action is GateAction.SPLICE and self._hop is not None:
            problem = sandbox.policy.check_address(gate_decision.attempt, self._hop)
        if gate_decision.action is GateAction.SPLICE and problem is None:
            self._gate_decision = gate_decision
            if self._record_untrusted_read():  # its source may be untrusted by now
                self._apply_changed_limits()
            return
        # Also ends a connection that must be inspected from now on: its earlier bytes were not inspected.
        reason = problem or (Reason.RULE if gate_decision.decision.outcome.passes else gate_decision.decision.reason)
        self._end(Outcome.BLOCKED, reason, deny(sandbox.policy, reason, gate_decision.decision))

    def _apply_changed_limits(self) -> None:
        """Continue under the limits now in force, unless one is used up."""
        over = self._quota.apply_limits(self._gate_decision.decision.limits)
        if over is not None:
            by = exceeded(self._gate_decision.decision, over)
            self._end(Outcome.BLOCKED, by.reason, by, detail=str(over))

    def _end_over_limit(self, rule: str | None) -> None:
        """End it because a rule's limit is used up."""
        by = cut_by(self._gate_decision.decision, rule)
        self._end(Outcome.BLOCKED, by.reason, by)

    def _enter(self, state: State) -> None:
        self.state = NEXT_STATE[self.state, state]
