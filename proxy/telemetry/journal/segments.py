"""Segments of a journal: file names, safe opening, blocks of lines, and the hash chain of the lines.

The files of a day are `YYYY-MM-DD/NNNN.jsonl`, `.jsonl.zst` once closed and compressed, and the ledger. A segment is
named by its day and stem, `2026-11-18/0003`, in either form: it may be compressed between two looks, and then has the
same lines at the same offsets. Offsets always count the lines as they were written.

A worker can create files here, and a process that reads or signs them has more rights than a worker: no link is
followed, and only regular files are opened (`open_regular`).

A line ends with two members: `prev`, the hash of the line before it in its file, and `hash`, its own, SHA-256 (FIPS
180-4) over all bytes of the line before the member. A signed line has a `signature` between them: ed25519 (RFC 8032)
over all bytes before it, and so over everything in the file up to there. Lines are checked as bytes, unparsed.
"""

import contextlib
import errno
import io
import os
import re
import stat
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from proxy.telemetry.encoding import LONGEST_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LEDGER = "ledger"  # the stem of the file in which the heads of a day's segments are signed
PLAIN, COMPRESSED = ".jsonl", ".jsonl.zst"
BLOCK = 1 << 20  # bytes read at once
_DECIMALS = frozenset("0123456789")


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
    return int(stem) if dot + suffix in {PLAIN, COMPRESSED} and stem and _DECIMALS.issuperset(stem) else None


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
    return find(day.parent, f"{day.name}/{LEDGER}")


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
    from proxy.telemetry.journal.compression import reader

    return reader(file, offset, since)


BEGINNING = b"0" * 64  # what the first line of a file has for the hash of the line before it
# The end of a line. Each part has one length and no quotation mark in it: there is one way to read a line.
_LINE = re.compile(
    rb'((.*,"prev":"([^"]{64})")(?:,"signature":"([^"]{88})")?),"hash":"([^"]{64})"\}\n',  # 88: 64 bytes in Base64
    re.DOTALL,
)


class ChainLinks(NamedTuple):
    """What a line says of itself, and what it is said over."""

    prev: bytes
    hash: bytes
    hashed: bytes  # what `hash` is to be the SHA-256 of
    signature: bytes = b""  # as it is written, in Base64; empty: it is not signed
    signed: bytes = b""  # what it is over

    @property
    def is_whole(self) -> bool:
        """Whether the hash is that of what the line says."""
        return sha256(self.hashed).hexdigest().encode() == self.hash


def link(line: bytes, prev: bytes) -> tuple[bytes, bytes]:
    """Put a line of JSON (an object with a member, newline included) behind the one with the hash `prev`.

    Return it as it is to be written, and its hash.
    """
    return _closed(b'%b,"prev":"%b"' % (line[:-2], prev))


def link_signed(line: bytes, prev: bytes, sign: "Callable[[bytes], bytes]") -> tuple[bytes, bytes]:
    """Do what `link` does, with a signature."""
    body = b'%b,"prev":"%b"' % (line[:-2], prev)
    return _closed(b'%b,"signature":"%b"' % (body, b64encode(sign(body))))


def links(line: bytes) -> ChainLinks | None:
    """Return what a whole line (newline included) says of itself; None: it has no links where they belong."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    hashed, signed, prev, signature, own = found.groups()
    return ChainLinks(prev, own, hashed, signature or b"", signed if signature else b"")


def hash_of(line: bytes) -> bytes:
    """Return the hash that a line says it has; empty where it says none."""
    found = links(line)
    return b"" if found is None else found.hash


def _closed(body: bytes) -> tuple[bytes, bytes]:
    own = sha256(body).hexdigest().encode()
    return b'%b,"hash":"%b"}\n' % (body, own), own
