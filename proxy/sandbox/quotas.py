"""Quotas of one sandbox: its descriptors in the worker, and how many of something a second.

Home of invariant 11 for descriptors: each sandbox has a fixed quota, which no other sandbox changes. A quota that grew
while others are idle would show each sandbox what its neighbours do, so nothing is lent.
"""

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sized


MOST: Final = 512  # sandboxes of one worker, where there are descriptors for as many
RESERVED: Final = 96  # descriptors that are nobody's: the worker's own
OWN: Final = 12  # that every sandbox has from its start: its sockets, and its place in the poller
LEAST: Final = 128  # that a sandbox must have beside them: 64 connections
_UNLIMITED: Final = 1 << 31


class DescriptorQuotas:
    """One worker's descriptors. For one thread."""

    def __init__(self, limit: int, most: int) -> None:
        """Divide `limit` descriptors (RLIMIT_NOFILE) among `most` sandboxes, or fewer where they would get too few."""
        free = max(limit - RESERVED, 0)
        self.most = max(min(most, free // (OWN + LEAST)), 1)
        self.each = max(free // self.most - OWN, 0)
        self._joined = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another sandbox."""
        return self._joined >= self.most

    def join(self) -> "DescriptorQuota":
        """Give a sandbox its quota."""
        self._joined += 1
        return DescriptorQuota(self.each, self)

    def leave(self) -> None:
        """Take a quota back."""
        self._joined -= 1


class DescriptorQuota:
    """One sandbox's descriptors, in use and at most. For one thread.

    `extra` are sockets to servers beside the one that each connection is counted with: a name with sixteen addresses,
    none of which answers, has as many dialed at once, and behind one HTTP/2 connection each request has a connection
    of its own where the server speaks HTTP/1. Whoever opens one asks `has_room` before, and counts it.
    """

    def __init__(self, most: int = _UNLIMITED, of: DescriptorQuotas | None = None) -> None:
        self.extra = 0
        self._most = most
        self._of = of
        self._counted: list[tuple[Sized, int, int]] = []

    def count(self, things: "Sized", each: int, most: int = _UNLIMITED) -> None:
        """Count `each` descriptors for each of `things` that is there, at most `most` of which have any."""
        self._counted.append((things, each, most))

    def has_room(self) -> bool:
        """Whether the sandbox may open one thing more."""
        used = self.extra
        for things, each, most in self._counted:
            used += each * min(len(things), most)
        return used < self._most

    def leave(self) -> None:
        """Give it back. Idempotent."""
        of, self._of = self._of, None
        if of is not None:
            of.leave()


class ExtraSockets:
    """The extra sockets of one connection."""

    __slots__ = ("_count", "_quota")

    def __init__(self, quota: DescriptorQuota) -> None:
        self._quota = quota
        self._count = 0

    def has_room(self) -> bool:
        """Whether there may be one more."""
        return self._quota.has_room()

    def be(self, count: int) -> None:
        """Take note of how many there are now."""
        count = max(count, 0)
        self._quota.extra += count - self._count
        self._count = count


class Bucket:
    """Room for `burst`, which fills up again by `a_second`."""

    __slots__ = ("_a_second", "_at", "_burst", "_clock", "_room")

    def __init__(self, burst: int, a_second: float, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._burst, self._a_second, self._clock = float(burst), a_second, clock
        self._room = self._burst
        self._at = clock()

    def take(self, wanted: int = 1) -> int:
        """Take up to `wanted` and return how many there was room for."""
        taken = min(wanted, self.left())
        self._room -= taken
        return taken

    def left(self) -> int:
        """Return how many there is room for."""
        now = self._clock()
        self._room = min(self._burst, self._room + (now - self._at) * self._a_second)
        self._at = now
        return int(self._room)
