"""The journal read back in the order in which things happened, over all its writers.

Several processes write at once, each into segments of its own. A segment is in order by itself; here they are merged,
with only those open that overlap in time. A writer that was killed leaves a torn last line: it is counted, not shown.
"""

import heapq
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.decoding import MalformedEvent, decode
from proxy.telemetry.encoding import LONGEST_LINE
from proxy.telemetry.events import Kind
from proxy.telemetry.journal import segment_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from proxy.telemetry.events import Event

_SECONDS_BETWEEN_LOOKS = 0.25
_STARTED = b"task.started"


class Entry(NamedTuple):
    """A line as it stands in the journal, newline included, and what it says."""

    line: bytes
    event: "Event"


@dataclass(slots=True)
class Progress:
    """How far a reader is, and what it could not read."""

    torn: int = 0  # segments whose last line is unfinished: the writer was killed, or is writing it now
    malformed: int = 0  # whole lines that are not events
    offsets: "dict[Path, int]" = field(default_factory=dict)  # behind the last whole line read


def read_events(directory: "Path", since: int = 0, progress: Progress | None = None) -> "Iterator[Entry]":
    """Yield what happened at `since` (ns since 1970) or later, in order of time. Raises OSError.

    Within one segment the order is that of writing, whatever the clock did meanwhile.
    """
    progress = progress if progress is not None else Progress()
    for day in _days(directory, since):
        yield from (entry for entry in _day(day, progress) if entry.event.time >= since)


def read_journal(path: "Path", since: int = 0, progress: Progress | None = None) -> "Iterator[Entry]":
    """Yield the events of a journal's directory, or those of one of its segments. Raises OSError."""
    if path.is_dir():
        yield from read_events(path, since, progress)
    else:
        segment = _segment(path, progress if progress is not None else Progress())
        yield from (entry for entry in segment if entry.event.time >= since)


def follow(
    directory: "Path",
    since: int = 0,
    progress: Progress | None = None,
    wait: "Callable[[float], None]" = time.sleep,
) -> "Iterator[Entry]":
    """Yield what `read_events` does, and then what is added, for ever; `wait` is called when there is nothing new."""
    progress = progress if progress is not None else Progress()
    yield from read_events(directory, since, progress)
    while True:
        # A writer goes on to the new day's segment with its first event in it: two days hold all that can still grow.
        latest = [entry for day in _days(directory, since)[-2:] for entry in _added(day, progress)]
        if not latest:
            wait(_SECONDS_BETWEEN_LOOKS)
        yield from sorted((entry for entry in latest if entry.event.time >= since), key=_time)


def last_task(directory: "Path") -> str | None:
    """Return the id of the task that was started last, or None. Raises OSError."""
    for day in reversed(_days(directory, 0)):
        started: list[Entry] = []
        for segment in _segments(day):
            with segment.open("rb") as file:
                while line := file.readline(LONGEST_LINE):
                    entry = _entry(line) if _STARTED in line else None
                    if entry is not None and entry.event.kind is Kind.TASK_STARTED and entry.event.origin.task:
                        started.append(entry)
        if started:
            return max(started, key=_time).event.origin.task
    return None


def _time(entry: Entry) -> int:
    return entry.event.time


def _days(directory: "Path", since: int) -> "list[Path]":
    """Return the day directories that may hold events at or after `since`, oldest first."""
    first = datetime.fromtimestamp(since // 1_000_000_000, UTC).date()
    found: list[tuple[date, Path]] = []
    for path in directory.iterdir():
        try:
            day = date.fromisoformat(path.name)
        except ValueError:
            continue
        if day >= first and path.name == day.isoformat() and path.is_dir():
            found.append((day, path))
    return [path for _, path in sorted(found)]


def _segments(day: "Path") -> "list[Path]":
    numbered = ((segment_number(path.name), path) for path in day.iterdir())
    return [path for _, path in sorted((number, path) for number, path in numbered if number is not None)]


def _day(day: "Path", progress: Progress) -> "Iterator[Entry]":
    """Merge a day's segments. A segment is opened for good once the merge has come to its first event."""
    waiting = []
    for order, segment in enumerate(_segments(day)):
        first = next(_segment(segment, Progress()), None)
        waiting.append((first.event.time if first is not None else 0, order, segment))
    heapq.heapify(waiting)
    active: list[tuple[int, int, Entry, Iterator[Entry]]] = []
    while waiting or active:
        while waiting and (not active or waiting[0][0] <= active[0][0]):
            _, order, segment = heapq.heappop(waiting)
            _push(active, order, _segment(segment, progress))
        if active:
            _, order, entry, rest = heapq.heappop(active)
            yield entry
            _push(active, order, rest)


def _push(active: "list[tuple[int, int, Entry, Iterator[Entry]]]", order: int, entries: "Iterator[Entry]") -> None:
    entry = next(entries, None)
    if entry is not None:
        heapq.heappush(active, (entry.event.time, order, entry, entries))


def _added(day: "Path", progress: Progress) -> "Iterator[Entry]":
    """Yield what came into a day's segments since they were last read."""
    for segment in _segments(day):
        if segment.stat().st_size > progress.offsets.get(segment, 0):
            yield from _segment(segment, progress)


def _segment(path: "Path", progress: Progress) -> "Iterator[Entry]":
    """Yield a segment's events from where `progress` stands, one line in memory at a time."""
    with path.open("rb") as file:
        file.seek(progress.offsets.get(path, 0))
        while line := file.readline(LONGEST_LINE):
            whole = line.endswith(b"\n")  # else too long to be one of ours, or torn
            while not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
                if not line:  # the end, in the middle of a line
                    progress.torn += 1
                    return
            progress.offsets[path] = file.tell()
            entry = _entry(line) if whole else None
            if entry is None:
                progress.malformed += 1
            else:
                yield entry


def _entry(line: bytes) -> Entry | None:
    try:
        return Entry(line, decode(line))
    except MalformedEvent:
        return None
