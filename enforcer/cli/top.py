"""`exeat top`: shows what tasks attempt at the moment, on one screen that updates itself."""

import argparse
import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from enforcer.cli import journals
from enforcer.cli.parsing import JOURNAL, argument
from proxy.telemetry.journal.query import LineFilter, Progress, follow, read_events
from proxy.telemetry.views.top import Screen, TopState

_EVERY = 0.5  # seconds between two pictures
_MOST_AT_ONCE = 2000  # events between two pictures: a flood must not keep the screen from being drawn
_BEGIN, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, without a cursor; and back
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


class _EnoughError(Exception):
    """Whoever looks has seen enough."""


ARGUMENTS: Final = (
    JOURNAL,
    argument(
        "--since", "WHEN", "count events after this time: 30m, 2d, 2026-11-21 (default: 1h)", type=journals.parse_time
    ),
    argument("--once", "", "print the screen once, and exit"),
)


def run(arguments: argparse.Namespace) -> int:
    """Show it until `q` or an interrupt; once where there is no terminal to draw on. 0, or 2 without a journal."""
    path = journals.find_journal(arguments.journal)
    since = arguments.since if arguments.since is not None else journals.parse_time("1h")
    state, progress = TopState(), Progress()
    with journals.report_read_errors(path):
        if arguments.once or not _can_draw():
            for entry in read_events(path, LineFilter(since=since), progress):
                state.take(entry.event)
            size = shutil.get_terminal_size((200, 60))
            print("\n".join(_lines(state, since, size, coloured=False)))
            return 0
        with _terminal(), contextlib.suppress(_EnoughError, KeyboardInterrupt):
            picture = _Picture(state, since)
            for count, entry in enumerate(follow(path, LineFilter(since=since), progress, picture.wait)):
                state.take(entry.event)
                if count % _MOST_AT_ONCE == 0:
                    picture.draw()
    return 0


class _Picture:
    """The screen, drawn anew every now and then."""

    def __init__(self, state: TopState, since: int) -> None:
        self._state = state
        self._since = since
        self._drawn = 0.0

    def wait(self, seconds: float) -> None:
        """Draw what there is, and wait for a key."""
        self.draw()
        self._hear(seconds)

    def draw(self) -> None:
        """Draw it, if that is due."""
        now = time.monotonic()
        if now < self._drawn + _EVERY:
            return
        self._drawn = now
        self._hear(0)
        size = shutil.get_terminal_size()
        coloured = not os.environ.get("NO_COLOR")
        lines = _lines(self._state, self._since, size, coloured=coloured)[: size.lines]
        sys.stdout.write(_HOME + f"{_REST_OF_LINE}\r\n".join(lines) + _REST_OF_LINE + _REST)
        sys.stdout.flush()

    @staticmethod
    def _hear(seconds: float) -> None:
        if select.select([sys.stdin], [], [], seconds)[0] and os.read(sys.stdin.fileno(), 16)[:1] in (b"q", b"Q", b""):
            raise _EnoughError


def _lines(state: TopState, since: int, size: os.terminal_size, *, coloured: bool) -> list[str]:
    said = datetime.fromtimestamp(since // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M")
    return Screen(size.columns, size.lines, coloured).show(state, time.time_ns(), said)


def _can_draw() -> bool:
    return sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Take the screen, and keys as they are typed; give both back whatever happens."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_BEGIN)
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
