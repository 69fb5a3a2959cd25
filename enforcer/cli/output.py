"""Output of commands: tables, counts, times, and lines that are safe to print on a terminal."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Final

from enforcer.system.errors import ExeatError
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
        import shutil  # which brings three ways to compress along, for what a service keeps in memory

        room = max(shutil.get_terminal_size().columns - sum(widths) - _GAP * len(widths), _NARROWEST)
    for *cells, last in shown:
        cut = last if room is None else fitted(last, room)
        yield (" " * _GAP).join([*map(padded, cells, widths), cut]).rstrip()


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], widest: int = WIDEST) -> None:
    """Print the lines of a `table`."""
    for line in table(heads, rows, widest):
        print(line)


def format_elapsed(seconds: float) -> str:
    """Return a time that has passed as hours, minutes and seconds; none for a clock that was set back."""
    whole = int(max(seconds, 0))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def format_time(seconds: float) -> str:
    """Return a time (s since 1970) as `exeat log` shows it, to the second: in UTC, under `TIME (UTC)`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def parse_day(text: str) -> date:
    """Read a date that is an argument."""
    from rules.loading import fields

    try:
        return fields.parse_day(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count_of(number: int, what: str) -> str:
    """Say how many of something that has an `s` when there are several, or an `es`: sandboxes."""
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('x') else 's'}"


class FailedError(ExeatError):
    """What came of a command, and its status: 1 for a finding, or that of the error behind it."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def report_failure(error: ExeatError) -> int:
    """Say what is wrong; the status that comes of it."""
    warn(str(error))
    return error.status


def warn(sentence: str) -> None:
    """Say what an admin should know, which may hold what a file says."""
    print(f"exeat: {visible(sentence)}", file=sys.stderr)


def print_lines(text: str) -> None:
    """Print lines that may hold what a task made up."""
    print("\n".join(map(visible, text.split("\n"))))
