"""A connection that waits for people: not a byte of it is read, nothing is dialled, nothing told yet.

Looked up is only a name that a rule spells out (`preflight`), so that nobody is asked in vain.

Home of invariant 2 for what is held. It leaves here decided: after each answer the policy of that moment decides
again, with what was granted and nothing else; whatever goes wrong is a refusal. A client that ends its side, also only
half of it, waits no more: nobody could tell it from one that is gone.
"""

import select
import time
from typing import TYPE_CHECKING, Final

from proxy.approvals.putting import GONE, ROUNDS, about_connection, reason_of
from proxy.approvals.wire import Result
from proxy.concluding import conclude
from proxy.deciding import Way, after_asking, in_vain, refuse, unanswered
from proxy.dialling.connecting import DialFailed
from proxy.passing import LOOKUP_TIMEOUT, Passing
from proxy.preflight import check
from proxy.relay import reset
from proxy.telemetry.events import Where
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket

    from proxy.account import Account
    from proxy.approvals.asking import Asking, Ticket
    from proxy.approvals.wire import Answer
    from proxy.deciding import Judgement
    from proxy.gate import Gate
    from proxy.rounds import Guest

_LEAVING: Final = select.EPOLLRDHUP  # and what comes unasked: ERR and HUP (epoll_ctl(2))


class Held:
    """One connection that rules ask about. Takes the client's socket over."""

    __slots__ = ("_account", "_asking", "_checking", "_client", "_deadline", "_gate", "_judgement", "_over", "_rounds",
                 "_ticket")  # fmt: skip

    def __init__(
        self, gate: "Gate", client: "socket.socket", account: "Account", judgement: "Judgement", asking: "Asking"
    ) -> None:
        self._gate = gate
        self._client = client
        self._account = account
        self._judgement = judgement
        self._asking = asking
        self._ticket: Ticket | None = None
        self._rounds = 0
        self._checking: Judgement | None = None  # whose name is looked up
        self._deadline = 0.0
        self._over = False

    def begin(self) -> None:
        """Ask, and watch out for the client."""
        self._gate.poller.watch(self._client.fileno(), _LEAVING, self)
        self._ask()

    def ready(self, _events: int) -> None:
        """Take note that the client has gone."""
        self._refuse(Reason.APPROVAL_TIMEOUT, GONE)

    def tick(self, now: float) -> None:
        """End a lookup that takes too long. An answer comes in time, or its lack is one (`asking`)."""
        checking = self._checking
        if checking is not None and now >= self._deadline:
            self._checked(checking, DialFailed(Reason.UNRESOLVED, "the lookup took too long"))

    def review(self) -> None:
        """Decide again: other rules are in force, it is another day, or the task has read something."""
        if not self._over:
            self._decide()

    def abort(self) -> None:
        """End it now: the gate closes."""
        self._refuse(Reason.GATE_ERROR)

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected. Never raises."""
        gate, account = self._gate, self._account
        self._over = True
        gate.poller.forget(self._client.fileno())
        reset(self._client)
        gate.forget(self)
        if self._ticket is not None:
            self._ticket.drop()
        account.error(Where.APPROVALS, error)
        if not account.is_decided:
            account.decided(refuse(gate.tenant, account.wanted, Reason.GATE_ERROR))

    def _ask(self) -> None:
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

    def _checked(self, judgement: "Judgement", failure: DialFailed | None) -> None:
        """Go on with what is known of a name's addresses; called from the loop, or from within."""
        if self._over or judgement is not self._checking:
            return
        self._checking = None
        try:
            if failure is None:
                self._put()
            else:
                self._account.may_not_lead_to(failure.address)
                can_inspect = self._gate.inspection is not None
                self._judgement = in_vain(self._gate.tenant, self._judgement, failure, can_inspect=can_inspect)
                self._leave()
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _put(self) -> None:
        self._rounds += 1
        if self._rounds > ROUNDS:
            self._refuse(Reason.APPROVAL_UNAVAILABLE, "there is no end of what is asked about it")
            return
        judgement = self._judgement
        question = about_connection(self._gate.tenant, judgement.attempt, judgement.decision, self._account.process)
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
                self._decide()
            else:
                self._refuse(reason_of(answer), answer.why)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _decide(self) -> None:
        """Decide under the rules of now. Where they ask the same as before the question stands."""
        gate, before = self._gate, self._judgement
        self._judgement = after_asking(gate.tenant, before, can_inspect=gate.inspection is not None)
        decision = self._judgement.decision
        if not decision.asks:
            self._leave()
        elif self._ticket is None:
            self._ask()
        elif decision.approval != before.decision.approval:
            self._ticket.drop()
            self._ticket = None
            self._ask()

    def _refuse(self, reason: Reason, detail: str = "") -> None:
        if self._over:
            return
        gate, approval = self._gate, self._judgement.approval
        if self._ticket is not None:
            approval = self._ticket.approval or approval
        found = unanswered(gate.tenant, self._judgement, reason, can_inspect=gate.inspection is not None)
        way = Way.RESET if detail is GONE or reason is Reason.GATE_ERROR else found.way
        self._judgement = found._replace(detail=detail, approval=approval, way=way)
        self._leave()

    def _leave(self) -> None:
        """Leave the stage to whoever carries out what was decided."""
        gate, client, account, judgement = self._gate, self._client, self._account, self._judgement
        self._over = True
        if self._ticket is not None:
            self._ticket.drop()
        gate.poller.forget(client.fileno())
        if judgement.way is not Way.SPLICE:
            conclude(gate, self, client, account, judgement)
            return
        passing = Passing(gate, client, account, judgement)
        gate.replace(self, passing)
        try:
            passing.begin()
        except Exception as error:  # noqa: BLE001 - it is its own affair from here on
            passing.failed(error)


def hold(gate: "Gate", guest: "Guest", client: "socket.socket", account: "Account", judgement: "Judgement") -> None:
    """Hold a connection that rules ask about in the place of `guest`; where nobody can be asked, refuse it."""
    asking = gate.tenant.asking
    if asking is None:
        conclude(gate, guest, client, account, judgement)
        return
    held = Held(gate, client, account, judgement, asking)
    gate.replace(guest, held)
    try:
        held.begin()
    except Exception as error:  # noqa: BLE001 - it is its own affair from here on
        held.failed(error)
