"""Watches over one running task's limits: tells of those that it reaches, and ends it when its time is up."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from enforcer.limits.fence import Fence, Means
from enforcer.limits.group import Counts
from enforcer.limits.reached import Reached, at, reached, refused_memory
from enforcer.limits.wanted import in_seconds
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from enforcer.limits.layer import Layer

GRACE = 5.0  # seconds between asking a task to end and ending it
_INSIDE: Final = ("disk", "files", "processes")  # limits that only its init can see

type Tell = Callable[[Reason, str, Outcome], None]


class Ward:
    """For one task, in its supervisor's loop. `tell` hears of each limit that was reached since the last look.

    `layer` is where what it changes goes, if its workspace is reviewed.
    The time runs from when this is made; while the whole machine sleeps it stands still (CLOCK_MONOTONIC).
    """

    def __init__(self, fence: Fence, tell: Tell, layer: "Layer | None" = None) -> None:
        self._fence = fence
        self._tell = tell
        self._layer = layer
        self._seen = Counts()
        self._at: frozenset[str] = frozenset()
        self._times: dict[str, tuple[str, int]] = {}  # what was said of a limit last, and how often it was reached
        self._beyond: Reached | None = None  # of the layer
        timeout = fence.limits.timeout
        self._due = math.inf if timeout is None else time.monotonic() + timeout
        self.cut_short = False  # whether it was asked to end for a limit

    @property
    def told(self) -> tuple[str, ...]:
        """Return each limit that was reached so far, in words, and how often in all."""
        found = reached(Counts(), self._seen, self._fence.limits)
        said = [each.detail for each in found]
        said += [detail if times == 1 else f"{detail}; {times} times" for detail, times in self._times.values()]
        if self._beyond is not None:
            said.append(self._beyond.detail)
        elif self.cut_short:
            said.append(self._time_is_up().detail)
        return tuple(said)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called; infinite where there is nothing to wait for."""
        due = max(0.0, self._due - time.monotonic())
        return due if self._layer is None else min(due, self._layer.wait())

    def turn(self, signals: Callable[[int], None]) -> bool:
        """Do what is due; `signals` sends the task's group one. True when the whole tree has to be killed now."""
        if time.monotonic() < self._due:
            if self._layer is None:
                return False
            if self.cut_short:
                return self._layer.presses()
            if (over := self._layer.turn()) is None:
                return False
            why = self._beyond = Reached(Reason.DISK_LIMIT, over.detail)
        elif self.cut_short:
            return True
        else:
            why = self._time_is_up()
        self.cut_short = True
        self._due = time.monotonic() + GRACE
        self._tell(*why)
        signals(signal.SIGTERM)
        signals(signal.SIGCONT)  # one that is stopped couldn't act on it: timeout(1)
        return False

    def see(self, found: Mapping[str, object]) -> None:
        """Take where the task is at limits that are seen in its sandbox; each is told when it gets there."""
        if self._layer is not None:
            nameless = found.get("nameless", 0)
            self._layer.nameless = nameless if isinstance(nameless, int) else 0
        now = frozenset(limit for limit in _INSIDE if limit in found)
        for limit in sorted(now - self._at):
            each = at(limit, found[limit], self._fence.limits)
            self._times[limit] = each.detail, self._times.get(limit, ("", 0))[1] + 1
            self._tell(*each)
        self._at = now

    def look(self, *, over: bool = False, status: int | None = None) -> None:
        """Tell of limits that were reached since the last time; of the processors once, when it is over.

        `status`: how the task ended, as waitpid(2) has it; None: it didn't end by itself.
        """
        now = self._fence.counts()
        if not over:
            now = now._replace(held_back=self._seen.held_back)
        found = reached(self._seen, now, self._fence.limits)
        self._seen = now
        for each in found:
            self._tell(*each)
        if over and status is not None and self._fence.means.get("memory") is Means.RLIMIT:
            died = refused_memory(status, self._fence.limits)
            if died is not None:
                self._times["memory"] = died.detail, 1
                self._tell(*died)
        if over and self._layer is not None and not self.cut_short and (beyond := self._layer.last()) is not None:
            self._beyond = Reached(Reason.DISK_LIMIT, beyond.detail, Outcome.PASSED)  # it ended by itself before
            self._tell(*self._beyond)

    def _time_is_up(self) -> Reached:
        said = f"timeout: it has run for {in_seconds(self._fence.limits.timeout or 0)}"
        return Reached(Reason.TIME_LIMIT, said)
