"""What `exeat top` shows: one screen of it as lines, each of at most so many columns.

Pure. What a sandbox made up goes through `visible` (invariant 7), here or in `table`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from proxy.telemetry.table import Table
from proxy.telemetry.visible import fitted, padded, visible
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from proxy.telemetry.live.state import Running, State

_NS: Final = 1_000_000_000
_BOLD, _DIM, _RED, _YELLOW = 1, 2, 31, 33  # ECMA-48, SGR
_NAME, _ID = 20, 22  # columns
_HEADS: Final = ("FOR", "ALLOWED", "BLOCKED", "FAILED", "OUT", "IN", "A SECOND")
_CELL: Final = 9
_LEAST_TASKS: Final = 3  # rows, also on a small screen
_NARROW: Final = 110  # columns; with less the ids of tasks are left out
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Screen:
    """How large it is, and whether it has colours."""

    columns: int
    lines: int
    coloured: bool = False

    def show(self, state: "State", now: int, since: str) -> list[str]:
        """Return the lines, at `now` (ns since 1970); `since` says from when on things are counted."""
        tasks = state.shown(now)
        shown = self._head(state, tasks, now, since)
        room = max(_LEAST_TASKS, (self.lines - len(shown) - 4) // 2)
        shown += ["", self._said(self._row("TASK", "ID", _HEADS, ""), _BOLD)]
        shown += [self._task(each, now) for each in tasks[:room]] or [self._said("  none", _DIM)]
        if len(tasks) > room:
            shown.append(self._said(f"  and {len(tasks) - room} more", _DIM))
        shown += ["", self._said("LAST REFUSED, NEWEST FIRST", _BOLD)]
        table = Table(self.columns, self.coloured, ids=False)
        left = max(1, self.lines - len(shown))
        shown += [table.row(event) for event in list(reversed(state.refusals))[:left]] or [self._said("  none", _DIM)]
        return shown

    def _head(self, state: "State", tasks: "list[Running]", now: int, since: str) -> list[str]:
        clock = datetime.fromtimestamp(now // _NS, UTC)
        running = sum(each.ended is None for each in tasks)
        counted = state.attempts
        parts = [f"{counted[outcome]:,} {word}" for outcome, word in _WORDS.items() if counted[outcome]]
        said = [
            (
                f"exeat top  {clock:%H:%M:%S} UTC  {running} task{'' if running == 1 else 's'}  "
                f"{state.rate.at(now):.1f} attempts/s  {_size(state.bytes_up.at(now))}/s out  "
                f"{_size(state.bytes_down.at(now))}/s in"
            ),
            f"since {since}: {', '.join(parts) or 'nothing was attempted'}",
        ]
        said = [self._said(line) for line in said]
        if state.warnings:
            said.append(
                self._said(f"{state.warnings} LEAKS OR TAMPERING: exeat log --kind tamper --kind leak.found", _RED)
            )
        if state.asked:
            said.append(self._said(f"{len(state.asked)} WAIT FOR A PERSON: exeat approvals", _YELLOW))
        if state.odd:
            said.append(
                self._said(
                    f"{state.odd} UNUSUAL OR TAINTED: exeat log --kind task.unusual --kind task.tainted", _YELLOW
                )
            )
        if audited := sorted({visible(each.name) for each in tasks if each.audit and each.ended is None}):
            said.append(self._said(f"IN AUDIT MODE, NOT ENFORCED: {', '.join(audited)}", _YELLOW))
        return said

    def _task(self, running: "Running", now: int) -> str:
        attempts = running.attempts
        cells = (
            _age((running.ended or now) - running.since),
            f"{attempts[Outcome.PASSED] + attempts[Outcome.WOULD_BLOCK]:,}",
            f"{attempts[Outcome.BLOCKED]:,}",
            f"{attempts[Outcome.FAILED]:,}",
            _size(running.up),
            _size(running.down),
            f"{running.rate.at(now):.1f}",
        )
        marks = [mark for mark, there in (("ended", running.ended), ("audit", running.audit)) if there]
        marks += [f"{running.warnings} leaks or tampering"] if running.warnings else []
        line = self._row(visible(running.name), visible(running.id), cells, ", ".join(marks))
        return self._said(line, _DIM if running.ended else _RED if running.warnings else 0)

    def _row(self, name: str, ident: str, cells: tuple[str, ...], marks: str) -> str:
        parts = [padded(fitted(name, _NAME), _NAME)]
        if self.columns >= _NARROW:
            parts.append(padded(fitted(ident, _ID), _ID))
        return "  ".join([*parts, *(f"{cell:>{_CELL}}" for cell in cells), marks]).rstrip()

    def _said(self, line: str, colour: int = 0) -> str:
        line = fitted(line, self.columns)
        return f"\x1b[{colour}m{line}\x1b[0m" if self.coloured and colour else line


_WORDS: Final = {
    Outcome.PASSED: "allowed",
    Outcome.BLOCKED: "blocked",
    Outcome.WOULD_BLOCK: "only audited",
    Outcome.FAILED: "failed",
}


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if count >= 10 or unit == _UNITS[0] else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _age(span: int) -> str:
    seconds = max(0, span // _NS)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d"
