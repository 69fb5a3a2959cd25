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
from proxy.request.websocket_frames import CLOSE, FIN, MOST_CONTROL, ClientFrames, Frames, NotFrames
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from proxy.event_loop.slices import Sliced
    from proxy.inspection.stream import Steps, Stream
    from proxy.request.messages import ResponseHead
    from proxy.request.request_head import HasFields, Head

REVOKED: Final = "the rules don't let it out any more"
_AT_ONCE: Final = 4096  # bytes that are followed in one slice
POLICY: Final = 1008  # a close code: the peer goes against a policy (RFC 6455 section 7.4.1)

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY_SIZE: Final = 16  # bytes
_SWITCHING: Final = 101
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


def close_frame(code: int, reason: str) -> bytes:
    """Return a server's frame that ends a WebSocket and says why (RFC 6455 section 5.5.1)."""
    payload = code.to_bytes(2) + reason.encode("ascii", "replace")[: MOST_CONTROL - 2]
    return bytes([FIN | CLOSE, len(payload)]) + payload


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
            yield from _following(self.said, data)
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
            yield from _following(self.answered, event.data)
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


def _following(frames: Frames, data: bytes) -> "Sliced[None]":
    """Follow frames in slices: one may have two bytes."""
    for at in range(0, len(data), _AT_ONCE):
        frames.follow(data[at : at + _AT_ONCE])
        yield


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
