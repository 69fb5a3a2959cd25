"""Journal writer: appends events to `YYYY-MM-DD/NNNN.jsonl`, one line an event, one process a segment.

An event is in the page cache when `append` returns: one write(2), no queue, so a killed worker loses no event of what
it allowed. An event that cannot be written raises, and what it describes must then not be allowed (invariants 2, 6).
Each line carries the hash of the line before it (`segments`); a segment's first line names its writer and the head of
the day's ledger. A writer reads hostile bytes and holds no key: it reports how far it is (`news`), and a process with
the key signs that (`ledger`).

DiskQuota bounds what one task may fill of the journal's disk.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Event, IdMaker, Instant, Kind, Mark
from proxy.telemetry.journal.segments import BEGINNING, COMPRESSED, LEDGER, PLAIN, hash_of, segment_number

_NS_A_SECOND = 1_000_000_000
_SECONDS_A_DAY = 86_400
SEGMENT_BYTES = 64 * 1024 * 1024  # where a writer goes on to its next segment
SEGMENT_SECONDS = 6 * 3600  # and when
FORMAT = 1  # of segments
_MODE = 0o600  # of a segment
CLOSED = stat.S_ISVTX  # in its mode, where it means nothing else: its writer closed it, and wasn't killed
# Seconds that a look at a day's segments is good for: no segment is compressed or removed until ten minutes after its
# end (`retention`), so all that were made since the look are there, without a gap.
_CACHE_SECONDS = 300.0
_UNLIMITED = 1 << 62  # bytes
_LAST_LINES = 8192  # bytes of a ledger's end; its lines are shorter


class JournalWriteError(OSError):
    """An event could not be written. Its errno says why; the attempt that it speaks of must be blocked."""


class SegmentHead(NamedTuple):
    """How far a segment is: its whole lines, and the hash of the last. `closed`: its writer writes no more to it."""

    segment: str
    lines: int
    hash: str
    closed: bool = False


class Journal:
    """One process's writer into a journal directory that others may be writing into too.

    Each writer makes segments of its own: the next free number, taken with O_EXCL, and locked as long as it is open
    (flock(2)): what is not locked has no writer any more. A segment holds one day's events (UTC) in the order in which
    they happened.
    """

    __slots__ = (
        "_begins", "_directory", "_finished", "_head", "_ids", "_length", "_lines", "_name", "_reported_lines",
        "_segment_bytes", "ends", "segment", "written",
    )  # fmt: skip

    def __init__(self, directory: Path | int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open `directory`, made 0700 if it is missing; or take a descriptor of it, which stays the caller's.

        No segment is made before there is an event to put in it.
        """
        self.written = 0  # bytes since the start, over all segments
        self.segment = -1  # descriptor of the open one; -1: none is
        self._name = ""
        self._begins = self.ends = 0  # what it may span: ns since 1970
        self._length = 0  # bytes
        self._segment_bytes = segment_bytes
        self._lines = 0
        self._head = BEGINNING  # the hash of the last line
        self._reported_lines = 0  # lines
        self._finished: list[SegmentHead] = []  # that nobody has asked for yet
        self._ids = IdMaker()
        self._directory = -1
        try:
            self._directory = os.dup(directory) if isinstance(directory, int) else _open_directory(directory)
        except OSError as error:
            raise JournalWriteError(error.errno, error.strerror, str(directory)) from error

    def free(self) -> int:
        """How many bytes the disk has room for, of which none are reserved; without end where it doesn't say that."""
        try:
            status = os.fstatvfs(self._directory)
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize if status.f_blocks else _UNLIMITED

    def append(self, line: bytes, now: int) -> int:
        """Write one whole line of an event that happened at `now` (ns since 1970); return how many bytes that took.

        Raises JournalWriteError.
        """
        before = self.written
        try:
            if not self._begins <= now < self.ends or self._length >= self._segment_bytes:
                self._begin_segment(now)
            for each in (line,) if self._lines else (self._first_line(now), line):
                # What `segments.link` does, without a call: this is done for every event.
                body = b'%b,"prev":"%b"' % (each[:-2], self._head)
                line_hash = sha256(body).hexdigest().encode()
                linked = b'%b,"hash":"%b"}\n' % (body, line_hash)
                count = os.write(self.segment, linked)
                while count < len(linked):  # a disk that fills up takes what it has room for; the next write says so
                    count += os.write(self.segment, linked[count:])
                self._head = line_hash
                self._lines += 1
                self._length += count
                self.written += count
        except OSError as error:
            # What the kernel took of the line before it failed must not stay in front of the next one.
            self._remove_partial_line()
            raise JournalWriteError(error.errno, error.strerror) from error
        return self.written - before

    def news(self) -> list[SegmentHead]:
        """Return how far the segments are that have grown or ended since this was last asked."""
        heads, self._finished = self._finished, []
        if self._lines > self._reported_lines:
            self._reported_lines = self._lines
            heads.append(SegmentHead(self._name, self._lines, self._head.decode()))
        return heads

    def close(self) -> None:
        """Close what is open; idempotent."""
        self._end_segment()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _first_line(self, now: int) -> bytes:
        """Say whose segment this is, and which ledger there was when it began."""
        head = self._ledger_head()
        after = f"{self._name.partition('/')[0]}/{LEDGER}" if head else ""
        mark = Mark(self._name, format=FORMAT, writer=os.getpid(), after=after, follows=head)
        line_hash, host = self._ids.make(now), os.uname().nodename
        return encode(Event(Instant(now), line_hash, Kind.JOURNAL_OPENED, host=host, journal=mark))

    def _begin_segment(self, now: int) -> None:
        """Go on to a new segment, for the day that `now` falls on."""
        self._end_segment()
        day = now // _NS_A_SECOND // _SECONDS_A_DAY * _SECONDS_A_DAY
        name = time.strftime("%Y-%m-%d", time.gmtime(day))
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._directory)
        day_directory = self._open_day(name)
        try:
            number, self.segment = _next_segment(day_directory)
        finally:
            os.close(day_directory)
        self._name = f"{name}/{number:04d}"
        self._begins = day * _NS_A_SECOND
        self.ends = min((day + _SECONDS_A_DAY) * _NS_A_SECOND, now + SEGMENT_SECONDS * _NS_A_SECOND)

    def _end_segment(self) -> None:
        if self.segment >= 0:
            with contextlib.suppress(OSError):  # a file system without that bit: it is taken for one of a killed writer
                os.fchmod(self.segment, _MODE | CLOSED)
            os.close(self.segment)
        if self._lines:
            self._finished.append(SegmentHead(self._name, self._lines, self._head.decode(), closed=True))
        self._reported_lines = 0
        self.segment, self._head = -1, BEGINNING
        self._length = self._lines = self._begins = self.ends = 0

    def _remove_partial_line(self) -> None:
        """Take back what was written of a line; where even that fails, leave the segment with its torn last line."""
        if self.segment < 0:
            return
        try:
            os.ftruncate(self.segment, self._length)
        except OSError:
            self._end_segment()

    def _open_day(self, name: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._directory)

    def _ledger_head(self) -> str:
        """Return the hash of the last line of today's ledger, empty where there is none: nothing hangs on it here."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            day = self._open_day(self._name.partition("/")[0])
        except OSError:
            return ""
        try:
            file = os.open(f"{LEDGER}{PLAIN}", flags, dir_fd=day)
        except OSError:
            return ""
        finally:
            os.close(day)
        try:
            last = os.pread(file, _LAST_LINES, max(0, os.fstat(file).st_size - _LAST_LINES))  # ESPIPE: it is none
        except OSError:
            return ""
        finally:
            os.close(file)
        whole = last[: last.rfind(b"\n") + 1]
        return hash_of(whole[whole.rfind(b"\n", 0, -1) + 1 :]).decode("ascii", "replace")


def _open_directory(path: Path) -> int:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class _HighestNumber(NamedTuple):
    """What the greatest number of a segment in a directory was at a time (seconds since 1970)."""

    directory: tuple[int, int]
    number: int
    when: float


_number_cache = [_HighestNumber((0, 0), 0, 0.0)]


def look_ahead(journal: Path) -> None:
    """Have who is forked from this process soon not look through all segments of today for the next free number."""
    with contextlib.suppress(OSError):
        day = os.open(journal / time.strftime("%Y-%m-%d", time.gmtime()), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _find_highest_number(day)
        finally:
            os.close(day)


def _find_highest_number(day: int) -> int:
    """Return the greatest number of a segment in an open day directory; 0: there is none."""
    status, now, last = os.fstat(day), time.time(), _number_cache[0]
    directory = status.st_dev, status.st_ino
    if last.directory == directory and 0 <= now - last.when < _CACHE_SECONDS and _has_segment(day, last.number):
        number = _find_highest_consecutive(day, last.number)
    else:
        number = max((taken for name in os.listdir(day) if (taken := segment_number(name)) is not None), default=0)
    _number_cache[0] = _HighestNumber(directory, number, now)
    return number


def _find_highest_consecutive(day: int, number: int) -> int:
    """Return the last segment of those that follow `number` without a gap, looking at few of many."""
    step = 1
    while _has_segment(day, number + step):
        number += step
        step *= 2
    while step := step // 2:
        if _has_segment(day, number + step):
            number += step
    return number


def _has_segment(day: int, number: int) -> bool:
    for suffix in (PLAIN, COMPRESSED):
        with contextlib.suppress(FileNotFoundError):
            os.stat(f"{number:04d}{suffix}", dir_fd=day, follow_symlinks=False)
            return True
    return False


def _next_segment(day: int) -> tuple[int, int]:
    """Make the next free segment in an open day directory; return its number and a locked descriptor."""
    number = _find_highest_number(day)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        number += 1
        try:
            segment = os.open(f"{number:04d}{PLAIN}", flags, _MODE, dir_fd=day)
        except FileExistsError:
            continue  # another writer took it between the look and now
        _number_cache[0] = _number_cache[0]._replace(number=number)
        with contextlib.suppress(OSError):  # a file system without locks: what is mended there is looked at by its age
            fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return number, segment


LITTLE: Final = 16 << 20  # bytes that are nobody's business
_CHECK_INTERVAL_BYTES: Final = 1 << 20  # bytes, from one look at the disk to the next
_RECHECK_SECONDS: Final = 1.0  # seconds, likewise, while there is no room
_DAY: Final = 86_400  # seconds


class DiskQuota:
    """One task's, of the disk that `journal` is on."""

    __slots__ = ("_day", "_is_reported", "_journal", "_next_check_bytes", "_next_check_time", "taken")

    def __init__(self, journal: "Journal") -> None:
        self._journal = journal
        self._next_check_bytes = LITTLE
        self._next_check_time = 0.0  # time.monotonic(), while there is no room
        self._day = 0
        self.taken = 0  # bytes, today
        self._is_reported = False  # that there is no room

    def has_room(self) -> bool:
        """Whether more may be told of the task."""
        if self.taken < self._next_check_bytes or time.monotonic() < self._next_check_time:
            return not self._next_check_time
        day = int(time.time()) // _DAY
        if day != self._day:
            self._day, self.taken = day, 0 if self._day else self.taken
        if self.taken < LITTLE or self.taken <= self._journal.free() // 2:
            self._next_check_bytes, self._next_check_time, self._is_reported = (
                max(LITTLE, self.taken + _CHECK_INTERVAL_BYTES),
                0.0,
                False,
            )
            return True
        self._next_check_time = time.monotonic() + _RECHECK_SECONDS
        return False

    def used_up(self, say: Callable[[str], None]) -> JournalWriteError:
        """Return what to raise where there is no room; `say` what is to be known of that, once."""
        usage = f"{self.taken >> 20} MiB were told of the task today"
        if not self._is_reported:
            self._is_reported = True
            more = "more than half of what is free on the journal's disk: what it tries is refused"
            say(f"{usage}, {more}, so that others' attempts can be told")
        return JournalWriteError(errno.EDQUOT, usage)
