"""WebSocket over HTTP/1.1 (RFC 6455 section 4): checks the handshake. Requests may switch to nothing else.

What follows a handshake is passed on unread, but for where frames begin and, where rules say so, for secrets. So
nothing but a handshake that both sides have agreed on as the RFC has it may begin one: a request that only one side
takes for a handshake is how requests are hidden from a gate. And nothing but a client's frames may follow: a server
behind the one that was asked can agree to what neither goes on to speak.
"""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final

from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage, ResponseData, ResponseEndOfMessage

from proxy.request.request_head import values
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.event_loop.slices import Sliced
    from proxy.inspection.stream import Steps, Stream
    from proxy.request.messages import ResponseHead
    from proxy.request.request_head import HasFields, Head

REVOKED: Final = "the rules don't let it out any more"
_AT_ONCE: Final = 4096  # bytes that are followed in one slice
POLICY: Final = 1008  # a close code: the peer goes against a policy (RFC 6455 section 7.4.1)

_CLOSE: Final = b"\x88"  # a whole message of opcode 8 (section 5.2)
_MOST_REASON: Final = 123  # bytes: a control frame has at most 125, the code among them
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY_SIZE: Final = 16  # bytes
_SWITCHING: Final = 101
_EXTENSIONS: Final = b"sec-websocket-extensions"
_CLOSE_FRAME: Final = 8
_OPCODES: Final = frozenset({0, 1, 2, 8, 9, 10})  # what there is without extensions (section 5.2)
_RESERVED, _OPCODE, _CONTROL, _MASKED = 0x70, 0x0F, 0x08, 0x80
_MOST_CONTROL: Final = 125  # bytes (section 5.5)


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
    """Whether a response agrees to the handshake in `head` (RFC 6455 section 4.2.2)."""
    wanted = _accept(values(head, b"sec-websocket-key"))
    return (
        answer.status == _SWITCHING
        and bool(values(head, b"upgrade"))
        and wanted is not None
        and [value.lower() for value in values(answer, b"upgrade")] == ["websocket"]
        and "upgrade" in _options(values(answer, b"connection"))
        and values(answer, b"sec-websocket-accept") == (wanted,)
        and (not is_extended(answer) or is_extended(head))
    )


def is_extended(head: "HasFields") -> bool:
    """Whether a request offers extensions, or a response agrees to some (RFC 6455 section 9)."""
    return bool(values(head, _EXTENSIONS))


class NotFrames(Exception):  # noqa: N818  (it is no error: it is why the WebSocket ends)
    """What a client sends is no WebSocket's; the text says why."""


def close_frame(code: int, reason: str) -> bytes:
    """Return a server's frame that ends a WebSocket and says why (RFC 6455 section 5.5.1)."""
    payload = code.to_bytes(2) + reason.encode("ascii", "replace")[:_MOST_REASON]
    return _CLOSE + bytes([len(payload)]) + payload


class Frames:
    """Follows where frames begin in what a server sends (RFC 6455 section 5.2). Nothing hangs on what is in them."""

    __slots__ = ("_head", "_left", "closing")

    def __init__(self) -> None:
        self.closing = False  # a Close frame has begun (section 5.5.1)
        self._head = b""  # of the frame that begins
        self._left = 0  # bytes of payload that are still to come

    @property
    def between(self) -> bool:
        """Whether all that was sent are whole frames, so that one of ours may be next."""
        return not self._head and not self._left

    def following(self, data: bytes) -> "Sliced[None]":
        """Do as `follow`, in slices: a frame may have two bytes."""
        for at in range(0, len(data), _AT_ONCE):
            self.follow(data[at : at + _AT_ONCE])
            yield

    def follow(self, data: bytes) -> None:
        """Take note of what is sent."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = _head_size(self._head) - len(self._head)
                self._head += data[at : at + step]
                self._look(self._head)
                if len(self._head) >= 2 and len(self._head) == _head_size(self._head):
                    self.closing = self.closing or self._head[0] & _OPCODE == _CLOSE_FRAME
                    self._left, self._head = _payload_size(self._head), b""
            at += step

    def _look(self, head: bytes) -> None:
        """Look at a frame's head, or the beginning of one."""


class ClientFrames(Frames):
    """... and in what a client sends, of whom nothing else is taken: who is in the middle may read requests in it."""

    __slots__ = ("_extended",)

    def __init__(self, *, extended: bool) -> None:
        """Begin. `extended`: both sides have agreed to extensions, whose bits and opcodes are theirs (section 9)."""
        super().__init__()
        self._extended = extended

    def _look(self, head: bytes) -> None:
        """Raise NotFrames for what no client may send."""
        if not self._extended and (head[0] & _RESERVED or head[0] & _OPCODE not in _OPCODES):
            raise NotFrames("what its client sends has no opcode that there is")
        if len(head) > 1 and not head[1] & _MASKED:
            raise NotFrames("what its client sends isn't masked")
        if len(head) > 1 and head[0] & _CONTROL and head[1] & ~_MASKED > _MOST_CONTROL:
            raise NotFrames("its client sends a control frame that is too long")


class Switched:
    """A request that has become a WebSocket: bytes in both directions, counted, until one side ends."""

    __slots__ = ("_half_ended", "_request", "answered", "said")

    def __init__(self, request: "Stream", answer: "HasFields") -> None:
        """`answer`: the head of the response that agreed to it."""
        self._request = request
        self._half_ended = False  # one side has ended, and the other one hasn't
        self.said = ClientFrames(extended=is_extended(answer))  # by its client
        self.answered = Frames()  # by its server

    def pass_up(self, event: "RequestData | RequestEndOfMessage") -> "Steps":
        """Pass on what comes from the client."""
        request = self._request
        end = isinstance(event, RequestEndOfMessage)
        data = b"" if isinstance(event, RequestEndOfMessage) else event.data
        try:
            yield from self.said.following(data)
        except NotFrames as problem:
            request.session.stray(request.request, str(problem))
            request.cut_off(str(problem))
            return
        self._note_closing()
        if not end and not request.request.may_send(len(data)):
            request.cut_off()
            return
        parts = yield from request.through_stages(event)
        if parts is None:
            return
        for part in parts:
            if isinstance(part, RequestData):
                request.http.send_to_server(request.server, part)
        if end:
            self._end(from_client=True)

    def pass_down(self, event: "ResponseData | ResponseEndOfMessage") -> "Steps":
        """Pass on what comes from the server."""
        request = self._request
        if isinstance(event, ResponseEndOfMessage):
            self._end(from_client=False)
        elif request.request.may_receive(len(event.data)):
            yield from self.answered.following(event.data)
            self._note_closing()
            request.to_client(event)
        else:
            request.cut_off()

    def _note_closing(self) -> None:
        self._request.request.closing = self.said.closing or self.answered.closing

    def _end(self, *, from_client: bool) -> None:
        """End the other side as this one ended (invariant 12).

        In the clear a side may end first and still receive: a WebSocket's last frame is often the other side's.
        """
        request, context = self._request, self._request.request
        server, driver, session = request.server, request.http.driver, request.session
        assert server is not None
        ended, other = (request.client, server) if from_client else (server, request.client)
        if not self._half_ended and not ended.cut and not session.place.tls:
            self._half_ended = True
            driver.end_sending(other)
            return
        if ended.cut and not context.closing:
            if from_client:
                session.left(context)
            else:
                session.complete(context, None, Outcome.FAILED, Reason.UPSTREAM_FAILED)
        session.complete(context, _SWITCHING)
        request.be_over()
        request.http.drop(request)
        if ended.cut:
            driver.reset(other)
        else:
            driver.close(other)
        driver.close(ended)


def _head_size(head: bytes) -> int:
    """Return how long a frame's head is, as far as its first two bytes say."""
    if len(head) < 2:
        return 2
    masked, size = head[1] & 0x80, head[1] & 0x7F
    return 2 + {126: 2, 127: 8}.get(size, 0) + (4 if masked else 0)


def _payload_size(head: bytes) -> int:
    size = head[1] & 0x7F
    return int.from_bytes(head[2:4]) if size == 126 else int.from_bytes(head[2:10]) if size == 127 else size


def _accept(keys: tuple[str, ...]) -> str | None:
    """Return what a server says to a client's key; None: there is not one, and of 16 bytes."""
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
