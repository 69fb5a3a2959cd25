"""Which names a true address was answered for (`dns: real`): many names share one address, and only some may be used.

Bounded twice: so many addresses, and so many names at each. What falls out is unknown again, which means that a
connection has to say its name itself or is refused: forgetting never lets anything out.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from rules.addresses import Address
    from rules.names import HostName

MOST_ADDRESSES: Final = 16384
MOST_NAMES_EACH: Final = 64


class RealAddresses:
    """True addresses that a sandbox was told, each with the names it was told for, the latest last."""

    __slots__ = ("_clock", "_kept", "_names")

    def __init__(self, kept: float, clock: "Callable[[], float]") -> None:
        """Keep what is noted for `kept` seconds."""
        self._kept = kept
        self._clock = clock
        self._names: OrderedDict[Address, OrderedDict[HostName, float]] = OrderedDict()

    def note(self, name: "HostName", address: "Address") -> None:
        """Note that `name` was answered with `address` just now."""
        names = self._names.setdefault(address, OrderedDict())
        self._names.move_to_end(address)
        names[name] = self._clock() + self._kept
        names.move_to_end(name)
        if len(names) > MOST_NAMES_EACH:
            names.popitem(last=False)
        if len(self._names) > MOST_ADDRESSES:
            self._names.popitem(last=False)

    def names_of(self, address: "Address") -> "tuple[HostName, ...]":
        """Return the names that `address` stands for, the latest last."""
        names = self._names.get(address)
        if names is None:
            return ()
        now = self._clock()
        return tuple(name for name, until in names.items() if until >= now)
