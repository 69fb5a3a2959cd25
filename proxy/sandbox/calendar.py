"""Which day it is, for rules with `until`: UTC, asked with every attempt, and worked out once a day.

It never goes back: a clock that is set back opens nothing that had expired.
"""

import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_DAY: Final = 86_400  # seconds


class Calendar:
    """Today, by one clock (seconds since 1970)."""

    __slots__ = ("_clock", "_ends", "_today")

    def __init__(self, clock: "Callable[[], float]" = time.time) -> None:
        self._clock = clock
        self._today = date.min
        self._ends = float("-inf")

    def today(self) -> date:
        """Return the day; the same object all day long."""
        now = self._clock()
        if now >= self._ends:
            self._today = datetime.fromtimestamp(now, UTC).date()
            self._ends = (now // _DAY + 1) * _DAY
        return self._today
