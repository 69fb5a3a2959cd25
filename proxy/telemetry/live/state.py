"""What `exeat top` knows: which tasks there are and what they get, kept up from events as they come.

Bounded: any number of tasks can come and go, and what was quiet longest is forgotten.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy.telemetry.events import APPROVALS, DECISIONS, Kind
from rules.verdicts import Mode, Outcome

if TYPE_CHECKING:
    from proxy.telemetry.events import Event

MOST_TASKS: Final = 1000
MOST_REFUSALS: Final = 100
RATE_OVER: Final = 10  # seconds
_NS: Final = 1_000_000_000
_KEPT_AFTER_END: Final = 10 * _NS
_ATTEMPTS: Final = DECISIONS | {Kind.COMMAND_DECIDED}
_STOPPED: Final = frozenset({Outcome.BLOCKED, Outcome.FAILED})
_BEFORE: Final = frozenset({Kind.RULES_LOADED, Kind.RULES_REJECTED})  # told also of starts that come to nothing
_WARNINGS: Final = frozenset({Kind.TAMPER, Kind.LEAK_FOUND})
_ODD: Final = frozenset({Kind.TASK_UNUSUAL, Kind.TASK_TAINTED})
_OVER: Final = frozenset({Kind.APPROVAL_EXPIRED, Kind.APPROVAL_STALE})  # a vote that is refused ends no question
MOST_ASKED: Final = 1000


class Rate:
    """How much of something there is a second, over the last ten."""

    __slots__ = ("_by_second",)

    def __init__(self) -> None:
        self._by_second: deque[tuple[int, int]] = deque(maxlen=RATE_OVER + 1)

    def add(self, time: int, count: int = 1) -> None:
        """Take note of some, at `time` (ns since 1970)."""
        second = time // _NS
        if self._by_second and self._by_second[-1][0] >= second:
            last, known = self._by_second.pop()
            self._by_second.append((last, known + count))
        else:
            self._by_second.append((second, count))

    def at(self, now: int) -> float:
        """Return it, at `now` (ns since 1970)."""
        since = now // _NS - RATE_OVER
        return sum(count for second, count in self._by_second if second > since) / RATE_OVER


@dataclass(slots=True)
class Running:
    """One task."""

    id: str
    name: str
    since: int  # ns since 1970
    last: int
    ended: int | None = None
    audit: bool = False
    attempts: Counter[Outcome] = field(default_factory=Counter)
    warnings: int = 0  # tampering and leaks
    up: int = 0  # bytes
    down: int = 0
    rate: Rate = field(default_factory=Rate)


class State:
    """All of it. Feed it events in the order in which they happened."""

    def __init__(self) -> None:
        self.tasks: dict[str, Running] = {}
        self.refusals: deque[Event] = deque(maxlen=MOST_REFUSALS)
        self.attempts: Counter[Outcome] = Counter()
        self.warnings = 0
        self.odd = 0  # what is unusual, and tasks that have read from an untrusted source
        self.asked: dict[str, None] = {}  # questions to people that are open
        self.rate = Rate()
        self.bytes_up, self.bytes_down = Rate(), Rate()

    def take(self, event: "Event") -> None:
        """Take note of an event."""
        running = self._task(event) if event.task.id and event.kind not in _BEFORE else None
        if event.kind in _ATTEMPTS and event.outcome is not None:
            self.attempts[event.outcome] += 1
            self.rate.add(event.time)
            if running is not None:
                running.attempts[event.outcome] += 1
                running.rate.add(event.time)
        if event.kind is Kind.CONNECTION_CLOSED and event.bytes is not None:
            self.bytes_up.add(event.time, event.bytes.up)
            self.bytes_down.add(event.time, event.bytes.down)
            if running is not None:
                running.up += event.bytes.up
                running.down += event.bytes.down
        if event.kind in _WARNINGS:
            self.warnings += 1
            if running is not None:
                running.warnings += 1
        self.odd += event.kind in _ODD
        if event.kind in APPROVALS:
            self._approval(event)
        elif event.kind in _WARNINGS or event.outcome in _STOPPED:
            self.refusals.append(event)

    def _approval(self, event: "Event") -> None:
        """Take note of what people are asked, and of what they have answered."""
        approval = event.approval
        if approval is None or not approval.id:
            return
        if event.kind is Kind.APPROVAL_ASKED and len(self.asked) < MOST_ASKED:
            self.asked[approval.id] = None
        elif event.kind in _OVER or (event.kind is Kind.APPROVAL_ANSWERED and approval.final):
            self.asked.pop(approval.id, None)

    def shown(self, now: int) -> list[Running]:
        """Return the tasks that run, and those that have just ended, the busiest first; forget the others."""
        over = [each.id for each in self.tasks.values() if each.ended and each.ended + _KEPT_AFTER_END < now]
        for ident in over:
            del self.tasks[ident]
        return sorted(self.tasks.values(), key=lambda each: (each.ended is not None, -each.rate.at(now), -each.last))

    def _task(self, event: "Event") -> Running:
        task = event.task
        running = self.tasks.get(task.id)
        if running is None:
            if len(self.tasks) >= MOST_TASKS:
                del self.tasks[min(self.tasks.values(), key=lambda each: each.last).id]
            running = self.tasks[task.id] = Running(task.id, task.name, event.time, event.time)
        running.last = max(running.last, event.time)
        if event.mode is not None:
            running.audit = event.mode is Mode.AUDIT
        if event.kind is Kind.TASK_ENDED:
            running.ended = event.time
        return running
