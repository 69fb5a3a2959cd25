"""Rate limiter (token bucket): a burst, then a fixed rate per second."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimiter:
    """Token bucket of `burst` tokens, refilled with `a_second` tokens per second."""

    __slots__ = ("_a_second", "_at", "_burst", "_clock", "_room")

    def __init__(self, burst: int, a_second: float, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._burst, self._a_second, self._clock = float(burst), a_second, clock
        self._room = self._burst
        self._at = clock()

    def take(self, wanted: int = 1) -> int:
        """Take up to `wanted` tokens; returns how many were available."""
        now = self._clock()
        room = min(self._burst, self._room + (now - self._at) * self._a_second)
        taken = min(wanted, int(room))
        self._room, self._at = room - taken, now
        return taken
