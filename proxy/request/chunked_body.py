"""Parses a chunked body strictly (RFC 9112 section 7.1).

h11 is too lenient: it accepts sizes of 80 bits, control characters in extensions, and bare LF and folds in trailers.
Two programs may read such a body differently, so this parser rejects it. The gate writes each chunk anew and drops
extensions, which are hop-by-hop.

A response may end its chunk lines and trailers with a bare LF, as most clients accept that; the client receives CR LF.
A request may not, since its server decides how to read it. A line that can't become valid any more ends the message at
once: otherwise the receiver would wait for the rest of it.
"""

import re
from typing import TYPE_CHECKING, Final

import h11

from proxy.request.request_head import MOST_FIELDS, UnclearError, field_of

if TYPE_CHECKING:
    from proxy.request.request_head import Field

MOST_TRAILERS: Final = 64 * 1024  # bytes of all of them
AT_ONCE: Final = 500  # chunks that become one piece, before the connection may have to wait for its next turn

# 64 bits; some servers pad the size with spaces, and an extension is text (RFC 9112 section 7.1.1)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_BARE_SIZE = re.compile(
    rb"([0-9A-Fa-f]{1,16})[ \t]*\n"
)  # not after an extension: some parsers read on to the next CR LF
_SIZE_PREFIX = re.compile(rb"[0-9A-Fa-f]{1,16}[ \t]*(?:;[\t -~\x80-\xff]*)?\r?")
_MOST_CHECKED: Final = 64  # bytes of an incomplete line that are checked
_END, _BARE = b"\r\n", b"\n"


class Buffer(bytearray):
    """Received bytes that aren't parsed yet. `searched`: how many of them were searched for a blank line."""

    __slots__ = ("searched",)

    def __init__(self) -> None:
        super().__init__()
        self.searched = 0

    def take(self, size: int) -> bytes:
        """Remove at most `size` bytes from the beginning, and return them."""
        taken = bytes(self[:size])
        del self[:size]
        self.searched = 0
        return taken


class Chunks:
    """Reader of a chunked body with the interface of h11's readers: called repeatedly, None means need more."""

    def __init__(self, *, lenient: bool = False) -> None:
        """Create a reader. `lenient`: a bare LF ends a line as well."""
        self.trailers: tuple[Field, ...] = ()
        self._lenient = lenient
        self._end_of_message: h11.EndOfMessage | None = None  # to return after the data that was returned last
        self._error: h11.RemoteProtocolError | None = None  # to raise after that data
        self._chunk_bytes_left = 0  # of the current chunk
        self._is_at_chunk_end = False  # the line end after the chunk's data is still to come
        self._trailer_fields: list[Field] | None = None
        self._trailer_bytes = 0  # bytes

    def __call__(self, buffer: Buffer) -> h11.Data | h11.EndOfMessage | None:
        """Return the received part of the body, or its end. Raises h11.RemoteProtocolError after all data before it.

        Joins small chunks: an event for each would cost a hundred times as much as parsing it.
        """
        pieces: list[bytes] = []
        if self._error is not None:
            raise self._error
        try:
            while isinstance(piece := self._end_of_message or self._next(buffer), bytes):
                pieces.append(piece)
                if len(pieces) == AT_ONCE:
                    return h11.Data(data=b"".join(pieces))
        except h11.RemoteProtocolError as error:
            if not pieces:
                raise
            self._error, piece = error, None
        if not pieces:
            return piece
        self._end_of_message = piece
        return h11.Data(data=b"".join(pieces))

    def _next(self, buffer: Buffer) -> bytes | h11.EndOfMessage | None:
        if self._is_at_chunk_end and not self._read_chunk_end(buffer):
            return None
        if self._trailer_fields is None and not self._chunk_bytes_left and not self._read_chunk_size(buffer):
            return None
        if self._trailer_fields is not None:
            return self._read_trailers(buffer, self._trailer_fields)
        if not buffer:
            return None
        data = buffer.take(self._chunk_bytes_left)
        self._chunk_bytes_left -= len(data)
        self._is_at_chunk_end = not self._chunk_bytes_left
        return data

    def read_eof(self) -> h11.EndOfMessage:
        """Raise if the connection ends before the last chunk (RFC 9112 section 8)."""
        raise h11.RemoteProtocolError("the connection ended before the last chunk")

    def _read_chunk_size(self, buffer: Buffer) -> bool:
        line = self._take_line(buffer)
        if line is None:
            beginning = bytes(buffer[:_MOST_CHECKED])  # not all: copying a long buffer each time is slow
            if beginning and not _SIZE_PREFIX.fullmatch(beginning):
                raise h11.RemoteProtocolError("a chunk doesn't begin with its size")
            return False
        size = _SIZE.fullmatch(line) or (_BARE_SIZE.fullmatch(line) if self._lenient else None)
        if size is None:
            raise h11.RemoteProtocolError("a chunk doesn't begin with its size")
        self._chunk_bytes_left = int(size[1], 16)
        if not self._chunk_bytes_left:
            self._trailer_fields = []
        return True

    def _read_chunk_end(self, buffer: Buffer) -> bool:
        end = bytes(buffer[: len(_END)])
        if self._lenient and end.startswith(_BARE):
            end = _BARE
        elif end != _END:
            if not _END.startswith(end):
                raise h11.RemoteProtocolError("a chunk is longer than its size")
            return False
        buffer.take(len(end))
        self._is_at_chunk_end = False
        return True

    def _take_line(self, buffer: Buffer) -> bytes | None:
        """Remove a line with its end from a buffer; None: incomplete. Raises h11.RemoteProtocolError."""
        end = buffer.find(_BARE)
        if end < 0:
            return None
        if not self._lenient and buffer[end - 1 : end] != b"\r":
            raise h11.RemoteProtocolError("a line of the chunks doesn't end with CR LF")
        return buffer.take(end + 1)

    def _read_trailers(self, buffer: Buffer, fields: "list[Field]") -> h11.EndOfMessage | None:
        while (line := self._take_line(buffer)) is not None:
            if line in (_END, _BARE):
                self.trailers = tuple(fields)
                return h11.EndOfMessage()
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MOST_TRAILERS or len(fields) >= MOST_FIELDS:
                raise h11.RemoteProtocolError("the trailers are too long")
            line = line.removesuffix(_BARE).removesuffix(b"\r")
            if self._lenient:
                line = _repair_trailer(line, fields)
            try:
                fields.append(field_of(line))
            except UnclearError as problem:
                raise h11.RemoteProtocolError(f"the trailers can't be read: {problem}") from problem
        return None


def _repair_trailer(line: bytes, fields: "list[Field]") -> bytes:
    """Return a trailer line without a blank before its colon (RFC 9112 section 5.1), or joined with its folded line."""
    if line[:1] in {b" ", b"\t"} and fields:
        name, value = fields.pop()
        return b"%b: %b %b" % (name, value, line.strip(b" \t"))
    name, colon, value = line.partition(b":")
    return name.rstrip(b" \t") + colon + value
