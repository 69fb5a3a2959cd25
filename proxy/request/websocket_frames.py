"""WebSocket frames (RFC 6455 section 5.2): finds where each begins in a stream of bytes. Pure."""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final

from proxy.request.request_head import values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.request.messages import ResponseHead
    from proxy.request.request_head import HasFields, Head

CONTROL: Final = 0x08
FIN, RESERVED, MASKED = 0x80, 0x70, 0x80
MOST_CONTROL: Final = 125  # bytes of a control frame (section 5.5)
CLOSE: Final = 8  # opcode
_OPCODE, _SIZE = 0x0F, 0x7F
_OPCODES: Final = frozenset({0, 1, 2, 8, 9, 10})  # those defined without extensions (section 5.2)
_LENGTH_BYTES: Final = {126: 2, 127: 8}  # bytes of an extended length
MASK: Final = 4  # bytes


class NotFramesError(Exception):
    """A client's bytes are no WebSocket frames; the text says why."""


class Frames:
    """Follows the frames that a server sends."""

    __slots__ = ("_head", "_payload_left", "closing")

    def __init__(self) -> None:
        self.closing = False  # a Close frame has begun (section 5.5.1)
        self._head = b""  # of the next frame, as far as received
        self._payload_left = 0  # bytes of payload to come

    @property
    def between(self) -> bool:
        """Whether the bytes so far are whole frames, so that another frame may be inserted."""
        return not self._head and not self._payload_left

    def follow(self, data: bytes) -> None:
        """Parse the next bytes."""
        for _ in self.payloads(data):
            pass

    def payloads(self, data: bytes) -> "Iterator[tuple[int, int]]":
        """Parse the next bytes; yields where each frame's payload begins and ends in them."""
        at = 0
        while at < len(data):
            if self._payload_left:
                step = min(self._payload_left, len(data) - at)
                self._payload_left -= step
                yield at, at + step
            else:
                step = _head_size(self._head) - len(self._head)
                self._head += data[at : at + step]
                self._check_head(self._head)
                if len(self._head) >= 2 and len(self._head) == _head_size(self._head):
                    head, self._head = self._head, b""
                    self._begin_frame(head)
            at += step

    def _check_head(self, head: bytes) -> None:
        """Parse a frame's head, as far as it has arrived."""

    def _begin_frame(self, head: bytes) -> None:
        """Start a frame whose head is complete."""
        self.closing = self.closing or head[0] & _OPCODE == CLOSE
        size = head[1] & _SIZE
        self._payload_left = int.from_bytes(head[2 : 2 + _LENGTH_BYTES[size]]) if size in _LENGTH_BYTES else size


class ClientFrames(Frames):
    """Follows the frames that a client sends, and rejects bytes that another proxy may read as an HTTP request."""

    __slots__ = ("_extended",)

    def __init__(self, *, extended: bool) -> None:
        """Create a parser. `extended`: an agreed extension may define bits and opcodes (section 9)."""
        super().__init__()
        self._extended = extended

    def _check_head(self, head: bytes) -> None:
        """Raise NotFramesError for a frame that a client may not send."""
        if not self._extended and (head[0] & RESERVED or head[0] & _OPCODE not in _OPCODES):
            raise NotFramesError("the client sends a frame with an unknown opcode")
        if len(head) > 1 and not head[1] & MASKED:
            raise NotFramesError("the client sends a frame that isn't masked")
        if len(head) > 1 and head[0] & CONTROL and head[1] & _SIZE > MOST_CONTROL:
            raise NotFramesError("the client sends a control frame that is too long")


def _head_size(head: bytes) -> int:
    """Return the length of a frame's head, from its first two bytes."""
    if len(head) < 2:
        return 2
    return 2 + _LENGTH_BYTES.get(head[1] & _SIZE, 0) + (MASK if head[1] & MASKED else 0)


SWITCHING: Final = 101
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY_SIZE: Final = 16  # bytes
_EXTENSIONS: Final = b"sec-websocket-extensions"


def is_handshake(head: "Head", *, body: bool) -> bool:
    """Whether a request is a client's opening handshake (RFC 6455 section 4.1)."""
    return (
        head.version == b"HTTP/1.1"
        and head.method == b"GET"
        and not body
        and [value.lower() for value in values(head, b"upgrade")] == ["websocket"]
        and "upgrade" in _options(values(head, b"connection"))
        and values(head, b"sec-websocket-version") == ("13",)
        and _accept(values(head, b"sec-websocket-key")) is not None
    )


def agrees(head: "Head", answer: "ResponseHead") -> bool:
    """Whether a response accepts the handshake in `head` (RFC 6455 section 4.2.2)."""
    expected_accept = _accept(values(head, b"sec-websocket-key"))
    return (
        answer.status == SWITCHING
        and bool(values(head, b"upgrade"))
        and expected_accept is not None
        and [value.lower() for value in values(answer, b"upgrade")] == ["websocket"]
        and "upgrade" in _options(values(answer, b"connection"))
        and values(answer, b"sec-websocket-accept") == (expected_accept,)
        and (not is_extended(answer) or is_extended(head))
    )


def is_extended(head: "HasFields") -> bool:
    """Whether a request offers extensions, or a response accepts some (RFC 6455 section 9)."""
    return bool(values(head, _EXTENSIONS))


def _accept(keys: tuple[str, ...]) -> str | None:
    """Return the Sec-WebSocket-Accept for a client's key; None: there isn't exactly one key of 16 bytes."""
    if len(keys) != 1:
        return None
    try:
        key = keys[0].encode("ascii")
        if len(base64.b64decode(key, validate=True)) != _KEY_SIZE:
            return None
    except (UnicodeEncodeError, binascii.Error):
        return None
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii")


def _options(fields: tuple[str, ...]) -> list[str]:
    return [option.strip().lower() for value in fields for option in value.split(",")]
