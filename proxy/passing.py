"""A connection that is passed through unread: its name looked up, its address checked, told, dialled, and relayed.

The address belongs to the decision: one that may not be dialled is a denial, so the decision is told between the lookup
and the dial. From there on every end gives one closing event.
"""

import time
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.concluding import conclude
from proxy.connecting import DialFailed
from proxy.deciding import failing, refuse
from proxy.dial import CONNECT_TIMEOUT
from proxy.relay import Relay, reset
from proxy.telemetry.events import Where
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    import socket

    from proxy.account import Account
    from proxy.connecting import Connecting
    from proxy.deciding import Judgement
    from proxy.gate import Gate
    from rules.addresses import Address

LOOKUP_TIMEOUT: Final = 15.0  # seconds, with the wait for a turn
LIFETIME: Final = 24 * 3600.0  # seconds


class _Stage(Enum):
    LOOKING_UP = Where.DECIDE
    DIALLING = Where.DIAL
    RELAYING = Where.RELAY
    OVER = Where.OTHER


class Passing:
    """One connection on its way through. Takes the client's socket over; in the poller it sleeps, if it is there."""

    __slots__ = (
        "_account", "_client", "_connecting", "_deadline", "_first", "_gate", "_judgement", "_moved", "_quiet_since",
        "_relay", "_stage",
    )  # fmt: skip

    def __init__(self, gate: "Gate", client: "socket.socket", account: "Account", judgement: "Judgement") -> None:
        self._gate = gate
        self._client = client
        self._account = account
        self._judgement = judgement
        self._stage = _Stage.LOOKING_UP
        self._first: Address | None = None  # of the addresses that are dialled
        self._connecting: Connecting | None = None
        self._relay: Relay | None = None
        self._deadline = self._quiet_since = 0.0
        self._moved = 0  # bytes that had been passed on when that was last looked at

    def begin(self) -> None:
        """Find the addresses."""
        gate, judgement = self._gate, self._judgement
        policy, attempt = gate.tenant.policy, judgement.attempt
        try:
            addresses = gate.dialer.known(policy, attempt)
        except DialFailed as failure:
            self._may_not(failure)
            return
        if addresses is not None:
            self._dial(addresses)
            return
        self._deadline = time.monotonic() + LOOKUP_TIMEOUT
        gate.dialer.find(policy, attempt, self._found)

    def tick(self, now: float) -> None:
        """Look at the time (time.monotonic())."""
        if self._stage is _Stage.RELAYING:
            self._tick_relay(now)
        elif now >= self._deadline:
            if self._stage is _Stage.LOOKING_UP:
                self._found(DialFailed(Reason.UNRESOLVED, "the lookup took too long"))
            else:
                self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)

    def abort(self) -> None:
        """End it now: the gate closes."""
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected."""
        self._account.error(self._stage.value, error)
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def _found(self, result: "tuple[Address, ...] | DialFailed") -> None:
        """Go on with what a lookup gave; called from the loop."""
        if self._stage is not _Stage.LOOKING_UP:
            return
        try:
            if isinstance(result, DialFailed):
                self._may_not(result)
            else:
                self._dial(result)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)

    def _may_not(self, failure: DialFailed) -> None:
        """Refuse it after all."""
        gate = self._gate
        can_inspect = gate.inspection is not None
        self._stage = _Stage.OVER
        judgement = failing(gate.tenant.policy, self._judgement, failure, can_inspect=can_inspect)
        conclude(gate, self, self._client, self._account, judgement)

    def _dial(self, addresses: "tuple[Address, ...]") -> None:
        account = self._account
        account.address = str(addresses[0])
        if not account.decided(self._judgement):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        self._first = addresses[0]
        self._stage = _Stage.DIALLING
        self._deadline = time.monotonic() + CONNECT_TIMEOUT
        self._connecting = self._gate.dialer.connect(addresses, account.wanted.port, self._connected)

    def _connected(self, far: "socket.socket | DialFailed", address: "Address | None") -> None:
        """Begin to pass on; called by the poller or the loop."""
        if isinstance(far, DialFailed):
            self._end(Outcome.FAILED, far.reason)
            return
        try:
            if address is not self._first:
                self._account.address = address
            self._quiet_since = time.monotonic()
            self._relay = Relay(self._gate.poller, self._gate.backlog, self._client, far, self._relayed)
            self._stage = _Stage.RELAYING
            self._relay.start()
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)
            reset(far)

    def _relayed(self, error: Exception | None) -> None:
        """Both sides are closed."""
        if error is not None:
            self.failed(error)
        elif self._relay is not None and self._relay.far_broke:
            self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED)
        else:
            self._end(Outcome.PASSED, None)

    def _tick_relay(self, now: float) -> None:
        relay = self._relay
        assert relay is not None
        moved = relay.up + relay.down
        if moved != self._moved:
            self._moved, self._quiet_since = moved, now
        idle = now - self._quiet_since >= self._judgement.decision.idle_timeout
        if idle or now - self._account.opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    def _end(self, outcome: Outcome, reason: Reason | None) -> None:
        """Close everything and tell, once."""
        if self._stage is _Stage.OVER:
            return
        self._stage = _Stage.OVER
        if self._connecting is not None:
            self._connecting.cancel()
        relay, account = self._relay, self._account
        up = down = 0
        if relay is None:
            self._gate.poller.forget(self._client.fileno())
            reset(self._client)
        else:
            relay.abort()
            up, down = relay.up, relay.down
        if not account.is_decided:
            account.decided(refuse(self._gate.tenant, account.wanted, reason or Reason.GATE_ERROR))
        account.ended(up, down, outcome, reason)
        self._gate.forget(self)
