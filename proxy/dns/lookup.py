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
from rules.addresses import normalize, parse_address, why_not_public
from rules.names import HOST, LOOPBACK, is_exeat_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import date

    from proxy.dns.records import Servers
    from rules.addresses import Address
    from rules.attempt import Protocol as Spoken
    from rules.matching.policy import Policy
    from rules.names import HostName

LONGEST_KEPT: Final = 30.0  # seconds
FAILURE_KEPT: Final = 1.0
MOST_KEPT: Final = 4096  # names
MOST_AT_ONCE: Final = 64  # names being asked for; the others wait
MOST_WAITING: Final = 1024
MOST_ASKERS: Final = 8192  # who wait for all of these names: a task can ask for one without end while nobody answers
TOLD_AT_ONCE: Final = 16  # of them before the others have their turn: each has something to dial, or to tell
MOST_ADDRESSES: Final = 16  # of one name
_PATIENCE: Final = 0.05  # seconds the other family gets once one has answered (RFC 8305 section 3)
_LOOK_AGAIN: Final = 1.0  # seconds between looks at the host's files
_DISCARD: Final = 9  # any port does: connecting a datagram socket only looks up a route (connect(2))
_BEST, _MISMATCHED, _NO_ROUTE = range(3)  # routes


class LookupResult:
    """Result of a lookup: addresses in the order to dial them, or the problem."""

    __slots__ = ("addresses", "checked", "own", "problem")

    def __init__(
        self, addresses: "tuple[Address, ...]" = (), own: "frozenset[Address]" = frozenset(), problem: str = ""
    ) -> None:
        """Take what was found; `own`: those that are this host's."""
        self.addresses = addresses
        self.own = own
        self.problem = problem
        # Of these, those that a policy lets out to a port: the dialer's, and forgotten with what they were made from.
        self.checked: dict[tuple[Policy, date | None, int, Spoken, bool, frozenset[str]], tuple[Address, ...]] = {}


_NOBODY: Final = LookupResult(problem="names of this zone are exeat's own")


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
                entries = _parse(file.read())
        except OSError:
            changed = bool(self._entries)
            self._version, self._entries = None, {}
            return changed
        self._version, self._entries = version, entries
        return True

    def addresses_of(self, name: "HostName") -> "tuple[Address, ...]":
        """Return the file's addresses of `name`, in order; empty: the file doesn't have it."""
        written = (parse_address(text) for text in self._entries.get(name, ()))
        return tuple(dict.fromkeys(address for address in written if address is not None))


class Lookup:
    """Looks up the addresses of names and caches them. For one thread, within a running loop."""

    def __init__(
        self,
        hosts: HostsFile | None = None,
        servers: "Callable[[], Servers] | None" = None,
        clock: "Callable[[], float]" = time.monotonic,
        has_room: "Callable[[], bool]" = lambda: True,
    ) -> None:
        """Read `hosts` and ask `servers`; by default the host's own. `has_room`: is there a descriptor."""
        self._hosts = hosts or HostsFile()
        turn = asyncio.Lock()  # of whose answer is read
        self._servers = servers or (lambda: _name_servers(turn))
        self._clock = clock
        self.has_room = has_room
        self._look_again_at = clock() + _LOOK_AGAIN
        self._hosts.refresh()
        self._kept: OrderedDict[HostName, tuple[float, LookupResult]] = OrderedDict()
        self._host = LookupResult(
            LOOPBACK, frozenset(LOOPBACK)
        )  # asked of nobody: not even the hosts file has a say in it
        self.waiting: dict[HostName, deque[Callable[[LookupResult], None]]] = {}
        self._askers = 0  # in all of these
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def known(self, name: "HostName") -> LookupResult | None:
        """Return the result for `name` from the cache or the hosts file; None: call `ask`."""
        now = self._clock()
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_AGAIN
            if self._hosts.refresh():
                self._kept.clear()
        kept = self._kept.get(name)
        if kept is not None and now < kept[0]:
            return kept[1]
        if is_exeat_name(name):  # which nothing is ever kept of
            return self._host if name == HOST else _NOBODY
        written = self._hosts.addresses_of(name)
        return self._keep(name, written, LONGEST_KEPT) if written else None

    def ask(self, name: "HostName", done: "Callable[[LookupResult], None]") -> None:
        """Look `name` up; `done` is called exactly once. Concurrent lookups of a name share one query."""
        waiting = self.waiting.get(name)
        if is_exeat_name(name):
            asyncio.get_running_loop().call_soon(done, self._host if name == HOST else _NOBODY)
        elif self._askers >= MOST_ASKERS:
            found = LookupResult(problem=f"{self._askers} connections, requests and lookups wait for names already")
            asyncio.get_running_loop().call_soon(done, found)
        elif waiting is not None:
            waiting.append(done)
            self._askers += 1
        elif len(self.waiting) >= MOST_WAITING or not self.has_room():
            found = LookupResult(problem=f"{len(self.waiting)} names are being looked up already")
            asyncio.get_running_loop().call_soon(done, found)
        else:
            self.waiting[name] = deque([done])
            self._askers += 1
            task = asyncio.get_running_loop().create_task(self._look_up(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def forget_checks(self) -> None:
        """Drop the cached address checks: another policy is in force."""
        self._host.checked.clear()
        for _, found in self._kept.values():
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
            async with self._turns:
                addresses, seconds = await _both_families(self._servers(), name)
            found = self._keep(name, addresses, seconds)
        except DnsLookupError as error:
            found = self._keep(name, (), FAILURE_KEPT, str(error))
        finally:
            waiting = self.waiting.pop(name, deque())
            self._askers -= len(waiting)
            self._tell(waiting, found)

    def _tell(self, waiting: "deque[Callable[[LookupResult], None]]", found: LookupResult) -> None:
        """Call the callbacks of a lookup, some at a time, so that thousands don't delay other work (invariant 11)."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        for _ in range(min(len(waiting), TOLD_AT_ONCE)):
            loop.call_soon(waiting.popleft(), found)
        if waiting:
            loop.call_soon(self._tell, waiting, found)

    def _keep(
        self, name: "HostName", addresses: "Iterable[Address]", seconds: float, problem: str = ""
    ) -> LookupResult:
        ordered, own = in_order(tuple(dict.fromkeys(addresses))[:MOST_ADDRESSES])
        found = LookupResult(ordered, own, problem)
        self._kept[name] = self._clock() + min(seconds, LONGEST_KEPT), found
        self._kept.move_to_end(name)
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return found


async def _both_families(servers: "Servers", name: "HostName") -> "tuple[tuple[Address, ...], float]":
    """Query A and AAAA at once; after the first answer the other gets 50 ms more. Raises DnsLookupError."""
    tasks = [asyncio.create_task(servers.ask(name, kind)) for kind in ("A", "AAAA")]
    try:
        first, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if rest:
            await asyncio.wait(rest, timeout=None if all(task.exception() for task in first) else _PATIENCE)
    finally:
        for task in tasks:
            task.cancel()
    ended = [task for task in tasks if task.done() and not task.cancelled()]
    answers = [task.result() for task in ended if task.exception() is None]
    if not answers:
        raise DnsLookupError("; ".join(dict.fromkeys(str(task.exception()) for task in ended)))
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
    """Sort addresses for dialling, and say which are this host's own.

    What has a route goes first, then what has one from an address of the same reach (RFC 6724 section 6, rules 1 and
    5: a private IPv6 source doesn't get far), and then the families take turns, IPv6 first (RFC 8305 section 4).
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
    far_off = address.version == 6 and why_not_public(address) is None and why_not_public(source) is not None
    return _MISMATCHED if far_off else _BEST


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    """Parse a hosts file to each name's addresses as text, which are parsed when needed."""
    entries: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            key = name.lower().removesuffix(".")
            entries[key] = (*entries.get(key, ()), address)
    return entries
