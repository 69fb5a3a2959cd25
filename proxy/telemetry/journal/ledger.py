"""The ledger: a day's file in which the heads of all segments are signed, one writer at a time.

It is what links the segments of several writers: one that is missing, cut short or written anew as a whole doesn't
agree with it. Each day's ledger begins with the hash of the last line of the one before it, and each segment with the
hash of the last line of the ledger as it was then; so neither can be taken back without the other. Its lines are
signed, all but the first. Only a process that holds the key writes here: never a worker (`keys`).
"""

import contextlib
import fcntl
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Event, Instant, Kind, Mark
from proxy.telemetry.ids import IdMaker
from proxy.telemetry.journal.chain import BEGINNING, hash_of, link, link_signed
from proxy.telemetry.journal.segments import LEDGER, PLAIN, days, ledger, open_regular, opened
from proxy.telemetry.journal.writing import FORMAT, Head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from proxy.telemetry.journal.keys import Signer

_LOCKED_WITHIN = 5.0  # seconds
_BETWEEN_TRIES = 0.01


class LedgerFailed(OSError):  # noqa: N818  past tense: what happened
    """The ledger could not be written. What is in the segments is chained, and not signed yet."""


class Remark(NamedTuple):
    """A line to be: what kind it is of, and what it says."""

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
        self._last: tuple[str, int] | None = None  # the file that was written last, and how long it was then

    def checkpoint(self, heads: "Sequence[Head]") -> None:
        """Sign how far segments are. Raises LedgerFailed."""
        self.write(
            [
                Remark(Kind.JOURNAL_CHECKPOINT, Mark(each.segment, each.lines, each.hash, closed=each.closed))
                for each in heads
            ]
        )

    def write(self, remarks: "Sequence[Remark]") -> None:
        """Add lines, each signed. Raises LedgerFailed."""
        if not remarks:
            return
        try:
            with self._locked():
                self._write(remarks)
        except LedgerFailed:
            raise
        except OSError as error:
            raise LedgerFailed(error.errno, f"the journal's ledger cannot be written: {error.strerror}") from error

    def sealed(self, name: str, lines: int, prev: bytes) -> tuple[bytes, bytes]:
        """Return the line that ends a segment of `lines` lines, and its hash."""
        return self._line(Remark(Kind.JOURNAL_SEALED, Mark(name, lines, closed=True)), prev, time.time_ns())

    def _write(self, remarks: "Sequence[Remark]") -> None:
        now = time.time_ns()
        day = self._journal / datetime.fromtimestamp(now // 1_000_000_000, UTC).date().isoformat()
        day.mkdir(mode=0o700, exist_ok=True)
        file = open_regular(day / f"{LEDGER}{PLAIN}", os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(file).st_size
            shorter = self._last is not None and self._last[0] == day.name and size < self._last[1]
            prev, whole = _end(file, size)
            lines = []
            if whole < size:  # its writer was killed in the middle of a line
                os.ftruncate(file, whole)
                said = f"{size - whole} bytes of an unfinished line were cut off"
                remarks = [Remark(Kind.JOURNAL_REPAIRED, Mark(f"{day.name}/{LEDGER}"), said), *remarks]
            if not whole:
                line, prev = self._first(day, now)
                lines.append(line)
            for remark in remarks:
                line, prev = self._line(remark, prev, now)
                lines.append(line)
            text = b"".join(lines)
            if os.write(file, text) < len(text):
                os.ftruncate(file, whole)
                raise LedgerFailed(None, "the journal's ledger cannot be written: no room")
            self._last = (day.name, whole + len(text))
        finally:
            os.close(file)
        if shorter:
            raise LedgerFailed(None, f"lines that were signed are missing from the ledger of {day.name}")

    def _first(self, day: "Path", now: int) -> tuple[bytes, bytes]:
        """Return the line that begins a day's ledger, and its hash."""
        before = [each for each in days(self._journal) if each.name != day.name and ledger(each) is not None]
        after = follows = ""
        if before:
            after = f"{before[-1].name}/{LEDGER}"
            follows = last_hash(before[-1])
        mark = Mark(f"{day.name}/{LEDGER}", format=FORMAT, writer=os.getpid(), after=after, follows=follows)
        return link(self._encoded(Remark(Kind.JOURNAL_OPENED, mark), now), BEGINNING)

    def _line(self, remark: Remark, prev: bytes, now: int) -> tuple[bytes, bytes]:
        signed = remark._replace(mark=remark.mark._replace(key=self._signer.id))
        return link_signed(self._encoded(signed, now), prev, self._signer.sign)

    def _encoded(self, remark: Remark, now: int) -> bytes:
        own, host = self._ids.make(now), os.uname().nodename
        return encode(Event(Instant(now), own, remark.kind, host=host, detail=remark.detail, journal=remark.mark))

    @contextlib.contextmanager
    def _locked(self) -> "Iterator[None]":
        """Keep every other writer of ledgers out; one that is stuck is not waited for for ever."""
        file = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCKED_WITHIN
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise LedgerFailed(None, "another process has the journal's ledger, and keeps it") from error
                    time.sleep(_BETWEEN_TRIES)
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


def _end(file: int, size: int) -> tuple[bytes, int]:
    """Return the hash of the last whole line of an open file, and where that ends."""
    step = 1 << 14
    while size:
        start = max(0, size - step)
        text = os.pread(file, size - start, start)
        whole = text[: text.rfind(b"\n") + 1]
        begin = whole.rfind(b"\n", 0, -1) + 1
        if begin or not start:
            return hash_of(whole[begin:]) or BEGINNING, start + len(whole)
        step *= 2
    return BEGINNING, 0
