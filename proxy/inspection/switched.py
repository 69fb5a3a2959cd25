"""A request that has become a WebSocket: bytes in both directions, counted, until one side ends.

Nobody reads them, but for where a client's frames begin, and for secrets that leave where the rules have those looked
for.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import DropStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    ResponseData,
    ResponseEndOfMessage,
)

from proxy.dlp.body_scan import Leaking
from proxy.inspection.ending import Ending
from proxy.inspection.messages import head_of, head_of_response
from proxy.inspection.signals import ResetConnection, checkpoints
from proxy.inspection.websocket import ClientFrames, Frames, NotFrames, agrees, is_extended
from proxy.request.request_head import values
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.inspection.context import Far, Near


class Switched(Ending):
    """A request that may become a WebSocket."""

    said: ClientFrames | None = None  # by its client, once both sides have agreed
    half: "Near | Far | None" = None  # the side that has ended, where the other one hasn't

    def switches(self, response: "http.Response") -> bool:
        """Whether both sides have agreed to go on with WebSocket."""
        head = head_of(self.flow.request)
        return bool(values(head, b"upgrade")) and agrees(head, response.status_code, head_of_response(response))

    def state_switch(self, event: ResponseEndOfMessage) -> "CommandGenerator[None]":
        """Go on with what nobody reads: bytes in both directions, counted, until one side ends."""
        assert self.flow.response
        self.frames = Frames()
        self.said = ClientFrames(extended=is_extended(head_of_response(self.flow.response)))
        self.outgoing = self.context.session.outgoing(self.flow.id, head_of(self.flow.request), websocket=True)
        self.client_state = self.state_pass_up
        self.server_state = self.state_pass_down
        yield SendHttp(event, self.context.client)

    def state_pass_up(self, event: RequestData | RequestEndOfMessage) -> "CommandGenerator[None]":
        """Pass on what comes from the client."""
        end = isinstance(event, RequestEndOfMessage)
        data = event.data if isinstance(event, RequestData) else b""
        try:
            if self.said is not None:
                yield from checkpoints(self.said.following(data))
        except NotFrames as problem:
            self.context.session.stray(self.flow.id, str(problem))
            yield from self.cut_off(str(problem))
            return
        exchange = self.context.session.exchange(self.flow.id)
        if not end and (exchange is None or not exchange.may_send(len(data))):
            yield from self.cut_off()
            return
        if self.outgoing is not None:
            try:
                data = yield from checkpoints(self.outgoing.passing(data, end=end))
            except Leaking as leak:
                yield from self.stop_leak(leak)
                return
        if self.is_revoked():
            yield from self.cut_off("the rules don't let it out any more")
            return
        if data:
            yield SendHttp(RequestData(self.stream_id, data), self.context.server)
        if end:
            yield from self.end_passing(self.context.client, self.context.server)

    def state_pass_down(self, event: ResponseData | ResponseEndOfMessage) -> "CommandGenerator[None]":
        """Pass on what comes from the server."""
        if isinstance(event, ResponseEndOfMessage):
            yield from self.end_passing(self.context.server, self.context.client)
        elif (exchange := self.context.session.exchange(self.flow.id)) and exchange.may_receive(len(event.data)):
            if self.frames is not None:
                yield from checkpoints(self.frames.following(event.data))
            yield SendHttp(event, self.context.client)
        else:
            yield from self.cut_off()

    def is_closing(self) -> bool:
        """Whether a side has said that the WebSocket ends: how its connection ends then says nothing."""
        return any(frames is not None and frames.closing for frames in (self.said, self.frames))

    def end_passing(self, ended: "Near | Far", other: "Near | Far") -> "CommandGenerator[None]":
        """End the other side as this one ended (invariant 12).

        In the clear a side may end first and still receive: a WebSocket's last frame is often the other side's.
        """
        if self.half is None and not ended.cut and not self.context.session.place.tls:
            self.half = ended
            yield commands.CloseTcpConnection(other, half_close=True)
            return
        if ended.cut and not self.is_closing():
            if ended is self.context.client:
                self.context.session.left(self.flow.id)
            else:
                self.context.session.complete(self.flow.id, None, Outcome.FAILED, Reason.UPSTREAM_FAILED)
        self.context.session.complete(self.flow.id, HTTPStatus.SWITCHING_PROTOCOLS)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        yield DropStream(self.stream_id)
        yield (ResetConnection if ended.cut else commands.CloseConnection)(other)
        yield commands.CloseConnection(ended)
