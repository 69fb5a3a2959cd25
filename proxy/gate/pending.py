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
from proxy.telemetry.events import GONE
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.client import Ticket
    from proxy.approvals.protocol import Answer
    from proxy.dialing.dialer import Dialer
    from proxy.gate.decide import ConnectionDecision
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import SandboxState


class Owner(Protocol):
    """The connection or flow that waits for the approval."""

    record: "ConnectionRecord"

    def answered(self, judgement: "ConnectionDecision") -> None:
        """Continue with a decision that needs no approval, perhaps a denial. Called once."""

    def failed(self, error: Exception) -> None:
        """End it after an unexpected exception. Must not raise."""


class Pending:
    """One approval request, from its submission to a decision that needs no further approval."""

    __slots__ = (
        "_can_inspect", "_checking", "_clock", "_deadline", "_dialer", "_judgement", "_over", "_owner", "_rounds",
        "_sandbox", "_ticket",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        judgement: "ConnectionDecision",
        sandbox: "SandboxState",
        dialer: "Dialer",
        *,
        can_inspect: bool,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        self._owner = owner
        self._judgement = judgement
        self._sandbox = sandbox
        self._dialer = dialer
        self._can_inspect = can_inspect
        self._clock = clock
        self._ticket: Ticket | None = None
        self._rounds = 0
        self._checking: ConnectionDecision | None = None  # whose name is looked up
        self._deadline = 0.0
        self._over = False

    def begin(self) -> None:
        """Submit the request, unless an approval would open nothing."""
        self._checking = judgement = self._judgement
        self._deadline = self._clock() + LOOKUP_TIMEOUT
        preflight(
            self._dialer,
            self._sandbox.policy,
            judgement.attempt,
            judgement.decision,
            lambda failure: self._checked(judgement, failure),
        )

    def tick(self, now: float) -> None:
        """End a lookup that takes too long. The approvals client times out requests itself."""
        checking = self._checking
        if checking is not None and now >= self._deadline:
            self._checked(checking, DialError(Reason.UNRESOLVED, "the lookup took too long"))

    def review(self) -> None:
        """Decide under the rules now in force. The request stays if they need the same approval."""
        before = self._judgement
        self._judgement = decide_after_approval(self._sandbox, before, can_inspect=self._can_inspect)
        decision = self._judgement.decision
        if not decision.needs_approval:
            self._finish()
        elif self._ticket is None or decision.approval != before.decision.approval:
            self._drop_ticket()
            self.begin()

    def refuse(self, reason: Reason, detail: str = "") -> None:
        """Deny the connection: nobody has approved it."""
        if self._over:
            return
        approval = self._judgement.approval
        if self._ticket is not None:
            approval = self._ticket.approval or approval
        found = deny_unanswered(self._sandbox, self._judgement, reason, can_inspect=self._can_inspect)
        way = GateAction.RESET if detail is GONE or reason is Reason.GATE_ERROR else found.way
        self._judgement = found._replace(detail=detail, approval=approval, way=way)
        self._finish()

    def client_left(self) -> None:
        """Deny it: the client has ended its side, which can't be told from leaving."""
        self.refuse(Reason.APPROVAL_TIMEOUT, GONE)

    def drop(self) -> None:
        """Withdraw the request: the connection is closed. Idempotent."""
        self._over = True
        self._drop_ticket()

    def _checked(self, judgement: "ConnectionDecision", failure: DialError | None) -> None:
        """Continue with the check of the name's addresses; called from the loop, or directly."""
        if self._over or judgement is not self._checking:
            return
        self._checking = None
        try:
            if failure is None:
                self._put()
            else:
                self._owner.record.may_not_lead_to(failure.address)
                self._judgement = deny_before_asking(
                    self._sandbox, self._judgement, failure, can_inspect=self._can_inspect
                )
                self._finish()
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self._owner.failed(error)

    def _put(self) -> None:
        self._rounds += 1
        if self._rounds > ROUNDS:
            self.refuse(Reason.APPROVAL_UNAVAILABLE, "it needs too many approvals in a row")
            return
        judgement, asking = self._judgement, self._sandbox.approvals
        if asking is None:
            self.refuse(Reason.APPROVAL_UNAVAILABLE)
            return
        question = describe_connection(
            self._sandbox.sources, judgement.attempt, judgement.decision, self._owner.record.process
        )
        self._ticket = asking.submit(question, self._answered)

    def _answered(self, answer: "Answer") -> None:
        """Handle the approver's answer; called from the loop."""
        ticket, self._ticket = self._ticket, None
        if self._over:
            return
        try:
            known = "" if ticket is None else ticket.approval
            self._judgement = self._judgement._replace(approval=answer.approval or known)
            asking = self._sandbox.approvals
            if answer.result is Result.GRANTED and asking is not None:
                grants = asking.leases.grants(answer.approval, answer.grants)
                self._judgement = self._judgement._replace(grants=(*self._judgement.grants, *grants))
                self.review()
            else:
                self.refuse(reason_of(answer), answer.why)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self._owner.failed(error)

    def _finish(self) -> None:
        self.drop()
        self._owner.answered(self._judgement)

    def _drop_ticket(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.drop()
