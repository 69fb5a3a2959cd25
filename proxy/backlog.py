"""How much is held for full sockets, of one tenant: beyond a bound, what is for them is read in small pieces.

What of a piece has gone counts until all of it has: it is memory, and a reader may leave the last byte of each.
"""

from array import array
from typing import Final

MOST_KEPT: Final = 32 * 1024 * 1024  # bytes


class Backlog:
    """How many bytes are held for one tenant's full sockets, counted where compiled code can count, too."""

    __slots__ = ("_count", "address", "most")

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._count = array("q", (0,))
        self.address = self._count.buffer_info()[0]  # of an int64
        self.most = most

    @property
    def kept(self) -> int:
        """How many there are."""
        return self._count[0]

    @kept.setter
    def kept(self, count: int) -> None:
        self._count[0] = count
