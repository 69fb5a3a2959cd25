"""Watches over one running task's limits: tells of those that it reaches, and ends it when its time is up."""

import math
import signal
import time
from collections.abc import Callable, Mapping

from enforcer.limits.fence import Fence
from enforcer.limits.group import Counts
from enforcer.limits.reached import Reached, reached
from enforcer.limits.wanted import in_seconds
from rules.verdicts import Outcome, Reason

GRACE = 5.0  # seconds between asking a task to end and ending it


type Tell = Callable[[Reason, str, Outcome], None]


class Ward:
    """For one task, in its supervisor's loop. `tell` hears of each limit that was reached since the last look.

    The time runs from when this is made; while the whole machine sleeps it stands still (CLOCK_MONOTONIC).
    """

    def __init__(self, fence: Fence, tell: Tell) -> None:
        self._fence = fence
        self._tell = tell
        self._seen = Counts()
        timeout = fence.limits.timeout
        self._due = math.inf if timeout is None else time.monotonic() + timeout
        self.timed_out = False

    @property
    def told(self) -> tuple[str, ...]:
        """Return each limit that was reached so far, in words, and how often in all."""
        found = reached(Counts(), self._seen, self._fence.limits)
        if self.timed_out:
            found.append(self._time_is_up())
        return tuple(each.detail for each in found)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called; infinite without a time limit."""
        return max(0.0, self._due - time.monotonic())

    def turn(self, say: Callable[[Mapping[str, object]], None]) -> bool:
        """Do what is due; `say` reaches the task's init. True when the whole tree has to be killed now."""
        if time.monotonic() < self._due:
            return False
        if self.timed_out:
            return True
        self.timed_out = True
        self._due = time.monotonic() + GRACE
        self._tell(*self._time_is_up())
        say({"signal": signal.SIGTERM, "group": True})
        say({"signal": signal.SIGCONT, "group": True})  # one that is stopped couldn't act on it: timeout(1)
        return False

    def look(self, *, over: bool = False) -> None:
        """Tell of limits that were reached since the last time; of the processors once, when it is over."""
        now = self._fence.counts()
        if not over:
            now = now._replace(held_back=self._seen.held_back)
        found = reached(self._seen, now, self._fence.limits)
        self._seen = now
        for each in found:
            self._tell(*each)

    def _time_is_up(self) -> Reached:
        said = f"timeout: it has run for {in_seconds(self._fence.limits.timeout or 0)}"
        return Reached(Reason.TIME_LIMIT, said)
