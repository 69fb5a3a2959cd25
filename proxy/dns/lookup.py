"""Looks up the addresses of a name as programs of this host do: hosts file first, then its name servers.

Only names that a rule allows are looked up here, just before a connection is made (DESIGN, "DNS"). Results are cached
for at most 30 seconds, so that further connections cost no lookup and a name that moves is followed.
"""

import asyncio
import ipaddress
import os
import socket
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from proxy.dns.records import DnsLookupError
from rules.values.addresses import normalize, parse_address, why_not_public
from rules.values.names import HOST, LOOPBACK, is_exeat_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import date

    from proxy.dns.records import Servers
    from rules.attempt import Protocol as Spoken
    from rules.matching.policy import Policy
    from rules.values.addresses import Address
    from rules.values.names import HostName

LONGEST_KEPT: Final = 30.0  # seconds
FAILURE_KEPT: Final = 1.0
MOST_KEPT: Final = 4096  # names
MOST_AT_ONCE: Final = 64  # names being looked up; the others wait
MOST_WAITING: Final = 1024
MOST_ASKERS: Final = (
    8192  # callers that wait for all names: bounds how often a task can request a name that nobody answers
)
TOLD_AT_ONCE: Final = 16  # callbacks run before other work gets a turn: each may dial or record something
MOST_ADDRESSES: Final = 16  # of one name
_SECOND_FAMILY_WAIT: Final = 0.05  # seconds to wait for the other family after the first answer (RFC 8305 section 3)
_FILE_CHECK_INTERVAL: Final = 1.0  # seconds between checks of the hosts file
_DISCARD: Final = 9  # any port does: connecting a datagram socket only looks up a route (connect(2))
_BEST, _MISMATCHED, _NO_ROUTE = range(3)  # routes


class LookupResult:
    """Result of a lookup: addresses in the order to dial them, or the problem."""

    __slots__ = ("addresses", "checked", "own", "problem")

    def __init__(
        self, addresses: "tuple[Address, ...]" = (), own: "frozenset[Address]" = frozenset(), problem: str = ""
    ) -> None:
        """Create a result; `own`: the addresses that belong to this host."""
        self.addresses = addresses
        self.own = own
        self.problem = problem
        # The dialer's cache of the addresses that a policy allows for a port; it ends with this result.
        self.checked: dict[tuple[Policy, date | None, int, Spoken, bool, frozenset[str]], tuple[Address, ...]] = {}


_RESERVED_NAME: Final = LookupResult(problem="names of this zone are reserved for Exeat")


class HostsFile:
    """Hosts file (hosts(5)), read again after each change; it takes precedence over name servers."""

    __slots__ = ("_entries", "_path", "_version")

    def __init__(self, path: str = "/etc/hosts") -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._entries: dict[str, tuple[str, ...]] = {}

    def refresh(self) -> bool:
        """Read the file if it has changed; returns whether it had. A missing file has no names."""
        try:
            status = os.stat(self._path)
            version = status.st_mtime_ns, status.st_ino, status.st_size
            if version == self._version:
                return False
            with open(self._path, encoding="utf-8", errors="replace") as file:
                entries = _parse_hosts(file.read())
        except OSError:
            changed = bool(self._entries)
            self._version, self._entries = None, {}
            return changed
        self._version, self._entries = version, entries
        return True

    def addresses_of(self, name: "HostName") -> "tuple[Address, ...]":
        """Return the file's addresses of `name`, in order; empty: the file doesn't have it."""
        file_addresses = (parse_address(text) for text in self._entries.get(name, ()))
        return tuple(dict.fromkeys(address for address in file_addresses if address is not None))


class Lookup:
    """Looks up the addresses of names and caches them. For one thread, within a running loop."""

    def __init__(
        self,
        hosts: HostsFile | None = None,
        servers: "Callable[[], Servers] | None" = None,
        clock: "Callable[[], float]" = time.monotonic,
        has_room: "Callable[[], bool]" = lambda: True,
    ) -> None:
        """Use `hosts` and `servers`, by default the host's own. `has_room`: whether a descriptor is free."""
        self._hosts = hosts or HostsFile()
        turn = asyncio.Lock()  # held while an answer is parsed
        self._servers = servers or (lambda: _name_servers(turn))
        self._clock = clock
        self.has_room = has_room
        self._next_file_check = clock() + _FILE_CHECK_INTERVAL
        self._hosts.refresh()
        self._cache: OrderedDict[HostName, tuple[float, LookupResult]] = OrderedDict()
        self._host = LookupResult(LOOPBACK, frozenset(LOOPBACK))  # fixed: not even the hosts file can change it
        self.waiting: dict[HostName, deque[Callable[[LookupResult], None]]] = {}
        self._waiter_count = 0  # callbacks in `waiting`
        self._concurrency = asyncio.Semaphore(MOST_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def known(self, name: "HostName") -> LookupResult | None:
        """Return the result for `name` from the cache or the hosts file; None: call `ask`."""
        now = self._clock()
        if now >= self._next_file_check:
            self._next_file_check = now + _FILE_CHECK_INTERVAL
            if self._hosts.refresh():
                self._cache.clear()
        cached = self._cache.get(name)
        if cached is not None and now < cached[0]:
            return cached[1]
        if is_exeat_name(name):  # never cached
            return self._host if name == HOST else _RESERVED_NAME
        file_addresses = self._hosts.addresses_of(name)
        return self._store(name, file_addresses, LONGEST_KEPT) if file_addresses else None

    def ask(self, name: "HostName", done: "Callable[[LookupResult], None]") -> None:
        """Look `name` up; `done` is called exactly once. Concurrent lookups of a name share one query."""
        waiting = self.waiting.get(name)
        if is_exeat_name(name):
            asyncio.get_running_loop().call_soon(done, self._host if name == HOST else _RESERVED_NAME)
        elif self._waiter_count >= MOST_ASKERS:
            found = LookupResult(
                problem=f"{self._waiter_count} connections, requests and lookups wait for names already"
            )
            asyncio.get_running_loop().call_soon(done, found)
        elif waiting is not None:
            waiting.append(done)
            self._waiter_count += 1
        elif len(self.waiting) >= MOST_WAITING or not self.has_room():
            found = LookupResult(problem=f"{len(self.waiting)} names are being looked up already")
            asyncio.get_running_loop().call_soon(done, found)
        else:
            self.waiting[name] = deque([done])
            self._waiter_count += 1
            task = asyncio.get_running_loop().create_task(self._look_up(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def forget_checks(self) -> None:
        """Drop the cached address checks: another policy is in force."""
        self._host.checked.clear()
        for _, found in self._cache.values():
            found.checked.clear()

    def servers(self) -> "Servers":
        """Return the name servers, for records of other types. Raises DnsLookupError when there are none."""
        return self._servers()

    def close(self) -> None:
        """Cancel all lookups; their callbacks are not called."""
        self._closed = True
        self.waiting.clear()
        for task in self._tasks:
            task.cancel()

    async def _look_up(self, name: "HostName") -> None:
        found = LookupResult(problem="the lookup broke off")
        try:
            async with self._concurrency:
                addresses, seconds = await _both_families(self._servers(), name)
            found = self._store(name, addresses, seconds)
        except DnsLookupError as error:
            found = self._store(name, (), FAILURE_KEPT, str(error))
        finally:
            waiting = self.waiting.pop(name, deque())
            self._waiter_count -= len(waiting)
            self._run_callbacks(waiting, found)

    def _run_callbacks(self, waiting: "deque[Callable[[LookupResult], None]]", found: LookupResult) -> None:
        """Call the callbacks of a lookup, some at a time, so that thousands don't delay other work (invariant 11)."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        for _ in range(min(len(waiting), TOLD_AT_ONCE)):
            loop.call_soon(waiting.popleft(), found)
        if waiting:
            loop.call_soon(self._run_callbacks, waiting, found)

    def _store(
        self, name: "HostName", addresses: "Iterable[Address]", seconds: float, problem: str = ""
    ) -> LookupResult:
        sorted_addresses, own = in_order(tuple(dict.fromkeys(addresses))[:MOST_ADDRESSES])
        found = LookupResult(sorted_addresses, own, problem)
        self._cache[name] = self._clock() + min(seconds, LONGEST_KEPT), found
        self._cache.move_to_end(name)
        if len(self._cache) > MOST_KEPT:
            self._cache.popitem(last=False)
        return found


async def _both_families(servers: "Servers", name: "HostName") -> "tuple[tuple[Address, ...], float]":
    """Query A and AAAA at once; after the first answer the other gets 50 ms more. Raises DnsLookupError."""
    tasks = [asyncio.create_task(servers.ask(name, kind)) for kind in ("A", "AAAA")]
    try:
        first, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            await asyncio.wait(
                pending, timeout=None if all(task.exception() for task in first) else _SECOND_FAMILY_WAIT
            )
    finally:
        for task in tasks:
            task.cancel()
    finished = [task for task in tasks if task.done() and not task.cancelled()]
    answers = [task.result() for task in finished if task.exception() is None]
    if not answers:
        raise DnsLookupError("; ".join(dict.fromkeys(str(task.exception()) for task in finished)))
    addresses = tuple(address for found, _ in answers for address in found)
    return addresses, min(seconds for _, seconds in answers)


def _name_servers(turn: asyncio.Lock) -> "Servers":
    from proxy.dns.upstream_servers import NameServers  # 75 ms

    return NameServers(turn=turn)


def source_for(address: "Address") -> "Address | None":
    """Return the source address for packets to `address`; None: no route. Equal to `address` if that is local."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD))
            return normalize(ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]))
    except OSError:
        return None


def in_order(addresses: "Iterable[Address]") -> "tuple[tuple[Address, ...], frozenset[Address]]":
    """Sort addresses for dialing; returns the sorted addresses, and those that belong to this host.

    Addresses with a route come first, among them those whose source address has the same scope (RFC 6724 section 6,
    rules 1 and 5: a private IPv6 source can't reach the internet). Families then alternate, IPv6 first (RFC 8305
    section 4).
    """
    ranked: dict[Address, tuple[int, int, int]] = {}
    own: set[Address] = set()
    counts = {4: 0, 6: 0}
    for address in addresses:
        source = source_for(address)
        if source == address:
            own.add(address)
        counts[address.version] += 1
        ranked[address] = _rank(address, source), counts[address.version], -address.version
    return tuple(sorted(ranked, key=ranked.__getitem__)), frozenset(own)


def _rank(address: "Address", source: "Address | None") -> int:
    if source is None:
        return _NO_ROUTE
    has_narrow_source = address.version == 6 and why_not_public(address) is None and why_not_public(source) is not None
    return _MISMATCHED if has_narrow_source else _BEST


def _parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Parse a hosts file to each name's addresses as text, which are parsed when needed."""
    entries: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            key = name.lower().removesuffix(".")
            entries[key] = (*entries.get(key, ()), address)
    return entries
