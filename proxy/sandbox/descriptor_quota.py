"""Divides a worker's descriptors among its sandboxes: each has a fixed part, which no other sandbox changes.

Home of invariant 11 for descriptors. A part that grew while others are idle would show each sandbox what its
neighbours do, so nothing is lent.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 512  # sandboxes of one worker, where there are descriptors for as many
RESERVED: Final = 96  # descriptors that are nobody's: the worker's own
OWN: Final = 12  # that every tenant has from its start: its sockets, and its place in the poller
LEAST: Final = 128  # that a tenant must have beside them: 64 connections


class Shares:
    """One worker's descriptors. For one thread."""

    def __init__(self, limit: int, most: int) -> None:
        """Divide `limit` descriptors (RLIMIT_NOFILE) among `most` tenants, or fewer where they would get too few."""
        free = max(limit - RESERVED, 0)
        self.most = max(min(most, free // (OWN + LEAST)), 1)
        self.each = max(free // self.most - OWN, 0)
        self._joined = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another tenant."""
        return self._joined >= self.most

    def join(self, use: "Callable[[], int]") -> "Share":
        """Give a tenant its share; `use` says how many descriptors it has beside its own."""
        self._joined += 1
        return Share(self, use)

    def leave(self) -> None:
        """Take a share back."""
        self._joined -= 1


class Share:
    """One tenant's share."""

    __slots__ = ("_left", "_shares", "_use")

    def __init__(self, shares: Shares, use: "Callable[[], int]") -> None:
        self._shares = shares
        self._use = use
        self._left = False

    def has_room(self) -> bool:
        """Whether the tenant may open one thing more."""
        return self._use() < self._shares.each

    def leave(self) -> None:
        """Give it back. Idempotent."""
        if not self._left:
            self._left = True
            self._shares.leave()


class Beside:
    """Sockets to the outside beside the one that each connection of a task is counted with, of one tenant.

    Of a name that has sixteen addresses, none of which answers, as many are dialed at once; and behind one HTTP/2
    connection each request has a connection of its own where the server speaks HTTP/1. Whatever opens one more than the
    first asks here before, and counts it.
    """

    __slots__ = ("count", "has_room")

    def __init__(self, has_room: "Callable[[], bool]" = lambda: True) -> None:
        """`has_room` says whether the tenant may open one more, of whatever kind."""
        self.count = 0
        self.has_room = has_room


class Part:
    """The sockets beside one connection."""

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
