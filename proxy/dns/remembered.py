"""Which names a true address was answered for (`dns: real`): many names share one address, and only some may be used.

Bounded three times: so many addresses, so many names at each, and so many in all. What falls out is unknown again,
which means that a connection has to say its name itself or is refused: forgetting never lets anything out.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from rules.addresses import Address
    from rules.names import HostName

MOST_ADDRESSES: Final = 16384
MOST_NAMES_EACH: Final = 64
MOST: Final = 65536  # names at addresses, 140 bytes each beside the names


class RealAddresses:
    """True addresses that a sandbox was told, each with the names it was told for, the latest last."""

    __slots__ = ("_clock", "_kept", "_names", "_noted")

    def __init__(self, kept: float, clock: "Callable[[], float]") -> None:
        """Keep what is noted for `kept` seconds."""
        self._kept = kept
        self._clock = clock
        self._names: OrderedDict[Address, OrderedDict[HostName, float]] = OrderedDict()
        self._noted = 0  # names at all of them

    def note(self, name: "HostName", address: "Address") -> None:
        """Note that `name` was answered with `address` just now."""
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
        """Return the names that `address` stands for, the latest last."""
        names = self._names.get(address)
        if names is None:
            return ()
        now = self._clock()
        return tuple(name for name, until in names.items() if until >= now)
