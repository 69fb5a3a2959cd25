"""Table of names and their addresses in a sandbox: synthetic addresses, and real ones with `dns: real`."""

import time
from collections import OrderedDict
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rules.values.addresses import Address
    from rules.values.names import HostName


TTL: Final = 60  # seconds, of every answer
KEPT: Final = TTL + 3600.0  # seconds after the last answer for which an address stands for its name
MOST_NAMES: Final = 16384
MOST_DENIED: Final = 1024
PARTS: Final = 8  # of the pool, one for each table, if a worker may be lost with its table
_DENIED_SHARE: Final = 16  # one in this many addresses is for denied names


class NameTable:
    """Names and addresses of one sandbox. For one thread."""

    __slots__ = ("_allowed", "_allowed_after", "_clock", "_denied", "_first", "_last", "_name_count", "_real")

    def __init__(
        self,
        pool: IPv4Network,
        own: "Collection[Address]" = (),
        clock: "Callable[[], float]" = time.monotonic,
        *,
        before: int | None = None,
        wait: float = 0.0,
    ) -> None:
        """Lease addresses of `pool`, except `own`, the sandbox's addresses.

        `before`: number of the sandbox's earlier tables, lost with their workers (None: never any). Their addresses may
        be in use and must not stand for another name, so each table uses its own part of the pool. `wait`: seconds
        until the part's addresses are free; no allowed name gets an address earlier.
        """
        first, last = self._first, self._last = int(pool.network_address), int(pool.broadcast_address)
        split = last + 1 - max(1, min(MOST_DENIED, pool.num_addresses // _DENIED_SHARE))
        excluded = {int(address) for address in own if address.version == 4}
        # Exclude the first and last address: some clients treat them as network and broadcast addresses.
        begin, end = first + 1, min(split, first + 1 + MOST_NAMES)
        if before is not None:
            size = max(min(MOST_NAMES, (split - first - 1) // PARTS), 1)
            begin += before % PARTS * size
            end = min(begin + size, split)
        self._allowed = _Leases(begin, end, excluded, clock)
        self._denied = _Leases(split, last, excluded, clock)
        self._real = RealAddresses(KEPT, clock)
        self._clock = clock
        self._allowed_after = clock() + wait

    def address_for(self, name: "HostName", *, denied: bool) -> IPv4Address | None:
        """Return the synthetic address of `name`, leased for KEPT seconds; None: the pool is exhausted."""
        if denied:
            return self._denied.take(name)
        return None if self._clock() < self._allowed_after else self._allowed.take(name)

    def remember(self, name: "HostName", addresses: "Iterable[Address]") -> None:
        """Record the real addresses in an answer for `name` (`dns: real`)."""
        for address in addresses:
            self._real.note(name, address)

    def covers(self, address: "Address") -> bool:
        """Whether `address` is in the synthetic pool."""
        return isinstance(address, IPv4Address) and self._first <= int(address) <= self._last

    def name_of(self, address: "Address") -> "HostName | None":
        """Return the name of `address`; of several, the most recent."""
        names = self.names_of(address)
        return names[-1] if names else None

    def names_of(self, address: "Address") -> "tuple[HostName, ...]":
        """Return all names of `address`: at most one for a synthetic address, perhaps more for a real one."""
        number = int(address)
        name = self._allowed.holder(number) or self._denied.holder(number) if address.version == 4 else None
        return self._real.names_of(address) if name is None else (name,)


class _Lease:
    """Lease of an address to a name, until a time."""

    __slots__ = ("name", "number", "until")

    def __init__(self, name: "HostName", number: int, until: float) -> None:
        self.name = name
        self.number = number
        self.until = until


class _Leases:
    """Pool of addresses from `first` to before `end`, each leased to one name; the oldest leases come first."""

    __slots__ = ("_by_name", "_by_number", "_clock", "_unused")

    def __init__(self, first: int, end: int, excluded: "Collection[int]", clock: "Callable[[], float]") -> None:
        self._clock = clock
        self._unused: Iterator[int] = (number for number in range(first, end) if number not in excluded)
        self._by_name: OrderedDict[HostName, _Lease] = OrderedDict()
        self._by_number: dict[int, _Lease] = {}

    def take(self, name: "HostName") -> IPv4Address | None:
        now = self._clock()
        lease = self._by_name.get(name)
        if lease is None:
            number = next(self._unused, None) or self._reclaim(now)
            if number is None:
                return None
            lease = self._by_name[name] = self._by_number[number] = _Lease(name, number, 0.0)
        else:
            self._by_name.move_to_end(name)
        lease.until = now + KEPT
        return IPv4Address(lease.number)

    def holder(self, number: int) -> "HostName | None":
        lease = self._by_number.get(number)
        return None if lease is None or lease.until < self._clock() else lease.name

    def _reclaim(self, now: float) -> int | None:
        """Reclaim the oldest lease, if it has ended."""
        oldest = next(iter(self._by_name.values()), None)
        if oldest is None or oldest.until >= now:
            return None
        del self._by_name[oldest.name], self._by_number[oldest.number]
        return oldest.number


MOST_ADDRESSES: Final = 16384
MOST_NAMES_EACH: Final = 64
MOST: Final = 65536  # pairs of name and address, 140 bytes each plus the name


class RealAddresses:
    """Real addresses in answers to a sandbox, each with its names, the latest last."""

    __slots__ = ("_clock", "_name_count", "_names", "_seconds")

    def __init__(self, seconds: float, clock: "Callable[[], float]") -> None:
        """Keep each pair for `seconds`."""
        self._seconds = seconds
        self._clock = clock
        self._names: OrderedDict[Address, OrderedDict[HostName, float]] = OrderedDict()
        self._name_count = 0  # names of all addresses

    def note(self, name: "HostName", address: "Address") -> None:
        """Record an answer with `address` for `name`."""
        names = self._names.setdefault(address, OrderedDict())
        self._names.move_to_end(address)
        self._name_count += name not in names
        names[name] = self._clock() + self._seconds
        names.move_to_end(name)
        if len(names) > MOST_NAMES_EACH:
            names.popitem(last=False)
            self._name_count -= 1
        while len(self._names) > MOST_ADDRESSES or self._name_count > MOST:
            _, removed = self._names.popitem(last=False)
            self._name_count -= len(removed)

    def names_of(self, address: "Address") -> "tuple[HostName, ...]":
        """Return the names of `address`, the latest last."""
        names = self._names.get(address)
        if names is None:
            return ()
        now = self._clock()
        return tuple(name for name, until in names.items() if until >= now)
