"""Dialer: looks up the checked name, checks each address, and connects to one of them.

Home of invariants 3 and 9, together with `address_check` and `Policy.check_address`: the dialer only dials addresses
that it looked up for the checked name, or that a rule names. All connections to the outside are made here. This module
must never take an address from a sandbox. Where the rules have an upstream proxy, the proxy gets the name, and both
invariants end there; a proxy that fails is never bypassed.

Several addresses of a name are tried as Happy Eyeballs does (RFC 8305 section 5), without tasks. Nearly always there is
one address, which takes one socket and one event.
"""

import asyncio
import errno
import os
import socket
import time
from functools import lru_cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from proxy.dialing.address_check import DialError, OwnEndpoints, is_proxy
from proxy.dns.lookup import LookupResult, source_for
from proxy.event_loop.poller import OUT, cut_if_killed
from proxy.sandbox.sandbox_state import DescriptorQuota, ExtraSockets
from rules.attempt import Protocol
from rules.names import HostName
from rules.settings import ProxyDestination
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from proxy.dialing.proxy_auth import Login
    from proxy.dialing.proxy_connector import ProxyConnector
    from proxy.dns.lookup import Lookup
    from proxy.event_loop.poller import Poller
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.matching.policy import Policy
    from rules.settings import Upstream


type Hop = Address | ProxyDestination  # what is dialled
type Done = Callable[[socket.socket | DialError, Hop | None], None]  # a connected socket and where to, or why not

ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried beside the one before it

written: Final = lru_cache(maxsize=1024)(str)  # the text of an address: some are dialled again and again
_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)  # plain numbers: a socket reads enumerations slowly
_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)


class ConnectRace:
    """Happy Eyeballs race of connections to several addresses. `done` is called once, never from the constructor.

    With `at_once` the first address may be connected when the constructor returns, as nearby ones are: call `take`
    then, and `done` is not called. That saves one sleep and wake-up.
    """

    __slots__ = (
        "_addresses",
        "_at_once",
        "_done",
        "_extra",
        "_metrics",
        "_open",
        "_over",
        "_poller",
        "_port",
        "_problem",
        "_started",
        "_timer",
    )

    def __init__(
        self,
        poller: "Poller",
        addresses: "Iterable[Address]",
        port: int,
        done: "Done",
        metrics: "Metrics | None" = None,
        *,
        at_once: bool = False,
        descriptors: "DescriptorQuota | None" = None,
    ) -> None:
        self._poller = poller
        self._extra = ExtraSockets(descriptors or DescriptorQuota())  # those beside the first
        self._at_once = at_once
        self._addresses = list(addresses)
        self._port = port
        self._done = done
        self._metrics = metrics
        self._started = time.monotonic()
        self._open: list[_ConnectAttempt] = []
        self._over = False
        self._problem = "there is no address"
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def take(self) -> "tuple[socket.socket, Address] | None":
        """Return the socket that was connected at once and its address, if any; that ends the race."""
        if len(self._open) != 1 or not self._open[0].connected:
            return None
        attempt = self._open.pop()
        self._over = True  # and there is no timer: it is set only for one that isn't connected
        del self._done  # who asked has us: nothing goes round, so all of it is freed at once
        if self._metrics is not None:
            self._metrics.dialled(None, time.monotonic() - self._started)
        return attempt.sock, attempt.address

    def cancel(self) -> None:
        """Close all sockets that aren't connected. Idempotent."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        while self._open:
            self._open.pop().close()
        self._extra.set(len(self._open) - 1)

    def connected(self, attempt: "_ConnectAttempt") -> None:
        """End the race: this attempt has won."""
        self._open.remove(attempt)
        self.cancel()
        self._tell(attempt.sock, attempt.address)

    def lost(self, attempt: "_ConnectAttempt", number: int) -> None:
        """Drop a failed attempt and try the next address at once."""
        if attempt not in self._open:
            return  # it has won or was given up before
        self._open.remove(attempt)
        attempt.close()
        self._extra.set(len(self._open) - 1)
        self._problem = describe_error(number, attempt.address)
        if self._timer is not None:
            self._timer.cancel()
        self._next()

    def _next(self) -> None:
        """Try one more address and set the timer for the next; beside other attempts only if the quota allows."""
        if self._open and not self._over and not self._extra.has_room():
            self._wait()
            return
        while self._addresses and not self._over:
            address = self._addresses.pop(0)
            try:
                attempt = _ConnectAttempt(self, self._poller, address, self._port, at_once=self._at_once)
            except OSError as error:
                self._problem = describe_error(error.errno, address)
                continue
            self._at_once = False  # only within the constructor is there somebody to take it
            self._open.append(attempt)
            if len(self._open) > 1:
                self._extra.set(len(self._open) - 1)
            if not attempt.connected:
                self._wait()
            return
        self._at_once = False
        if not self._open and not self._over:
            asyncio.get_running_loop().call_soon(self._fail)

    def _wait(self) -> None:
        """Set the timer for the next address, if there is one."""
        if self._addresses:
            self._timer = asyncio.get_running_loop().call_later(ATTEMPT_DELAY, self._next)

    def _fail(self) -> None:
        if not self._over:
            self._over = True
            self._tell(DialError(Reason.UPSTREAM_FAILED, self._problem), None)

    def _tell(self, result: "socket.socket | DialError", address: "Address | None") -> None:
        if self._metrics is not None:
            reason = result.reason if isinstance(result, DialError) else None
            self._metrics.dialled(reason, time.monotonic() - self._started)
        done = self._done
        del self._done
        done(result, address)


class _ConnectAttempt:
    """One socket connecting to one address."""

    __slots__ = ("_fd", "_poller", "_race", "address", "connected", "sock")

    def __init__(self, race: ConnectRace, poller: "Poller", address: "Address", port: int, *, at_once: bool) -> None:
        """Begin. Raises OSError."""
        self._race = race
        self._poller = poller
        self.address = address
        self.sock = sock = socket.socket(_INET if isinstance(address, IPv4Address) else _INET6, _KIND)
        self._fd = sock.fileno()
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its sender has done any waiting
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent data stays in its place
            cut_if_killed(sock)
            number = sock.connect_ex((written(address), port))
            if number != errno.EINPROGRESS:
                _check(number)
            self.connected = at_once and _is_connected(sock)
            if not self.connected:
                poller.watch(self._fd, OUT, self)
        except BaseException:
            sock.close()
            raise

    def ready(self, _events: int) -> None:
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._race.lost(self, number)
        else:
            self._poller.forget(self._fd)
            self._race.connected(self)

    def failed(self, _error: Exception) -> None:
        """Drop this attempt: `ready` raised, which is a bug."""
        self._race.lost(self, errno.EIO)

    def close(self) -> None:
        self._poller.forget(self._fd)
        self.sock.close()


def _check(number: int) -> None:
    """Raise OSError if an errno of connect(2) is an error."""
    if number:
        raise OSError(number, os.strerror(number))


def _is_connected(sock: socket.socket) -> bool:
    """Whether a non-blocking connect(2) has finished at once, as over loopback."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def describe_error(number: int | None, address: "Address") -> str:
    """Say why connecting to an address failed."""
    return f"{address}: {os.strerror(number or errno.EIO).lower()}"


LOOKUP_TIMEOUT: Final = 15.0  # seconds, with the wait for a turn
CONNECT_TIMEOUT: Final = 15.0  # seconds for all addresses together, and for what a proxy has to say
NO_ANSWER: Final = f"no answer within {CONNECT_TIMEOUT:.0f} seconds"
_NOWHERE: Final = LookupResult()
_MOST_CHECKED: Final = 64  # answers of a policy kept with what was looked up; they save a third of a connection's CPU


class Dialer:
    """Finds, checks and connects. For one thread.

    `forbidden` are the addresses and ports that Exeat itself listens on outside; an unspecified address there means
    every one of this host's. `login` is what the upstream proxy is told, if there is one that wants to know.
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
        self._proxies: dict[HostName | Address, LookupResult] = {}  # where the upstream proxy was found last
        self.login: Login | None = None
        self.poller = poller

    def known(self, policy: "Policy", attempt: "Attempt") -> "tuple[Hop, ...] | None":
        """Return the addresses to dial for `attempt`, best first; None: call `find` to look them up.

        Raises DialError when there is none.
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
                hops = self._hops(policy, attempt, found)
            except DialError as failure:
                if self._metrics is not None:  # what is found and dialled is counted when that has ended
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
            looked_up(_found(target))
        elif policy.upstream_for(attempt) is not None:
            looked_up(_NOWHERE)  # the name is the proxy's to look up
        else:
            self._lookup.ask(target, looked_up)

    def connect(
        self, addresses: "tuple[Hop, ...]", port: int, done: "Done", *, at_once: bool = False
    ) -> "ConnectRace | ProxyConnector":
        """Connect to one of `addresses` from `known` or `find`; `done` is called once, never before this returns.

        The caller sets the deadline and calls `cancel` on the result. With `at_once` it also calls `take`.
        """
        if addresses and isinstance(addresses[0], ProxyDestination):
            from proxy.dialing.proxy_connector import ProxyConnector  # nobody else pays for it

            return ProxyConnector(
                self.poller, self._lookup, addresses[0], port, done,
                login=self.login, metrics=self._metrics, descriptors=self.descriptors,
            )  # fmt: skip
        direct = [address for address in addresses if not isinstance(address, ProxyDestination)]
        return ConnectRace(
            self.poller, direct, port, done, self._metrics, at_once=at_once, descriptors=self.descriptors
        )

    def _hops(self, policy: "Policy", attempt: "Attempt", found: LookupResult) -> "tuple[Hop, ...]":
        """Return the checked addresses to dial once the lookup is done. Raises DialError."""
        upstream = policy.settings.upstream
        if upstream is not None:
            proxy = self._proxies.get(upstream.host, _NOWHERE)
            if attempt.port == upstream.port and isinstance(upstream.host, HostName) and not proxy.addresses:
                why = f"whether this is the proxy `{upstream}` can't be told: {proxy.problem}"
                raise DialError(Reason.UPSTREAM_FAILED, why)
            if via := self._via(policy, attempt, upstream):
                return via
        return self._checked(policy, attempt, found)

    def _via(self, policy: "Policy", attempt: "Attempt", upstream: "Upstream") -> "tuple[ProxyDestination] | None":
        """Return the way through the upstream proxy; None: bypass it. Raises DialError if it may not go there."""
        if policy.upstream_for(attempt) is None:
            return None
        target = attempt.target
        if attempt.protocol is Protocol.UDP:
            raise DialError(Reason.UDP, f"UDP can't go through the proxy `{upstream}`")
        if target == upstream.host or not isinstance(target, HostName):
            own = _NOWHERE.own if isinstance(target, HostName) else _found(target).own
            proxy = self._proxies.get(upstream.host, _NOWHERE)
            if attempt.port == upstream.port and is_proxy(target, own, upstream.host, proxy):
                raise DialError(Reason.NON_PUBLIC_ADDRESS, f"`{target}` is the proxy itself")
        return (ProxyDestination(upstream, target),)

    def _knows(self, upstream: "Upstream") -> bool:
        """Whether the proxy's addresses are known, and keep them."""
        host = upstream.host
        found = self._lookup.known(host) if isinstance(host, HostName) else _found(host)
        if found is not None and found.addresses:
            self._proxies[host] = found
            return True
        return False

    def _checked(self, policy: "Policy", attempt: "Attempt", found: LookupResult) -> "tuple[Address, ...]":
        """Return the addresses that may be dialed, checked once for each policy and result. Raises DialError."""
        port, upstream = attempt.port, policy.settings.upstream
        if attempt.request is not None or (upstream is not None and upstream.port == port):
            proxy = None if upstream is None or upstream.port != port else self._proxies.get(upstream.host, _NOWHERE)
            return self._own.may_dial(policy, attempt, found, proxy)
        key = policy, attempt.at, port, attempt.protocol, attempt.tainted, attempt.granted
        good = found.checked.get(key)
        if good is None:
            good = self._own.may_dial(policy, attempt, found)
            if len(found.checked) < _MOST_CHECKED:
                found.checked[key] = good
        return good


def _found(address: "Address") -> LookupResult:
    """Return the lookup result of a literal address."""
    return LookupResult((address,), frozenset({address} & {source_for(address)}))
