"""Ledger of a journal: one file a day with the signed heads of all segments; and the sealing of segments.

The ledger links the segments of several writers: it exposes a segment that is missing, cut short or replaced. The
ledger of each day starts with the hash of the last line of the previous ledger. Each segment starts with the hash of
the last line of the ledger at that time. So neither can be rolled back without the other. All lines but the first are
signed. Only processes with the key write the ledger, never a worker (`keys`).

`sweep` seals the segments whose writer has ended. It checks each line, cuts off and records a torn last line (a kill, a
power cut), and ends the segment with a signed line. It skips a segment while its writer holds the lock (flock(2)). A
sealed segment is read-only (0400), so that it is not checked again.
"""

import contextlib
import fcntl
import os
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Event, IdMaker, Instant, Kind, Mark
from proxy.telemetry.journal.segments import (
    BEGINNING,
    LEDGER,
    PLAIN,
    Segment,
    blocks,
    days,
    hash_of,
    ledger,
    link,
    link_signed,
    links,
    open_regular,
    opened,
    segment_number,
)
from proxy.telemetry.journal.writer import CLOSED, FORMAT, SegmentHead

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from proxy.telemetry.journal.keys import Signer

_LOCK_TIMEOUT = 5.0  # seconds
_RETRY_INTERVAL = 0.01


class LedgerWriteError(OSError):
    """The ledger could not be written. The lines in the segments are chained, but not signed yet."""


class LedgerEntry(NamedTuple):
    """Line to write to the ledger."""

    kind: Kind
    mark: Mark
    detail: str = ""


class Ledger:
    """Writes the ledger of one journal. `lock` is a file outside the journal, which no worker can lock."""

    def __init__(self, journal: "Path", signer: "Signer", lock: "Path") -> None:
        self._journal = journal
        self._signer = signer
        self._lock = lock
        self._ids = IdMaker()
        self._last_write: tuple[str, int] | None = None  # the last file written, and its size then

    def checkpoint(self, heads: "Sequence[SegmentHead]") -> None:
        """Sign the heads of segments. Raises LedgerWriteError."""
        self.write(
            [
                LedgerEntry(Kind.JOURNAL_CHECKPOINT, Mark(each.segment, each.lines, each.hash, closed=each.closed))
                for each in heads
            ]
        )

    def write(self, entries: "Sequence[LedgerEntry]") -> None:
        """Add lines, each signed. Raises LedgerWriteError."""
        if not entries:
            return
        try:
            with self._locked():
                self._write(entries)
        except LedgerWriteError:
            raise
        except OSError as error:
            raise LedgerWriteError(error.errno, f"the journal's ledger cannot be written: {error.strerror}") from error

    def sealed(self, name: str, lines: int, prev: bytes) -> tuple[bytes, bytes]:
        """Return the line that ends a segment of `lines` lines, and its hash."""
        return self._sign_line(LedgerEntry(Kind.JOURNAL_SEALED, Mark(name, lines, closed=True)), prev, time.time_ns())

    def _write(self, entries: "Sequence[LedgerEntry]") -> None:
        now = time.time_ns()
        day = self._journal / datetime.fromtimestamp(now // 1_000_000_000, UTC).date().isoformat()
        day.mkdir(mode=0o700, exist_ok=True)
        file = open_regular(day / f"{LEDGER}{PLAIN}", os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(file).st_size
            is_truncated = (
                self._last_write is not None and self._last_write[0] == day.name and size < self._last_write[1]
            )
            prev, complete = _find_last_line(file, size)
            lines = []
            if complete < size:  # a writer was killed within a line
                os.ftruncate(file, complete)
                detail = f"{size - complete} bytes of an unfinished line were cut off"
                entries = [LedgerEntry(Kind.JOURNAL_REPAIRED, Mark(f"{day.name}/{LEDGER}"), detail), *entries]
            if not complete:
                line, prev = self._first_line(day, now)
                lines.append(line)
            for entry in entries:
                line, prev = self._sign_line(entry, prev, now)
                lines.append(line)
            text = b"".join(lines)
            if os.write(file, text) < len(text):
                os.ftruncate(file, complete)
                raise LedgerWriteError(None, "the journal's ledger cannot be written: the disk is full")
            self._last_write = (day.name, complete + len(text))
        finally:
            os.close(file)
        if is_truncated:
            raise LedgerWriteError(None, f"lines that were signed are missing from the ledger of {day.name}")

    def _first_line(self, day: "Path", now: int) -> tuple[bytes, bytes]:
        """Return the line that begins a day's ledger, and its hash."""
        before = [each for each in days(self._journal) if each.name != day.name and ledger(each) is not None]
        after = follows = ""
        if before:
            after = f"{before[-1].name}/{LEDGER}"
            follows = last_hash(before[-1])
        mark = Mark(f"{day.name}/{LEDGER}", format=FORMAT, writer=os.getpid(), after=after, follows=follows)
        return link(self._encode(LedgerEntry(Kind.JOURNAL_OPENED, mark), now), BEGINNING)

    def _sign_line(self, entry: LedgerEntry, prev: bytes, now: int) -> tuple[bytes, bytes]:
        signed = entry._replace(mark=entry.mark._replace(key=self._signer.id))
        return link_signed(self._encode(signed, now), prev, self._signer.sign)

    def _encode(self, entry: LedgerEntry, now: int) -> bytes:
        event_id, host = self._ids.make(now), os.uname().nodename
        return encode(Event(Instant(now), event_id, entry.kind, host=host, detail=entry.detail, journal=entry.mark))

    @contextlib.contextmanager
    def _locked(self) -> "Iterator[None]":
        """Hold the lock of the ledger. Raises LedgerWriteError if another writer keeps it too long."""
        file = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_TIMEOUT
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise LedgerWriteError(None, "another process keeps the journal's ledger locked") from error
                    time.sleep(_RETRY_INTERVAL)
            yield
        finally:
            os.close(file)


def last_hash(day: "Path") -> str:
    """Return the hash of the last complete line of a day's ledger; empty without one. Raises OSError."""
    found = ledger(day)
    if found is None:
        return ""
    last = b""
    with opened(found) as file:
        for line in file:
            last = line if line.endswith(b"\n") else last
    return hash_of(last).decode("ascii", "replace")


def _find_last_line(file: int, size: int) -> tuple[bytes, int]:
    """Return the hash of the last complete line of an open file, and its end offset."""
    step = 1 << 14
    while size:
        start = max(0, size - step)
        text = os.pread(file, size - start, start)
        complete = text[: text.rfind(b"\n") + 1]
        begin = complete.rfind(b"\n", 0, -1) + 1
        if begin or not start:
            return hash_of(complete[begin:]) or BEGINNING, start + len(complete)
        step *= 2
    return BEGINNING, 0


_RECENT_DAYS = 3  # days that may still have a writer
_WRITABLE = 0o200
_SEALED_MODE = 0o400
_QUIET = 10.0  # seconds without a write, before another's segment is sealed
_FIRST_LINE = 1 << 16  # bytes; a limit above its length
_SEALED = b'"kind":"journal.sealed"'


class BrokenSegmentError(Exception):
    """The hash chain of a segment is broken; the segment stays unchanged and unsigned."""


class ChainWalk:
    """Position up to which a segment's hash chain has been verified."""

    __slots__ = ("ended", "head", "lines", "offset")

    def __init__(self) -> None:
        self.lines = 0
        self.offset = 0
        self.head = BEGINNING
        self.ended = False

    def on(self, segment: Segment) -> None:
        """Verify the lines added since the last call. Raises BrokenSegmentError and OSError."""
        for block in blocks(segment, self.offset):
            if block.torn:
                return
            for text in block.lines[:-1].split(b"\n"):
                found = links(text + b"\n")
                self.lines += 1
                if self.ended or found is None or found.prev != self.head:
                    raise BrokenSegmentError(
                        f"line {self.lines} of {segment.name} does not follow the one before it: not signed"
                    )
                if not found.is_whole:
                    raise BrokenSegmentError(f"line {self.lines} of {segment.name} was changed: not signed")
                self.head = found.hash
                self.ended = _SEALED in text
            self.offset = block.end


class SealedSegment(NamedTuple):
    """Sealed segment: its head, its writer, whether the writer closed it, and the bytes that were cut off."""

    head: SegmentHead
    writer: int | None
    was_closed: bool = False  # by its writer: it was not killed
    torn: int = 0  # bytes


def unsealed(journal: "Path") -> "Iterator[Segment]":
    """Yield the unsealed segments of the last days, with or without a writer. Raises OSError."""
    for day in days(journal)[-_RECENT_DAYS:]:
        with os.scandir(day) as entries:  # few of thousands are unsealed: create no object for the others
            found = sorted((int(entry.name.removesuffix(PLAIN)), entry.name) for entry in entries if _is_open(entry))
        for _, name in found:
            yield Segment(f"{day.name}/{name.removesuffix(PLAIN)}", day / name)


def _is_open(entry: "os.DirEntry[str]") -> bool:
    if not entry.name.endswith(PLAIN) or segment_number(entry.name) is None:
        return False
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    # An empty one may be new, with a writer that has not locked it yet
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & _WRITABLE and status.st_size)


def seal(journal: "Path", name: str, ledger: Ledger) -> SealedSegment | None:
    """Seal a segment and sign it in the ledger; None: it still has a writer. Raises BrokenSegmentError, OSError.

    Safe to kill at any moment: a segment counts as sealed only once it is in the ledger.
    """
    path = journal / f"{name}{PLAIN}"
    file = open_regular(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        chain = ChainWalk()
        try:
            chain.on(Segment(name, path))
        except BrokenSegmentError:
            os.fchmod(file, _SEALED_MODE)
            raise
        found = os.fstat(file)
        torn = found.st_size - chain.offset
        os.ftruncate(file, chain.offset)
        if not chain.ended:
            line, chain.head = ledger.sealed(name, chain.lines, chain.head)
            if os.write(file, line) < len(line):
                os.ftruncate(file, chain.offset)
                return None
            chain.lines += 1
        head = SegmentHead(name, chain.lines, chain.head.decode(), closed=True)
        ledger.checkpoint([head])
        os.fchmod(file, _SEALED_MODE)
        return SealedSegment(head, _parse_writer(file), bool(found.st_mode & CLOSED), torn)
    except BlockingIOError:
        return None
    finally:
        os.close(file)


def sweep(
    journal: "Path", ledger: Ledger, closed_writers: "Collection[int]" = ()
) -> "Iterator[LedgerEntry | BrokenSegmentError]":
    """Seal segments without a writer; yield an entry for each segment that its writer did not close.

    `closed_writers` are processes that have closed their segments. Raises OSError.
    """
    for segment in unsealed(journal):
        try:
            # First the supervisor of another writer gets time to seal it
            if time.time() - segment.path.stat().st_mtime < _QUIET and _read_writer(segment) not in closed_writers:
                continue
            sealed = seal(journal, segment.name, ledger)
        except BrokenSegmentError as broken:
            yield broken
            continue
        except FileNotFoundError:
            continue
        if sealed is None:
            continue
        if sealed.torn or not (sealed.was_closed or sealed.writer in closed_writers):
            cut = f"; {sealed.torn} bytes of an unfinished line were cut off" if sealed.torn else ""
            mark = Mark(segment.name, sealed.head.lines, sealed.head.hash)
            yield LedgerEntry(Kind.JOURNAL_REPAIRED, mark, f"its writer ended without closing it{cut}")


def is_left(journal: "Path", writer: int) -> bool:
    """Whether a process has unsealed segments in the journal. Raises OSError."""
    for segment in unsealed(journal):
        with contextlib.suppress(FileNotFoundError):
            if _read_writer(segment) == writer:
                return True
    return False


def _read_writer(segment: Segment) -> int | None:
    file = open_regular(segment.path)
    try:
        return _parse_writer(file)
    finally:
        os.close(file)


def _parse_writer(file: int) -> int | None:
    """Return the writer's pid in the first line of an open segment."""
    from proxy.telemetry.encoding import MalformedEventError, decode

    try:
        mark = decode(os.pread(file, _FIRST_LINE, 0).partition(b"\n")[0]).journal
    except MalformedEventError:
        return None
    return None if mark is None else mark.writer
