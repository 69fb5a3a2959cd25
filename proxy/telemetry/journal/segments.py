"""Segments of a journal: file names, safe opening, blocks of lines, and the hash chain of the lines.

The files of a day are `YYYY-MM-DD/NNNN.jsonl`, `.jsonl.zst` once closed and compressed, and the ledger. The name of a
segment is its day and stem, `2026-11-18/0003`, in either form: compression may happen at any time, and keeps lines and
offsets. Offsets always count the uncompressed bytes.

A worker can create files here, and processes that read or sign them have more rights than a worker. So they follow no
links and open only regular files (`open_regular`).

A line ends with two members: `prev`, the hash of the line before it in its file, and `hash`, its own, SHA-256 (FIPS
180-4) over all bytes of the line before the member. A signed line has a `signature` between them: ed25519 (RFC 8032)
over all bytes before it, and so over everything in the file up to there. Lines are checked as bytes, unparsed.

A closed segment is compressed with Zstandard (RFC 8878), in frames of whole lines with an index behind them. Any
`zstd -d` reads it. The index is a skippable frame (section 3.1.2): it says where each frame begins and which times its
lines span, so a reader of the last hour, or from an offset, unpacks only what it needs. Python 3.12 and 3.13 have no
Zstandard of their own; the `zstandard` package wraps the reference library, and mitmproxy depends on it. It is imported
when a compressed segment is read or written: the gate, which only writes, does without.
"""

import contextlib
import errno
import io
import json
import os
import re
import stat
import struct
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import msgspec

from proxy.telemetry.encoding import LONGEST_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


LEDGER = "ledger"  # stem of the file with the signed heads of a day's segments
PLAIN, COMPRESSED = ".jsonl", ".jsonl.zst"
BLOCK = 1 << 20  # bytes read at once
_DECIMALS = frozenset("0123456789")


class Segment(NamedTuple):
    """File of a journal. It may have been compressed since it was found at `path`."""

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
    from datetime import UTC, date, datetime  # only readers need it; the gate imports this module too

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
    """Return a day's segments, then its ledger, which signs them. Raises OSError."""
    day_ledger = ledger(day)
    return [*segments(day), *([day_ledger] if day_ledger is not None else [])]


def find(directory: "Path", name: str) -> Segment | None:
    """Return the segment with this name."""
    for suffix in (PLAIN, COMPRESSED):
        if _is_regular_file(path := directory / f"{name}{suffix}"):
            return Segment(name, path)
    return None


def open_day(day: "Path") -> int:
    """Open a day's directory without following a link. Raises OSError."""
    return os.open(day, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_regular(path: "Path", flags: int = os.O_RDONLY) -> int:
    """Open a regular file of a day, without following links or blocking on a pipe. Raises OSError."""
    day = open_day(path.parent)
    try:
        file = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=day)
    finally:
        os.close(day)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def _is_regular_file(path: "Path") -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def opened(segment: Segment, offset: int = 0, since: str = "") -> BinaryIO:
    """Open a segment's lines from `offset` on, plain or compressed. Raises OSError.

    With `since`, a time as a line has it, older lines may be left out.
    """
    path = segment.path
    with contextlib.suppress(FileNotFoundError):
        return _open(path, offset, since)
    # Compressed meanwhile: the compressed file is complete before the plain one is removed.
    other = path.name.removesuffix(".zst") if path.suffix == ".zst" else f"{path.name}.zst"
    return _open(path.with_name(other), offset, since)


class Block(NamedTuple):
    """Complete lines of a segment and the offset after them; or, at the end, an unfinished line."""

    lines: bytes
    end: int
    torn: bool = False


def blocks(segment: Segment, offset: int = 0, since: str = "") -> "Iterator[Block]":
    """Yield a segment from `offset` on, in blocks of complete lines.

    A line above the limit becomes an empty line, so that no writer can fill the reader's memory. Raises OSError.
    """
    partial, end, is_too_long = b"", offset, False
    with opened(segment, offset, since) as file:
        while block := file.read(BLOCK):
            end += len(block)
            if is_too_long:
                cut = block.find(b"\n") + 1
                if not cut:
                    continue
                block, is_too_long = b"\n" + block[cut:], False
            whole = partial + block
            cut = whole.rfind(b"\n") + 1
            partial = whole[cut:]
            if cut:
                yield Block(whole[:cut], end - len(partial))
            if len(partial) > LONGEST_LINE:
                partial, is_too_long = b"", True
    if partial or is_too_long:
        yield Block(partial, end - len(partial), torn=True)


def _open(path: "Path", offset: int, since: str) -> BinaryIO:
    file = io.FileIO(open_regular(path), "rb")
    if path.suffix != ".zst":
        file.seek(offset)
        return io.BufferedReader(file, BLOCK)
    return open_compressed(file, offset, since)


BEGINNING = b"0" * 64  # `prev` of the first line of a file
# The end of a line. Each part has a fixed length and no quotation mark, so that parsing is unambiguous.
_LINE = re.compile(
    rb'((.*,"prev":"([^"]{64})")(?:,"signature":"([^"]{88})")?),"hash":"([^"]{64})"\}\n',  # 88: 64 bytes in Base64
    re.DOTALL,
)


class ChainLinks(NamedTuple):
    """Hash chain members of a line, and the bytes that they cover."""

    prev: bytes
    hash: bytes
    hashed: bytes  # bytes covered by `hash`
    signature: bytes = b""  # in Base64; empty: unsigned
    signed: bytes = b""  # bytes covered by the signature

    @property
    def is_whole(self) -> bool:
        """Whether the hash matches the line."""
        return sha256(self.hashed).hexdigest().encode() == self.hash


def link(line: bytes, prev: bytes) -> tuple[bytes, bytes]:
    """Chain a line of JSON (an object with a member, newline included) to the line with the hash `prev`.

    Return the line to write, and its hash.
    """
    return _add_hash(b'%b,"prev":"%b"' % (line[:-2], prev))


def link_signed(line: bytes, prev: bytes, sign: "Callable[[bytes], bytes]") -> tuple[bytes, bytes]:
    """Chain a line as `link` does, with a signature."""
    body = b'%b,"prev":"%b"' % (line[:-2], prev)
    return _add_hash(b'%b,"signature":"%b"' % (body, b64encode(sign(body))))


def links(line: bytes) -> ChainLinks | None:
    """Parse the chain members of a complete line (newline included); None: it has none."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    hashed, signed, prev, signature, line_hash = found.groups()
    return ChainLinks(prev, line_hash, hashed, signature or b"", signed if signature else b"")


def hash_of(line: bytes) -> bytes:
    """Return the `hash` member of a line; empty without one."""
    found = links(line)
    return b"" if found is None else found.hash


def _add_hash(body: bytes) -> tuple[bytes, bytes]:
    line_hash = sha256(body).hexdigest().encode()
    return b'%b,"hash":"%b"}\n' % (body, line_hash), line_hash


_LEVEL = 3
_FRAME = 4 << 20  # minimum bytes of lines in a frame
_SKIPPABLE = 0x184D2A5E  # RFC 8878 section 3.1.2: 0x184D2A50 to 5F are free for users
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<I4s")  # length of the index, and its magic
_MAGIC = b"exj1"
_TIME_TEXT = slice(9, 39)  # of a line: {"time":"2026-11-18T12:00:00.000000000Z"
_LONGEST_INDEX = 1 << 20


class Frame(NamedTuple):
    """Start of a frame in the file and in the lines, and the first and last time of its lines, as text."""

    at: int
    offset: int
    first: str
    last: str


def compress(path: "Path") -> "Path":
    """Compress a closed segment: its compressed form is complete on the disk before the plain one is removed.

    Raises OSError; then the segment is unchanged.
    """
    target, part = f"{path.name}.zst", f".{path.name}.part"
    source = open_regular(path)
    day = open_day(path.parent)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=day)
        output = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=day)
        status = os.fstat(source)
        try:
            with os.fdopen(source, "rb", closefd=False) as lines, os.fdopen(output, "wb", closefd=False) as file:
                _write_index(file, list(_write_frames(lines, file)))
                file.flush()
            os.fchmod(output, status.st_mode & 0o777)
            os.utime(output, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(output)
            os.rename(part, target, src_dir_fd=day, dst_dir_fd=day)
        except BaseException:
            os.unlink(part, dir_fd=day)
            raise
        finally:
            os.close(output)
        os.unlink(path.name, dir_fd=day)
    finally:
        os.close(source)
        os.close(day)
    return path.with_name(target)


def _write_frames(source: BinaryIO, file: BinaryIO) -> "Iterator[Frame]":
    import zstandard

    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    offset = 0
    while lines := source.read(_FRAME):
        lines += source.readline()
        times = [line[_TIME_TEXT].decode("ascii", "replace") for line in lines[:-1].split(b"\n")]
        yield Frame(file.tell(), offset, min(times), max(times))
        file.write(packer.compress(lines))
        offset += len(lines)


def _write_index(file: BinaryIO, frames: "list[Frame]") -> None:
    body = json.dumps(frames).encode()
    file.write(_HEADER.pack(_SKIPPABLE, len(body) + _FOOTER.size) + body + _FOOTER.pack(len(body), _MAGIC))


def read_index(file: BinaryIO) -> list[Frame]:
    """Return the frames of an open compressed segment by its index; empty: it has none. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _FOOTER.size))
    tail = file.read(_FOOTER.size)
    if len(tail) < _FOOTER.size:
        return []
    length, magic = _FOOTER.unpack(tail)
    if magic != _MAGIC or length > min(_LONGEST_INDEX, end):
        return []
    file.seek(end - _FOOTER.size - length)
    try:
        return msgspec.json.decode(file.read(length), type=list[Frame])
    except (ValueError, RecursionError):
        return []


def is_index_correct(path: "Path") -> bool:
    """Whether the index agrees with the lines, which readers that use it do not check. Raises OSError."""
    import zstandard

    with io.FileIO(open_regular(path), "rb") as file:
        frames = read_index(file)
        file.seek(0)
        lines = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        whole = io.BufferedReader(cast("io.RawIOBase", lines), 1 << 20)
        for frame, end in zip(frames, [*(each.offset for each in frames[1:]), None], strict=True):
            times = [
                line[_TIME_TEXT].decode("ascii", "replace")
                for line in whole.read(end and end - frame.offset).split(b"\n")
            ]
            if (min(times[:-1], default=""), max(times[:-1], default="")) != (frame.first, frame.last) or times[-1]:
                return False
    return bool(frames)


def open_compressed(file: io.FileIO, offset: int = 0, since: str = "") -> BinaryIO:
    """Open the lines of a compressed segment behind its first `offset` bytes; closing the result closes `file`.

    With `since`, a time as a line has it, older lines may be left out. Raises OSError.
    """
    import zstandard

    start = Frame(0, 0, "", "")
    for frame in read_index(file):
        if frame.offset > offset and not (since and start.last < since):
            break
        start = frame
    file.seek(start.at)
    lines = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
    reader = io.BufferedReader(cast("io.RawIOBase", lines), 1 << 20)
    to_skip = max(0, offset - start.offset)
    while to_skip and (skipped := len(reader.read(min(to_skip, 1 << 20)))):
        to_skip -= skipped
    return cast("BinaryIO", reader)
