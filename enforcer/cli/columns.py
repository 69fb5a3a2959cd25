"""Lists for people: a line of headings, and each column as wide as what stands in it."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from proxy.telemetry.visible import fitted, padded, visible, width

WIDEST: Final = 60  # columns of a terminal that one of ours takes
_GAP: Final = 2
_NARROWEST: Final = 20  # of the last one, where a terminal has no room for more


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], widest: int = WIDEST) -> Iterator[str]:
    """Yield the lines. Texts may be a task's: what a terminal would act on is spelled out (invariant 7).

    The last column is as long as its text, on a terminal as long as that has room for it.
    """
    shown = [tuple(heads)]
    for row in rows:
        *cells, last = map(visible, row)
        shown.append((*(fitted(cell, widest) for cell in cells), last))
    widths = [max(width(row[column]) for row in shown) for column in range(len(heads) - 1)]
    room = None
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - sum(widths) - _GAP * len(widths), _NARROWEST)
    for *cells, last in shown:
        cut = last if room is None else fitted(last, room)
        yield (" " * _GAP).join([*map(padded, cells, widths), cut]).rstrip()


def moment(seconds: float) -> str:
    """Return a time (s since 1970) as `exeat log` shows it, to the second: in UTC, under `TIME (UTC)`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
