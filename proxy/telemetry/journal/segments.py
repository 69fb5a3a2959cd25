"""A journal's files by name: `YYYY-MM-DD/NNNN.jsonl`, `.jsonl.zst` once closed and compressed, and each day's ledger.

A segment is called by its day and its stem, `2026-11-18/0003`, whatever form it has: it may be compressed between two
looks at it, and is then still the same lines at the same offsets. Offsets are always those of the lines as written.

Workers can make files here, and whoever reads or signs them may do more than a worker may: nothing is reached through a
link, and nothing opened but regular files (`open_regular`).
"""

import contextlib
import errno
import io
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from proxy.telemetry.encoding import LONGEST_LINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEDGER = "ledger"  # the stem of the file in which the heads of a day's segments are signed
PLAIN, COMPRESSED = ".jsonl", ".jsonl.zst"
BLOCK = 1 << 20  # bytes read at once
_DIGITS = frozenset("0123456789")


class Segment(NamedTuple):
    """One file of a journal. `path` is where it was found; it may have been compressed since."""

    name: str
    path: "Path"

    @property
    def is_ledger(self) -> bool:
        """Whether it is a day's ledger."""
        return self.name.endswith(LEDGER)


def segment_number(name: str) -> int | None:
    """Return the number of a segment's file name, compressed or not; None for any other file."""
    stem, dot, suffix = name.partition(".")
    return int(stem) if dot + suffix in {PLAIN, COMPRESSED} and stem and _DIGITS.issuperset(stem) else None


def days(directory: "Path", since: int = 0) -> "list[Path]":
    """Return the day directories that may hold events at or after `since` (ns since 1970), oldest first.

    Raises OSError.
    """
    from datetime import UTC, date, datetime  # the gate writes here too, and never asks

    first = datetime.fromtimestamp(since // 1_000_000_000, UTC).date()
    found: list[tuple[date, Path]] = []
    for path in directory.iterdir():
        try:
            day = date.fromisoformat(path.name)
        except ValueError:
            continue
        if day >= first and path.name == day.isoformat() and path.is_dir() and not path.is_symlink():
            found.append((day, path))
    return [path for _, path in sorted(found)]


def segments(day: "Path") -> "list[Segment]":
    """Return the segments of a day in the order of their numbers, without its ledger. Raises OSError."""
    found: dict[int, str] = {}
    with os.scandir(day) as entries:
        for entry in entries:
            name, number = entry.name, segment_number(entry.name)
            if number is None or not entry.is_file(follow_symlinks=False):
                continue
            if number not in found or name.endswith(PLAIN):
                found[number] = name
    return [Segment(f"{day.name}/{found[number].partition('.')[0]}", day / found[number]) for number in sorted(found)]


def ledger(day: "Path") -> Segment | None:
    """Return a day's ledger."""
    for suffix in (PLAIN, COMPRESSED):
        if _is_regular(path := day / f"{LEDGER}{suffix}"):
            return Segment(f"{day.name}/{LEDGER}", path)
    return None


def of_day(day: "Path") -> "list[Segment]":
    """Return a day's segments, and its ledger behind them: what it vouches for comes first. Raises OSError."""
    book = ledger(day)
    return [*segments(day), *([book] if book is not None else [])]


def find(directory: "Path", name: str) -> Segment | None:
    """Return the segment that is called `name`."""
    for suffix in (PLAIN, COMPRESSED):
        if _is_regular(path := directory / f"{name}{suffix}"):
            return Segment(name, path)
    return None


def open_day(day: "Path") -> int:
    """Open a day's directory, which is no link. Raises OSError."""
    return os.open(day, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_regular(path: "Path", flags: int = os.O_RDONLY) -> int:
    """Open a regular file of a day, neither of which is a link; a pipe is never waited for. Raises OSError."""
    day = open_day(path.parent)
    try:
        file = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=day)
    finally:
        os.close(day)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def _is_regular(path: "Path") -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def opened(segment: Segment, offset: int = 0, since: str = "") -> BinaryIO:
    """Open a segment's lines behind its first `offset` bytes, also when it has been compressed. Raises OSError.

    With `since`, a time as a line has it, older lines may be left out.
    """
    path = segment.path
    with contextlib.suppress(FileNotFoundError):
        return _opened(path, offset, since)
    # Compressed between the look and now: the other file was there before this one was taken away.
    other = path.name.removesuffix(".zst") if path.suffix == ".zst" else f"{path.name}.zst"
    return _opened(path.with_name(other), offset, since)


class Block(NamedTuple):
    """Whole lines of a segment, and the offset behind them; or, at the end, a line that is not finished."""

    lines: bytes
    end: int
    torn: bool = False


def blocks(segment: Segment, offset: int = 0, since: str = "") -> "Iterator[Block]":
    """Yield what a segment holds behind `offset`, in blocks of whole lines.

    A line that is too long to be one of ours stands as an empty one: whoever wrote it can't fill our memory. Raises
    OSError.
    """
    rest, end, endless = b"", offset, False
    with opened(segment, offset, since) as file:
        while block := file.read(BLOCK):
            end += len(block)
            if endless:
                cut = block.find(b"\n") + 1
                if not cut:
                    continue
                block, endless = b"\n" + block[cut:], False
            whole = rest + block
            cut = whole.rfind(b"\n") + 1
            rest = whole[cut:]
            if cut:
                yield Block(whole[:cut], end - len(rest))
            if len(rest) > LONGEST_LINE:
                rest, endless = b"", True
    if rest or endless:
        yield Block(rest, end - len(rest), torn=True)


def _opened(path: "Path", offset: int, since: str) -> BinaryIO:
    file = io.FileIO(open_regular(path), "rb")
    if path.suffix != ".zst":
        file.seek(offset)
        return io.BufferedReader(file, BLOCK)
    from proxy.telemetry.journal.compressed import reader

    return reader(file, offset, since)
