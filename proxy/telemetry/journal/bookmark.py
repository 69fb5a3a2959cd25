"""Bookmark of a reader: its position in every segment, from which it continues after any restart.

For whoever passes the journal on: every line of every writer, bookkeeping and signed checkpoints included, in the
order of each segment, at least once. What is closed, compressed or begun meanwhile is never missed: a segment goes by
its name, and an offset is always that of its lines as they were written. A bookmark is small, however much there is: of
what was read to its end only the numbers are kept.
"""

import os
import time
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from proxy.telemetry.journal.segments import COMPRESSED, LEDGER, Segment, blocks, days, find, hash_of, of_day, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SEALED = b'"kind":"journal.sealed"'
_VERSION: Final = 1
_LARGEST: Final = 1 << 62  # bytes of a segment
_MOST_SEGMENTS: Final = 1_000_000  # of a day
_SETTLED = 1_000_000_000  # ns: the clock that files go by is coarse, and two changes can have one time


class Position(NamedTuple):
    """A place in one segment: behind a line of it."""

    segment: str  # `2026-11-18/0003`, or `2026-11-18/ledger`
    offset: int  # bytes of the segment as it was written
    hash: str  # of the line in front of it; empty: the segment's beginning
    ended: bool = False  # that line was the segment's last


class JournalLine(NamedTuple):
    """A whole line of the journal, newline included, and the position behind it."""

    line: bytes
    position: Position


class SavedBookmark(msgspec.Struct, frozen=True):
    """A bookmark in a file: what was read to its end, numbers that follow one another as `0001-1990`; and the rest."""

    version: Literal[1]
    ended: dict[str, list[str]]  # by day
    within: list[tuple[str, Annotated[int, Meta(ge=0, lt=_LARGEST)], str]]  # segment, offset and hash


class Bookmark:
    """How far one reader has come, kept in a file of its own that is replaced as a whole, or by whoever made it."""

    def __init__(self, path: "Path | None" = None) -> None:
        """Read the file; one that is missing means the beginning. Raises OSError, and ValueError for anything else."""
        self._path = path
        self._within: dict[str, Position] = {}
        self._ended: dict[str, set[str]] = {}  # by day: the stems of what was read to its end
        if path is None:
            return
        try:
            self.take(msgspec.json.decode(path.read_bytes(), type=SavedBookmark))
        except FileNotFoundError:
            return
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{path}` is no bookmark: {error}") from error

    def at(self, segment: str) -> Position | None:
        """Return the position in a segment; None: it has been read to its end."""
        day, _, stem = segment.partition("/")
        if stem in self._ended.get(day, ()):
            return None
        return self._within.get(segment, Position(segment, 0, ""))

    def move(self, position: Position) -> None:
        """Go on to a position."""
        if position.ended:
            day, _, stem = position.segment.partition("/")
            self._ended.setdefault(day, set()).add(stem)
            self._within.pop(position.segment, None)
        else:
            self._within[position.segment] = position

    def advance(self, records: "Iterable[JournalLine]") -> None:
        """Go on behind these lines, which came in order."""
        for position in {record.position.segment: record.position for record in records}.values():
            self.move(position)

    def keep(self, existing: "Iterable[str]") -> None:
        """Forget the days that are not there any more."""
        existing_days = set(existing)
        self._ended = {day: stems for day, stems in self._ended.items() if day in existing_days}
        self._within = {name: each for name, each in self._within.items() if name.partition("/")[0] in existing_days}

    def save(self) -> None:
        """Put it on the disk: the old one or the new one is there, whatever happens. Raises OSError."""
        assert self._path is not None
        replace(self._path, msgspec.json.encode(self.saved()))

    def saved(self) -> "SavedBookmark":
        """Return it as it is kept in a file."""
        ended = {day: _to_spans(stems) for day, stems in sorted(self._ended.items())}
        return SavedBookmark(
            _VERSION, ended, [(each.segment, each.offset, each.hash) for each in self._within.values()]
        )

    def take(self, saved: "SavedBookmark") -> None:
        """Go to where a bookmark was that was saved. Raises ValueError."""
        self._ended |= {day: set(_from_spans(spans)) for day, spans in saved.ended.items()}
        self._within |= {segment: Position(segment, offset, line_hash) for segment, offset, line_hash in saved.within}


class Reader:
    """Reads a journal on from a bookmark. For one thread."""

    def __init__(self, journal: "Path", bookmark: Bookmark) -> None:
        self._journal = journal
        self.bookmark = bookmark
        self._read_ahead: dict[str, Position | None] = {}  # further than the bookmark: read, and not committed yet
        self._unchanged_days: dict[
            str, int
        ] = {}  # when a day's directory last changed (ns), of days without growing segments

    def read(self, most: int = 1000) -> list[JournalLine]:
        """Return at most `most` lines that come next; none: nothing new so far. Raises OSError.

        What is returned counts as read by this reader; `commit` makes that last. A segment that was removed before it
        was read is passed over.
        """
        records: list[JournalLine] = []
        existing_days = days(self._journal)
        for day in existing_days:
            changed = day.stat().st_mtime_ns
            if self._unchanged_days.get(day.name) == changed:
                continue
            growing = False
            for segment in of_day(day):
                position = self._position(segment.name)
                if position is None:
                    continue
                # Nobody ends a ledger, and nobody writes to one of a day that is long over
                growing = growing or not segment.is_ledger or day in existing_days[-2:]
                if not _has_unread(segment, position):
                    continue
                for record in self._read_segment(segment, position):
                    self._read_ahead[segment.name] = None if record.position.ended else record.position
                    records.append(record)
                    if len(records) == most:
                        return records
            if not growing and time.time_ns() - changed > _SETTLED:
                self._unchanged_days[day.name] = changed
        return records

    def commit(self, records: "Iterable[JournalLine]") -> None:
        """Note that these lines have arrived, and all before them. Raises OSError."""
        self.bookmark.advance(records)
        self.bookmark.keep(day.name for day in days(self._journal))
        self.bookmark.save()

    def rewind(self) -> None:
        """Go back to the bookmark: what was read and not committed is read again."""
        self._read_ahead.clear()
        self._unchanged_days.clear()

    def _position(self, name: str) -> Position | None:
        return self._read_ahead[name] if name in self._read_ahead else self.bookmark.at(name)

    def _read_segment(self, segment: Segment, position: Position) -> "Iterator[JournalLine]":
        try:
            if position.offset and not _is_line_unchanged(segment, position):
                position = Position(segment.name, 0, "")  # another line is where we had stopped: from the beginning
            yield from _read_lines(segment, position)
        except FileNotFoundError:
            return  # removed: it is old enough


def lags(bookmark: Bookmark, journal: "Path", name: str) -> bool:
    """Whether the bookmark's reader still has something to read in a day (`2026-11-18`) or in a segment."""
    found = find(journal, name)
    day_segments = ([] if found is None else [found]) if "/" in name else of_day(journal / name)
    return any(_has_unread(segment, bookmark.at(segment.name)) for segment in day_segments)


def _has_unread(segment: Segment, position: Position | None) -> bool:
    """Whether a segment has more than what is in front of a position; None: it has been read to its end."""
    if position is None:
        return False
    if segment.path.name.endswith(COMPRESSED):
        return True  # it has an end, and that has not been read
    try:
        return segment.path.stat().st_size != position.offset
    except FileNotFoundError:
        return True  # compressed between the look and now, or removed


def _read_lines(segment: Segment, position: Position) -> "Iterator[JournalLine]":
    """Yield the whole lines behind a position."""
    for block in blocks(segment, position.offset):
        if block.torn:
            return  # or being written
        offset = block.end - len(block.lines)
        for text in block.lines[:-1].split(b"\n"):
            line = text + b"\n"
            offset += len(line)
            yield JournalLine(
                line, Position(segment.name, offset, hash_of(line).decode("ascii", "replace"), _SEALED in line)
            )


def _is_line_unchanged(segment: Segment, position: Position) -> bool:
    """Whether the line in front of a position is the one that was there."""
    tail = b'"hash":"%b"}\n' % position.hash.encode()
    with opened(segment, max(0, position.offset - len(tail))) as file:
        return file.read(len(tail)) == tail


def _to_spans(stems: "set[str]") -> list[str]:
    """Return stems with numbers that follow one another put together: `0001-1990`."""
    numbers = sorted(int(stem) for stem in stems if stem != LEDGER)
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [*(f"{first:04d}-{last:04d}" for first, last in spans), *sorted(stems - {f"{n:04d}" for n in numbers})]


def _from_spans(spans: "list[str]") -> "Iterator[str]":
    for span in spans:
        first, dash, last = span.partition("-")
        if not dash:
            yield span
        else:
            begin, end = int(first), int(last)
            if not 0 <= begin <= end < _MOST_SEGMENTS:
                raise ValueError("segments in it are none")
            yield from (f"{number:04d}" for number in range(begin, end + 1))


def replace(path: "Path", data: bytes) -> None:
    """Replace a file that only its owner can read: after a crash the old or the new one is there. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as whole:
        whole.write(data)
        whole.flush()
        os.fsync(file)
    part.replace(path)
