"""`exeat log`: the journal as a table for people, or as the lines it is made of for programs."""

import argparse
import io
import resource
import sys
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.state import journal_directory
from rules.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.telemetry.events import Event
    from proxy.telemetry.reading import Entry, Progress

NAME = "log"
HELP = "show the journal: what was decided, and why"

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WORDS = tuple(dict.fromkeys(member.value for member in (*Verdict, *Outcome)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat log` takes."""
    parser.add_argument(
        "--journal", type=Path, metavar="DIR", help="the journal to read (default: where `run` keeps it)"
    )
    parser.add_argument(
        "--format", choices=("table", "jsonl"), default="table", help="a table, or the lines as written"
    )
    parser.add_argument("--task", metavar="TASK", help="only this task: its id or name, `*` stands for anything")
    parser.add_argument(
        "--verdict",
        action="append",
        type=_word,
        metavar="WORD",
        help=f"only events with this verdict or outcome: {', '.join(_WORDS)}; may be given again for more",
    )
    parser.add_argument(
        "--since", type=_instant, default=0, metavar="WHEN", help="only what came after: 30m, 1h, 2d, 2026-11-21T08:00"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until interrupted")


def run(arguments: argparse.Namespace) -> int:
    """Print the events. 0 when all could be read, 1 when some lines could not, 2 when there is no journal."""
    from proxy.telemetry.reading import Progress, follow, read_events

    directory = arguments.journal or journal_directory()
    if not directory.is_dir():
        print(f"exeat: there is no journal in `{directory}`; name another with `--journal`", file=sys.stderr)
        return 2
    _allow_many_segments()
    progress = Progress()
    entries = (follow if arguments.follow else read_events)(directory, arguments.since, progress)
    wanted = _filter(arguments.task, arguments.verdict or [])
    show = _lines if arguments.format == "jsonl" else _table
    try:
        # Whoever follows sees each line as it happens, also through a pipe.
        show((entry for entry in entries if wanted(entry.event)), at_once=arguments.follow)
    except BrokenPipeError:
        raise  # whoever reads us has enough: no fault of the journal
    except OSError as error:
        print(f"exeat: cannot read `{error.filename or directory}`: {error.strerror}", file=sys.stderr)
        return 2
    return _report(progress)


def _report(progress: "Progress") -> int:
    sys.stdout.flush()
    if progress.torn:
        which = "a segment ends" if progress.torn == 1 else f"{progress.torn} segments end"
        print(f"exeat: {which} in an unfinished line; its writer was killed or is writing it now", file=sys.stderr)
    if progress.malformed:
        which = "a line is" if progress.malformed == 1 else f"{progress.malformed} lines are"
        print(f"exeat: {which} no event this version can read, and not shown", file=sys.stderr)
    return 1 if progress.malformed else 0


def _allow_many_segments() -> None:
    """Raise the soft limit on open files: a segment is open for each process that wrote at the same time."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lines(entries: "Iterator[Entry]", *, at_once: bool) -> None:
    """Print lines as they stand in the journal; one that was tampered with can't reach a terminal unescaped."""
    from proxy.telemetry.encoding import encode

    for line, event in entries:
        plain = line.isascii() and line[:-1].decode("ascii").isprintable()
        sys.stdout.buffer.write(line if plain else encode(event))
        if at_once:
            sys.stdout.buffer.flush()


def _table(entries: "Iterator[Entry]", *, at_once: bool) -> None:
    from proxy.telemetry.table import Table

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that isn't UTF-8 gets what it can show
    table = Table.for_output(sys.stdout)
    print(table.header(), flush=at_once)
    for entry in entries:
        print(table.row(entry.event), flush=at_once)


def _filter(task: str | None, words: "list[str]") -> "Callable[[Event], bool]":
    def wanted(event: "Event") -> bool:
        if task is not None and not any(fnmatchcase(own, task) for own in (event.origin.task, event.origin.name)):
            return False
        return not words or event.verdict in words or event.outcome in words

    return wanted


def _word(text: str) -> str:
    if text not in _WORDS:
        raise argparse.ArgumentTypeError(f"`{text}` is neither a verdict nor an outcome; there are {', '.join(_WORDS)}")
    return text


def _instant(text: str) -> int:
    """Read `30m` (that long ago) or an ISO 8601 date or time (local unless it says otherwise) as ns since 1970."""
    count, unit = text[:-1], text[-1:]
    try:
        if count.isascii() and count.isdigit() and unit in _UNITS:
            moment = datetime.now(UTC) - timedelta(**{_UNITS[unit]: int(count)})
        else:
            moment = datetime.fromisoformat(text).astimezone(UTC)
        return max(0, int(moment.timestamp()) * 1_000_000_000)
    except (ValueError, OverflowError) as error:
        today = date.today().isoformat()  # noqa: DTZ011  an example in the reader's own time
        raise argparse.ArgumentTypeError(f"`{text}` is no time; write 30m, 1h, 2d or {today}") from error
