"""Checks which addresses of an attempt may be dialed: allowed by the policy, and no service of this host. Pure.

A name or an address that a sandbox chose must lead to no service of this host (its public addresses, the gate's own
listeners, the upstream proxy), unless a rule opens that service (invariant 9).
"""

from typing import TYPE_CHECKING, Final

from rules.addresses import why_not_public
from rules.explain.reasons import NEEDED
from rules.names import HostName
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection

    from proxy.dns.lookup import LookupResult
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.matching.policy import Policy

_OWN: Final = f"no `resolves_to` opens this host's own public address: a service of this machine needs {NEEDED}"
_LISTENER: Final = "no rule opens what exeat itself listens on"


class DialError(Exception):
    """No connection could be made, or may be made; the texts say what is wrong and what to do next.

    `advice` is empty where the table of reasons has a remedy. `held`: the decision that needs an approval before the
    address may be dialed. `address`: the address that may not be dialed.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        advice: str = "",
        held: "Decision | None" = None,
        address: "Address | None" = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.advice = advice
        self.held = held
        self.address = address


class OwnEndpoints:
    """Addresses and ports outside sandboxes that Exeat listens on; an unspecified address means all of this host's."""

    __slots__ = ("_listeners", "_ports")

    def __init__(self, listeners: "Collection[tuple[Address, int]]" = ()) -> None:
        self._listeners = frozenset(listeners)
        self._ports = frozenset(port for _, port in self._listeners)  # compared sooner than an address

    def may_dial(
        self, policy: "Policy", attempt: "Attempt", found: "LookupResult", proxy: "LookupResult | None" = None
    ) -> "tuple[Address, ...]":
        """Return the addresses found that may be dialed. Raises DialError with the first one's reason.

        `proxy`: the addresses of the policy's upstream proxy, if the attempt is to the proxy's port.
        """
        target, port = attempt.target, attempt.port
        upstream = policy.settings.upstream
        first: DialError | None = None
        good: list[Address] = []
        for address in found.addresses:
            reason = policy.check_address(attempt, address)
            which = advice = ""
            opens = reason is None or reason is Reason.APPROVAL_UNAVAILABLE  # nobody is asked about what stays shut
            if opens and self._is_ours(target, address, port, found):
                reason, which = Reason.NON_PUBLIC_ADDRESS, ", which is this host's own"
                advice = _LISTENER if self._is_listener(address, port, found) else _OWN
            elif (
                opens
                and upstream is not None
                and proxy is not None
                and is_proxy(address, found.own, upstream.host, proxy)
            ):
                reason, which = Reason.NON_PUBLIC_ADDRESS, ", which is the proxy itself"
            if reason is None:
                good.append(address)
            elif first is None or (first.held is None and reason is Reason.APPROVAL_UNAVAILABLE):
                held = policy.held_at(attempt, address) if reason is Reason.APPROVAL_UNAVAILABLE else None
                failure = DialError(reason, f"`{target}` is {address}{which}", advice, held, address)
                first = failure if first is None or held is not None else first
        if not good:
            raise first or DialError(Reason.UNRESOLVED, found.problem)
        return tuple(good)

    def _is_ours(self, target: "HostName | Address", address: "Address", port: int, found: "LookupResult") -> bool:
        """Whether the address is this host's own and no rule opens it.

        To the rules its public addresses look like any other, so a name never leads there. A rule that lists a
        non-public address, or names the address itself, opens it. No rule opens Exeat's own listeners.
        """
        if self._is_listener(address, port, found):
            return True
        if not found.own or address not in found.own:
            return False
        return isinstance(target, HostName) and why_not_public(address) is None

    def _is_listener(self, address: "Address", port: int, found: "LookupResult") -> bool:
        """Whether Exeat itself listens there."""
        if port not in self._ports:
            return False
        if (address, port) in self._listeners:
            return True
        # All of 127.0.0.0/8 is this host's, whatever source the kernel picks for it.
        own = address in found.own or address.is_loopback
        return own and any(listener.is_unspecified and at == port for listener, at in self._listeners)


def is_proxy(
    target: "HostName | Address", own: "frozenset[Address]", host: "HostName | Address", proxy: "LookupResult"
) -> bool:
    """Whether `target`, is the upstream proxy `host`; `own`: its addresses of this host."""
    if target == host or target in proxy.addresses:
        return True
    if isinstance(target, HostName):
        return False
    here = any(address in proxy.own or address.is_loopback for address in proxy.addresses)
    return here and (target in own or target.is_loopback)


def deny_undialable(decision: "Decision", failure: DialError) -> "Decision":
    """Return the denial of an attempt that can't be dialed even if approved."""
    return decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=failure.reason, approval=())
