"""Reads, hashes and copies file contents, with a bound on the size of texts."""

import hashlib
import os
from collections.abc import Iterator
from typing import Final

TEXT_AT_MOST: Final = 4 << 20  # bytes: what is larger is neither merged nor shown line by line
_LOOKED_AT: Final = 8000  # bytes in which a NUL means that it is no text, as for git
_CHUNK: Final = 1 << 20


def digest(descriptor: int) -> str:
    """Return the SHA-256 of an open file in hex; closes it."""
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(content).hexdigest()


def read_text(descriptor: int) -> bytes | None:
    """Read an open file; None if it is larger than a text may be. Closes it."""
    with os.fdopen(descriptor, "rb") as file:
        found = file.read(TEXT_AT_MOST + 1)
    return found if len(found) <= TEXT_AT_MOST else None


def is_text(content: bytes) -> bool:
    """Whether bytes can be shown and merged line by line."""
    return b"\0" not in content[:_LOOKED_AT]


def count_data_bytes(file: int) -> int:
    """Return how many bytes of an open file are data, not holes. Raises OSError."""
    return sum(end - at for at, end in _data(file, os.fstat(file).st_size))


def copy_sparse(source: int, to: int) -> None:
    """Copy an open file into another, and keep its holes. Raises OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(to, size)
    for begin, end in _data(source, size):
        at = os.lseek(source, begin, os.SEEK_SET)
        os.lseek(to, at, os.SEEK_SET)
        while at < end:
            chunk = os.read(source, min(_CHUNK, end - at))
            if not chunk:
                return
            view = memoryview(chunk)
            while view:
                view = view[os.write(to, view) :]
            at += len(chunk)


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each range of data."""
    end = 0
    while end < size:
        try:
            at = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(file, at, os.SEEK_HOLE)
        yield at, end
