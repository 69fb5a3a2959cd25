"""A connection that is passed through unread: its name looked up, its address checked, told, dialled, and relayed.

The address belongs to the decision: one that may not be dialled is a denial, so the decision is told between the lookup
and the dial. From there on every end gives one closing event.
"""

import time
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.concluding import conclude
from proxy.deciding import Way, again, denied, failing, holds, refuse
from proxy.dialling.connecting import DialFailed
from proxy.dialling.dial import CONNECT_TIMEOUT, NO_ANSWER
from proxy.limits import Quota, budgets, cut_by, exceeded
from proxy.relay import Relay, reset
from proxy.telemetry.events import Where
from rules.verdicts import Outcome, Reason, Trust

if TYPE_CHECKING:
    import socket

    from proxy.account import Account
    from proxy.approvals.passes import Grant, Lease
    from proxy.deciding import Judgement
    from proxy.dialling.connecting import Connecting, Hop
    from proxy.dialling.through import Through
    from proxy.gate import Gate
    from rules.decision import Decision

LOOKUP_TIMEOUT: Final = 15.0  # seconds, with the wait for a turn
LIFETIME: Final = 24 * 3600.0  # seconds
UNNOTED: Final = "that the task reads from an untrusted source could not be kept"


class _Stage(Enum):
    LOOKING_UP = Where.DECIDE
    DIALLING = Where.DIAL
    RELAYING = Where.RELAY
    OVER = Where.OTHER


class Passing:
    """One connection on its way through. Takes the client's socket over; in the poller it sleeps, if it is there."""

    __slots__ = (
        "_account", "_client", "_connecting", "_deadline", "_first", "_gate", "_judgement", "_lease", "_moved",
        "_policy", "_quiet_since", "_quota", "_relay", "_stage",
    )  # fmt: skip

    def __init__(self, gate: "Gate", client: "socket.socket", account: "Account", judgement: "Judgement") -> None:
        self._gate = gate
        self._client = client
        self._account = account
        self._judgement = judgement
        self._stage = _Stage.LOOKING_UP
        self._policy = gate.tenant.policy  # which let out, and checked the addresses
        self._first: Hop | None = None  # of the addresses that are dialled; then the one that it leads to
        self._connecting: Connecting | Through | None = None
        self._relay: Relay | None = None
        self._quota = Quota(gate.tenant.meters)
        self._lease: Lease | None = None  # where it passes under grants
        self._deadline = self._quiet_since = 0.0
        self._moved = 0  # bytes that had been passed on when that was last looked at

    def begin(self) -> None:
        """Find the addresses."""
        gate, judgement = self._gate, self._judgement
        if not judgement.decision.lets_out:
            raise RuntimeError("this is still to be asked about, and nothing of it may be passed on")
        self._policy = policy = gate.tenant.policy
        attempt = judgement.attempt
        try:
            addresses = gate.dialer.known(policy, attempt)
        except DialFailed as failure:
            self._may_not(failure)
            return
        if addresses is not None:
            self._dial(addresses)
            return
        self._deadline = time.monotonic() + LOOKUP_TIMEOUT
        gate.dialer.find(policy, attempt, lambda found: self._found(found, judgement))

    def tick(self, now: float) -> None:
        """Look at the time (time.monotonic())."""
        if self._stage is _Stage.RELAYING:
            self._tick_relay(now)
        elif now >= self._deadline:
            if self._stage is _Stage.LOOKING_UP:
                self._found(DialFailed(Reason.UNRESOLVED, "the lookup took too long"), self._judgement)
            else:
                self._end(Outcome.FAILED, Reason.UPSTREAM_FAILED, detail=NO_ANSWER)

    def abort(self) -> None:
        """End it now: the gate closes."""
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def failed(self, error: Exception) -> None:
        """End it after an exception that nobody expected."""
        self._account.error(self._stage.value, error)
        self._end(Outcome.FAILED, Reason.GATE_ERROR)

    def review(self) -> None:
        """Decide again. What has not been told yet is simply decided anew; what was let out may have to end."""
        gate = self._gate
        if self._stage is _Stage.OVER:
            return
        judgement = again(gate.tenant, self._judgement, can_inspect=gate.inspection is not None)
        if self._stage is _Stage.LOOKING_UP:
            self._judgement = judgement
            if judgement.way is Way.SPLICE:
                self.begin()
                return
            self._stage = _Stage.OVER
            if judgement.decision.asks:
                from proxy.held import hold  # few are

                hold(gate, self, self._client, self._account, judgement)
            else:
                conclude(gate, self, self._client, self._account, judgement)
            return
        problem = None
        if self._stage is _Stage.RELAYING and judgement.way is Way.SPLICE and self._first is not None:
            problem = gate.tenant.policy.check_address(judgement.attempt, self._first)
        if judgement.way is Way.SPLICE and problem is None:
            self._judgement = judgement
            self._count_anew()
            return
        # Also what may only go on while it is read: nobody knows what was said on it before.
        reason = problem or (Reason.RULE if judgement.decision.passes else judgement.decision.reason)
        by = denied(gate.tenant.policy, reason, judgement.decision)
        self._end(Outcome.BLOCKED, reason, by)

    def _found(self, result: "tuple[Hop, ...] | DialFailed", judgement: "Judgement") -> None:
        """Go on with what a lookup for `judgement` gave; called from the loop."""
        if self._stage is not _Stage.LOOKING_UP or judgement is not self._judgement:
            return
        try:
            if not holds(self._gate.tenant, self._judgement, self._policy):
                self.review()
            elif isinstance(result, DialFailed):
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
        self._account.may_not_lead_to(failure.address)
        if failure.held is not None:
            from proxy.held import hold  # few are

            hold(gate, self, self._client, self._account, judgement._replace(decision=failure.held))
            return
        conclude(gate, self, self._client, self._account, judgement)

    def _is_within_limits(self) -> bool:
        """Count it against the limits of its rules; False: one of them is used up, and that was told."""
        judgement = self._judgement
        if judgement.grants and not self._enter(judgement.grants):
            return False
        over = self._quota.begin(judgement.decision.limits, budgets(judgement.grants))
        if over is None:
            return True
        self._judgement = judgement._replace(decision=exceeded(judgement.decision, over))
        self._may_not(DialFailed(Reason.LIMIT_EXCEEDED, str(over)))
        return False

    def _enter(self, grants: "tuple[Grant, ...]") -> bool:
        """Pass under grants until the first of them ends; False: one has already, and that was told."""
        self._lease = self._gate.tenant.lease(grants, self._grant_over)
        if self._lease is None:
            self._may_not(DialFailed(Reason.EXPIRED, "its approval has ended meanwhile"))
        return self._lease is not None

    def _grant_over(self, grant: "Grant") -> None:
        """End it: its grant has ended. Called from the loop."""
        by = denied(self._gate.tenant.policy, Reason.EXPIRED)._replace(rules=(grant.rule,))
        self._end(Outcome.BLOCKED, by.reason, by, detail=f"the approval {grant.approval} has ended")

    def _count_anew(self) -> None:
        """Go on under the limits of the rules that are in force now."""
        over = self._quota.go_on(self._judgement.decision.limits)
        if over is not None:
            by = exceeded(self._judgement.decision, over)
            self._end(Outcome.BLOCKED, by.reason, by, detail=str(over))
            return
        if self._relay is not None:
            self._relay.count(self._quota.meter)

    def _dial(self, addresses: "tuple[Hop, ...]") -> None:
        account = self._account
        if not self._is_within_limits():
            return
        account.leads_to(addresses[0])
        judgement, tenant = self._judgement, self._gate.tenant
        if not account.decided(judgement):
            self._end(Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            return
        decision, target = judgement.decision, judgement.attempt.target
        if decision.trust is not Trust.TRUSTED and not tenant.reads(
            decision, target, account.wanted.port, account.event
        ):
            by = denied(tenant.policy, Reason.APPROVAL_UNAVAILABLE, decision)
            self._end(Outcome.BLOCKED, by.reason, by, detail=UNNOTED)
            return
        self._first = addresses[0]
        self._stage = _Stage.DIALLING
        self._deadline = time.monotonic() + CONNECT_TIMEOUT
        connecting = self._gate.dialer.connect(addresses, account.wanted.port, self._connected, at_once=True)
        self._connecting = connecting
        there = connecting.take()
        if there is not None:
            self._connected(*there)

    def _connected(self, far: "socket.socket | DialFailed", address: "Hop | None") -> None:
        """Begin to pass on; called by the poller or the loop."""
        if isinstance(far, DialFailed):
            self._end(Outcome.FAILED, far.reason, detail=far.detail)
            return
        try:
            if address is not None and address is not self._first:
                self._first = address
                self._account.leads_to(address)
            self._quiet_since = time.monotonic()
            gate = self._gate
            self._relay = Relay(gate.poller, gate.backlog, self._client, far, self._relayed, meter=self._quota.meter)
            self._stage = _Stage.RELAYING
            if not holds(gate.tenant, self._judgement, self._policy):
                self.review()  # before a byte leaves
            if not self._relay.done:
                said, self._account.said = self._account.said, b""
                self._relay.start(said)
        except Exception as error:  # noqa: BLE001 - there is nobody above to catch it
            self.failed(error)
            reset(far)

    def _relayed(self, error: Exception | None) -> None:
        """Both sides are closed."""
        if error is not None:
            self.failed(error)
        elif self._relay is not None and self._relay.over_limit:
            self._cut(self._quota.rule_over())
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
        if rule := self._quota.rule_over():
            self._cut(rule)
        elif idle or now - self._account.opened >= LIFETIME:
            self._end(Outcome.PASSED, Reason.LIMIT_EXCEEDED)

    def _cut(self, rule: str | None) -> None:
        """End it because a rule's limit is used up."""
        by = cut_by(self._judgement.decision, rule)
        self._end(Outcome.BLOCKED, by.reason, by)

    def _end(self, outcome: Outcome, reason: Reason | None, by: "Decision | None" = None, *, detail: str = "") -> None:
        """Close everything and tell, once; whatever goes wrong with the rest of it, nothing passes any more."""
        if self._stage is _Stage.OVER:
            return
        self._stage = _Stage.OVER
        up, down = self._close()
        account = self._account
        try:
            if self._connecting is not None:
                self._connecting.cancel()
            self._quota.end()
            if self._lease is not None:
                self._lease.end()
        finally:
            if not account.is_decided:
                account.decided(refuse(self._gate.tenant, account.wanted, reason or Reason.GATE_ERROR))
            account.ended(up, down, outcome, reason, by, detail)
            self._gate.forget(self)

    def _close(self) -> tuple[int, int]:
        """Close both sockets; returns how many bytes went up and down."""
        relay = self._relay
        if relay is None:
            self._gate.poller.forget(self._client.fileno())
            reset(self._client)
            return 0, 0
        if not relay.done:
            relay.abort()
        return relay.up, relay.down
