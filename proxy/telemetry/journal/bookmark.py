"""Bookmark of a reader: its position in every segment, from which it continues after any restart.

For exporters: they read every line of every writer at least once, in the order of each segment, bookkeeping and signed
checkpoints included. A segment has the same name and the same offsets when it is closed or compressed meanwhile. A
bookmark stays small: of segments that were read to their end it stores only the numbers.
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
_SETTLED = 1_000_000_000  # ns: file times are coarse, so two changes can have the same time


class Position(NamedTuple):
    """Position in a segment: after one of its lines."""

    segment: str  # `2026-11-18/0003`, or `2026-11-18/ledger`
    offset: int  # bytes of the uncompressed segment
    hash: str  # of the line before it; empty: the start of the segment
    ended: bool = False  # that was the last line of the segment


class JournalLine(NamedTuple):
    """Complete line of the journal, newline included, and the position after it."""

    line: bytes
    position: Position


class SavedBookmark(msgspec.Struct, frozen=True):
    """File format of a bookmark: segments read to their end, as ranges `0001-1990`, and positions in others."""

    version: Literal[1]
    ended: dict[str, list[str]]  # by day
    within: list[tuple[str, Annotated[int, Meta(ge=0, lt=_LARGEST)], str]]  # segment, offset and hash


class Bookmark:
    """Positions of one reader in all segments; stored in its own file, or by the caller."""

    def __init__(self, path: "Path | None" = None) -> None:
        """Read the file; without one, start at the beginning. Raises OSError, and ValueError for a malformed file."""
        self._path = path
        self._within: dict[str, Position] = {}
        self._ended: dict[str, set[str]] = {}  # by day: stems of segments read to their end
        if path is None:
            return
        try:
            self.take(msgspec.json.decode(path.read_bytes(), type=SavedBookmark))
        except FileNotFoundError:
            return
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{path}` is not a bookmark: {error}") from error

    def at(self, segment: str) -> Position | None:
        """Return the position in a segment; None: read to its end."""
        day, _, stem = segment.partition("/")
        if stem in self._ended.get(day, ()):
            return None
        return self._within.get(segment, Position(segment, 0, ""))

    def move(self, position: Position) -> None:
        """Move to a position."""
        if position.ended:
            day, _, stem = position.segment.partition("/")
            self._ended.setdefault(day, set()).add(stem)
            self._within.pop(position.segment, None)
        else:
            self._within[position.segment] = position

    def advance(self, records: "Iterable[JournalLine]") -> None:
        """Move past these lines, which are in order."""
        for position in {record.position.segment: record.position for record in records}.values():
            self.move(position)

    def keep(self, existing: "Iterable[str]") -> None:
        """Forget days that no longer exist."""
        existing_days = set(existing)
        self._ended = {day: stems for day, stems in self._ended.items() if day in existing_days}
        self._within = {name: each for name, each in self._within.items() if name.partition("/")[0] in existing_days}

    def save(self) -> None:
        """Save to the file atomically. Raises OSError."""
        assert self._path is not None
        replace(self._path, msgspec.json.encode(self.saved()))

    def saved(self) -> "SavedBookmark":
        """Return the file format."""
        ended = {day: _to_spans(stems) for day, stems in sorted(self._ended.items())}
        return SavedBookmark(
            _VERSION, ended, [(each.segment, each.offset, each.hash) for each in self._within.values()]
        )

    def take(self, saved: "SavedBookmark") -> None:
        """Restore a saved bookmark. Raises ValueError."""
        self._ended |= {day: set(_from_spans(spans)) for day, spans in saved.ended.items()}
        self._within |= {segment: Position(segment, offset, line_hash) for segment, offset, line_hash in saved.within}


class Reader:
    """Reads a journal from a bookmark on. Not thread-safe."""

    def __init__(self, journal: "Path", bookmark: Bookmark) -> None:
        self._journal = journal
        self.bookmark = bookmark
        self._read_ahead: dict[str, Position | None] = {}  # further than the bookmark: read, and not committed yet
        self._unchanged_days: dict[
            str, int
        ] = {}  # when a day's directory last changed (ns), of days without growing segments

    def read(self, most: int = 1000) -> list[JournalLine]:
        """Return at most `most` next lines; an empty list: nothing new. Raises OSError.

        The next call continues after these lines; `commit` saves that. Segments that were removed unread are skipped.
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
                # A ledger has no last line, but past days get no new ones
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
        """Save that these lines, and all before them, were delivered. Raises OSError."""
        self.bookmark.advance(records)
        self.bookmark.keep(day.name for day in days(self._journal))
        self.bookmark.save()

    def rewind(self) -> None:
        """Go back to the bookmark: uncommitted lines are read again."""
        self._read_ahead.clear()
        self._unchanged_days.clear()

    def _position(self, name: str) -> Position | None:
        return self._read_ahead[name] if name in self._read_ahead else self.bookmark.at(name)

    def _read_segment(self, segment: Segment, position: Position) -> "Iterator[JournalLine]":
        try:
            if position.offset and not _is_line_unchanged(segment, position):
                position = Position(segment.name, 0, "")  # the segment was replaced: start again
            yield from _read_lines(segment, position)
        except FileNotFoundError:
            return  # removed by retention


def lags(bookmark: Bookmark, journal: "Path", name: str) -> bool:
    """Whether a day (`2026-11-18`) or a segment has lines after the bookmark."""
    found = find(journal, name)
    day_segments = ([] if found is None else [found]) if "/" in name else of_day(journal / name)
    return any(_has_unread(segment, bookmark.at(segment.name)) for segment in day_segments)


def _has_unread(segment: Segment, position: Position | None) -> bool:
    """Whether a segment has lines after a position; None: read to its end."""
    if position is None:
        return False
    if segment.path.name.endswith(COMPRESSED):
        return True  # its last line is still unread
    try:
        return segment.path.stat().st_size != position.offset
    except FileNotFoundError:
        return True  # compressed or removed meanwhile


def _read_lines(segment: Segment, position: Position) -> "Iterator[JournalLine]":
    """Yield the complete lines after a position."""
    for block in blocks(segment, position.offset):
        if block.torn:
            return  # or just being written
        offset = block.end - len(block.lines)
        for text in block.lines[:-1].split(b"\n"):
            line = text + b"\n"
            offset += len(line)
            yield JournalLine(
                line, Position(segment.name, offset, hash_of(line).decode("ascii", "replace"), _SEALED in line)
            )


def _is_line_unchanged(segment: Segment, position: Position) -> bool:
    """Whether the line before a position is still the same."""
    tail = b'"hash":"%b"}\n' % position.hash.encode()
    with opened(segment, max(0, position.offset - len(tail))) as file:
        return file.read(len(tail)) == tail


def _to_spans(stems: "set[str]") -> list[str]:
    """Return stems with consecutive numbers joined: `0001-1990`."""
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
                raise ValueError("it has an invalid range of segments")
            yield from (f"{number:04d}" for number in range(begin, end + 1))


def replace(path: "Path", data: bytes) -> None:
    """Write a file (0600) atomically: after a crash the old or the new one exists. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as whole:
        whole.write(data)
        whole.flush()
        os.fsync(file)
    part.replace(path)
