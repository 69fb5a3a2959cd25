"""Connecting to where an attempt was decided to go: the checked name is looked up here, and each address is checked.

Home of invariants 3 and 9 together with `Policy.check_address`: only an address that this module looked up for the
checked name, or that a rule names as such, is ever dialled. Whoever needs a connection to the outside asks here. This
module must never take an address from a sandbox, nor dial this host's own doors (its public addresses, the gate's own
listeners, the upstream proxy) on a sandbox's behalf. Where the rules have an upstream proxy, it is told the name, and
both invariants end there; a proxy that fails is never gone around.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from proxy.dialing.connecting import Connecting, DialFailed
from proxy.dns.lookup import Found, source_for
from proxy.sandbox.quotas import DescriptorQuota
from rules.addresses import why_not_public
from rules.attempt import Protocol
from rules.explain.reasons import NEEDED
from rules.names import HostName
from rules.settings import Via
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection

    from proxy.dialing.connecting import Done, Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.dialing.through import Through
    from proxy.dns.lookup import Lookup
    from proxy.event_loop.poller import Poller
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.matching.policy import Policy
    from rules.settings import Upstream

__all__ = ["CONNECT_TIMEOUT", "DialFailed", "Dialer"]

LOOKUP_TIMEOUT: Final = 15.0  # seconds, with the wait for a turn
CONNECT_TIMEOUT: Final = 15.0  # seconds for all addresses together, and for what a proxy has to say
NO_ANSWER: Final = f"no answer within {CONNECT_TIMEOUT:.0f} seconds"
_OWN: Final = f"no `resolves_to` opens this host's own public address: a service of this machine needs {NEEDED}"
_LISTENER: Final = "no rule opens what exeat itself listens on"
_NOWHERE: Final = Found()
_MOST_CHECKED: Final = 64  # answers of a policy kept with what was looked up; they save a third of a connection's CPU


class Dialer:
    """Finds, checks and connects. For one thread.

    `forbidden` are the addresses and ports that Exeat itself listens on outside; an unspecified address there means
    every one of this host's. `login` is what the upstream proxy is told, if there is one that wants to know.
    """

    __slots__ = ("_forbidden", "_forbidden_ports", "_lookup", "_metrics", "_proxies", "descriptors", "login", "poller")

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
        self._forbidden = frozenset(forbidden)
        self._forbidden_ports = frozenset(port for _, port in self._forbidden)  # compared sooner than an address
        self._metrics = metrics
        self._proxies: dict[HostName | Address, Found] = {}  # where the upstream proxy was found last
        self.login: Login | None = None
        self.poller = poller

    def known(self, policy: "Policy", attempt: "Attempt") -> "tuple[Hop, ...] | None":
        """Return what may be dialled for `attempt`, best first; None: a lookup is needed, `find` it.

        Raises DialFailed when there is nothing.
        """
        upstream = policy.settings.upstream
        if upstream is not None:
            if attempt.port == upstream.port and not self._knows(upstream):
                return None  # only then can it be told from the proxy itself
            if via := self._via(policy, attempt, upstream):
                return via
        target = attempt.target
        if not isinstance(target, HostName):
            return self._checked(policy, attempt, _found(target))
        found = self._lookup.known(target)
        return None if found is None else self._checked(policy, attempt, found)

    def find(
        self, policy: "Policy", attempt: "Attempt", done: "Callable[[tuple[Hop, ...] | DialFailed], None]"
    ) -> None:
        """Look the name up and call `done`, once, with what may be dialled or why nothing may."""
        upstream = policy.settings.upstream
        if upstream is None or attempt.port != upstream.port or not isinstance(upstream.host, HostName):
            self._look_up(policy, attempt, done)
            return

        def proxy_found(found: Found) -> None:
            assert upstream is not None
            self._proxies[upstream.host] = found
            self._look_up(policy, attempt, done)

        self._lookup.ask(upstream.host, proxy_found)

    def _look_up(
        self, policy: "Policy", attempt: "Attempt", done: "Callable[[tuple[Hop, ...] | DialFailed], None]"
    ) -> None:
        began = time.monotonic()

        def looked_up(found: Found) -> None:
            try:
                hops = self._hops(policy, attempt, found)
            except DialFailed as failure:
                if self._metrics is not None:  # what is found and dialled is counted when that has ended
                    self._metrics.dialled(failure.reason, time.monotonic() - began)
                done(failure)
            except Exception as error:  # noqa: BLE001 - a bug of ours: nowhere is safe to dial
                said = {"message": "addresses could not be checked", "exception": error}
                asyncio.get_running_loop().call_exception_handler(said)
                done(DialFailed(Reason.GATE_ERROR, f"{type(error).__name__}: {error}"))
            else:
                done(hops)

        target = attempt.target
        if not isinstance(target, HostName):
            looked_up(_found(target))
        elif policy.upstream_for(attempt) is not None:
            looked_up(_NOWHERE)  # the name is the proxy's to look up
        else:
            self._lookup.ask(target, looked_up)

    def connect(
        self, addresses: "tuple[Hop, ...]", port: int, done: "Done", *, at_once: bool = False
    ) -> "Connecting | Through":
        """Connect to one of `addresses`, which `known` or `find` gave, and call `done` once, never from within.

        The caller sets the deadline: `cancel` what this returns. With `at_once` it also takes what is there at once:
        `take`.
        """
        if addresses and isinstance(addresses[0], Via):
            from proxy.dialing.through import Through  # nobody else pays for it

            return Through(
                self.poller, self._lookup, addresses[0], port, done,
                login=self.login, metrics=self._metrics, descriptors=self.descriptors,
            )  # fmt: skip
        direct = [address for address in addresses if not isinstance(address, Via)]
        return Connecting(self.poller, direct, port, done, self._metrics, at_once=at_once, descriptors=self.descriptors)

    async def dial(self, policy: "Policy", attempt: "Attempt") -> "tuple[socket.socket, Hop]":
        """Do it all and return a connected, non-blocking socket and its address. Raises DialFailed."""
        addresses = self.known(policy, attempt)
        if addresses is None:
            addresses = await self._find(policy, attempt)
        result: asyncio.Future[tuple[socket.socket, Hop]] = asyncio.get_running_loop().create_future()

        def connected(got: "socket.socket | DialFailed", address: "Hop | None") -> None:
            if isinstance(got, DialFailed):
                result.set_exception(got)
            elif address is not None:
                result.set_result((got, address))

        connecting = self.connect(addresses, attempt.port, connected)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await result
        except TimeoutError as error:
            raise DialFailed(Reason.UPSTREAM_FAILED, NO_ANSWER) from error
        except asyncio.CancelledError:
            if result.done() and not result.cancelled() and result.exception() is None:
                result.result()[0].close()  # it was connected in the same moment
            raise
        finally:
            connecting.cancel()

    async def _find(self, policy: "Policy", attempt: "Attempt") -> "tuple[Hop, ...]":
        answer: asyncio.Future[tuple[Hop, ...] | DialFailed] = asyncio.get_running_loop().create_future()
        self.find(policy, attempt, lambda found: None if answer.done() else answer.set_result(found))
        found = await answer
        if isinstance(found, DialFailed):
            raise found
        return found

    def _hops(self, policy: "Policy", attempt: "Attempt", found: Found) -> "tuple[Hop, ...]":
        """Return what may be dialled, now that everything is looked up. Raises DialFailed."""
        upstream = policy.settings.upstream
        if upstream is not None:
            proxy = self._proxies.get(upstream.host, _NOWHERE)
            if attempt.port == upstream.port and isinstance(upstream.host, HostName) and not proxy.addresses:
                why = f"whether this is the proxy `{upstream}` can't be told: {proxy.problem}"
                raise DialFailed(Reason.UPSTREAM_FAILED, why)
            if via := self._via(policy, attempt, upstream):
                return via
        return self._checked(policy, attempt, found)

    def _via(self, policy: "Policy", attempt: "Attempt", upstream: "Upstream") -> "tuple[Via] | None":
        """Return the way through the proxy; None: this goes past it. Raises DialFailed for what must not go there."""
        if policy.upstream_for(attempt) is None:
            return None
        target = attempt.target
        if attempt.protocol is Protocol.UDP:
            raise DialFailed(Reason.UDP, f"no datagrams go through the proxy `{upstream}`")
        if target == upstream.host or not isinstance(target, HostName):
            own = _NOWHERE.own if isinstance(target, HostName) else _found(target).own
            if attempt.port == upstream.port and self._is_proxy(target, own, upstream):
                raise DialFailed(Reason.NON_PUBLIC_ADDRESS, f"`{target}` is the proxy itself")
        return (Via(upstream, target),)

    def _knows(self, upstream: "Upstream") -> bool:
        """Whether it is known where the proxy is; then it is kept."""
        host = upstream.host
        found = self._lookup.known(host) if isinstance(host, HostName) else _found(host)
        if found is not None and found.addresses:
            self._proxies[host] = found
            return True
        return False

    def _is_proxy(self, target: "HostName | Address", own: "frozenset[Address]", upstream: "Upstream") -> bool:
        """Whether `target`, asked for at the proxy's port, is where it listens; `own`: what of it is this host's."""
        proxy = self._proxies.get(upstream.host, _NOWHERE)
        if target == upstream.host or target in proxy.addresses:
            return True
        if isinstance(target, HostName):
            return False
        here = any(address in proxy.own or address.is_loopback for address in proxy.addresses)
        return here and (target in own or target.is_loopback)

    def _checked(self, policy: "Policy", attempt: "Attempt", found: Found) -> "tuple[Address, ...]":
        """Keep the addresses that may be dialled. Raises DialFailed with the first one's reason if none is left."""
        target, port = attempt.target, attempt.port
        key = policy, attempt.at, port, attempt.protocol, attempt.tainted, attempt.granted
        upstream = policy.settings.upstream
        if upstream is not None and upstream.port != port:
            upstream = None  # what is there can't be the proxy
        if attempt.request is None and upstream is None and key in found.checked:
            return found.checked[key]
        first: DialFailed | None = None
        good: list[Address] = []
        for address in found.addresses:
            reason = policy.check_address(attempt, address)
            which = advice = ""
            opens = reason is None or reason is Reason.APPROVAL_UNAVAILABLE  # nobody is asked about what stays shut
            if opens and self._is_ours(target, address, port, found):
                reason, which = Reason.NON_PUBLIC_ADDRESS, ", which is this host's own"
                advice = _LISTENER if self._is_listener(address, port, found) else _OWN
            elif opens and upstream is not None and self._is_proxy(address, found.own, upstream):
                reason, which = Reason.NON_PUBLIC_ADDRESS, ", which is the proxy itself"
            if reason is None:
                good.append(address)
            elif first is None or (first.held is None and reason is Reason.APPROVAL_UNAVAILABLE):
                held = policy.held_at(attempt, address) if reason is Reason.APPROVAL_UNAVAILABLE else None
                failure = DialFailed(reason, f"`{target}` is {address}{which}", advice, held, address)
                first = failure if first is None or held is not None else first
        if not good:
            raise first or DialFailed(Reason.UNRESOLVED, found.problem)
        if attempt.request is None and len(found.checked) < _MOST_CHECKED:
            found.checked[key] = tuple(good)
        return tuple(good)

    def _is_ours(self, target: "HostName | Address", address: "Address", port: int, found: Found) -> bool:
        """Whether this is a door of this host that nobody opened.

        Its public addresses look like anybody's to the rules, so a name never leads there; a rule that lists a
        non-public one, or names the very address, means it. Exeat's own listeners no rule opens.
        """
        if self._is_listener(address, port, found):
            return True
        if not found.own or address not in found.own:
            return False
        return isinstance(target, HostName) and why_not_public(address) is None

    def _is_listener(self, address: "Address", port: int, found: Found) -> bool:
        """Whether Exeat itself listens there."""
        if port not in self._forbidden_ports:
            return False
        if (address, port) in self._forbidden:
            return True
        # All of 127.0.0.0/8 is this host's, whatever source the kernel picks for it.
        own = address in found.own or address.is_loopback
        return own and any(forbidden.is_unspecified and at == port for forbidden, at in self._forbidden)


def _found(address: "Address") -> Found:
    """Return what would be found of a name that has this one address."""
    return Found((address,), frozenset({address} & {source_for(address)}))
