"""Parses a chunked body strictly (RFC 9112 section 7.1).

h11 reads them well but generously: numbers of 80 bits, control characters in extensions, bare line feeds and folds in
trailers. What two programs may read in two ways ends the message here, as it does in a head. What is read is written
anew on the other side: extensions, which mean nothing from hop to hop, are left out.

A response may end the lines of its chunks and trailers with a bare LF, which most clients read: they get CR LF. A
request may not: its server's reading counts there. What can't become a line any more ends the message at once, or its
receiver would wait for the rest.
"""

import re
from typing import TYPE_CHECKING, Final

import h11

from proxy.request.request_head import MOST_FIELDS, UnclearError, field_of

if TYPE_CHECKING:
    from proxy.request.request_head import Field

MOST_TRAILERS: Final = 64 * 1024  # bytes of all of them
AT_ONCE: Final = 500  # chunks that become one piece, before the connection may have to wait for its next turn

# 64 bits; spaces behind it are what some servers fill it up with, and an extension is text (RFC 9112 section 7.1.1)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_BARE_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*\n")  # not behind an extension: some read on to the next CR LF
_SIZE_BEGINS = re.compile(rb"[0-9A-Fa-f]{1,16}[ \t]*(?:;[\t -~\x80-\xff]*)?\r?")
_LOOKED_AT: Final = 64  # bytes of a line that isn't whole
_END, _BARE = b"\r\n", b"\n"


class Buffer(bytearray):
    """Received bytes that aren't parsed yet. `searched`: how many of them were searched for a blank line."""

    __slots__ = ("searched",)

    def __init__(self) -> None:
        super().__init__()
        self.searched = 0

    def take(self, size: int) -> bytes:
        """Remove at most `count` bytes from the beginning."""
        taken = bytes(self[:size])
        del self[:size]
        self.searched = 0
        return taken


class Chunks:
    """Reader of a chunked body with the interface of h11's readers: called repeatedly, None means need more."""

    def __init__(self, *, lenient: bool = False) -> None:
        """Begin. `lenient`: a bare LF ends a line as well."""
        self.trailers: tuple[Field, ...] = ()
        self._lenient = lenient
        self._held: h11.EndOfMessage | None = None  # that comes behind what was returned last
        self._broken: h11.RemoteProtocolError | None = None  # ... where that can't be read
        self._left = 0  # bytes of the chunk that are still to come
        self._closing = False  # the end of its line is
        self._trailing: list[Field] | None = None
        self._trailed = 0  # bytes

    def __call__(self, buffer: Buffer) -> h11.Data | h11.EndOfMessage | None:
        """Return what there is of the body, or the end. Raises h11.RemoteProtocolError, behind all that came before.

        Many small chunks are one piece: each on its own would cost a hundred times what reading it does.
        """
        pieces: list[bytes] = []
        if self._broken is not None:
            raise self._broken
        try:
            while isinstance(piece := self._held or self._next(buffer), bytes):
                pieces.append(piece)
                if len(pieces) == AT_ONCE:
                    return h11.Data(data=b"".join(pieces))
        except h11.RemoteProtocolError as error:
            if not pieces:
                raise
            self._broken, piece = error, None
        if not pieces:
            return piece
        self._held = piece
        return h11.Data(data=b"".join(pieces))

    def _next(self, buffer: Buffer) -> bytes | h11.EndOfMessage | None:
        if self._closing and not self._close(buffer):
            return None
        if self._trailing is None and not self._left and not self._open(buffer):
            return None
        if self._trailing is not None:
            return self._trail(buffer, self._trailing)
        if not buffer:
            return None
        data = buffer.take(self._left)
        self._left -= len(data)
        self._closing = not self._left
        return data

    def read_eof(self) -> h11.EndOfMessage:
        """Raise if the connection ends before the last chunk (RFC 9112 section 8)."""
        raise h11.RemoteProtocolError("the connection ended before the last chunk")

    def _open(self, buffer: Buffer) -> bool:
        line = self._line(buffer)
        if line is None:
            begun = bytes(buffer[:_LOOKED_AT])  # a copy of all would cost much each time
            if begun and not _SIZE_BEGINS.fullmatch(begun):
                raise h11.RemoteProtocolError("a chunk doesn't begin with its size")
            return False
        size = _SIZE.fullmatch(line) or (_BARE_SIZE.fullmatch(line) if self._lenient else None)
        if size is None:
            raise h11.RemoteProtocolError("a chunk doesn't begin with its size")
        self._left = int(size[1], 16)
        if not self._left:
            self._trailing = []
        return True

    def _close(self, buffer: Buffer) -> bool:
        end = bytes(buffer[: len(_END)])
        if self._lenient and end.startswith(_BARE):
            end = _BARE
        elif end != _END:
            if not _END.startswith(end):
                raise h11.RemoteProtocolError("a chunk is not as long as it says")
            return False
        buffer.take(len(end))
        self._closing = False
        return True

    def _line(self, buffer: Buffer) -> bytes | None:
        """Take a line with its end off a buffer; None: incomplete. Raises h11.RemoteProtocolError."""
        end = buffer.find(_BARE)
        if end < 0:
            return None
        if not self._lenient and buffer[end - 1 : end] != b"\r":
            raise h11.RemoteProtocolError("a line of the chunks doesn't end with CR LF")
        return buffer.take(end + 1)

    def _trail(self, buffer: Buffer, fields: "list[Field]") -> h11.EndOfMessage | None:
        while (line := self._line(buffer)) is not None:
            if line in (_END, _BARE):
                self.trailers = tuple(fields)
                return h11.EndOfMessage()
            self._trailed += len(line)
            if self._trailed > MOST_TRAILERS or len(fields) >= MOST_FIELDS:
                raise h11.RemoteProtocolError("the trailers are too long")
            line = line.removesuffix(_BARE).removesuffix(b"\r")
            if self._lenient:
                line = _mended(line, fields)
            try:
                fields.append(field_of(line))
            except UnclearError as problem:
                raise h11.RemoteProtocolError(f"the trailers can't be read: {problem}") from problem
        return None


def _mended(line: bytes, fields: "list[Field]") -> bytes:
    """Return a trailer line without a blank before its colon (RFC 9112 section 5.1), or joined with its folded line."""
    if line[:1] in {b" ", b"\t"} and fields:
        name, value = fields.pop()
        return b"%b: %b %b" % (name, value, line.strip(b" \t"))
    name, colon, value = line.partition(b":")
    return name.rstrip(b" \t") + colon + value
