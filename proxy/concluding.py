"""The end of deciding, where a connection isn't passed through: told, and then reset or handed to inspection."""

from typing import TYPE_CHECKING, Protocol

from proxy.admitted import Admitted
from proxy.deciding import Way, again, denied
from proxy.relay import reset
from proxy.telemetry.events import Where
from rules.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    import socket

    from proxy.account import Account
    from proxy.deciding import Judgement
    from proxy.gate import Gate
    from proxy.rounds import Guest
    from rules.decision import Decision


class Inspection(Protocol):
    """Who reads connections, and serves the page of those that are refused: `proxy.inspection`."""

    def adopt(self, admitted: Admitted) -> None:
        """Take a connection over, its socket with it."""
        ...

    def review(self, admitted: Admitted, decision: "Decision") -> None:
        """Go on under other rules, which say `decision` to a connection: it, or a request on it, may have to end."""
        ...


def conclude(gate: "Gate", guest: "Guest", client: "socket.socket", account: "Account", judgement: "Judgement") -> None:
    """Tell `judgement` and carry it out in the place of `guest`."""
    inspection = gate.inspection
    gate.poller.forget(client.fileno())
    account.said = b""  # inspection reads it, and judges what it has read
    if judgement.way is Way.INSPECT and isinstance(judgement.attempt.target, HostName):
        account.address = None  # the name will be dialled; the address that the task chose never is (invariant 3)
    told = account.decided(judgement)
    if not told or judgement.way is Way.RESET or inspection is None:
        reset(client)
        account.ended(0, 0, Outcome.FAILED, judgement.decision.reason)  # says nothing unless it was let out
        gate.forget(guest)
        return
    handed = Handed(gate, account)
    gate.replace(guest, handed)
    admitted = Admitted(
        tenant=gate.tenant,
        client=client,
        peer=account.peer,
        target=judgement.attempt.target,
        port=account.wanted.port,
        protocol=judgement.attempt.protocol,
        hello=judgement.hello,
        decision=judgement.decision,
        event=account.event,
        opened=account.opened,
        closed=handed.closed,
        whose=account.whose,
        detail=judgement.detail,
        advice=judgement.advice,
        approval=judgement.approval,
        leads_to=account.leads_to,
    )
    handed.admitted = admitted
    try:
        inspection.adopt(admitted)
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing goes out
        account.error(Where.INSPECTION, error)
        reset(client)
        handed.closed(0, 0, Reason.GATE_ERROR)


class Handed:
    """A connection that inspection has: counted until it says that it is closed."""

    __slots__ = ("_account", "_by", "_gate", "_over", "admitted")

    def __init__(self, gate: "Gate", account: "Account") -> None:
        self._gate = gate
        self._account = account
        self._over = False
        self._by: Decision | None = None  # the later decision that ends it
        self.admitted: Admitted | None = None

    def closed(self, up: int, down: int, reason: Reason | None) -> None:
        """Take note of the end. Only the first time counts."""
        if not self._over:
            self._over = True
            if self._by is not None:
                self._account.ended(up, down, Outcome.BLOCKED, self._by.reason, self._by)
            else:
                self._account.ended(up, down, Outcome.PASSED if reason is None else Outcome.FAILED, reason)
            self._gate.forget(self)

    def review(self) -> None:
        """Decide again, and have inspection end it, or what is asked on it, if the rules don't let it out any more."""
        inspection, told = self._gate.inspection, self._account.judgement
        if self._over or inspection is None or self.admitted is None or told is None or not told.decision.passes:
            return  # a refused connection only shows its page
        self._go_on(inspection, self.admitted, again(self._gate.tenant, told, can_inspect=True).decision)

    def _go_on(self, inspection: Inspection, admitted: Admitted, decision: "Decision") -> None:
        if not decision.passes:
            self._by = decision
        inspection.review(admitted, decision)

    def tick(self, now: float) -> None:
        """Do nothing: inspection has its own clocks."""

    def abort(self) -> None:
        """Do nothing: inspection ends its own."""

    def failed(self, error: Exception) -> None:
        """End it, and tell of an exception that nobody expected."""
        self._account.error(Where.INSPECTION, error)
        inspection = self._gate.inspection
        if not self._over and inspection is not None and self.admitted is not None:
            self._go_on(inspection, self.admitted, denied(self._gate.tenant.policy, Reason.GATE_ERROR))
