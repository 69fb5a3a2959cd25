"""How one request ends before its time: with a page of our own, or cut off in the middle.

A page goes out as long as nothing of a response has; after that only a reset can say that what came is not all
(invariant 12).
"""

from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)

from proxy.inspection.contexts import HTTP2
from proxy.inspection.messages import head_of, response_of
from proxy.inspection.responses import Unreadable, advice_on_unreadable
from proxy.inspection.websocket import POLICY, Frames, close_frame
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.dlp.body_scan import Leaking
    from proxy.inspection.brokering import Misused
    from proxy.inspection.context import GateContext
    from proxy.inspection.leaking import Outgoing
    from proxy.refusal import Page


class Ending(HttpStream):
    """A request that can be ended."""

    context: "GateContext"
    bodiless = False  # nothing of the request follows its head
    frames: Frames | None = None  # of a WebSocket's server, once both sides have agreed
    outgoing: "Outgoing | None" = None  # what looks for secrets in what follows the head

    def stop_misuse(self, misuse: "Misused") -> "CommandGenerator[None]":
        """End a request whose body or trailers bring a placeholder; with a page, if nothing has been answered."""
        page = self.context.session.misused(self.flow.id, head_of(self.flow.request), str(misuse))
        yield from self.stop(page, str(misuse))

    def stop_leak(self, leak: "Leaking") -> "CommandGenerator[None]":
        """End a request that is about to bring out a secret."""
        self.outgoing = None
        page = self.context.session.leaking(self.flow.id, head_of(self.flow.request), str(leak))
        yield from self.stop(page, str(leak))

    def stop(self, page: "Page", why: str) -> "CommandGenerator[None]":
        """End a request that was let out, with a page if nothing has been answered."""
        if self.server_state != self.state_wait_for_response_headers:
            yield from self.cut_off(why)
            return
        self.context.session.complete(self.flow.id, page.status)
        yield SendHttp(RequestProtocolError(self.stream_id, "it is refused", ErrorCode.CANCEL), self.context.server)
        yield from self.answer(response_of(page))

    def cut_off(self, why: str = "a limit is used up") -> "CommandGenerator[None]":
        """End it in the middle, on both sides: it would be more than a limit lets pass, or the rules are others now."""
        self.context.session.complete(self.flow.id, None, Outcome.FAILED, Reason.LIMIT_EXCEEDED)
        if self.server_state != self.state_done:
            yield SendHttp(RequestProtocolError(self.stream_id, why, ErrorCode.CANCEL), self.context.server)
        if self.frames is not None and self.frames.between:  # a WebSocket has words for it
            frame = close_frame(POLICY, f"exeat: {why}")
            yield SendHttp(ResponseData(self.stream_id, frame), self.context.client)
            yield commands.CloseConnection(self.context.client)
        else:
            yield SendHttp(ResponseProtocolError(self.stream_id, why, ErrorCode.CANCEL), self.context.client)
        yield from self.finish()

    def is_revoked(self) -> bool:
        """Whether other rules, which came into force between two slices of its work, end it: nothing more leaves."""
        exchange = self.context.session.exchange(self.flow.id)
        return exchange is not None and exchange.by is not None

    def end_early(self) -> "CommandGenerator[None]":
        """Take the answer for final although the request is still coming: a 401 or 413 to an upload."""
        yield SendHttp(
            RequestProtocolError(self.stream_id, "the server has answered", ErrorCode.CANCEL), self.context.server
        )
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        yield from self.finish()

    def answer(self, response: http.Response) -> "CommandGenerator[None]":
        """Send a response of our own, whatever of the request is still to come."""
        client = self.context.client
        if client.alpn != HTTP2 and not self.request_is_whole():
            response.headers["Connection"] = "close"
        body = response.raw_content if self.flow.request.method != "HEAD" else None
        # Without one the head ends the stream: gRPC takes a status only from what comes last
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=not body), client)
        if body:
            yield SendHttp(ResponseData(self.stream_id, body), client)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        yield from self.finish()

    def finish(self) -> "CommandGenerator[None]":
        """Leave this request alone from now on; HTTP/1 can't skip the rest of it without its connection."""
        close = self.context.client.alpn != HTTP2 and not self.request_is_whole()
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        yield DropStream(self.stream_id)
        if close:
            yield commands.CloseConnection(self.context.client)

    def request_is_whole(self) -> bool:
        """Whether no more of the request is to come."""
        return self.bodiless or self.client_state == self.state_done

    def fail(self, reason: Reason, detail: str) -> "CommandGenerator[None]":
        """Tell the client, before anything of a response, that what was let out came to nothing."""
        session = self.context.session
        advice = advice_on_unreadable(session.place) if isinstance(detail, Unreadable) else ""
        page = session.failure(head_of(self.flow.request), reason, detail, advice)
        session.complete(self.flow.id, page.status, Outcome.FAILED, reason, detail)
        yield from self.answer(response_of(page))
