"""Rate limiter (token bucket): so many at once, and so many a second."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimiter:
    """Room for `burst`, which fills up again by `a_second`."""

    __slots__ = ("_a_second", "_at", "_burst", "_clock", "_room")

    def __init__(self, burst: int, a_second: float, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._burst, self._a_second, self._clock = float(burst), a_second, clock
        self._room = self._burst
        self._at = clock()

    def take(self, wanted: int = 1) -> int:
        """Take up to `wanted` and return how many there was room for."""
        now = self._clock()
        room = min(self._burst, self._room + (now - self._at) * self._a_second)
        taken = min(wanted, int(room))
        self._room, self._at = room - taken, now
        return taken
