"""WebSocket handshake (RFC 6455 section 4): checks the request and the response that accepts it. Pure.

Nothing but a handshake that both sides have agreed on as the RFC has it may begin a WebSocket: a request that only one
side takes for a handshake is how requests are hidden from a gate.
"""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final

from proxy.request.request_head import values

if TYPE_CHECKING:
    from proxy.request.messages import ResponseHead
    from proxy.request.request_head import HasFields, Head

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
    wanted = _accept(values(head, b"sec-websocket-key"))
    return (
        answer.status == SWITCHING
        and bool(values(head, b"upgrade"))
        and wanted is not None
        and [value.lower() for value in values(answer, b"upgrade")] == ["websocket"]
        and "upgrade" in _options(values(answer, b"connection"))
        and values(answer, b"sec-websocket-accept") == (wanted,)
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
