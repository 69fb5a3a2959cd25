"""Table of names and their addresses in a sandbox: synthetic addresses, and real ones with `dns: real`."""

import time
from collections import OrderedDict
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rules.addresses import Address
    from rules.names import HostName


TTL: Final = 60  # seconds, of every answer
KEPT: Final = TTL + 3600.0  # seconds after the last answer for which an address keeps its meaning
MOST_NAMES: Final = 16384
MOST_DENIED: Final = 1024
PARTS: Final = 8  # of the pool, where tables can be lost with their workers
_DENIED_SHARE: Final = 16  # one address in so many is for denied names


class NameTable:
    """Names and addresses of one sandbox. For one thread."""

    __slots__ = ("_allowed", "_clock", "_denied", "_first", "_free", "_last", "_noted", "_real")

    def __init__(
        self,
        pool: IPv4Network,
        own: "Collection[Address]" = (),
        clock: "Callable[[], float]" = time.monotonic,
        *,
        before: int | None = None,
        wait: float = 0.0,
    ) -> None:
        """Give out addresses of `pool`, but none of `own`: those are the sandbox's.

        `before`: how many tables the sandbox had that were lost with their workers (None: there can be none). What they
        gave out may be in use and must mean no other name, so each table has a part of the pool to itself.
        `wait`: seconds until this part's addresses are free; no allowed name gets an address before that.
        """
        first, last = self._first, self._last = int(pool.network_address), int(pool.broadcast_address)
        split = last + 1 - max(1, min(MOST_DENIED, pool.num_addresses // _DENIED_SHARE))
        taken = {int(address) for address in own if address.version == 4}
        # Without the first and the last of the pool: some clients take them for a network and a broadcast.
        begin, end = first + 1, min(split, first + 1 + MOST_NAMES)
        if before is not None:
            size = max(min(MOST_NAMES, (split - first - 1) // PARTS), 1)
            begin += before % PARTS * size
            end = min(begin + size, split)
        self._allowed = _Leases(begin, end, taken, clock)
        self._denied = _Leases(split, last, taken, clock)
        self._real = RealAddresses(KEPT, clock)
        self._clock = clock
        self._free = clock() + wait

    def address_for(self, name: "HostName", *, denied: bool) -> IPv4Address | None:
        """Return the synthetic address of `name`, leased for KEPT seconds from now; None: the pool is used up."""
        if denied:
            return self._denied.take(name)
        return None if self._clock() < self._free else self._allowed.take(name)

    def remember(self, name: "HostName", addresses: "Iterable[Address]") -> None:
        """Record the real addresses that `name` was answered with (`dns: real`)."""
        for address in addresses:
            self._real.note(name, address)

    def covers(self, address: "Address") -> bool:
        """Whether `address` is in the synthetic pool, so that it stands for a name or for nothing."""
        return isinstance(address, IPv4Address) and self._first <= int(address) <= self._last

    def name_of(self, address: "Address") -> "HostName | None":
        """Return the name of `address`; of several, the one answered last."""
        names = self.names_of(address)
        return names[-1] if names else None

    def names_of(self, address: "Address") -> "tuple[HostName, ...]":
        """Return every name of `address`: one of a synthetic address, perhaps more of a real one."""
        number = int(address)
        name = self._allowed.holder(number) or self._denied.holder(number) if address.version == 4 else None
        return self._real.names_of(address) if name is None else (name,)


class _Lease:
    """The address of one name, and when the lease ends."""

    __slots__ = ("name", "number", "until")

    def __init__(self, name: "HostName", number: int, until: float) -> None:
        self.name = name
        self.number = number
        self.until = until


class _Leases:
    """Pool of addresses from `first` to before `end`, each leased to one name; the oldest leases come first."""

    __slots__ = ("_by_name", "_by_number", "_clock", "_fresh")

    def __init__(self, first: int, end: int, taken: "Collection[int]", clock: "Callable[[], float]") -> None:
        self._clock = clock
        self._fresh: Iterator[int] = (number for number in range(first, end) if number not in taken)
        self._by_name: OrderedDict[HostName, _Lease] = OrderedDict()
        self._by_number: dict[int, _Lease] = {}

    def take(self, name: "HostName") -> IPv4Address | None:
        now = self._clock()
        lease = self._by_name.get(name)
        if lease is None:
            number = next(self._fresh, None) or self._reclaimed(now)
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

    def _reclaimed(self, now: float) -> int | None:
        """Reclaim the oldest lease, if it has ended."""
        oldest = next(iter(self._by_name.values()), None)
        if oldest is None or oldest.until >= now:
            return None
        del self._by_name[oldest.name], self._by_number[oldest.number]
        return oldest.number


MOST_ADDRESSES: Final = 16384
MOST_NAMES_EACH: Final = 64
MOST: Final = 65536  # names at addresses, 140 bytes each beside the names


class RealAddresses:
    """Real addresses that a sandbox was answered with, each with its names, the latest last."""

    __slots__ = ("_clock", "_kept", "_names", "_noted")

    def __init__(self, kept: float, clock: "Callable[[], float]") -> None:
        """Keep what is noted for `kept` seconds."""
        self._kept = kept
        self._clock = clock
        self._names: OrderedDict[Address, OrderedDict[HostName, float]] = OrderedDict()
        self._noted = 0  # names at all of them

    def note(self, name: "HostName", address: "Address") -> None:
        """Record that `name` was answered with `address` now."""
        names = self._names.setdefault(address, OrderedDict())
        self._names.move_to_end(address)
        self._noted += name not in names
        names[name] = self._clock() + self._kept
        names.move_to_end(name)
        if len(names) > MOST_NAMES_EACH:
            names.popitem(last=False)
            self._noted -= 1
        while len(self._names) > MOST_ADDRESSES or self._noted > MOST:
            _, forgotten = self._names.popitem(last=False)
            self._noted -= len(forgotten)

    def names_of(self, address: "Address") -> "tuple[HostName, ...]":
        """Return the names of `address`, the latest last."""
        names = self._names.get(address)
        if names is None:
            return ()
        now = self._clock()
        return tuple(name for name, until in names.items() if until >= now)
