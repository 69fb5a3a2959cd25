"""Arguments and helpers of commands that read a journal: which journal, which events, and read errors."""

import argparse
import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Final

from enforcer.cli import is_disk_full
from enforcer.cli.parsing import argument
from enforcer.system.errors import UsageError
from enforcer.system.state import journal_directory
from proxy.telemetry.encoding import quoted as in_json
from proxy.telemetry.events import Event
from proxy.telemetry.journal.query import Entry, LineFilter, Progress, last_task, read_events
from proxy.telemetry.views.causality import is_named, named
from rules.problems import quote

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_time(text: str) -> int:
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
        raise argparse.ArgumentTypeError(f"`{text}` is not a time: write 30m, 1h, 2d or {today}") from error


SINCE: Final = argument(
    "--since", "WHEN", "only events after this time: 30m, 1h, 2d, 2026-11-21T08:00", type=parse_time, default=0
)
LAST: Final = argument("--last", "", "only the task that started last")
TASK_AND_SINCE: Final = (argument("--task", "TASK", "only this task, by id or name; `*` matches any characters"), SINCE)
ARGUMENTS: Final = (
    argument(
        "journal", "JOURNAL", "journal directory, or a file of it (default: $XDG_STATE_HOME/exeat/journal)", nargs="?"
    ),
    *TASK_AND_SINCE,
)


def is_of_task(event: Event, task: str | None) -> bool:
    """Whether an event is of a task, by its id or its name."""
    return task is None or any(fnmatchcase(own, task) for own in (event.task.id, event.task.name))


def find_last_task(directory: Path) -> str | None:
    """Return the id of the task that was started last, as `--task` takes it. Raises OSError."""
    task = last_task(directory)
    return None if task is None else escape(task)  # whoever made it may have called it `*`


def task_filter(task: str | None, since: int) -> LineFilter:
    """Return what the lines of a task hold, as they stand in the journal."""
    if task is None or any(character in task for character in "*?["):
        return LineFilter(since=since)
    return LineFilter(((in_json(task).encode(),),), since)


def find_journal(journal: Path | None) -> Path:
    """Return the journal that is meant. Raises UsageError where there is none."""
    path = journal or journal_directory()
    if path.exists():
        allow_many_segments()
        return path
    raise UsageError(f"there is no journal in `{path}`: name another with `--journal`")


def require_journal(directory: Path) -> None:
    """Raise UsageError where there is no journal; else make ready to read all of it at once."""
    if not directory.is_dir():
        yet = "nothing has been run yet, and " if directory == journal_directory() else ""
        raise UsageError(f"{yet}there is no journal in `{directory}`; name another with `--journal`")
    allow_many_segments()


def find_event[T](look: Callable[[Path, str], T | None], directory: Path, given: str, listed: str) -> T | None:
    """Return what `look` finds of the one event that is meant; `listed`: which command shows ids. Raises UsageError."""
    if not is_named(given):
        said = "is no event's id, nor an end of one of 8 characters or more"
        raise UsageError(f"{quote(given)} {said}; `{listed}` shows the ends of their ids")
    names = named(directory, given)
    if len(names) > 1:
        raise UsageError(f"{len(names)} events have an id like {quote(given)}; say more of it")
    return look(directory, names[0]) if names else None


def read_task_events(path: Path, task: str | None, since: int, progress: Progress | None = None) -> Iterator[Entry]:
    """Yield what a journal has of a task. Raises OSError."""
    return (entry for entry in read_events(path, task_filter(task, since), progress) if is_of_task(entry.event, task))


def describe_empty(task: str | None, since: int, what: str = "nothing") -> str:
    """Say that `what` was looked for and not found."""
    of = "" if task is None else f" of a task `{ascii(task)[1:-1]}`"
    when = " in that time" if since else ""
    hint = "" if task is None else "; `exeat log` shows all there are"
    return f"there is {what}{of} in the journal{when}{hint}"


@contextlib.contextmanager
def report_read_errors(path: Path) -> Iterator[None]:
    """Say of a journal that can't be read. Raises OSError where our output has no reader, or no room."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"cannot read `{error.filename or path}`: {error.strerror}") from error


def report_unreadable(progress: Progress, so: str = "passed over") -> int:
    """Say what could not be read; the status that comes of it."""
    sys.stdout.flush()
    if progress.torn:
        which = "a segment ends" if progress.torn == 1 else f"{progress.torn} segments end"
        print(f"exeat: {which} in an unfinished line; its writer was killed or is writing it now", file=sys.stderr)
    if progress.malformed:
        which = "a line is" if progress.malformed == 1 else f"{progress.malformed} lines are"
        print(f"exeat: {which} no event this version can read, and {so}", file=sys.stderr)
    return 1 if progress.malformed else 0


def allow_many_segments() -> None:
    """Raise the soft limit on open files: a segment is open for each process that wrote at the same time."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
