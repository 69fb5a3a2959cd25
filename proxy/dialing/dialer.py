"""Dialer: looks up the checked name, checks each address, and connects to one of them.

Home of invariants 3 and 9, together with `address_check` and `Policy.check_address`: the dialer only dials addresses
that it looked up for the checked name, or that a rule names. All connections to the outside are made here. This module
must never take an address from a sandbox. Where the rules have an upstream proxy, the proxy gets the name, and both
invariants end there; a proxy that fails is never bypassed.

`preflight` checks before an approval request whether an approval would let the attempt through at all. It looks up a
name that a rule spells out, and checks the addresses as if everything were approved. It doesn't look up a name under a
wildcard: the task chose that name, and a lookup would send it out before anybody approves.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError, OwnEndpoints, is_proxy
from proxy.dialing.connect_race import ConnectRace
from proxy.dns.lookup import LookupResult, source_for
from proxy.sandbox.sandbox_state import DescriptorQuota
from rules.attempt import Protocol
from rules.settings import ProxyDestination
from rules.values.names import HostName
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from proxy.dialing.connect_race import Done, Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.dialing.proxy_connector import ProxyConnector
    from proxy.dns.lookup import Lookup
    from proxy.event_loop.poller import Poller
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.matching.policy import Policy
    from rules.settings import Upstream
    from rules.values.addresses import Address

LOOKUP_TIMEOUT: Final = 15.0  # seconds, including the wait for a free slot
CONNECT_TIMEOUT: Final = 15.0  # seconds for all addresses together, including a proxy's handshake
NO_ANSWER: Final = f"no answer within {CONNECT_TIMEOUT:.0f} seconds"
_EMPTY_RESULT: Final = LookupResult()
_MOST_CHECKED: Final = 64  # checks cached for one lookup result; the cache saves a third of a connection's CPU time


class Dialer:
    """Looks up, checks and connects to targets. For one thread.

    `forbidden`: addresses and ports that Exeat itself listens on outside sandboxes; an unspecified address means all of
    this host's. `login`: credentials for the upstream proxy.
    """

    __slots__ = ("_lookup", "_metrics", "_own", "_proxies", "descriptors", "login", "poller")

    def __init__(
        self,
        lookup: "Lookup",
        poller: "Poller",
        *,
        forbidden: "Collection[tuple[Address, int]]" = (),
        metrics: "Metrics | None" = None,
        descriptors: DescriptorQuota | None = None,
    ) -> None:
        self._lookup = lookup
        self.descriptors = descriptors or DescriptorQuota()
        self._own = OwnEndpoints(forbidden)
        self._metrics = metrics
        self._proxies: dict[HostName | Address, LookupResult] = {}  # last lookup result of the upstream proxy
        self.login: Login | None = None
        self.poller = poller

    def known(self, policy: "Policy", attempt: "Attempt") -> "tuple[Hop, ...] | None":
        """Return the addresses to dial for `attempt`, best first; None: call `find` to look them up.

        Raises DialError when there is none.
        """
        upstream = policy.settings.upstream
        if upstream is not None:
            if attempt.port == upstream.port and not self._cache_proxy(upstream):
                return None  # without the proxy's addresses, the target can't be told from the proxy
            if route := self._proxy_route(policy, attempt, upstream):
                return route
        target = attempt.target
        if not isinstance(target, HostName):
            return self._dialable_addresses(policy, attempt, _literal_result(target))
        found = self._lookup.known(target)
        return None if found is None else self._dialable_addresses(policy, attempt, found)

    def find(self, policy: "Policy", attempt: "Attempt", done: "Callable[[tuple[Hop, ...] | DialError], None]") -> None:
        """Look the name up; `done` is called once with the addresses to dial, or with the error."""
        upstream = policy.settings.upstream
        if upstream is None or attempt.port != upstream.port or not isinstance(upstream.host, HostName):
            self._look_up(policy, attempt, done)
            return

        def proxy_found(found: LookupResult) -> None:
            assert upstream is not None
            self._proxies[upstream.host] = found
            self._look_up(policy, attempt, done)

        self._lookup.ask(upstream.host, proxy_found)

    def _look_up(
        self, policy: "Policy", attempt: "Attempt", done: "Callable[[tuple[Hop, ...] | DialError], None]"
    ) -> None:
        began = time.monotonic()

        def looked_up(found: LookupResult) -> None:
            try:
                hops = self._find_hops(policy, attempt, found)
            except DialError as failure:
                if self._metrics is not None:  # a successful lookup is counted when its connection succeeds or fails
                    self._metrics.dialled(failure.reason, time.monotonic() - began)
                done(failure)
            except Exception as error:  # noqa: BLE001 - a bug of ours: nowhere is safe to dial
                problem = {"message": "addresses could not be checked", "exception": error}
                asyncio.get_running_loop().call_exception_handler(problem)
                done(DialError(Reason.GATE_ERROR, f"{type(error).__name__}: {error}"))
            else:
                done(hops)

        target = attempt.target
        if not isinstance(target, HostName):
            looked_up(_literal_result(target))
        elif policy.upstream_for(attempt) is not None:
            looked_up(_EMPTY_RESULT)  # the proxy looks the name up
        else:
            self._lookup.ask(target, looked_up)

    def connect(
        self, addresses: "tuple[Hop, ...]", port: int, done: "Done", *, at_once: bool = False
    ) -> "ConnectRace | ProxyConnector":
        """Connect to one of `addresses` from `addresses` or `find`; `done` is called once, never before this returns.

        The caller sets the deadline and calls `cancel` on the result. With `at_once` it also calls `take`.
        """
        if addresses and isinstance(addresses[0], ProxyDestination):
            from proxy.dialing.proxy_connector import ProxyConnector  # imported only with an upstream proxy

            return ProxyConnector(
                self.poller, self._lookup, addresses[0], port, done,
                login=self.login, metrics=self._metrics, descriptors=self.descriptors,
            )  # fmt: skip
        direct = [address for address in addresses if not isinstance(address, ProxyDestination)]
        return ConnectRace(
            self.poller, direct, port, done, self._metrics, at_once=at_once, descriptors=self.descriptors
        )

    def _find_hops(self, policy: "Policy", attempt: "Attempt", found: LookupResult) -> "tuple[Hop, ...]":
        """Return the checked addresses to dial once the lookup is done. Raises DialError."""
        upstream = policy.settings.upstream
        if upstream is not None:
            proxy = self._proxies.get(upstream.host, _EMPTY_RESULT)
            if attempt.port == upstream.port and isinstance(upstream.host, HostName) and not proxy.addresses:
                why = f"whether this is the proxy `{upstream}` can't be told: {proxy.problem}"
                raise DialError(Reason.UPSTREAM_FAILED, why)
            if route := self._proxy_route(policy, attempt, upstream):
                return route
        return self._dialable_addresses(policy, attempt, found)

    def _proxy_route(
        self, policy: "Policy", attempt: "Attempt", upstream: "Upstream"
    ) -> "tuple[ProxyDestination] | None":
        """Return the hop through the upstream proxy; None: bypass it. Raises DialError if it can't be used."""
        if policy.upstream_for(attempt) is None:
            return None
        target = attempt.target
        if attempt.protocol is Protocol.UDP:
            raise DialError(Reason.UDP, f"UDP can't go through the proxy `{upstream}`")
        if target == upstream.host or not isinstance(target, HostName):
            own = _EMPTY_RESULT.own if isinstance(target, HostName) else _literal_result(target).own
            proxy = self._proxies.get(upstream.host, _EMPTY_RESULT)
            if attempt.port == upstream.port and is_proxy(target, own, upstream.host, proxy):
                raise DialError(Reason.NON_PUBLIC_ADDRESS, f"`{target}` is the proxy itself")
        return (ProxyDestination(upstream, target),)

    def _cache_proxy(self, upstream: "Upstream") -> bool:
        """Store the proxy's addresses; returns whether they are known."""
        host = upstream.host
        found = self._lookup.known(host) if isinstance(host, HostName) else _literal_result(host)
        if found is not None and found.addresses:
            self._proxies[host] = found
            return True
        return False

    def _dialable_addresses(self, policy: "Policy", attempt: "Attempt", found: LookupResult) -> "tuple[Address, ...]":
        """Return the addresses that may be dialed, checked once for each policy and result. Raises DialError."""
        port, upstream = attempt.port, policy.settings.upstream
        if attempt.request is not None or (upstream is not None and upstream.port == port):
            proxy = (
                None if upstream is None or upstream.port != port else self._proxies.get(upstream.host, _EMPTY_RESULT)
            )
            return self._own.dialable_addresses(policy, attempt, found, proxy)
        key = policy, attempt.at, port, attempt.protocol, attempt.tainted, attempt.granted
        dialable = found.checked.get(key)
        if dialable is None:
            dialable = self._own.dialable_addresses(policy, attempt, found)
            if len(found.checked) < _MOST_CHECKED:
                found.checked[key] = dialable
        return dialable


def _literal_result(address: "Address") -> LookupResult:
    """Return the lookup result of a literal address."""
    return LookupResult((address,), frozenset({address} & {source_for(address)}))


_FINAL_REASONS: Final = frozenset({Reason.NON_PUBLIC_ADDRESS, Reason.ADDRESS_NOT_LISTED, Reason.UNRESOLVED})


def as_approved(policy: "Policy", attempt: "Attempt", decision: "Decision") -> "Attempt | None":
    """Return the attempt as if every approval were granted; None: it may not be looked up before that."""
    if not policy.spells_out(attempt.target, decision.approval):
        return None
    return attempt._replace(granted=attempt.granted.union(approval.digest for approval in decision.approval))


def futile_error(found: "tuple[Hop, ...] | DialError") -> DialError | None:
    """Return the error that an approval would not change; None: an approval may help."""
    return found if isinstance(found, DialError) and found.reason in _FINAL_REASONS else None


def preflight(
    dialer: "Dialer",
    policy: "Policy",
    attempt: "Attempt",
    decision: "Decision",
    done: "Callable[[DialError | None], None]",
) -> None:
    """Check whether an approval could let an attempt through; `done` gets the error that remains, or None.

    `done` is called once, perhaps before this returns.
    """
    approved_attempt = as_approved(policy, attempt, decision)
    if approved_attempt is None:
        done(None)
        return
    try:
        addresses = dialer.known(policy, approved_attempt)
    except DialError as failure:
        done(futile_error(failure))
        return
    if addresses is not None:
        done(None)
    else:
        dialer.find(policy, approved_attempt, lambda found: done(futile_error(found)))
