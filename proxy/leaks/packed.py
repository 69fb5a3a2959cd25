"""A body as it is looked at: unpacked up to a bound, if it is packed (RFC 9110 section 8.4).

It is passed on as it came.
"""

import zlib
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_UNPACKED: Final = 32 << 20  # bytes of one body
_STEP: Final = 1 << 14  # bytes that come out at a time
_WINDOWS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # zlib's, with the wrapping: zlib.h, inflateInit2


class Unreadable(Exception):  # noqa: N818  (it is no error: it is why nobody can look)
    """What is in the body can't be seen; the text says why."""


class Reader(Protocol):
    """What makes of a body's bytes those that are looked at."""

    @property
    def prompt(self) -> bool:
        """Whether somebody waits for each part, so that it is to be looked at as soon as it comes."""

    @property
    def between(self) -> bool:
        """Whether what was read so far is whole by itself, so that it may leave without what comes next."""

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield what the next bytes hold. Raises Unreadable."""

    def aside(self) -> bytes:
        """Return what was read that is no part of that, once."""


class _Body:
    """What all bodies have."""

    prompt = between = False

    def aside(self) -> bytes:
        """Return nothing: all of it is one text."""
        return b""


class Plain(_Body):
    """A body that is not packed."""

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield the bytes themselves."""
        yield data


class Packed(_Body):
    """A body in gzip's or zlib's form."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._stream = zlib.decompressobj(window)
        self._size = 0

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Unpack; several streams behind one another are read as one, as gzip has it (RFC 1952 section 2.2)."""
        waits = False
        while data or waits:
            try:
                piece = self._stream.decompress(data, _STEP)
            except zlib.error as error:
                raise Unreadable("it isn't packed as it says") from error
            self._size += len(piece)
            if self._size > MOST_UNPACKED:
                raise Unreadable(f"unpacked it has more than {MOST_UNPACKED >> 20} MB")
            yield piece
            data = self._stream.unconsumed_tail
            waits = len(piece) == _STEP  # what zlib has read may unpack to more
            if self._stream.eof:
                waits = False
                data = self._stream.unused_data
                self._stream = zlib.decompressobj(self._window)


class Closed(_Body):
    """A body that nobody can look into."""

    def __init__(self, why: str) -> None:
        self._why = why

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Say so."""
        del data
        raise Unreadable(self._why)


def reader(codings: "Iterable[str]") -> Reader:
    """Return what reads a body with these values of Content-Encoding."""
    named = [coding.strip().lower() for value in codings for coding in value.split(",")]
    packed = [coding.encode("latin-1") for coding in named if coding not in {"", "identity"}]
    if not packed:
        return Plain()
    if len(packed) > 1 or packed[0] not in _WINDOWS:
        return Closed("it is packed in a way that isn't read here")
    return Packed(_WINDOWS[packed[0]])
