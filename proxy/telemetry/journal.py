"""Where events are kept: `YYYY-MM-DD/NNNN.jsonl` in one directory, a line an event, written by one process a segment.

An event is on its way to the disk when `append` returns: one write(2), nothing queued, so that a worker that is killed
loses nothing it let out (the page cache survives a process, not a power cut). What can't be written raises, and what it
spoke of must then not be let out (invariants 2 and 6). Reading is `reading`'s business.
"""

import contextlib
import os
import time
from pathlib import Path

_NS_A_SECOND = 1_000_000_000
_SECONDS_A_DAY = 86_400
SEGMENT_BYTES = 64 * 1024 * 1024  # where a writer goes on to its next segment


class JournalFailed(OSError):  # noqa: N818  past tense: what happened
    """An event could not be written. Its errno says why; the attempt that it speaks of must be blocked."""


class Journal:
    """One process's writer into a journal directory that others may be writing into too.

    Each writer makes segments of its own: the next free number, taken with O_EXCL. A segment holds one day's events
    (UTC) in the order in which they happened.
    """

    __slots__ = ("_day_ends", "_day_starts", "_directory", "_length", "_segment", "_segment_bytes", "written")

    def __init__(self, directory: Path | int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open `directory`, made 0700 if it is missing; or take a descriptor of it, which stays the caller's.

        No segment is made before there is an event to put in it.
        """
        self._segment = -1
        self._length = 0
        self._segment_bytes = segment_bytes
        self._day_starts = self._day_ends = 0  # ns: what the open segment's day spans
        self.written = 0  # bytes since the start, over all segments
        self._directory = -1
        try:
            self._directory = os.dup(directory) if isinstance(directory, int) else _open_directory(directory)
        except OSError as error:
            raise JournalFailed(error.errno, error.strerror, str(directory)) from error

    def append(self, line: bytes, now: int) -> None:
        """Write one whole line of an event that happened at `now` (ns since 1970). Raises JournalFailed."""
        try:
            if not self._day_starts <= now < self._day_ends or self._length >= self._segment_bytes:
                self._begin(now)
            count = os.write(self._segment, line)
            while count < len(line):  # a disk that fills up takes what it has room for; the next write says so
                count += os.write(self._segment, line[count:])
        except OSError as error:
            # What the kernel took of the line before it failed must not stay in front of the next one.
            self._cut_back()
            raise JournalFailed(error.errno, error.strerror) from error
        self._length += count
        self.written += count

    def close(self) -> None:
        """Close what is open; idempotent."""
        self._end()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _begin(self, now: int) -> None:
        """Go on to a new segment, for the day that `now` falls on."""
        self._end()
        day = now // _NS_A_SECOND // _SECONDS_A_DAY * _SECONDS_A_DAY
        name = time.strftime("%Y-%m-%d", time.gmtime(day))
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        inside = os.open(name, flags, dir_fd=self._directory)
        try:
            self._segment = _next_segment(inside)
        finally:
            os.close(inside)
        self._day_starts = day * _NS_A_SECOND
        self._day_ends = (day + _SECONDS_A_DAY) * _NS_A_SECOND

    def _end(self) -> None:
        if self._segment >= 0:
            os.close(self._segment)
        self._segment = -1
        self._length = self._day_starts = self._day_ends = 0

    def _cut_back(self) -> None:
        """Take back what was written of a line; where even that fails, leave the segment with its torn last line."""
        if self._segment < 0:
            return
        try:
            os.ftruncate(self._segment, self._length)
        except OSError:
            self._end()


def segment_number(name: str) -> int | None:
    """Return the number of a segment's file name, None for any other file."""
    stem, dot, suffix = name.partition(".")
    return int(stem) if dot and suffix == "jsonl" and stem.isascii() and stem.isdigit() else None


def _open_directory(path: Path) -> int:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _next_segment(day: int) -> int:
    """Make the next free segment in an open day directory and return its descriptor."""
    number = max((taken for name in os.listdir(day) if (taken := segment_number(name)) is not None), default=0)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        number += 1
        try:
            return os.open(f"{number:04d}.jsonl", flags, 0o600, dir_fd=day)
        except FileExistsError:
            continue  # another writer took it between the look and now
