"""Events as rows of a table for people: attempt, outcome, reason.

All external text is escaped (`visible`, invariant 7). On a terminal a row is one coloured line of the terminal's width.
Elsewhere it is plain text, and a value too long for its column is repeated in full at the end.
"""

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from proxy.telemetry.descriptions import describe
from proxy.telemetry.encoding import timestamp
from proxy.telemetry.events import Kind
from proxy.telemetry.visible import fitted, padded, visible, width
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.telemetry.events import Event

_WIDE_COLUMNS_FROM = 132  # width of a terminal that fits all columns
_MIN_WHAT_COLUMNS = 20  # columns
_RED, _GREEN, _YELLOW, _MAGENTA = 31, 32, 33, 35  # ECMA-48, SGR
_COLOURS = {
    Outcome.BLOCKED: _RED,
    Outcome.WOULD_BLOCK: _YELLOW,
    Outcome.FAILED: _MAGENTA,
    Outcome.PASSED: _GREEN,
}


@dataclass(frozen=True, slots=True)
class Column:
    """Column of the table: heading, width, and the function for its cell."""

    heading: str
    columns: int
    cell: "Callable[[Event], str]"


def _format_reason(event: "Event") -> str:
    rule = visible(event.rules[0]) if event.rules else ""
    match event.reason:
        case None:
            return ""
        case Reason.RULE if rule:
            return rule
        case reason:
            return f"{reason} {rule}".rstrip()


def _format_outcome(event: "Event") -> str:
    return event.outcome or ""


WHY = Column("WHY", 28, _format_reason)
_WIDE_COLUMNS = (
    Column("TIME (UTC)", 23, lambda event: timestamp(event.time)[:23].replace("T", " ")),
    Column("ID", 12, lambda event: visible(event.id[-12:])),  # `log show` and `log chain` accept it
    Column("TASK", 14, lambda event: visible(event.task.name or event.task.id)),
    Column("VERDICT", 7, lambda event: event.verdict or ""),
    Column("OUTCOME", 11, _format_outcome),
    WHY,
)
_CLOCK = Column("UTC", 8, lambda event: timestamp(event.time)[11:19])
_SHORT_ID = Column("ID", 8, lambda event: visible(event.id[-8:]))
_NARROW_COLUMNS = (_CLOCK, _SHORT_ID, Column("OUTCOME", 11, _format_outcome), Column("WHY", 18, _format_reason))
_NARROW_COLUMNS_WITHOUT_IDS = (_CLOCK, Column("OUTCOME", 11, _format_outcome), Column("WHY", 22, _format_reason))


@dataclass(frozen=True, slots=True)
class Table:
    """Layout of rows. `columns` is the width of the terminal; None: unlimited."""

    columns: int | None = None
    coloured: bool = False
    ids: bool = True  # whether a narrow terminal shows ids

    @classmethod
    def for_output(cls, stream: TextIO) -> "Table":
        """Return the layout for `stream`: a terminal's width and colours (https://no-color.org), else plain."""
        if not stream.isatty():
            return cls()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(shutil.get_terminal_size().columns, not plain)

    def header(self) -> str:
        """Return the line of headings."""
        return self._line([column.heading for column in self._layout()], "WHAT")

    def row(self, event: "Event") -> str:
        """Return one event as a line without a newline."""
        line = self._line([column.cell(event) for column in self._layout()], visible(describe(event)))
        colour = _choose_colour(event) if self.coloured else None
        return line if colour is None else f"\x1b[{colour}m{line}\x1b[0m"

    def _layout(self) -> tuple[Column, ...]:
        if self.columns is None or self.columns >= _WIDE_COLUMNS_FROM:
            return _WIDE_COLUMNS
        return _NARROW_COLUMNS if self.ids else _NARROW_COLUMNS_WITHOUT_IDS

    def _line(self, cells: list[str], last: str) -> str:
        columns = list(zip(self._layout(), cells, strict=True))
        if self.columns is None:
            parts = [_split_cell(column, cell) for column, cell in columns]
            fields = [padded(part, column.columns) for (column, _), (part, _) in zip(columns, parts, strict=True)]
            return "  ".join([*fields, last, *(f"[{rest}]" for _, rest in parts if rest)]).rstrip()
        fields = [padded(fitted(cell, column.columns), column.columns) for column, cell in columns]
        used = sum(column.columns + 2 for column in self._layout())
        return "  ".join([*fields, fitted(last, max(self.columns - used, _MIN_WHAT_COLUMNS))]).rstrip()


def _split_cell(column: Column, cell: str) -> tuple[str, str]:
    """Split a cell into the part that fits its column and the part for the end of the line."""
    if width(cell) <= column.columns:
        return cell, ""
    first, _, rest = cell.partition(" ")
    if column is WHY and rest and width(first) <= column.columns:
        return first, rest
    return fitted(cell, column.columns), cell


def _choose_colour(event: "Event") -> int | None:
    if event.kind is Kind.GATE_ERROR:
        return _RED
    if event.outcome is Outcome.PASSED and event.verdict is Verdict.FLAG:
        return _YELLOW
    return _COLOURS.get(event.outcome) if event.verdict is not None and event.outcome is not None else None
