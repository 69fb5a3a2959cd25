"""Ledger of a journal: a file a day with the signed heads of all segments; and the sealing of segments.

The ledger links the segments of several writers: a segment that is missing, cut short or replaced does not agree with
it. The ledger of each day begins with the hash of the last line of the ledger before it, and each segment with the hash
of the last line that the ledger had then; so neither can be taken back without the other. All lines but the first are
signed. Only a process that holds the key writes here: never a worker (`keys`).

`sweep` seals the segments whose writer is done: each line is checked, a torn last line (a kill, a power cut) is cut off
and recorded, and a signed line ends the segment. A segment is left alone while its writer holds its lock (flock(2)). A
sealed one is read-only (0400), so that it is not checked again.
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
    """The ledger could not be written. What is in the segments is chained, and not signed yet."""


class LedgerEntry(NamedTuple):
    """Line to write into the ledger."""

    kind: Kind
    mark: Mark
    detail: str = ""


class Ledger:
    """Writes the ledger of one journal. `lock` is a file outside it, where no worker can hold it."""

    def __init__(self, journal: "Path", signer: "Signer", lock: "Path") -> None:
        self._journal = journal
        self._signer = signer
        self._lock = lock
        self._ids = IdMaker()
        self._last_write: tuple[str, int] | None = None  # the file that was written last, and how long it was then

    def checkpoint(self, heads: "Sequence[SegmentHead]") -> None:
        """Sign how far segments are. Raises LedgerWriteError."""
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
            if complete < size:  # its writer was killed in the middle of a line
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
                raise LedgerWriteError(None, "the journal's ledger cannot be written: no room")
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
        """Keep every other writer of ledgers out; one that is stuck is not waited for for ever."""
        file = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_TIMEOUT
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise LedgerWriteError(
                            None, "another process has the journal's ledger, and keeps it"
                        ) from error
                    time.sleep(_RETRY_INTERVAL)
            yield
        finally:
            os.close(file)


def last_hash(day: "Path") -> str:
    """Return the hash of the last whole line of a day's ledger, empty where there is none. Raises OSError."""
    found = ledger(day)
    if found is None:
        return ""
    last = b""
    with opened(found) as file:
        for line in file:
            last = line if line.endswith(b"\n") else last
    return hash_of(last).decode("ascii", "replace")


def _find_last_line(file: int, size: int) -> tuple[bytes, int]:
    """Return the hash of the last whole line of an open file, and where that ends."""
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


_RECENT_DAYS = 3  # in which a writer may still be at work
_WRITABLE = 0o200
_SEALED_MODE = 0o400
_QUIET = 10.0  # seconds
_FIRST_LINE = 1 << 16  # bytes; it is shorter
_SEALED = b'"kind":"journal.sealed"'


class BrokenSegmentError(Exception):
    """The hash chain of a segment is broken; the segment is left as it is, unsigned."""


class ChainWalk:
    """Position up to which a segment's hash chain has been verified."""

    __slots__ = ("ended", "head", "lines", "offset")

    def __init__(self) -> None:
        self.lines = 0
        self.offset = 0
        self.head = BEGINNING
        self.ended = False

    def on(self, segment: Segment) -> None:
        """Look at what has been added. Raises BrokenSegmentError and OSError."""
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
    """What became of a segment: how far it is now, who wrote it and had closed it, and what had to be cut off."""

    head: SegmentHead
    writer: int | None
    was_closed: bool = False  # by its writer, which was not killed then
    torn: int = 0  # bytes


def unsealed(journal: "Path") -> "Iterator[Segment]":
    """Yield the segments of the last days that may have a writer, or have lost it. Raises OSError."""
    for day in days(journal)[-_RECENT_DAYS:]:
        with os.scandir(day) as entries:  # of thousands a few may, and nothing is made of the others
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
    # One without a line may just have been made, and its writer has not locked it yet
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & _WRITABLE and status.st_size)


def seal(journal: "Path", name: str, ledger: Ledger) -> SealedSegment | None:
    """Seal a segment, and sign that in the ledger; None: it still has a writer. Raises BrokenSegmentError, OSError.

    Whoever does it may be killed at any moment: only what is in the ledger is looked at no more.
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
    """Seal what has no writer any more; yield what is to be told of what somebody else than `ours` left unclosed.

    `ours` are processes that have closed what they wrote. Raises OSError.
    """
    for segment in unsealed(journal):
        try:
            # Of somebody else it is left to whoever supervises that, for a while
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
    """Whether a process has segments here that are not sealed. Raises OSError."""
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
    """Return the process that an open segment's first line names."""
    from proxy.telemetry.encoding import MalformedEventError, decode

    try:
        mark = decode(os.pread(file, _FIRST_LINE, 0).partition(b"\n")[0]).journal
    except MalformedEventError:
        return None
    return None if mark is None else mark.writer
