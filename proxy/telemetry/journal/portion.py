"""How much of the journal's disk one task may fill: no more in a day than half of what it leaves free.

What can't be told doesn't leave (invariant 6), so a task that has the disk filled with what is told of it would keep
all others in. At most a third of what was free is its own; who has written little is told of on a disk that is full
but for a few bytes. A day's: what is older has been compressed, exported or removed as its owner likes.

The end of what has left is told all the same. `on_journal_failure` has no say in it: who wants what can't be told to
leave doesn't mean that a task may see to that itself.
"""

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.telemetry.journal.writing import JournalFailed

if TYPE_CHECKING:
    from proxy.telemetry.journal.writing import Journal

LITTLE: Final = 16 << 20  # bytes that are nobody's business
_BETWEEN: Final = 1 << 20  # bytes, from one look at the disk to the next
_AGAIN: Final = 1.0  # seconds, likewise, while there is no room
_DAY: Final = 86_400  # seconds


class Portion:
    """One task's, of the disk that `journal` is on."""

    __slots__ = ("_day", "_journal", "_look_at", "_look_when", "_said", "taken")

    def __init__(self, journal: "Journal") -> None:
        self._journal = journal
        self._look_at = LITTLE
        self._look_when = 0.0  # time.monotonic(), while there is no room
        self._day = 0
        self.taken = 0  # bytes, today
        self._said = False  # that there is no room

    def has_room(self) -> bool:
        """Whether more may be told of the task."""
        if self.taken < self._look_at or time.monotonic() < self._look_when:
            return not self._look_when
        day = int(time.time()) // _DAY
        if day != self._day:
            self._day, self.taken = day, 0 if self._day else self.taken
        if self.taken < LITTLE or self.taken <= self._journal.free() // 2:
            self._look_at, self._look_when, self._said = max(LITTLE, self.taken + _BETWEEN), 0.0, False
            return True
        self._look_when = time.monotonic() + _AGAIN
        return False

    def used_up(self, say: Callable[[str], None]) -> JournalFailed:
        """Return what to raise where there is no room; `say` what is to be known of that, once."""
        told = f"{self.taken >> 20} MiB were told of the task today"
        if not self._said:
            self._said = True
            more = "more than half of what is free on the journal's disk: what it tries is refused"
            say(f"{told}, {more}, so that others' attempts can be told")
        return JournalFailed(errno.EDQUOT, told)
