"""Connecting to where an attempt was decided to go: the checked name is looked up here, and each address is checked.

Home of invariants 3 and 9 together with `Policy.check_address`: only an address that this module looked up for the
checked name, or that a rule names as such, is ever dialled. Whoever needs a connection to the outside asks here. This
module must never take an address from a sandbox, nor dial this host's own doors (its public addresses, the gate's own
listeners) on a sandbox's behalf.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from proxy.connecting import Connecting, DialFailed
from proxy.lookup import Found
from proxy.reach import source_for
from rules.addresses import why_not_public
from rules.names import HostName
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection

    from proxy.connecting import Done
    from proxy.lookup import Lookup
    from proxy.poller import Poller
    from proxy.telemetry.metrics import Metrics
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.policy import Policy

__all__ = ["CONNECT_TIMEOUT", "DialFailed", "Dialer"]

CONNECT_TIMEOUT: Final = 15.0  # seconds for all addresses together
_MOST_CHECKED: Final = 64  # answers of a policy kept with what was looked up; they save a third of a connection's CPU


class Dialer:
    """Finds, checks and connects. For one thread.

    `forbidden` are the addresses and ports that Exeat itself listens on outside; an unspecified address there means
    every one of this host's.
    """

    __slots__ = ("_forbidden", "_lookup", "_metrics", "poller")

    def __init__(
        self,
        lookup: "Lookup",
        poller: "Poller",
        *,
        forbidden: "Collection[tuple[Address, int]]" = (),
        metrics: "Metrics | None" = None,
    ) -> None:
        self._lookup = lookup
        self._forbidden = frozenset(forbidden)
        self._metrics = metrics
        self.poller = poller

    def known(self, policy: "Policy", attempt: "Attempt") -> "tuple[Address, ...] | None":
        """Return the addresses that may be dialled for `attempt`, best first; None: a lookup is needed, `find` it.

        Raises DialFailed when there is none.
        """
        target = attempt.target
        if not isinstance(target, HostName):
            own = frozenset({target} & {source_for(target)})
            return self._checked(policy, attempt, Found((target,), own))
        found = self._lookup.known(target)
        return None if found is None else self._checked(policy, attempt, found)

    def find(
        self, policy: "Policy", attempt: "Attempt", done: "Callable[[tuple[Address, ...] | DialFailed], None]"
    ) -> None:
        """Look the name up and call `done`, once, with what may be dialled or why nothing may."""

        def looked_up(found: Found) -> None:
            try:
                addresses = self._checked(policy, attempt, found)
            except DialFailed as failure:
                done(failure)
            except Exception as error:  # noqa: BLE001 - a bug of ours: nowhere is safe to dial
                said = {"message": "addresses could not be checked", "exception": error}
                asyncio.get_running_loop().call_exception_handler(said)
                done(DialFailed(Reason.GATE_ERROR, f"{type(error).__name__}: {error}"))
            else:
                done(addresses)

        assert isinstance(attempt.target, HostName)
        self._lookup.ask(attempt.target, looked_up)

    def connect(self, addresses: "tuple[Address, ...]", port: int, done: "Done") -> Connecting:
        """Connect to one of `addresses`, which `known` or `find` gave, and call `done` once, never from within.

        The caller sets the deadline: `Connecting.cancel`.
        """
        return Connecting(self.poller, addresses, port, done, self._metrics)

    async def dial(self, policy: "Policy", attempt: "Attempt") -> "tuple[socket.socket, Address]":
        """Do it all and return a connected, non-blocking socket and its address. Raises DialFailed."""
        addresses = self.known(policy, attempt)
        if addresses is None:
            addresses = self._checked(policy, attempt, await self._ask(attempt.target))
        result: asyncio.Future[tuple[socket.socket, Address]] = asyncio.get_running_loop().create_future()

        def connected(got: "socket.socket | DialFailed", address: "Address | None") -> None:
            if isinstance(got, DialFailed):
                result.set_exception(got)
            elif address is not None:
                result.set_result((got, address))

        connecting = self.connect(addresses, attempt.port, connected)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await result
        except TimeoutError as error:
            raise DialFailed(Reason.UPSTREAM_FAILED, f"no answer within {CONNECT_TIMEOUT:.0f} seconds") from error
        except asyncio.CancelledError:
            if result.done() and not result.cancelled() and result.exception() is None:
                result.result()[0].close()  # it was connected in the same moment
            raise
        finally:
            connecting.cancel()

    async def _ask(self, target: "HostName | Address") -> Found:
        assert isinstance(target, HostName)
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._lookup.ask(target, lambda found: None if answer.done() else answer.set_result(found))
        return await answer

    def _checked(self, policy: "Policy", attempt: "Attempt", found: Found) -> "tuple[Address, ...]":
        """Keep the addresses that may be dialled. Raises DialFailed with the first one's reason if none is left."""
        target, port = attempt.target, attempt.port
        key = policy, port, attempt.protocol
        if attempt.request is None and key in found.checked:
            return found.checked[key]
        first: DialFailed | None = None
        good: list[Address] = []
        for address in found.addresses:
            reason = policy.check_address(target, port, attempt.protocol, address, attempt.request)
            why = f"`{target}` is {address}"
            if reason is None and self._is_ours(target, address, port, found):
                reason, why = Reason.NON_PUBLIC_ADDRESS, f"{why}, which is this host's own"
            if reason is None:
                good.append(address)
            elif first is None:
                first = DialFailed(reason, why)
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
        if (address, port) in self._forbidden:
            return True
        # All of 127.0.0.0/8 is this host's, whatever source the kernel picks for it.
        if address not in found.own and not address.is_loopback:
            return False
        if any(forbidden.is_unspecified and at == port for forbidden, at in self._forbidden):
            return True
        return isinstance(target, HostName) and why_not_public(address) is None
