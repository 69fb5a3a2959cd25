"""Decodings for scanning: decompressed, unmasked and decoded forms of a body. Pure and linear.

The scan decompresses bodies up to a bound (RFC 9110 section 8.4) and unmasks WebSocket frames; the gate forwards them
unchanged. The scan reads each reading in addition to the original text; a reading is about as long as its text.
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
_OUTPUT_STEP: Final = 1 << 14  # bytes decompressed at a time
_WINDOWS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # zlib's, with the wrapping: zlib.h, inflateInit2


class UnreadableBodyError(Exception):
    """The body can't be decoded; the text says why."""


class Reader(Protocol):
    """Decoder from a body's bytes to the text that is scanned."""

    @property
    def prompt(self) -> bool:
        """Whether data must be scanned at once, because the receiver waits for each message."""

    @property
    def between(self) -> bool:
        """Whether the data so far is a complete message, which may be sent before the next one."""

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield the text of the next bytes. Raises UnreadableBodyError."""

    def aside(self) -> bytes:
        """Return and clear text beside the body, such as control frames."""


class _Body:
    prompt = between = False

    def aside(self) -> bytes:
        """Return nothing: a body is one text."""
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
        """Decompress; consecutive members are one text (RFC 1952 section 2.2)."""
        has_more_output = False
        while data or has_more_output:
            try:
                piece = self._stream.decompress(data, _OUTPUT_STEP)
            except zlib.error as error:
                raise UnreadableBodyError("it isn't packed as it says") from error
            self._size += len(piece)
            if self._size > MOST_UNPACKED:
                raise UnreadableBodyError(f"unpacked it has more than {MOST_UNPACKED >> 20} MB")
            yield piece
            data = self._stream.unconsumed_tail
            has_more_output = len(piece) == _OUTPUT_STEP  # zlib may hold more output
            if self._stream.eof:
                has_more_output = False
                data = self._stream.unused_data
                self._stream = zlib.decompressobj(self._window)


class Closed(_Body):
    """Body in a coding that can't be decoded."""

    def __init__(self, why: str) -> None:
        self._problem = why

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Raise UnreadableBodyError."""
        del data
        raise UnreadableBodyError(self._problem)


def make_reader(codings: "Iterable[str]") -> Reader:
    """Return the reader for a body with these values of Content-Encoding."""
    coding_names = [coding.strip().lower() for value in codings for coding in value.split(",")]
    compressed = [coding.encode("latin-1") for coding in coding_names if coding not in {"", "identity"}]
    if not compressed:
        return Plain()
    if len(compressed) > 1 or compressed[0] not in _WINDOWS:
        return Closed("it is packed in a way that isn't read here")
    return Packed(_WINDOWS[compressed[0]])


class Messages(Frames):
    """Reader of a client's WebSocket frames; unmasks them.

    Control frames may interrupt a message (RFC 6455 section 5.4), so their payload is a text of its own.
    """

    __slots__ = ("_control_text", "_is_control", "_is_message_open", "_mask")

    prompt = True

    def __init__(self) -> None:
        super().__init__()
        self._mask = b"\0\0\0\0"
        self._is_control = False  # whether the current frame is a control frame
        self._is_message_open = False  # whether the message continues in another frame
        self._control_text = b""

    @property
    def between(self) -> bool:
        """Whether no frame and no message is incomplete."""
        return super().between and not self._is_message_open

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield the payload of messages. Raises UnreadableBodyError for invalid frames, and for extensions."""
        for start, end in self.payloads(data):
            text = self._unmask(data[start:end])
            if self._is_control:
                self._control_text += text if self._payload_left else text + b"\n"
            else:
                yield text

    def aside(self) -> bytes:
        """Return and clear the payload of control frames."""
        text, self._control_text = self._control_text, b""
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
        self._is_control = bool(head[0] & CONTROL)
        if not self._is_control:
            self._is_message_open = not head[0] & FIN

    def _unmask(self, piece: bytes) -> bytes:
        size = len(piece)
        mask = self._mask * (size // MASK + 1)
        self._mask = (self._mask * 2)[size % MASK :][:MASK]
        return (int.from_bytes(piece) ^ int.from_bytes(mask[:size])).to_bytes(size)


_FORM: Final = "application/x-www-form-urlencoded"
# Escaped `&` and `?` belong to a value, so they don't separate parameters
_ESCAPED_SEPARATORS: Final = re.compile(rb"%(?:26|3[Ff])")
_ESCAPE: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_BACKSLASHES: Final = re.compile(rb"\\{2,}")  # JSON within JSON, as tools' arguments and webhooks have it
_HALF_ESCAPE: Final = re.compile(rb"\\+(?:u[0-9A-Fa-f]{0,3})?\Z")
_ENTITY: Final = re.compile(rb"&(?:#(?:[xX]0{0,8}([0-7]?[0-9A-Fa-f])|0{0,8}([0-9]{1,3}))|(amp|lt|gt|quot|apos));?")
_NAMED: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_TRANSFER: Final = re.compile(rb"[Tt](?i:ransfer-encoding):[ \t]{0,8}([A-Za-z0-9-]{1,32})")
_DECODABLE: Final = frozenset({b"base64", b"quoted-printable"})
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
    """Decode a form or a query: plus and percent signs."""
    return unquote_to_bytes(_ESCAPED_SEPARATORS.sub(b"\x01", text.replace(b"+", b" ")))


def of_json(text: bytes) -> bytes:
    r"""Decode optional JSON escapes: PHP writes `\/`, others `\u002b` (RFC 8259 section 7).

    Consecutive backslashes count as one, to read JSON inside a JSON string too.
    """
    text = _BACKSLASHES.sub(rb"\\", text).replace(b"\\/", b"/")
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text) if b"\\u00" in text else text


def of_markup(text: bytes) -> bytes:
    """Decode references to ASCII characters (XML 1.0 section 4.1): `&#x2F;` is a slash."""
    return _ENTITY.sub(_character, text)


def _character(found: "re.Match[bytes]") -> bytes:
    if found[3]:
        return _NAMED[found[3]]
    code = int(found[1], 16) if found[1] else int(found[2])
    return bytes([code]) if code < 0x80 else found[0]


def readings(text: bytes, scanned: int, *, form: bool) -> "Iterator[tuple[bytes, int]]":
    """Yield decoded readings of a text, and in each the end of the first `scanned` bytes of the text."""
    if b"\0" in text:  # UTF-16 and UTF-32 (RFC 2781): of ASCII's characters, one byte isn't zero
        text, scanned = text.replace(b"\0", b""), scanned - text.count(b"\0", 0, max(scanned, 0))
        yield text, scanned
    readings_so_far = [(text, scanned)]
    if form and (b"%" in text or b"+" in text):
        readings_so_far.append(
            (of_form(text), len(of_form(_cut_before_escape(text, scanned, b"%", 3))) if scanned > 0 else scanned)
        )
        yield readings_so_far[-1]
    for reading, end in readings_so_far:
        if b"\\u00" in reading or b"\\/" in reading or b"\\\\" in reading:
            yield of_json(reading), len(of_json(_HALF_ESCAPE.sub(b"", reading[:end]))) if end > 0 else end
        if b"&#" in reading or b"&quot" in reading:
            yield of_markup(reading), len(of_markup(_cut_before_escape(reading, end, b"&", 14))) if end > 0 else end


def _cut_before_escape(text: bytes, scanned: int, sign: bytes, size: int) -> bytes:
    """Return the first `scanned` bytes of a text, without an escape that they would cut."""
    escape_start = text.rfind(sign, max(scanned - size + 1, 0), scanned)
    return text[: scanned if escape_start < 0 else escape_start]


def transfers(text: bytes) -> set[bytes]:
    """Return the transfer encodings that parts of a body name (RFC 2045 section 6)."""
    return {found[1].lower() for found in _TRANSFER.finditer(text)} & _DECODABLE


def of_parts(text: bytes, transfers: "Collection[bytes]") -> "Iterator[bytes]":
    """Yield the text of parts in these transfer encodings."""
    if b"quoted-printable" in transfers:
        yield binascii.a2b_qp(text)
    if b"base64" in transfers:
        yield from _decode_base64(text)


def decoded(text: bytes) -> "Iterator[bytes]":
    """Yield decoded texts for strict mode: from double percent-encoding, base64 and hexadecimal.

    Base64 is decoded from its first character (RFC 4648 sections 4 and 5); at the start of a text, which may be cut, at
    all four offsets.
    """
    if b"%25" in text:
        yield unquote_to_bytes(unquote_to_bytes(text))
    yield from _decode_base64(text)
    for run in _HEX.finditer(text):
        yield bytes.fromhex(run[0].decode())
        if run.start() == 0 and len(run[0]) > 2:
            yield bytes.fromhex(run[0][1:-1].decode())


def _decode_base64(text: bytes) -> "Iterator[bytes]":
    for run in _BASE64.finditer(text):
        compressed = _BREAKS.sub(b"", run[0]).translate(_STANDARD)
        for at in range(4 if run.start() == 0 else 1):
            whole = compressed[at : at + (len(compressed) - at) // 4 * 4 or None]
            rest = len(compressed) - at - len(whole)
            padded = compressed[at:] + b"=" * (4 - rest) if rest > 1 else whole
            try:
                yield base64.b64decode(padded)
            except binascii.Error:
                continue
