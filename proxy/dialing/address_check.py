"""Checks which addresses of an attempt may be dialed: allowed by the policy, and no service of this host. Pure.

A name or an address that a sandbox chose must lead to no service of this host (its public addresses, the gate's own
listeners, the upstream proxy), unless a rule opens that service (invariant 9).
"""

from typing import TYPE_CHECKING, Final

from rules.explain.reasons import NEEDED
from rules.values.addresses import why_not_public
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection

    from proxy.dns.lookup import LookupResult
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.matching.policy import Policy
    from rules.values.addresses import Address

_OWN_ADDRESS_ADVICE: Final = (
    f"no `resolves_to` opens this host's own public address: a service of this machine needs {NEEDED}"
)
_LISTENER_ADVICE: Final = "no rule can allow a port that Exeat itself listens on"


class DialError(Exception):
    """No connection could be made, or may be made; the texts say what is wrong and what to do next.

    `advice` is empty if the table of reasons has a remedy. `pending_decision`: a decision that needs an approval before
    the address may be dialed. `address`: the address that may not be dialed.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        advice: str = "",
        pending_decision: "Decision | None" = None,
        address: "Address | None" = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.advice = advice
        self.pending_decision = pending_decision
        self.address = address


class OwnEndpoints:
    """Addresses and ports outside sandboxes that Exeat listens on; an unspecified address means all of this host's."""

    __slots__ = ("_listeners", "_ports")

    def __init__(self, listeners: "Collection[tuple[Address, int]]" = ()) -> None:
        self._listeners = frozenset(listeners)
        self._ports = frozenset(port for _, port in self._listeners)  # faster to compare than addresses

    def dialable_addresses(
        self, policy: "Policy", attempt: "Attempt", found: "LookupResult", proxy: "LookupResult | None" = None
    ) -> "tuple[Address, ...]":
        """Return the addresses found that may be dialed. Raises DialError with the first one's reason.

        `proxy`: the addresses of the policy's upstream proxy, if the attempt is to the proxy's port.
        """
        target, port = attempt.target, attempt.port
        upstream = policy.settings.upstream
        first_error: DialError | None = None
        dialable: list[Address] = []
        for address in found.addresses:
            reason = policy.check_address(attempt, address)
            suffix = advice = ""
            may_open = (
                reason is None or reason is Reason.APPROVAL_UNAVAILABLE
            )  # don't request an approval for an address that stays closed
            if may_open and self._is_closed_own_address(target, address, port, found):
                reason, suffix = Reason.NON_PUBLIC_ADDRESS, ", which is this host's own"
                advice = _LISTENER_ADVICE if self._is_listener(address, port, found) else _OWN_ADDRESS_ADVICE
            elif (
                may_open
                and upstream is not None
                and proxy is not None
                and is_proxy(address, found.own, upstream.host, proxy)
            ):
                reason, suffix = Reason.NON_PUBLIC_ADDRESS, ", which is the proxy itself"
            if reason is None:
                dialable.append(address)
            elif first_error is None or (
                first_error.pending_decision is None and reason is Reason.APPROVAL_UNAVAILABLE
            ):
                pending_decision = policy.held_at(attempt, address) if reason is Reason.APPROVAL_UNAVAILABLE else None
                failure = DialError(reason, f"`{target}` is {address}{suffix}", advice, pending_decision, address)
                first_error = failure if first_error is None or pending_decision is not None else first_error
        if not dialable:
            raise first_error or DialError(Reason.UNRESOLVED, found.problem)
        return tuple(dialable)

    def _is_closed_own_address(
        self, target: "HostName | Address", address: "Address", port: int, found: "LookupResult"
    ) -> bool:
        """Whether the address belongs to this host and no rule opens it.

        Rules can't tell this host's public addresses from others, so a name never leads there. A rule that lists a
        non-public address, or names the address itself, opens it. No rule opens Exeat's own listeners.
        """
        if self._is_listener(address, port, found):
            return True
        if not found.own or address not in found.own:
            return False
        return isinstance(target, HostName) and why_not_public(address) is None

    def _is_listener(self, address: "Address", port: int, found: "LookupResult") -> bool:
        """Whether Exeat itself listens on this address and port."""
        if port not in self._ports:
            return False
        if (address, port) in self._listeners:
            return True
        # All of 127.0.0.0/8 belongs to this host, whichever source address the kernel picks.
        own = address in found.own or address.is_loopback
        return own and any(listener.is_unspecified and at == port for listener, at in self._listeners)


def is_proxy(
    target: "HostName | Address", own: "frozenset[Address]", host: "HostName | Address", proxy: "LookupResult"
) -> bool:
    """Whether `target` is the upstream proxy `host`; `own`: the target's addresses that belong to this host."""
    if target == host or target in proxy.addresses:
        return True
    if isinstance(target, HostName):
        return False
    proxy_is_local = any(address in proxy.own or address.is_loopback for address in proxy.addresses)
    return proxy_is_local and (target in own or target.is_loopback)


def deny_undialable(decision: "Decision", failure: DialError) -> "Decision":
    """Return the denial of an attempt that can't be dialed even if approved."""
    return decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=failure.reason, approval=())
