"""Pending approval of a connection or UDP flow; after the answer the current policy decides again.

Home of invariant 2 for pending connections: an answer allows nothing by itself, and any error is a denial. Only a name
that a rule spells out is looked up before the request (`preflight`), so that no request is made in vain.
"""

import time
from typing import TYPE_CHECKING, Protocol

from proxy.approvals.approval_request import describe_connection
from proxy.approvals.protocol import ROUNDS, Result, reason_of
from proxy.dialing.address_check import DialError
from proxy.dialing.dialer import LOOKUP_TIMEOUT, preflight
from proxy.gate.decide import GateAction, decide_after_approval, deny_before_asking, deny_unanswered
from proxy.telemetry.events import CLIENT_LEFT
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.client import Ticket
    from proxy.approvals.protocol import Answer
    from proxy.dialing.dialer import Dialer
    from proxy.gate.decide import GateDecision
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import SandboxState


class Owner(Protocol):
    """The connection or flow that waits for the approval."""

    record: "ConnectionRecord"

    def continue_with(self, gate_decision: "GateDecision") -> None:
        """Continue with a decision that needs no approval, perhaps a denial. Called once."""

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception. Must not raise."""


class Pending:
    """One approval request, from its submission to a decision that needs no further approval."""

    __slots__ = (
        "_can_inspect", "_checking", "_clock", "_deadline", "_dialer", "_gate_decision", "_is_over", "_owner",
        "_rounds", "_sandbox", "_ticket",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        gate_decision: "GateDecision",
        sandbox: "SandboxState",
        dialer: "Dialer",
        *,
        can_inspect: bool,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        self._owner = owner
        self._gate_decision = gate_decision
        self._sandbox = sandbox
        self._dialer = dialer
        self._can_inspect = can_inspect
        self._clock = clock
        self._ticket: Ticket | None = None
        self._rounds = 0
        self._checking: GateDecision | None = None  # the one that the preflight runs for
        self._deadline = 0.0
        self._is_over = False

    def begin(self) -> None:
        """Submit the request, unless an approval would open nothing."""
        self._checking = gate_decision = self._gate_decision
        self._deadline = self._clock() + LOOKUP_TIMEOUT
        preflight(
            self._dialer,
            self._sandbox.policy,
            gate_decision.attempt,
            gate_decision.decision,
            lambda failure: self._handle_preflight(gate_decision, failure),
        )

    def tick(self, now: float) -> None:
        """End a lookup that takes too long. The approvals client times out requests itself."""
        checking = self._checking
        if checking is not None and now >= self._deadline:
            self._handle_preflight(checking, DialError(Reason.UNRESOLVED, "the lookup took too long"))

    def review(self) -> None:
        """Decide under the rules now in force. The request stays if they need the same approval."""
        before = self._gate_decision
        self._gate_decision = decide_after_approval(self._sandbox, before, can_inspect=self._can_inspect)
        decision = self._gate_decision.decision
        if not decision.needs_approval:
            self._finish()
        elif self._ticket is None or decision.approval != before.decision.approval:
            self._withdraw_ticket()
            self.begin()

    def deny(self, reason: Reason, detail: str = "") -> None:
        """Deny the connection, which was not approved."""
        if self._is_over:
            return
        approval = self._gate_decision.approval
        if self._ticket is not None:
            approval = self._ticket.approval or approval
        denial = deny_unanswered(self._sandbox, self._gate_decision, reason, can_inspect=self._can_inspect)
        action = GateAction.RESET if detail is CLIENT_LEFT or reason is Reason.GATE_ERROR else denial.action
        self._gate_decision = denial._replace(detail=detail, approval=approval, action=action)
        self._finish()

    def deny_after_client_end(self) -> None:
        """Deny it: the client has ended its side, perhaps for good."""
        self.deny(Reason.APPROVAL_TIMEOUT, CLIENT_LEFT)

    def withdraw(self) -> None:
        """Withdraw the request: the connection is closed. Idempotent."""
        self._is_over = True
        self._withdraw_ticket()

    def _handle_preflight(self, gate_decision: "GateDecision", failure: DialError | None) -> None:
        """Continue with the check of the name's addresses; called from the loop, or directly."""
        if self._is_over or gate_decision is not self._checking:
            return
        self._checking = None
        try:
            if failure is None:
                self._submit()
            else:
                self._owner.record.set_denied_address(failure.address)
                self._gate_decision = deny_before_asking(
                    self._sandbox, self._gate_decision, failure, can_inspect=self._can_inspect
                )
                self._finish()
        except Exception as error:  # noqa: BLE001 - no caller catches it
            self._owner.failed(error)

    def _submit(self) -> None:
        self._rounds += 1
        if self._rounds > ROUNDS:
            self.deny(Reason.APPROVAL_UNAVAILABLE, "it needs too many approvals in a row")
            return
        gate_decision, approvals = self._gate_decision, self._sandbox.approvals
        if approvals is None:
            self.deny(Reason.APPROVAL_UNAVAILABLE)
            return
        request = describe_connection(
            self._sandbox.sources, gate_decision.attempt, gate_decision.decision, self._owner.record.process
        )
        self._ticket = approvals.submit(request, self._handle_answer)

    def _handle_answer(self, answer: "Answer") -> None:
        """Handle the approver's answer; called from the loop."""
        ticket, self._ticket = self._ticket, None
        if self._is_over:
            return
        try:
            known = "" if ticket is None else ticket.approval
            self._gate_decision = self._gate_decision._replace(approval=answer.approval or known)
            approvals = self._sandbox.approvals
            if answer.result is Result.GRANTED and approvals is not None:
                grants = approvals.leases.grants(answer.approval, answer.grants)
                self._gate_decision = self._gate_decision._replace(grants=(*self._gate_decision.grants, *grants))
                self.review()
            else:
                self.deny(reason_of(answer), answer.why)
        except Exception as error:  # noqa: BLE001 - no caller catches it
            self._owner.failed(error)

    def _finish(self) -> None:
        self.withdraw()
        self._owner.continue_with(self._gate_decision)

    def _withdraw_ticket(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.drop()
