"""The approval of one connection: people are asked, and then the policy of that moment decides again.

Home of invariant 2 for pending connections: an answer allows nothing by itself, and whatever goes wrong is a refusal.
Only a name that a rule spells out is looked up before (`preflight`), so that nobody is asked in vain.
"""

import time
from typing import TYPE_CHECKING

from proxy.approvals.putting import GONE, ROUNDS, about_connection, reason_of
from proxy.approvals.wire import Result
from proxy.deciding import Way, after_asking, in_vain, unanswered
from proxy.dialling.connecting import DialFailed
from proxy.dialling.dial import LOOKUP_TIMEOUT
from proxy.preflight import check
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.approvals.asking import Asking, Ticket
    from proxy.approvals.wire import Answer
    from proxy.deciding import Judgement
    from proxy.gate.connection import Connection
    from proxy.gate.listener import Gate


class Pending:
    """One connection's approval request, from the first question to the judgement that needs no more."""

    __slots__ = ("_asking", "_checking", "_deadline", "_gate", "_judgement", "_of", "_over", "_rounds", "_ticket")

    def __init__(self, gate: "Gate", of: "Connection", judgement: "Judgement", asking: "Asking") -> None:
        """Ask about the connection `of`, which hears once of a judgement that asks nobody any more: `answered`."""
        self._gate = gate
        self._of = of
        self._judgement = judgement
        self._asking = asking
        self._ticket: Ticket | None = None
        self._rounds = 0
        self._checking: Judgement | None = None  # whose name is looked up
        self._deadline = 0.0
        self._over = False

    def begin(self) -> None:
        """Ask, unless an approval would open nothing."""
        gate = self._gate
        self._checking = judgement = self._judgement
        self._deadline = time.monotonic() + LOOKUP_TIMEOUT
        check(
            gate.dialer,
            gate.tenant.policy,
            judgement.attempt,
            judgement.decision,
            lambda failure: self._checked(judgement, failure),
        )

    def tick(self, now: float) -> None:
        """End a lookup that takes too long. An answer comes in time, or its lack is one (`asking`)."""
        checking = self._checking
        if checking is not None and now >= self._deadline:
            self._checked(checking, DialFailed(Reason.UNRESOLVED, "the lookup took too long"))

    def review(self) -> None:
        """Decide under the rules of now. Where they ask the same as before, the request stands."""
        gate, before = self._gate, self._judgement
        self._judgement = after_asking(gate.tenant, before, can_inspect=gate.inspection is not None)
        decision = self._judgement.decision
        if not decision.asks:
            self._finish()
        elif self._ticket is None or decision.approval != before.decision.approval:
            self._drop_ticket()
            self.begin()

    def refuse(self, reason: Reason, detail: str = "") -> None:
        """Refuse what nobody has approved."""
        if self._over:
            return
        gate, approval = self._gate, self._judgement.approval
        if self._ticket is not None:
            approval = self._ticket.approval or approval
        found = unanswered(gate.tenant, self._judgement, reason, can_inspect=gate.inspection is not None)
        way = Way.RESET if detail is GONE or reason is Reason.GATE_ERROR else found.way
        self._judgement = found._replace(detail=detail, approval=approval, way=way)
        self._finish()

    def client_left(self) -> None:
        """Refuse it: the client has ended its side. Only half of it counts, too: nobody could tell the difference."""
        self.refuse(Reason.APPROVAL_TIMEOUT, GONE)

    def drop(self) -> None:
        """Ask no more: the connection is closed. Idempotent."""
        self._over = True
        self._drop_ticket()

    def _checked(self, judgement: "Judgement", failure: DialFailed | None) -> None:
        """Go on with what is known of a name's addresses; called from the loop, or from within."""
        if self._over or judgement is not self._checking:
            return
        self._checking = None
        try:
            if failure is None:
                self._put()
            else:
                self._of.record.may_not_lead_to(failure.address)
                can_inspect = self._gate.inspection is not None
                self._judgement = in_vain(self._gate.tenant, self._judgement, failure, can_inspect=can_inspect)
                self._finish()
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self._of.failed(error)

    def _put(self) -> None:
        self._rounds += 1
        if self._rounds > ROUNDS:
            self.refuse(Reason.APPROVAL_UNAVAILABLE, "there is no end of what is asked about it")
            return
        judgement = self._judgement
        question = about_connection(self._gate.tenant, judgement.attempt, judgement.decision, self._of.record.process)
        self._ticket = self._asking.ask(question, self._answered)

    def _answered(self, answer: "Answer") -> None:
        """Go on with what people said; called from the loop."""
        ticket, self._ticket = self._ticket, None
        if self._over:
            return
        try:
            known = "" if ticket is None else ticket.approval
            self._judgement = self._judgement._replace(approval=answer.approval or known)
            if answer.result is Result.GRANTED:
                grants = self._asking.passes.grants(answer.approval, answer.grants)
                self._judgement = self._judgement._replace(grants=(*self._judgement.grants, *grants))
                self.review()
            else:
                self.refuse(reason_of(answer), answer.why)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self._of.failed(error)

    def _finish(self) -> None:
        self.drop()
        self._of.answered(self._judgement)

    def _drop_ticket(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.drop()
