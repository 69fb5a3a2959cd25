"""The end of deciding, where a connection isn't passed through: told, and then reset or handed to inspection."""

from typing import TYPE_CHECKING, Protocol

from proxy.admitted import Admitted
from proxy.deciding import Way
from proxy.relay import reset
from proxy.telemetry.events import Where
from rules.names import HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    import socket

    from proxy.account import Account
    from proxy.deciding import Judgement
    from proxy.gate import Gate, Guest


class Inspection(Protocol):
    """Who reads connections, and serves the page of those that are refused: `proxy.inspection`."""

    def adopt(self, admitted: Admitted) -> None:
        """Take a connection over, its socket with it."""
        ...


def conclude(gate: "Gate", guest: "Guest", client: "socket.socket", account: "Account", judgement: "Judgement") -> None:
    """Tell `judgement` and carry it out in the place of `guest`."""
    inspection = gate.inspection
    gate.poller.forget(client.fileno())
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
    )
    try:
        inspection.adopt(admitted)
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing goes out
        account.error(Where.INSPECTION, error)
        reset(client)
        handed.closed(0, 0, Reason.GATE_ERROR)


class Handed:
    """A connection that inspection has: counted until it says that it is closed."""

    __slots__ = ("_account", "_gate", "_over")

    def __init__(self, gate: "Gate", account: "Account") -> None:
        self._gate = gate
        self._account = account
        self._over = False

    def closed(self, up: int, down: int, reason: Reason | None) -> None:
        """Take note of the end. Only the first time counts."""
        if not self._over:
            self._over = True
            self._account.ended(up, down, Outcome.PASSED if reason is None else Outcome.FAILED, reason)
            self._gate.forget(self)

    def tick(self, now: float) -> None:
        """Do nothing: inspection has its own clocks."""

    def abort(self) -> None:
        """Do nothing: inspection ends its own."""

    def failed(self, error: Exception) -> None:
        """Tell of it."""
        self._account.error(Where.INSPECTION, error)
