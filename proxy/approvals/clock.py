"""The time that questions and grants end by: it never goes back, whatever is done to the host's clock.

A clock that is set back would give everything more time, and what has ended would be good again. So time goes on from
the latest that was ever seen, at the speed of the clock that counts since the start of the host, and the host's own is
followed only where it is ahead of that.
"""

import time
from collections.abc import Callable


def since_boot() -> float:
    """Return seconds since the host's start, those that it slept included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Seconds since 1970, never less than what was seen before."""

    __slots__ = ("_at", "_latest", "_steady", "_wall")

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot) -> None:
        self._wall, self._steady = wall, steady
        self._at = steady()
        self._latest = wall()

    def now(self, seen: float = 0.0) -> float:
        """Return the time; `seen` is what somebody else knows to have been already."""
        at = self._steady()
        self._latest = max(self._wall(), self._latest + max(at - self._at, 0.0), seen)
        self._at = at
        return self._latest
