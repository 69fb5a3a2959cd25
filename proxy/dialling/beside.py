"""Sockets to the outside beside the one that each connection of a task is counted with (`shares`, invariant 11).

Of a name that has sixteen addresses, none of which answers, as many are on their way at once; and behind one HTTP/2
connection each request has a connection of its own where the server speaks HTTP/1. Whoever opens one more than the
first asks here before, and counts it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Beside:
    """Those of one tenant."""

    __slots__ = ("count", "has_room")

    def __init__(self, has_room: "Callable[[], bool]" = lambda: True) -> None:
        """`has_room` says whether the tenant may open one more, of whatever kind."""
        self.count = 0
        self.has_room = has_room


class Part:
    """Those of one connection."""

    __slots__ = ("_all", "_count")

    def __init__(self, of: Beside) -> None:
        self._all = of
        self._count = 0

    def has_room(self) -> bool:
        """Whether there may be one more."""
        return self._all.has_room()

    def be(self, count: int) -> None:
        """Take note of how many there are now."""
        count = max(count, 0)
        self._all.count += count - self._count
        self._count = count
