"""Reads the journal in the order of its events' times, over all writers, filtered.

Several processes write at once, each into its own segments, which are in order. This module merges them and keeps only
those open that overlap in time. It counts the torn last line of a killed writer and skips it. `LineFilter` searches the
bytes first, and only matching lines are decoded. Segments and parts older than `since` are not read. Events of the
journal about itself are left out by default.
"""

import heapq
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import LONGEST_LINE, MalformedEventError, decode, timestamp
from proxy.telemetry.events import BOOKKEEPING, Kind
from proxy.telemetry.journal.segments import Segment, blocks, days, of_day, open_regular, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from proxy.telemetry.events import Event

_POLL_INTERVAL = 0.25
_STARTED = b'"kind":"task.started"'
_TIME = b'{"time":"'
_TIME_TEXT = slice(len(_TIME), len(_TIME) + len("2026-11-18T12:00:00.000000000Z"))
_NEVER = b"9999"
_KIND_AT = len('{"time":"2026-11-18T12:00:00.000000000Z","id":"01a1fbac-5503-7e75-bce9-8bc86d516a2a"')
_BOOKKEEPING_KINDS = tuple(f',"kind":"{kind.value}"'.encode() for kind in BOOKKEEPING)
_SLACK = 600 * 1_000_000_000  # ns that a clock may have gone back, for the binary search in a segment
_SEARCH_GAP = 1 << 20  # bytes; the search stops at this distance


class Entry(NamedTuple):
    """Line of the journal, newline included, and its event."""

    line: bytes
    event: "Event"


class LineFilter(NamedTuple):
    """Filter on a line's bytes: a line matches if it has at least one text of each group.

    It may match too many lines, and never too few.
    """

    groups: tuple[tuple[bytes, ...], ...] = ()
    since: int = 0  # ns since 1970
    until: int | None = None  # ns since 1970, exclusive
    bookkeeping: bool = False


_NO_FILTER = LineFilter()


@dataclass(slots=True)
class Progress:
    """Position of a reader, and the lines that it could not read."""

    torn: int = 0  # segments with an unfinished last line: its writer was killed or is still writing
    malformed: int = 0  # complete lines that are not events
    offsets: dict[str, int] = field(default_factory=dict)  # by segment: end of the last complete line read
    ended: set[str] = field(default_factory=set)  # compressed segments that were read


def read_events(
    path: "Path", line_filter: LineFilter = _NO_FILTER, progress: Progress | None = None
) -> "Iterator[Entry]":
    """Yield matching entries of a journal directory, or of one segment, in order of time. Raises OSError.

    Within one segment the order is that of writing, even if the clock changed.
    """
    progress = progress if progress is not None else Progress()
    if not path.is_dir():
        yield from _read_segment(Segment(str(path), path), progress, line_filter)
        return
    for day in days(path, line_filter.since):
        if line_filter.until is not None and day > path / timestamp(line_filter.until)[:10]:
            return
        yield from _merge_day(day, progress, line_filter)


def follow(
    directory: "Path",
    line_filter: LineFilter = _NO_FILTER,
    progress: Progress | None = None,
    wait: "Callable[[float], None]" = time.sleep,
) -> "Iterator[Entry]":
    """Yield the entries of `read_events`, then new ones, for ever.

    `wait` is called when there is nothing new, and with 0 seconds after the last existing entry.
    """
    progress = progress if progress is not None else Progress()
    yield from read_events(directory, line_filter, progress)
    wait(0.0)
    while True:
        # A writer changes to a new day's segment with its first event there: only two days can grow.
        grown = days(directory, line_filter.since)[-2:]
        latest = [entry for day in grown for entry in _read_added(day, progress, line_filter)]
        if not latest:
            wait(_POLL_INTERVAL)
        yield from sorted(latest, key=_event_time)


def last_task(directory: "Path") -> str | None:
    """Return the id of the last started task, or None. Raises OSError."""
    for day in reversed(days(directory)):
        entries = _merge_day(day, Progress(), LineFilter(((_STARTED,),)))
        started = [each for each in entries if each.event.kind is Kind.TASK_STARTED and each.event.task.id]
        if started:
            return max(started, key=_event_time).event.task.id
    return None


def _event_time(entry: Entry) -> int:
    return entry.event.time


def _merge_day(day: "Path", progress: Progress, line_filter: LineFilter) -> "Iterator[Entry]":
    """Merge a day's segments. A segment stays closed until the merge reaches its first line."""
    until = None if line_filter.until is None else timestamp(line_filter.until + _SLACK)
    firsts = ((_first_time(segment), order, segment) for order, segment in enumerate(of_day(day)))
    waiting = [each for each in firsts if until is None or each[0] < until]
    heapq.heapify(waiting)
    active: list[tuple[int, int, Entry, Iterator[Entry]]] = []
    while waiting or active:
        while waiting and (not active or waiting[0][0] <= timestamp(active[0][0])):
            _, order, segment = heapq.heappop(waiting)
            _push(active, order, _read_segment(segment, progress, line_filter))
        if active:
            _, order, entry, rest = heapq.heappop(active)
            yield entry
            _push(active, order, rest)


def _push(active: "list[tuple[int, int, Entry, Iterator[Entry]]]", order: int, entries: "Iterator[Entry]") -> None:
    entry = next(entries, None)
    if entry is not None:
        heapq.heappush(active, (entry.event.time, order, entry, entries))


def _read_added(day: "Path", progress: Progress, line_filter: LineFilter) -> "Iterator[Entry]":
    """Yield the new entries of a day's segments."""
    for segment in of_day(day):
        compressed = segment.path.suffix == ".zst"
        grown = not compressed and segment.path.stat().st_size > progress.offsets.get(segment.name, 0)
        if grown or (compressed and segment.name not in progress.ended):
            yield from _read_segment(segment, progress, line_filter)


def _read_segment(segment: Segment, progress: Progress, line_filter: LineFilter) -> "Iterator[Entry]":
    """Yield a segment's events from the position in `progress` on, one block in memory at a time."""
    since = timestamp(line_filter.since).encode()
    until = _NEVER if line_filter.until is None else timestamp(line_filter.until).encode()
    offset = progress.offsets.get(segment.name) or _find_offset(segment, line_filter.since)
    for block in blocks(segment, offset, "" if offset else since.decode()):
        if block.torn:
            progress.torn += 1
            return
        for line in _matching_lines(block.lines, line_filter.groups):
            if line.startswith(_TIME) and not since <= line[_TIME_TEXT] < until:
                continue
            if not line_filter.bookkeeping and line.startswith(_BOOKKEEPING_KINDS, _KIND_AT):
                continue
            try:
                event = decode(line)
            except MalformedEventError:
                progress.malformed += 1
                continue
            yield Entry(line, event)
        progress.offsets[segment.name] = block.end
    if segment.path.suffix == ".zst":
        progress.ended.add(segment.name)


def _matching_lines(block: bytes, groups: tuple[tuple[bytes, ...], ...]) -> "Iterator[bytes]":
    """Yield the lines of a block that match all groups."""
    if not groups:
        yield from (line + b"\n" for line in block[:-1].split(b"\n"))
        return
    first, *others = groups
    for line in _find_lines(block, first):
        if all(any(text in line for text in group) for group in others):
            yield line


def _find_lines(block: bytes, texts: tuple[bytes, ...]) -> "Iterator[bytes]":
    """Yield the lines of a block that contain one of the texts, each line once."""
    positions = {text: block.find(text) for text in texts}
    while positions := {text: at for text, at in positions.items() if at >= 0}:
        at = min(positions.values())
        end = block.find(b"\n", at) + 1
        yield block[block.rfind(b"\n", 0, at) + 1 : end]
        positions = {text: block.find(text, end) if at < end else at for text, at in positions.items()}


def _first_time(segment: Segment) -> str:
    """Return the time of a segment's first event, as text; empty if unknown."""
    try:
        with opened(segment) as file:
            while line := file.readline(LONGEST_LINE):
                if line.startswith(_TIME):
                    return line[_TIME_TEXT].decode("ascii", "replace")
    except OSError:
        pass  # reading the segment reports it
    return ""


def _find_offset(segment: Segment, since: int) -> int:
    """Return an offset in a plain segment shortly before `since`, by binary search."""
    if not since or segment.path.suffix == ".zst":
        return 0
    earliest = timestamp(max(0, since - _SLACK)).encode()
    try:
        with os.fdopen(open_regular(segment.path), "rb") as file:
            low, high = 0, os.fstat(file.fileno()).st_size
            while high - low > _SEARCH_GAP:
                middle = (low + high) // 2
                file.seek(middle)
                file.readline(LONGEST_LINE)
                line = file.readline(LONGEST_LINE)
                if line.startswith(_TIME) and line[_TIME_TEXT] < earliest:
                    low = middle
                else:
                    high = middle
            file.seek(low)
            return low + len(file.readline(LONGEST_LINE)) if low else 0
    except FileNotFoundError:
        return 0  # compressed or removed meanwhile


def fair_share[T](entries: "Iterable[T]", most: int, group: "Callable[[T], object]") -> list[T]:
    """Return at most `most` entries in their order, equally many of each group.

    So many repeated events, such as failing lookups, can't push out rare ones.
    """
    seen: Counter[object] = Counter()
    found: list[tuple[int, int, T]] = []
    for number, entry in enumerate(entries):
        name = group(entry)
        if seen[name] < most:
            found.append((seen[name], number, entry))
        seen[name] += 1
    found.sort(key=lambda each: each[:2])
    return [entry for _, _, entry in sorted(found[:most], key=lambda each: each[1])]
