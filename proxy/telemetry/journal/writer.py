"""Journal writer: appends events to `YYYY-MM-DD/NNNN.jsonl`, one line an event, one process a segment.

An event is in the page cache when `append` returns: one write(2), no queue, so a killed worker loses no event of an
allowed attempt. If an event can't be written, `append` raises and the caller must block the attempt (invariants 2, 6).
Each line has the hash of the line before it (`segments`); a segment's first line names its writer and the head of the
day's ledger. A writer reads hostile bytes and has no key: it reports its position (`news`), and a process with the key
signs that (`ledger`).

`DiskQuota` limits how much of the journal's disk one task may fill.
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
SEGMENT_BYTES = 64 * 1024 * 1024  # size after which a writer starts its next segment
SEGMENT_SECONDS = 6 * 3600  # and age
FORMAT = 1  # of segments
_MODE = 0o600  # of a segment
CLOSED = stat.S_ISVTX  # mode bit without another meaning on files: the writer closed the segment
# Seconds that the highest number stays cached. Retention leaves segments alone for ten minutes after their end, so the
# segments created since then exist without a gap.
_CACHE_SECONDS = 300.0
_UNLIMITED = 1 << 62  # bytes
_LAST_LINES = 8192  # bytes read from a ledger's end; its lines are shorter


class JournalWriteError(OSError):
    """An event could not be written (errno has the cause); the caller must block its attempt."""


class SegmentHead(NamedTuple):
    """Head of a segment: number of complete lines and hash of the last. `closed`: its writer has ended it."""

    segment: str
    lines: int
    hash: str
    closed: bool = False


class Journal:
    """Writer of one process; several processes may write to the same journal directory.

    Each writer creates its own segments: the next free number, created with O_EXCL, and locked while open (flock(2)),
    so an unlocked segment has no writer. A segment has the events of one day (UTC) in order.
    """

    __slots__ = (
        "_begins", "_directory", "_finished", "_head", "_ids", "_length", "_lines", "_name", "_reported_lines",
        "_segment_bytes", "ends", "segment", "written",
    )  # fmt: skip

    def __init__(self, directory: Path | int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open `directory`, created 0700 if missing, or duplicate a descriptor of it.

        The first segment is created with the first event.
        """
        self.written = 0  # bytes of all segments since the start
        self.segment = -1  # descriptor of the open segment; -1: none
        self._name = ""
        self._begins = self.ends = 0  # its time range: ns since 1970
        self._length = 0  # bytes
        self._segment_bytes = segment_bytes
        self._lines = 0
        self._head = BEGINNING  # the hash of the last line
        self._reported_lines = 0  # lines
        self._finished: list[SegmentHead] = []  # not reported yet
        self._ids = IdMaker()
        self._directory = -1
        try:
            self._directory = os.dup(directory) if isinstance(directory, int) else _open_directory(directory)
        except OSError as error:
            raise JournalWriteError(error.errno, error.strerror, str(directory)) from error

    def free(self) -> int:
        """Return the free bytes of the disk; unlimited if the file system doesn't report them."""
        try:
            status = os.fstatvfs(self._directory)
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize if status.f_blocks else _UNLIMITED

    def append(self, line: bytes, now: int) -> int:
        """Write the line of an event at `now` (ns since 1970); return the number of bytes written.

        Raises JournalWriteError.
        """
        before = self.written
        try:
            if not self._begins <= now < self.ends or self._length >= self._segment_bytes:
                self._begin_segment(now)
            for each in (line,) if self._lines else (self._first_line(now), line):
                # The same as `segments.link`, inlined because every event runs it.
                body = b'%b,"prev":"%b"' % (each[:-2], self._head)
                line_hash = sha256(body).hexdigest().encode()
                linked = b'%b,"hash":"%b"}\n' % (body, line_hash)
                count = os.write(self.segment, linked)
                while count < len(linked):  # a full disk takes a part; the next write raises
                    count += os.write(self.segment, linked[count:])
                self._head = line_hash
                self._lines += 1
                self._length += count
                self.written += count
        except OSError as error:
            # A partial line must not stay before the next one.
            self._remove_partial_line()
            raise JournalWriteError(error.errno, error.strerror) from error
        return self.written - before

    def news(self) -> list[SegmentHead]:
        """Return the heads of the segments that have grown or ended since the last call."""
        heads, self._finished = self._finished, []
        if self._lines > self._reported_lines:
            self._reported_lines = self._lines
            heads.append(SegmentHead(self._name, self._lines, self._head.decode()))
        return heads

    def close(self) -> None:
        """Close the segment and the directory; idempotent."""
        self._end_segment()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _first_line(self, now: int) -> bytes:
        """Return the first line of a segment: its writer, and the head of the ledger at its start."""
        head = self._ledger_head()
        after = f"{self._name.partition('/')[0]}/{LEDGER}" if head else ""
        mark = Mark(self._name, format=FORMAT, writer=os.getpid(), after=after, follows=head)
        line_hash, host = self._ids.make(now), os.uname().nodename
        return encode(Event(Instant(now), line_hash, Kind.JOURNAL_OPENED, host=host, journal=mark))

    def _begin_segment(self, now: int) -> None:
        """Start a new segment for the day of `now`."""
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
            with contextlib.suppress(OSError):  # a file system without that bit: counts as killed
                os.fchmod(self.segment, _MODE | CLOSED)
            os.close(self.segment)
        if self._lines:
            self._finished.append(SegmentHead(self._name, self._lines, self._head.decode(), closed=True))
        self._reported_lines = 0
        self.segment, self._head = -1, BEGINNING
        self._length = self._lines = self._begins = self.ends = 0

    def _remove_partial_line(self) -> None:
        """Remove a partial line; if that fails, end the segment with its torn last line."""
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
        """Return the hash of the last line of today's ledger; empty without one, which is no error."""
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
    """Highest segment number in a directory at a time (seconds since 1970)."""

    directory: tuple[int, int]
    number: int
    when: float


_number_cache = [_HighestNumber((0, 0), 0, 0.0)]


def cache_highest_number(journal: Path) -> None:
    """Cache the highest number of today, so that processes forked soon need not list all segments."""
    with contextlib.suppress(OSError):
        day = os.open(journal / time.strftime("%Y-%m-%d", time.gmtime()), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _find_highest_number(day)
        finally:
            os.close(day)


def _find_highest_number(day: int) -> int:
    """Return the highest segment number in an open day directory; 0: no segment."""
    status, now, last = os.fstat(day), time.time(), _number_cache[0]
    directory = status.st_dev, status.st_ino
    if last.directory == directory and 0 <= now - last.when < _CACHE_SECONDS and _has_segment(day, last.number):
        number = _find_highest_consecutive(day, last.number)
    else:
        number = max((taken for name in os.listdir(day) if (taken := segment_number(name)) is not None), default=0)
    _number_cache[0] = _HighestNumber(directory, number, now)
    return number


def _find_highest_consecutive(day: int, number: int) -> int:
    """Return the last consecutive number after `number`, by galloping search."""
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
    """Create the next free segment in an open day directory; return its number and a locked descriptor."""
    number = _find_highest_number(day)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        number += 1
        try:
            segment = os.open(f"{number:04d}{PLAIN}", flags, _MODE, dir_fd=day)
        except FileExistsError:
            continue  # another writer took it meanwhile
        _number_cache[0] = _number_cache[0]._replace(number=number)
        with contextlib.suppress(OSError):  # a file system without locks: repair goes by age
            fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return number, segment


UNLIMITED_BYTES: Final = 16 << 20  # bytes that every task may use
_CHECK_INTERVAL_BYTES: Final = 1 << 20  # bytes between two checks of the disk
_RECHECK_SECONDS: Final = 1.0  # seconds between two checks, while the quota is exceeded
_DAY: Final = 86_400  # seconds


class DiskQuota:
    """Quota of one task on the disk of `journal`."""

    __slots__ = ("_day", "_is_reported", "_journal", "_next_check_bytes", "_next_check_time", "taken")

    def __init__(self, journal: "Journal") -> None:
        self._journal = journal
        self._next_check_bytes = UNLIMITED_BYTES
        self._next_check_time = 0.0  # time.monotonic(), while the quota is exceeded
        self._day = 0
        self.taken = 0  # bytes, today
        self._is_reported = False  # the exceeded quota

    def has_room(self) -> bool:
        """Whether more events of the task may be written."""
        if self.taken < self._next_check_bytes or time.monotonic() < self._next_check_time:
            return not self._next_check_time
        day = int(time.time()) // _DAY
        if day != self._day:
            self._day, self.taken = day, 0 if self._day else self.taken
        if self.taken < UNLIMITED_BYTES or self.taken <= self._journal.free() // 2:
            self._next_check_bytes, self._next_check_time, self._is_reported = (
                max(UNLIMITED_BYTES, self.taken + _CHECK_INTERVAL_BYTES),
                0.0,
                False,
            )
            return True
        self._next_check_time = time.monotonic() + _RECHECK_SECONDS
        return False

    def used_up(self, say: Callable[[str], None]) -> JournalWriteError:
        """Return the error to raise when the quota is exceeded; report it to `say` once."""
        usage = f"{self.taken >> 20} MiB were recorded of the task today"
        if not self._is_reported:
            self._is_reported = True
            more = "more than half of the free space on the journal's disk: its attempts are blocked"
            say(f"{usage}, {more}, so that other tasks can be recorded")
        return JournalWriteError(errno.EDQUOT, usage)
