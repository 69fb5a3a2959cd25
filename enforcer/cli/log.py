"""`exeat log`: the journal as a table for people or as lines for programs; what led to what; whether it is intact."""

import argparse
import importlib
import io
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli import journals, log_part
from enforcer.system.state import journal_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.telemetry.journal.query import Entry

PARTS = {
    "show": "everything that one event says",
    "chain": "what led to an event, and what came of it",
    "top": "destinations, rules, reasons and tasks, by how often",
    "replay": "what one task tried, as a story",
    "verify": "whether the journal is as it was written",
    "keys": "the keys that sign it: list, make, export, rotate",
    "keep": "how much of it is kept, and for how long",
}
_SHAPES = ("ocsf", "ecs", "cef")
_LATEST = 10  # events that a table begins with which goes on, as with tail(1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat log` takes."""
    add = parser.add_argument
    add("part", nargs="?", choices=tuple(PARTS), help="; ".join(f"{word}: {says}" for word, says in PARTS.items()))
    add("what", nargs="?", metavar="WHAT", help="an event's id, a task, a journal's directory, or what to do with keys")
    add("--journal", type=Path, metavar="DIR", help="the journal to read (default: where `run` keeps it)")
    add(
        "--format",
        choices=("table", "jsonl", "json", *_SHAPES),
        help="a table (the default), the lines as written, `json` for one value, or a shape that a SIEM reads",
    )
    log_part.add_arguments(parser)
    add("--last", action="store_true", help="only the task that was started last")
    add(
        "-f",
        "--follow",
        action="store_true",
        help="go on with what is added, until interrupted; a table begins with the last 10",
    )
    add("--key", type=Path, metavar="FILE", help="verify: trust the public keys in this file (PEM), and no others")
    add(
        "--kept", type=Path, metavar="FILE", help="verify: lines kept elsewhere; what was signed in them has to be here"
    )
    add("--age", metavar="TIME", help="keep: remove days older than this, as in 90d; `none`: never")
    add("--size", metavar="SIZE", help="keep: remove the oldest when there is more than this, as in 20G; `none`: never")
    add("--now", action="store_true", help="keep: compress and remove at once, and not within the hour")


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0 when all could be read, 1 when some lines could not or it isn't intact, 2 for misuse."""
    directory = arguments.journal or journal_directory()
    if arguments.part is not None:
        part = importlib.import_module(f"enforcer.cli.log_{arguments.part}")
        return int(part.run(arguments, directory))
    if arguments.last and arguments.task is not None:
        print("exeat: `--last` names a task already: leave `--task` out", file=sys.stderr)
        return 2
    if not directory.is_dir():
        return no_journal(directory)
    journals.allow_many_segments()
    try:
        return _show(arguments, directory)
    except BrokenPipeError:
        raise  # whoever reads us has enough: no fault of the journal
    except OSError as error:
        return journals.unreadable(error, directory)


def no_journal(directory: Path) -> int:
    """Say that there is none."""
    yet = "nothing has been run yet, and " if directory == journal_directory() else ""
    print(f"exeat: {yet}there is no journal in `{directory}`; name another with `--journal`", file=sys.stderr)
    return 2


def _show(arguments: argparse.Namespace, directory: Path) -> int:
    from proxy.telemetry.journal.query import Progress, follow, read_events

    task = journals.last(directory) if arguments.last else arguments.task
    if arguments.last and task is None:
        print(f"exeat: no task has been started in the journal in `{directory}`", file=sys.stderr)
        return 0
    part, progress = log_part.Part(arguments, task), Progress()
    sought = part.sought()
    put = _printer(arguments.format, at_once=arguments.follow)
    if not arguments.follow:
        entries = read_events(directory, arguments.since, progress, sought)
    elif arguments.format in (None, "table") and task is None and not arguments.since:
        latest = _Latest(put)
        put, entries = latest.put, follow(directory, 0, progress, latest.wait, sought)
    else:
        entries = follow(directory, arguments.since, progress, sought=sought)
    shown = False
    for entry in entries:
        if part.has(entry.event):
            put(entry)
            shown = True
    status = journals.report(progress, "not shown")
    if task is not None and not shown and not _known(directory, arguments, task):
        print(f"exeat: {journals.nothing_of(task, arguments.since)}", file=sys.stderr)
    return status


class _Latest:
    """Prints the last few entries that there are already, and each that comes then."""

    def __init__(self, put: "Callable[[Entry], None]") -> None:
        self._put = put
        self._kept: deque[Entry] | None = deque(maxlen=_LATEST)

    def put(self, entry: "Entry") -> None:
        if self._kept is None:
            self._put(entry)
        else:
            self._kept.append(entry)

    def wait(self, seconds: float) -> None:
        """Wait: all that there was has come."""
        kept, self._kept = self._kept or (), None
        for entry in kept:
            self._put(entry)
        time.sleep(seconds)


def _known(directory: Path, arguments: argparse.Namespace, task: str) -> bool:
    """Whether there is anything of a task, whatever else was asked for."""
    return any(journals.entries(directory, task, arguments.since))


def _printer(wanted: str | None, *, at_once: bool) -> "Callable[[Entry], None]":
    """Return what prints an entry. Whoever follows sees each line as it happens, also through a pipe."""
    if wanted in (None, "table"):
        from proxy.telemetry.table import Table

        backslashed()
        table = Table.for_output(sys.stdout)
        print(table.header(), flush=at_once)
        return lambda entry: print(table.row(entry.event), flush=at_once)
    shaped = _as_written if wanted in ("jsonl", "json") else _shape(str(wanted))

    def put(entry: "Entry") -> None:
        sys.stdout.buffer.write(shaped(entry))
        if at_once:
            sys.stdout.buffer.flush()

    return put


def _as_written(entry: "Entry") -> bytes:
    """Return a line as it stands in the journal; one that was tampered with can't reach a terminal unescaped."""
    from proxy.telemetry.encoding import encode

    line = entry.line
    return line if line.isascii() and line[:-1].decode("ascii").isprintable() else encode(entry.event)


def _shape(name: str) -> "Callable[[Entry], bytes]":
    from proxy.telemetry.shapes.record import one_line, read

    encode = getattr(importlib.import_module(f"proxy.telemetry.shapes.{name}"), name)

    def shaped(entry: "Entry") -> bytes:
        made = encode(read(entry.line))
        return f"{made}\n".encode() if isinstance(made, str) else one_line(made)

    return shaped


def backslashed() -> None:
    """Have a terminal that isn't UTF-8 get what it can show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
