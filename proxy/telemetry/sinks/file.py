"""A file of its own that events are appended to, a line each: for a forwarder that reads files.

It is opened anew for each batch, so that it may be renamed at any time (logrotate(8), without copytruncate).
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from proxy.telemetry.sinks.formats import Format
from proxy.telemetry.sinks.sink import Item, Unavailable

_LONGEST_LINE: Final = 1 << 21  # bytes


class FileSink:
    """Appends to a file; what it has taken is on the disk."""

    name = "file"

    def __init__(self, path: Path, shape: Format) -> None:
        self._path = path
        self._shape = shape

    def send(self, items: Sequence[Item]) -> None:
        """Write a line for each item."""
        text = "".join(f"{self._shape(item)}\n" for item in items)
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            file = os.open(self._path, flags, 0o600)
            try:
                self._append(file, text.encode("utf-8", "backslashreplace"))
            finally:
                os.close(file)
        except OSError as error:
            raise Unavailable(f"cannot write `{self._path}`: {error.strerror}") from error

    def _append(self, file: int, body: bytes) -> None:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise Unavailable(f"`{self._path}` is no plain file")
        size = _whole(file, status.st_size)
        try:
            while body:
                body = body[os.write(file, body) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)  # a disk that is full has part of it: it is sent again whole
            raise
        if not size:
            _sync_name(self._path)


def _whole(file: int, size: int) -> int:
    """Take back a last line without an end: we were killed while we wrote it, and it is written again now."""
    tail = os.pread(file, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
    if not tail or tail.endswith(b"\n"):
        return size
    size -= len(tail) - (tail.rfind(b"\n") + 1)
    os.ftruncate(file, size)
    return size


def _sync_name(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
