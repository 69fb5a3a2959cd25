"""Decodings for scanning: decompressed, unmasked and decoded forms of a body. Pure and linear.

Bodies are unpacked up to a bound (RFC 9110 section 8.4), or unmasked from WebSocket frames, and pass as they came. A
reading is about as long as its text, and comes beside the text as it is: nothing is lost by it.
"""

import base64
import binascii
import re
import zlib
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote_to_bytes

from proxy.request.websocket_frames import CONTROL, FIN, MASK, MASKED, MOST_CONTROL, RESERVED, Frames

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


MOST_UNPACKED: Final = 32 << 20  # bytes of one body
_STEP: Final = 1 << 14  # bytes that come out at a time
_WINDOWS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # zlib's, with the wrapping: zlib.h, inflateInit2


class UnreadableBodyError(Exception):
    """The body can't be decoded; the text says why."""


class Reader(Protocol):
    """Decoder from a body's bytes to the text that is scanned."""

    @property
    def prompt(self) -> bool:
        """Whether somebody waits for each part, so that it is to be looked at as soon as it comes."""

    @property
    def between(self) -> bool:
        """Whether what was read so far is whole by itself, so that it may leave without what comes next."""

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield what the next bytes hold. Raises UnreadableBodyError."""

    def aside(self) -> bytes:
        """Return what was read that is no part of that, once."""


class _Body:
    prompt = between = False

    def aside(self) -> bytes:
        """Return nothing: all of it is one text."""
        return b""


class Plain(_Body):
    """Body without a content coding."""

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
                raise UnreadableBodyError("it isn't packed as it says") from error
            self._size += len(piece)
            if self._size > MOST_UNPACKED:
                raise UnreadableBodyError(f"unpacked it has more than {MOST_UNPACKED >> 20} MB")
            yield piece
            data = self._stream.unconsumed_tail
            waits = len(piece) == _STEP  # what zlib has read may unpack to more
            if self._stream.eof:
                waits = False
                data = self._stream.unused_data
                self._stream = zlib.decompressobj(self._window)


class Closed(_Body):
    """Body in a coding that can't be decoded."""

    def __init__(self, why: str) -> None:
        self._why = why

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Say so."""
        del data
        raise UnreadableBodyError(self._why)


def make_reader(codings: "Iterable[str]") -> Reader:
    """Return what reads a body with these values of Content-Encoding."""
    named = [coding.strip().lower() for value in codings for coding in value.split(",")]
    packed = [coding.encode("latin-1") for coding in named if coding not in {"", "identity"}]
    if not packed:
        return Plain()
    if len(packed) > 1 or packed[0] not in _WINDOWS:
        return Closed("it is packed in a way that isn't read here")
    return Packed(_WINDOWS[packed[0]])


class Messages(Frames):
    """One client's WebSocket frames, unmasked.

    Control frames may stand in the middle of a message (RFC 6455 section 5.4): what is in them is a text by itself.
    """

    __slots__ = ("_aside", "_control", "_mask", "_open")

    prompt = True

    def __init__(self) -> None:
        super().__init__()
        self._mask = b"\0\0\0\0"
        self._control = False  # whether this is a control frame
        self._open = False  # whether more of a message is to come
        self._aside = b""

    @property
    def between(self) -> bool:
        """Whether neither a frame nor a message is under way."""
        return super().between and not self._open

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield what is in messages. Raises UnreadableBodyError for what no client may send, and for an extension."""
        for start, end in self.payloads(data):
            text = self._unmasked(data[start:end])
            if self._control:
                self._aside += text if self._payload_left else text + b"\n"
            else:
                yield text

    def aside(self) -> bytes:
        """Return what was in control frames since this was asked last."""
        text, self._aside = self._aside, b""
        return text

    def _check_head(self, head: bytes) -> None:
        if len(head) < 2:
            return
        if head[0] & CONTROL and head[1] & ~MASKED > MOST_CONTROL:
            raise UnreadableBodyError("it has a control frame that is too long")
        if head[0] & RESERVED:
            raise UnreadableBodyError("its messages are packed")
        if not head[1] & MASKED:
            raise UnreadableBodyError("its messages aren't masked, as a client's have to be")

    def _begin_frame(self, head: bytes) -> None:
        super()._begin_frame(head)
        self._mask = head[-MASK:]
        self._control = bool(head[0] & CONTROL)
        if not self._control:
            self._open = not head[0] & FIN

    def _unmasked(self, piece: bytes) -> bytes:
        size = len(piece)
        mask = self._mask * (size // MASK + 1)
        self._mask = (self._mask * 2)[size % MASK :][:MASK]
        return (int.from_bytes(piece) ^ int.from_bytes(mask[:size])).to_bytes(size)


_FORM: Final = "application/x-www-form-urlencoded"
# `&` and `?` that belong to a value end no parameter: what stands before them is no name of one (`finding`)
_OF_VALUES: Final = re.compile(rb"%(?:26|3[Ff])")
_ESCAPE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_BACKSLASHES: Final = re.compile(rb"\\{2,}")  # JSON within JSON, as tools' arguments and webhooks have it
_HALF_ESCAPE: Final = re.compile(rb"\\+(?:u[0-9A-Fa-f]{0,3})?\Z")
_ENTITY: Final = re.compile(rb"&(?:#(?:[xX]0{0,8}([0-7]?[0-9A-Fa-f])|0{0,8}([0-9]{1,3}))|(amp|lt|gt|quot|apos));?")
_NAMED: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_TRANSFER: Final = re.compile(rb"[Tt](?i:ransfer-encoding):[ \t]{0,8}([A-Za-z0-9-]{1,32})")
_READ: Final = frozenset({b"base64", b"quoted-printable"})
_BASE64: Final = re.compile(rb"[0-9A-Za-z+/_-]{24,}={0,2}(?:(?:\r?\n|(?:\\r)?\\n)[0-9A-Za-z+/_-]{4,}={0,2})*")
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2}){20,}")
_BREAKS: Final = re.compile(rb"[\r\n=]|\\[rn]")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


def is_form(kind: str) -> bool:
    """Whether a body with this Content-Type has parameters, `name=value` (WHATWG URL, section 5)."""
    return kind.partition(";")[0].strip().lower() == _FORM


def has_parts(kind: str) -> bool:
    """Whether a body with this Content-Type may have parts that name an encoding of their own (RFC 2045, RFC 2046)."""
    return kind.strip().lower().startswith(("multipart/", "message/"))


def of_form(text: bytes) -> bytes:
    """Return the text of parameters, in a form or a query: without plus and percent signs."""
    return unquote_to_bytes(_OF_VALUES.sub(b"\x01", text.replace(b"+", b" ")))


def of_json(text: bytes) -> bytes:
    r"""Return a text without escapes that JSON needn't have: PHP writes `\/`, others `\u002b` (RFC 8259 section 7).

    Backslashes behind one another count as one, so that JSON in a string of JSON is read too.
    """
    text = _BACKSLASHES.sub(rb"\\", text).replace(b"\\/", b"/")
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text) if b"\\u00" in text else text


def of_markup(text: bytes) -> bytes:
    """Return a text without references to ASCII characters (XML 1.0 section 4.1): `&#x2F;` is a slash."""
    return _ENTITY.sub(_character, text)


def _character(found: "re.Match[bytes]") -> bytes:
    if found[3]:
        return _NAMED[found[3]]
    code = int(found[1], 16) if found[1] else int(found[2])
    return bytes([code]) if code < 0x80 else found[0]


def readings(text: bytes, known: int, *, form: bool) -> "Iterator[tuple[bytes, int]]":
    """Yield how a part of a body reads beside what it is, and where in that its first `known` bytes end."""
    if b"\0" in text:  # UTF-16 and UTF-32 (RFC 2781): of ASCII's characters, one byte isn't zero
        text, known = text.replace(b"\0", b""), known - text.count(b"\0", 0, max(known, 0))
        yield text, known
    ways = [(text, known)]
    if form and (b"%" in text or b"+" in text):
        ways.append((of_form(text), len(of_form(_before(text, known, b"%", 3))) if known > 0 else known))
        yield ways[-1]
    for way, end in ways:
        if b"\\u00" in way or b"\\/" in way or b"\\\\" in way:
            yield of_json(way), len(of_json(_HALF_ESCAPE.sub(b"", way[:end]))) if end > 0 else end
        if b"&#" in way or b"&quot" in way:
            yield of_markup(way), len(of_markup(_before(way, end, b"&", 14))) if end > 0 else end


def _before(text: bytes, known: int, sign: bytes, size: int) -> bytes:
    """Return the first bytes of a text without an escape that begins there and ends later: half of one is longer."""
    begun = text.rfind(sign, max(known - size + 1, 0), known)
    return text[: known if begun < 0 else begun]


def transfers(text: bytes) -> set[bytes]:
    """Return which encodings the parts of a body name that they are in (RFC 2045 section 6)."""
    return {found[1].lower() for found in _TRANSFER.finditer(text)} & _READ


def of_parts(text: bytes, transfers: "Collection[bytes]") -> "Iterator[bytes]":
    """Yield what parts of a body hold whose encodings are those."""
    if b"quoted-printable" in transfers:
        yield binascii.a2b_qp(text)
    if b"base64" in transfers:
        yield from _of_base64(text)


def decoded(text: bytes) -> "Iterator[bytes]":
    """Yield what is encoded in a text, for strict mode: twice in percent signs, in base64, in hexadecimal.

    Base64 is read from where its characters begin (RFC 4648 sections 4 and 5), at the beginning of a text in each of
    the four ways in which it may have been cut.
    """
    if b"%25" in text:
        yield unquote_to_bytes(unquote_to_bytes(text))
    yield from _of_base64(text)
    for run in _HEX.finditer(text):
        yield bytes.fromhex(run[0].decode())
        if run.start() == 0 and len(run[0]) > 2:
            yield bytes.fromhex(run[0][1:-1].decode())


def _of_base64(text: bytes) -> "Iterator[bytes]":
    for run in _BASE64.finditer(text):
        packed = _BREAKS.sub(b"", run[0]).translate(_STANDARD)
        for at in range(4 if run.start() == 0 else 1):
            whole = packed[at : at + (len(packed) - at) // 4 * 4 or None]
            rest = len(packed) - at - len(whole)
            padded = packed[at:] + b"=" * (4 - rest) if rest > 1 else whole
            try:
                yield base64.b64decode(padded)
            except binascii.Error:
                continue
