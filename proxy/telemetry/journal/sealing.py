"""Segments whose writer is done, ended with a signed line; and those of writers that were killed, mended first.

Nothing is sealed that doesn't hang together: each line is looked at before. A torn last line, which a kill or a power
cut leaves, is cut off, and that is told. A segment is not touched as long as its writer holds its lock (flock(2)). One
that is done with can't be written any more (0400), so that it need not be looked at again.
"""

import contextlib
import fcntl
import os
import stat
import time
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal.chain import BEGINNING, links
from proxy.telemetry.journal.ledger import Ledger, Remark
from proxy.telemetry.journal.segments import PLAIN, Segment, blocks, days, open_regular, segment_number
from proxy.telemetry.journal.writing import CLOSED, Head

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_RECENT_DAYS = 3  # in which a writer may still be at work
_WRITABLE = 0o200
_DONE = 0o400
_QUIET = 10.0  # seconds
_FIRST_LINE = 1 << 16  # bytes; it is shorter
_SEALED = b'"kind":"journal.sealed"'


class Broken(Exception):  # noqa: N818  what is wrong, in words
    """A segment that doesn't hang together: it is left as it is, and not signed."""


class Walk:
    """How far a segment has been looked at, and found to hang together."""

    __slots__ = ("ended", "head", "lines", "offset")

    def __init__(self) -> None:
        self.lines = 0
        self.offset = 0
        self.head = BEGINNING
        self.ended = False

    def on(self, segment: Segment) -> None:
        """Look at what has been added. Raises Broken and OSError."""
        for block in blocks(segment, self.offset):
            if block.torn:
                return
            for text in block.lines[:-1].split(b"\n"):
                found = links(text + b"\n")
                self.lines += 1
                if self.ended or found is None or found.prev != self.head:
                    raise Broken(f"line {self.lines} of {segment.name} does not follow the one before it: not signed")
                if sha256(found.hashed).hexdigest().encode() != found.hash:
                    raise Broken(f"line {self.lines} of {segment.name} was changed: not signed")
                self.head = found.hash
                self.ended = _SEALED in text
            self.offset = block.end


class Sealed(NamedTuple):
    """What became of a segment: how far it is now, who wrote it and had closed it, and what had to be cut off."""

    head: Head
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


def seal(journal: "Path", name: str, ledger: Ledger) -> Sealed | None:
    """End a segment, and sign in the ledger that it is; None: it has a writer still. Raises Broken and OSError.

    Whoever does it may be killed at any moment: only what is in the ledger is looked at no more.
    """
    path = journal / f"{name}{PLAIN}"
    file = open_regular(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        walk = Walk()
        try:
            walk.on(Segment(name, path))
        except Broken:
            os.fchmod(file, _DONE)
            raise
        found = os.fstat(file)
        torn = found.st_size - walk.offset
        os.ftruncate(file, walk.offset)
        if not walk.ended:
            line, walk.head = ledger.sealed(name, walk.lines, walk.head)
            if os.write(file, line) < len(line):
                os.ftruncate(file, walk.offset)
                return None
            walk.lines += 1
        head = Head(name, walk.lines, walk.head.decode(), closed=True)
        ledger.checkpoint([head])
        os.fchmod(file, _DONE)
        return Sealed(head, _writer(file), bool(found.st_mode & CLOSED), torn)
    except BlockingIOError:
        return None
    finally:
        os.close(file)


def sweep(journal: "Path", ledger: Ledger, ours: "Collection[int]" = ()) -> "Iterator[Remark | Broken]":
    """Seal what has no writer any more; yield what is to be told of what somebody else than `ours` left unclosed.

    `ours` are processes that have closed what they wrote. Raises OSError.
    """
    for segment in unsealed(journal):
        try:
            # Of somebody else it is left to whoever supervises that, for a while
            if time.time() - segment.path.stat().st_mtime < _QUIET and _writer_of(segment) not in ours:
                continue
            done = seal(journal, segment.name, ledger)
        except Broken as broken:
            yield broken
            continue
        except FileNotFoundError:
            continue
        if done is None:
            continue
        if done.torn or not (done.was_closed or done.writer in ours):
            cut = f"; {done.torn} bytes of an unfinished line were cut off" if done.torn else ""
            mark = Mark(segment.name, done.head.lines, done.head.hash)
            yield Remark(Kind.JOURNAL_REPAIRED, mark, f"its writer ended without closing it{cut}")


def is_left(journal: "Path", writer: int) -> bool:
    """Whether a process has segments here that are not sealed. Raises OSError."""
    for segment in unsealed(journal):
        with contextlib.suppress(FileNotFoundError):
            if _writer_of(segment) == writer:
                return True
    return False


def _writer_of(segment: Segment) -> int | None:
    file = open_regular(segment.path)
    try:
        return _writer(file)
    finally:
        os.close(file)


def _writer(file: int) -> int | None:
    """Return the process that an open segment's first line names."""
    from proxy.telemetry.decoding import MalformedEvent, decode

    try:
        mark = decode(os.pread(file, _FIRST_LINE, 0).partition(b"\n")[0]).journal
    except MalformedEvent:
        return None
    return None if mark is None else mark.writer
