"""What a body holds, for scanning: unpacked up to a bound (RFC 9110 section 8.4), or unmasked from WebSocket frames.

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


_FIN, _RESERVED, _MASKED, _SIZE = 0x80, 0x70, 0x80, 0x7F
_CONTROL: Final = 0x08
_MOST_CONTROL: Final = 125  # bytes (section 5.5)
_LONG: Final = {126: 2, 127: 8}  # bytes of a length that has no room in the first two
_MASK: Final = 4  # bytes


class Messages:
    """One client's WebSocket frames, unmasked (RFC 6455 section 5.2).

    Control frames may stand in the middle of a message (section 5.4): what is in them is a text by itself.
    """

    prompt = True

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of payload that are still to come
        self._mask = b"\0\0\0\0"
        self._control = False  # whether this is a control frame
        self._open = False  # whether more of a message is to come
        self._aside = b""

    @property
    def between(self) -> bool:
        """Whether neither a frame nor a message is under way."""
        return not self._left and not self._head and not self._open

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield what is in messages. Raises Unreadable for what no client may send, and for an extension."""
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                text = self._unmasked(piece)
                if self._control:
                    self._aside += text if self._left else text + b"\n"
                else:
                    yield text
            else:
                piece = data[at : at + self._wanted() - len(self._head)]
                self._head += piece
                if len(self._head) == 2:
                    _check(self._head)
                if len(self._head) == self._wanted() > 2:
                    self._begin(self._head)
                    self._head = b""
            at += len(piece)

    def aside(self) -> bytes:
        """Return what was in control frames since this was asked last."""
        text, self._aside = self._aside, b""
        return text

    def _wanted(self) -> int:
        """Return how long the head of this frame is, as far as its first two bytes say."""
        if len(self._head) < 2:
            return 2
        return 2 + _LONG.get(self._head[1] & _SIZE, 0) + _MASK

    def _begin(self, head: bytes) -> None:
        size = head[1] & _SIZE
        self._left = int.from_bytes(head[2:-_MASK]) if size in _LONG else size
        self._mask = head[-_MASK:]
        self._control = bool(head[0] & _CONTROL)
        if not self._control:
            self._open = not head[0] & _FIN

    def _unmasked(self, piece: bytes) -> bytes:
        size = len(piece)
        self._left -= size
        mask = self._mask * (size // _MASK + 1)
        self._mask = (self._mask * 2)[size % _MASK :][:_MASK]
        return (int.from_bytes(piece) ^ int.from_bytes(mask[:size])).to_bytes(size)


def _check(head: bytes) -> None:
    if head[0] & _CONTROL and head[1] & _SIZE > _MOST_CONTROL:
        raise Unreadable("it has a control frame that is too long")
    if head[0] & _RESERVED:
        raise Unreadable("its messages are packed")
    if not head[1] & _MASKED:
        raise Unreadable("its messages aren't masked, as a client's have to be")
