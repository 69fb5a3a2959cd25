"""WebSocket over HTTP/1.1 (RFC 6455), after its handshake: relays and counts bytes in both directions.

After the handshake bytes are relayed unread, except for frame boundaries and, where rules want it, a scan for secrets.
A client may only send frames: a server may accept a WebSocket that another server behind it doesn't, and would then
read the bytes as requests.
"""

from typing import TYPE_CHECKING, Final, Protocol

from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage, ResponseData, ResponseEndOfMessage

from proxy.request.websocket_frames import (
    CLOSE,
    FIN,
    MOST_CONTROL,
    SWITCHING,
    ClientFrames,
    Frames,
    NotFramesError,
    is_extended,
)
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Generator

    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.event_loop.turn import Sliced
    from proxy.inspection.connection_ends import ClientEnd, ConnectionControl, ServerEnd
    from proxy.inspection.session import Session
    from proxy.inspection.stages.request_context import RequestContext
    from proxy.inspection.stages.stage import RequestPart
    from proxy.request.request_head import HasFields

REVOKED: Final = "the rules don't let it out any more"
_AT_ONCE: Final = 4096  # bytes that are followed in one slice
POLICY: Final = 1008  # a close code: the peer goes against a policy (RFC 6455 section 7.4.1)


def close_frame(code: int, reason: str) -> bytes:
    """Return a server's Close frame with a status and a reason (RFC 6455 section 5.5.1)."""
    payload = code.to_bytes(2) + reason.encode("ascii", "replace")[: MOST_CONTROL - 2]
    return bytes([FIN | CLOSE, len(payload)]) + payload


type Steps = Generator[object, None, None]  # None: a turn may end there


class UpgradedRequest(Protocol):
    """The request that became a WebSocket (`proxy.inspection.stream`)."""

    session: "Session"
    request: "RequestContext"
    client: "ClientEnd"
    server: "ServerEnd | None"

    def through_stages(self, part: "RequestPart") -> "Generator[object, None, list[RequestPart] | None]":
        """Return the parts to send in place of a part; None: it has ended."""

    def to_client(self, event: "HttpEvent") -> None:
        """Send data of the server."""

    def to_server(self, event: "HttpEvent") -> None:
        """Send data of the client."""

    def cut_off(self, why: str = ...) -> None:
        """Break off both sides."""

    def leave(self) -> None:
        """Remove it: it has ended."""


class Switched:
    """A WebSocket: bytes in both directions, counted, until one side ends."""

    __slots__ = ("_driver", "_half_ended", "_request", "answered", "said")

    def __init__(self, request: UpgradedRequest, driver: "ConnectionControl", answer: "HasFields") -> None:
        """`answer`: the head of the response that agreed to it."""
        self._request = request
        self._driver = driver
        self._half_ended = False  # one side has ended, and the other one hasn't
        self.said = ClientFrames(extended=is_extended(answer))  # by its client
        self.answered = Frames()  # by its server

    def pass_on(self, event: "RequestData | RequestEndOfMessage | ResponseData | ResponseEndOfMessage") -> Steps:
        """Forward data of the client or of the server."""
        if isinstance(event, RequestData | RequestEndOfMessage):
            return self._pass_up(event)
        return self._pass_down(event)

    def _pass_up(self, event: RequestData | RequestEndOfMessage) -> Steps:
        request = self._request
        end = isinstance(event, RequestEndOfMessage)
        data = b"" if isinstance(event, RequestEndOfMessage) else event.data
        try:
            yield from _following(self.said, data)
        except NotFramesError as problem:
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
                request.to_server(part)
        if end:
            self._end(from_client=True)

    def _pass_down(self, event: ResponseData | ResponseEndOfMessage) -> Steps:
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
        server, driver, session = request.server, self._driver, request.session
        assert server is not None
        ended, other = (request.client, server) if from_client else (server, request.client)
        if not self._half_ended and not ended.cut and not session.origin.tls:
            self._half_ended = True
            driver.end_sending(other)
            return
        if ended.cut and not context.closing:
            if from_client:
                session.complete_for_leaving_client(context)
            else:
                session.complete(context, None, Outcome.FAILED, Reason.UPSTREAM_FAILED)
        session.complete(context, SWITCHING)
        request.leave()
        if ended.cut:
            driver.reset(other)
        else:
            driver.close(other)
        driver.close(ended)


def _following(frames: Frames, data: bytes) -> "Sliced[None]":
    """Parse frames in slices, since a frame may have only two bytes."""
    for at in range(0, len(data), _AT_ONCE):
        frames.follow(data[at : at + _AT_ONCE])
        yield
