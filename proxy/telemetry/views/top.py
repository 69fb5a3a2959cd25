"""`exeat top`: state of all tasks, updated from events as they come, and its screen.

Bounded: with too many tasks, the one without events for longest is dropped. No I/O. Text of a sandbox is escaped
(`visible`, invariant 7), here or in `table`.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from proxy.telemetry.events import APPROVALS, ATTEMPTS, STOPPED, Kind
from proxy.telemetry.summary import OUTCOME_WORDS
from proxy.telemetry.views.table import Table
from proxy.telemetry.visible import fitted, padded, visible
from rules.verdicts import Mode, Outcome

if TYPE_CHECKING:
    from proxy.telemetry.events import Event

MOST_TASKS: Final = 1000
MOST_REFUSALS: Final = 100
RATE_OVER: Final = 10  # seconds
_NS: Final = 1_000_000_000
_KEPT_AFTER_END: Final = 10 * _NS
_START_KINDS: Final = frozenset({Kind.RULES_LOADED, Kind.RULES_REJECTED})  # also recorded for starts that fail
_WARNINGS: Final = frozenset({Kind.TAMPERING_DETECTED, Kind.SECRET_DETECTED})
_SUSPICIOUS: Final = frozenset({Kind.ANOMALY_DETECTED, Kind.TASK_TAINTED})
_CLOSING_KINDS: Final = frozenset(
    {Kind.APPROVAL_EXPIRED, Kind.APPROVAL_STALE}
)  # a vote that is refused ends no question
MOST_PENDING: Final = 1000


class Rate:
    """Rate per second over the last ten seconds."""

    __slots__ = ("_by_second",)

    def __init__(self) -> None:
        self._by_second: deque[tuple[int, int]] = deque(maxlen=RATE_OVER + 1)

    def add(self, time: int, count: int = 1) -> None:
        """Add events at `time` (ns since 1970)."""
        second = time // _NS
        if self._by_second and self._by_second[-1][0] >= second:
            last, known = self._by_second.pop()
            self._by_second.append((last, known + count))
        else:
            self._by_second.append((second, count))

    def at(self, now: int) -> float:
        """Return the rate at `now` (ns since 1970)."""
        since = now // _NS - RATE_OVER
        return sum(count for second, count in self._by_second if second > since) / RATE_OVER


@dataclass(slots=True)
class RunningTask:
    """Running task and its counts."""

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


class TopState:
    """State of `exeat top`. Takes events in order of time."""

    def __init__(self) -> None:
        self.tasks: dict[str, RunningTask] = {}
        self.refusals: deque[Event] = deque(maxlen=MOST_REFUSALS)
        self.attempts: Counter[Outcome] = Counter()
        self.warnings = 0
        self.suspicious = 0  # anomalies and tainted tasks
        self.pending_approvals: dict[str, None] = {}  # pending approval requests
        self.rate = Rate()
        self.bytes_up, self.bytes_down = Rate(), Rate()

    def take(self, event: "Event") -> None:
        """Count an event."""
        running = self._task_line(event) if event.task.id and event.kind not in _START_KINDS else None
        if event.kind in ATTEMPTS and event.outcome is not None:
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
        self.suspicious += event.kind in _SUSPICIOUS
        if event.kind in APPROVALS:
            self._approval(event)
        elif event.kind in _WARNINGS or event.outcome in STOPPED:
            self.refusals.append(event)

    def _approval(self, event: "Event") -> None:
        """Update the pending approval requests."""
        approval = event.approval
        if approval is None or not approval.id:
            return
        if event.kind is Kind.APPROVAL_ASKED and len(self.pending_approvals) < MOST_PENDING:
            self.pending_approvals[approval.id] = None
        elif event.kind in _CLOSING_KINDS or (event.kind is Kind.APPROVAL_ANSWERED and approval.final):
            self.pending_approvals.pop(approval.id, None)

    def shown(self, now: int) -> list[RunningTask]:
        """Return running and just ended tasks, the busiest first; drop older ones."""
        over = [each.id for each in self.tasks.values() if each.ended and each.ended + _KEPT_AFTER_END < now]
        for ident in over:
            del self.tasks[ident]
        return sorted(self.tasks.values(), key=lambda each: (each.ended is not None, -each.rate.at(now), -each.last))

    def _task_line(self, event: "Event") -> RunningTask:
        task = event.task
        running = self.tasks.get(task.id)
        if running is None:
            if len(self.tasks) >= MOST_TASKS:
                del self.tasks[min(self.tasks.values(), key=lambda each: each.last).id]
            running = self.tasks[task.id] = RunningTask(task.id, task.name, event.time, event.time)
        running.last = max(running.last, event.time)
        if event.mode is not None:
            running.audit = event.mode is Mode.AUDIT
        if event.kind is Kind.TASK_ENDED:
            running.ended = event.time
        return running


_BOLD, _DIM, _RED, _YELLOW = 1, 2, 31, 33  # ECMA-48, SGR
_NAME, _ID = 20, 22  # columns
_HEADS: Final = ("FOR", "ALLOWED", "BLOCKED", "FAILED", "OUT", "IN", "A SECOND")
_CELL: Final = 9
_MIN_TASK_ROWS: Final = 3  # rows, even on a small screen
_NARROW: Final = 110  # columns; narrower screens show no task ids
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Screen:
    """Screen of `exeat top`: its size and colours."""

    columns: int
    lines: int
    coloured: bool = False

    def show(self, state: "TopState", now: int, since: str) -> list[str]:
        """Return the lines at `now` (ns since 1970); `since` is the start of the counts, in words."""
        tasks = state.shown(now)
        shown = self._header_lines(state, tasks, now, since)
        rows = max(_MIN_TASK_ROWS, (self.lines - len(shown) - 4) // 2)
        shown += ["", self._style(self._row("TASK", "ID", _HEADS, ""), _BOLD)]
        shown += [self._task_line(each, now) for each in tasks[:rows]] or [self._style("  none", _DIM)]
        if len(tasks) > rows:
            shown.append(self._style(f"  and {len(tasks) - rows} more", _DIM))
        shown += ["", self._style("LAST REFUSED, NEWEST FIRST", _BOLD)]
        table = Table(self.columns, self.coloured, ids=False)
        left = max(1, self.lines - len(shown))
        shown += [table.row(event) for event in list(reversed(state.refusals))[:left]] or [self._style("  none", _DIM)]
        return shown

    def _header_lines(self, state: "TopState", tasks: "list[RunningTask]", now: int, since: str) -> list[str]:
        clock = datetime.fromtimestamp(now // _NS, UTC)
        running = sum(each.ended is None for each in tasks)
        counted = state.attempts
        parts = [f"{counted[outcome]:,} {word}" for outcome, word in OUTCOME_WORDS.items() if counted[outcome]]
        lines_above = [
            (
                f"exeat top  {clock:%H:%M:%S} UTC  {running} task{'' if running == 1 else 's'}  "
                f"{state.rate.at(now):.1f} attempts/s  {_format_size(state.bytes_up.at(now))}/s out  "
                f"{_format_size(state.bytes_down.at(now))}/s in"
            ),
            f"since {since}: {', '.join(parts) or 'nothing was attempted'}",
        ]
        lines_above = [self._style(line) for line in lines_above]
        notices = (
            (state.warnings, "LEAKS OR TAMPERING: exeat log --kind tampering.detected --kind secret.detected", _RED),
            (len(state.pending_approvals), "WAIT FOR A PERSON: exeat approvals", _YELLOW),
            (state.suspicious, "UNUSUAL OR TAINTED: exeat log --kind anomaly.detected --kind task.tainted", _YELLOW),
        )
        lines_above += [self._style(f"{count} {text}", colour) for count, text, colour in notices if count]
        if audited := sorted({visible(each.name) for each in tasks if each.audit and each.ended is None}):
            lines_above.append(self._style(f"IN AUDIT MODE, NOT ENFORCED: {', '.join(audited)}", _YELLOW))
        return lines_above

    def _task_line(self, running: "RunningTask", now: int) -> str:
        attempts = running.attempts
        cells = (
            _format_age((running.ended or now) - running.since),
            f"{attempts[Outcome.PASSED] + attempts[Outcome.WOULD_BLOCK]:,}",
            f"{attempts[Outcome.BLOCKED]:,}",
            f"{attempts[Outcome.FAILED]:,}",
            _format_size(running.up),
            _format_size(running.down),
            f"{running.rate.at(now):.1f}",
        )
        notes = [mark for mark, there in (("ended", running.ended), ("audit", running.audit)) if there]
        notes += [f"{running.warnings} leaks or tampering"] if running.warnings else []
        line = self._row(visible(running.name), visible(running.id), cells, ", ".join(notes))
        return self._style(line, _DIM if running.ended else _RED if running.warnings else 0)

    def _row(self, name: str, ident: str, cells: tuple[str, ...], notes: str) -> str:
        parts = [padded(fitted(name, _NAME), _NAME)]
        if self.columns >= _NARROW:
            parts.append(padded(fitted(ident, _ID), _ID))
        return "  ".join([*parts, *(f"{cell:>{_CELL}}" for cell in cells), notes]).rstrip()

    def _style(self, line: str, colour: int = 0) -> str:
        line = fitted(line, self.columns)
        return f"\x1b[{colour}m{line}\x1b[0m" if self.coloured and colour else line


def _format_size(count: float) -> str:
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if count >= 10 or unit == _UNITS[0] else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _format_age(span: int) -> str:
    seconds = max(0, span // _NS)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d"
