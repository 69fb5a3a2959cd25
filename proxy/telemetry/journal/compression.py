"""Compresses closed segments: Zstandard (RFC 8878) in frames of whole lines, with an index behind them.

Any `zstd -d` reads them. The index is a skippable frame (section 3.1.2) that says where each frame begins and which
times its lines span, so that a reader who wants the last hour, or goes on from an offset, unpacks only what it needs.
Python 3.12 and 3.13 have no Zstandard of their own; the `zstandard` package wraps the reference library, and mitmproxy
brings it along.
"""

import contextlib
import io
import json
import os
import struct
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import msgspec
import zstandard

from proxy.telemetry.journal.segments import open_day, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEVEL = 3
_FRAME = 4 << 20  # bytes of lines in a frame, at least
_SKIPPABLE = 0x184D2A5E  # RFC 8878 section 3.1.2: 0x184D2A50 to 5F are ours to use
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<I4s")  # the length of the index, and what says that it is one
_MAGIC = b"exj1"
_TIME = slice(9, 39)  # of a line: {"time":"2026-11-18T12:00:00.000000000Z"
_LONGEST_INDEX = 1 << 20


class Frame(NamedTuple):
    """Where a frame begins in the file and in the lines, and the times of its lines, as text."""

    at: int
    offset: int
    first: str
    last: str


def compress(path: "Path") -> "Path":
    """Put a closed segment's compressed form beside it, on the disk and whole, and only then remove it.

    Raises OSError; then the segment is as it was.
    """
    target, part = f"{path.name}.zst", f".{path.name}.part"
    source = open_regular(path)
    day = open_day(path.parent)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=day)
        made = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=day)
        status = os.fstat(source)
        try:
            with os.fdopen(source, "rb", closefd=False) as lines, os.fdopen(made, "wb", closefd=False) as file:
                _write_index(file, list(_compressed(lines, file)))
                file.flush()
            os.fchmod(made, status.st_mode & 0o777)
            os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(made)
            os.rename(part, target, src_dir_fd=day, dst_dir_fd=day)
        except BaseException:
            os.unlink(part, dir_fd=day)
            raise
        finally:
            os.close(made)
        os.unlink(path.name, dir_fd=day)
    finally:
        os.close(source)
        os.close(day)
    return path.with_name(target)


def _compressed(source: BinaryIO, file: BinaryIO) -> "Iterator[Frame]":
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    offset = 0
    while lines := source.read(_FRAME):
        lines += source.readline()
        times = [line[_TIME].decode("ascii", "replace") for line in lines[:-1].split(b"\n")]
        yield Frame(file.tell(), offset, min(times), max(times))
        file.write(packer.compress(lines))
        offset += len(lines)


def _write_index(file: BinaryIO, frames: "list[Frame]") -> None:
    body = json.dumps(frames).encode()
    file.write(_HEADER.pack(_SKIPPABLE, len(body) + _FOOTER.size) + body + _FOOTER.pack(len(body), _MAGIC))


def index(file: BinaryIO) -> list[Frame]:
    """Return what an open compressed segment says where its frames are; empty: it doesn't say. Raises OSError."""
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


def truthful(path: "Path") -> bool:
    """Whether the index says what is there: nobody has checked it who read by it. Raises OSError."""
    with io.FileIO(open_regular(path), "rb") as file:
        frames = index(file)
        file.seek(0)
        lines = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        whole = io.BufferedReader(cast("io.RawIOBase", lines), 1 << 20)
        for frame, end in zip(frames, [*(each.offset for each in frames[1:]), None], strict=True):
            times = [
                line[_TIME].decode("ascii", "replace") for line in whole.read(end and end - frame.offset).split(b"\n")
            ]
            if (min(times[:-1], default=""), max(times[:-1], default="")) != (frame.first, frame.last) or times[-1]:
                return False
    return bool(frames)


def reader(file: io.FileIO, offset: int = 0, since: str = "") -> BinaryIO:
    """Return the lines of an open compressed segment, behind its first `offset` bytes; it is closed with them.

    With `since`, a time as a line has it, what is older may be left out. Raises OSError.
    """
    start = Frame(0, 0, "", "")
    for frame in index(file):
        if frame.offset > offset and not (since and start.last < since):
            break
        start = frame
    file.seek(start.at)
    lines = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
    behind = io.BufferedReader(cast("io.RawIOBase", lines), 1 << 20)
    left = max(0, offset - start.offset)
    while left and (skipped := len(behind.read(min(left, 1 << 20)))):
        left -= skipped
    return cast("BinaryIO", behind)
