"""Events as rows for people: what was tried, what became of it, and why.

Everything that came from outside goes through `visible` (invariant 7). On a terminal a row is one line of its width and
coloured; anywhere else it is plain, and what a column has no room for stands whole at the end.
"""

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from proxy.telemetry.descriptions import what
from proxy.telemetry.encoding import timestamp
from proxy.telemetry.events import Kind
from proxy.telemetry.visible import fitted, padded, visible, width
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.telemetry.events import Event

_WIDE_FROM = 132  # columns of a terminal that has room for everything
_NARROWEST_WHAT = 20  # columns
_RED, _GREEN, _YELLOW, _MAGENTA = 31, 32, 33, 35  # ECMA-48, SGR
_COLOURS = {
    Outcome.BLOCKED: _RED,
    Outcome.WOULD_BLOCK: _YELLOW,
    Outcome.FAILED: _MAGENTA,
    Outcome.PASSED: _GREEN,
}


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column's heading and how wide it is."""

    heading: str
    columns: int


TIME, CLOCK = Column("TIME (UTC)", 23), Column("UTC", 8)
ID, SHORT_ID = Column("ID", 12), Column("ID", 8)  # an end of it, which `log show` and `log chain` take
TASK = Column("TASK", 14)
VERDICT = Column("VERDICT", 7)
OUTCOME = Column("OUTCOME", 11)
WHY, SHORT_WHY, SHORTEST_WHY = Column("WHY", 28), Column("WHY", 22), Column("WHY", 18)
_EVERYTHING = (TIME, ID, TASK, VERDICT, OUTCOME, WHY)
_THE_LEAST = (CLOCK, SHORT_ID, OUTCOME, SHORTEST_WHY)
_WITHOUT_IDS = (CLOCK, OUTCOME, SHORT_WHY)


@dataclass(frozen=True, slots=True)
class Table:
    """A way to lay out rows. `columns` is the width of the terminal; None: lines are as long as they need to be."""

    columns: int | None = None
    coloured: bool = False
    ids: bool = True  # whether a narrow terminal has them

    @classmethod
    def for_output(cls, stream: TextIO) -> "Table":
        """Return what suits `stream`: a terminal's width and colours (https://no-color.org), else plain and whole."""
        if not stream.isatty():
            return cls()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(shutil.get_terminal_size().columns, not plain)

    def header(self) -> str:
        """Return the line of headings."""
        return self._line([column.heading for column in self._layout()], "WHAT")

    def row(self, event: "Event") -> str:
        """Return one event as a line without its end."""
        cells = _cells(event)
        line = self._line([cells[column] for column in self._layout()], visible(what(event)))
        colour = _colour(event) if self.coloured else None
        return line if colour is None else f"\x1b[{colour}m{line}\x1b[0m"

    def _layout(self) -> tuple[Column, ...]:
        if self.columns is None or self.columns >= _WIDE_FROM:
            return _EVERYTHING
        return _THE_LEAST if self.ids else _WITHOUT_IDS

    def _line(self, cells: list[str], last: str) -> str:
        columns = list(zip(self._layout(), cells, strict=True))
        if self.columns is None:
            parts = [_parted(column, cell) for column, cell in columns]
            shown = [padded(part, column.columns) for (column, _), (part, _) in zip(columns, parts, strict=True)]
            return "  ".join([*shown, last, *(f"[{rest}]" for _, rest in parts if rest)]).rstrip()
        shown = [padded(fitted(cell, column.columns), column.columns) for column, cell in columns]
        used = sum(column.columns + 2 for column in self._layout())
        return "  ".join([*shown, fitted(last, max(self.columns - used, _NARROWEST_WHAT))]).rstrip()


def _parted(column: Column, cell: str) -> tuple[str, str]:
    """Return what of a cell its column has room for, and what is to stand at the line's end: a rule behind a reason."""
    if width(cell) <= column.columns:
        return cell, ""
    first, _, rest = cell.partition(" ")
    if column is WHY and rest and width(first) <= column.columns:
        return first, rest
    return fitted(cell, column.columns), cell


def _cells(event: "Event") -> "Mapping[Column, str]":
    moment = timestamp(event.time)
    why = _why(event)
    return {
        TIME: f"{moment[:10]} {moment[11:23]}",
        CLOCK: moment[11:19],
        ID: visible(event.id[-ID.columns :]),
        SHORT_ID: visible(event.id[-SHORT_ID.columns :]),
        TASK: visible(event.task.name or event.task.id),
        VERDICT: event.verdict or "",
        OUTCOME: event.outcome or "",
        WHY: why,
        SHORT_WHY: why,
        SHORTEST_WHY: why,
    }


def _why(event: "Event") -> str:
    rule = visible(event.rules[0]) if event.rules else ""
    match event.reason:
        case None:
            return ""
        case Reason.RULE if rule:
            return rule
        case reason:
            return f"{reason} {rule}".rstrip()


def _colour(event: "Event") -> int | None:
    if event.kind is Kind.GATE_ERROR:
        return _RED
    if event.outcome is Outcome.PASSED and event.verdict is Verdict.FLAG:
        return _YELLOW
    return _COLOURS.get(event.outcome) if event.verdict is not None and event.outcome is not None else None
