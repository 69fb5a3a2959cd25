"""One request and its response: mitmproxy's stream, which decides at the head and never keeps a body.

What differs from mitmproxy's: a refused request is answered at once and its body is not read; a failure upstream
becomes a page with the true cause; a response that is complete before its request ends the request.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import DropStream, GetHttpConnection, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook

from proxy.inspection.contexts import HTTP2
from proxy.inspection.deciding import ADDRESSES
from proxy.inspection.heads import may_trail
from proxy.inspection.messages import head_of, response_of
from proxy.inspection.signals import Failure, ResetConnection
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.inspection.context import GateContext
    from rules.addresses import Address


REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Stream(HttpStream):
    """A request and its response on one client connection."""

    context: "GateContext"
    bodiless = False  # nothing of the request follows its head
    may_ask_again = False
    addresses: "tuple[Address, ...]" = ()  # that may be dialled for it

    def state_wait_for_request_headers(self, event: RequestHeaders) -> "CommandGenerator[None]":
        """Have the request decided; then answer it ourselves, or pass its head on."""
        flow = self.flow = http.HTTPFlow(self.context.client, self.context.server)
        flow.request = event.request
        flow.live = True
        self.bodiless = event.end_stream
        yield HttpRequestHeadersHook(flow)
        if (yield from self.check_killed(emit_error_hook=True)):
            return
        if flow.response is not None:
            yield from self.answer(flow.response)
            return
        self.addresses = flow.metadata[ADDRESSES]
        place = self.context.session.place
        data = flow.request.data
        data.host, data.port = str(place.target), place.port
        data.scheme = b"https" if place.tls else b"http"
        self.client_state = self.state_stream_request_body
        self.server_state = self.state_wait_for_response_headers
        if not (yield from self.make_server_connection()):
            return
        if flow.request.headers.get("expect", "").lower() == "100-continue":
            del flow.request.headers["expect"]
            go_on = http.Response.make(100)
            go_on.headers.clear()
            yield SendHttp(ResponseHeaders(self.stream_id, go_on), self.context.client)
        yield SendHttp(RequestHeaders(self.stream_id, flow.request, self.bodiless), self.context.server)

    def may_use(self, *addresses: "Address") -> bool:
        """Whether a connection that leads to one of these may carry this request."""
        return all(address in self.addresses for address in addresses)

    def make_server_connection(self) -> "CommandGenerator[bool]":
        """Get a connection to the one place there is; answer with why there is none."""
        request = self.flow.request
        connection, error = yield GetHttpConnection(
            (request.data.host, request.data.port), tls=self.context.session.place.tls, via=None
        )
        if error:
            yield from self.fail(error.reason if isinstance(error, Failure) else Reason.UPSTREAM_FAILED, error)
            return False
        self.context.server = self.flow.server_conn = connection
        self.may_ask_again = connection.used and self.bodiless and request.method in REPEATABLE
        connection.used = True
        return True

    def state_stream_request_body(
        self, event: RequestData | RequestTrailers | RequestEndOfMessage
    ) -> "CommandGenerator[None]":
        """Pass a piece of the request on."""
        if isinstance(event, RequestData):
            if exchange := self.context.session.exchange(self.flow.id):
                exchange.up += len(event.data)
        elif isinstance(event, RequestTrailers):
            event.trailers = http.Headers([field for field in event.trailers.fields if may_trail(field[0])])
        else:
            self.client_state = self.state_done
        yield SendHttp(event, self.context.server)
        if self.client_state == self.state_done == self.server_state:
            yield from self.flow_done()

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> "CommandGenerator[None]":
        """Pass the response's head on."""
        response = self.flow.response = event.response
        if problem := what_is_wrong(response):
            yield ResetConnection(self.context.server)
            yield from self.fail(Reason.UPSTREAM_FAILED, f"the server's response can't be passed on: {problem}")
            return
        yield SendHttp(ResponseHeaders(self.stream_id, response, event.end_stream), self.context.client)
        self.server_state = self.state_stream_response_body

    def state_stream_response_body(
        self, event: ResponseData | ResponseTrailers | ResponseEndOfMessage
    ) -> "CommandGenerator[None]":
        """Pass a piece of the response on."""
        if not isinstance(event, ResponseEndOfMessage):
            if isinstance(event, ResponseData) and (exchange := self.context.session.exchange(self.flow.id)):
                exchange.down += len(event.data)
            yield SendHttp(event, self.context.client)
            return
        assert self.flow.response
        self.context.session.complete(self.flow.id, self.flow.response.status_code)
        self.server_state = self.state_done
        if self.client_state == self.state_done:
            yield from self.flow_done()
        elif self.client_state == self.state_stream_request_body:
            yield from self.end_early()

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
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=False), client)
        if response.raw_content and self.flow.request.method != "HEAD":
            yield SendHttp(ResponseData(self.stream_id, response.raw_content), client)
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
        page = session.failure(head_of(self.flow.request), reason, detail)
        session.complete(self.flow.id, page.status, Outcome.FAILED, reason)
        yield from self.answer(response_of(page))

    def ask_again(self) -> "CommandGenerator[None]":
        """Send the request on another connection: this one ended while it was being used again.

        The client can't know: its own connection is still open. Only what may be repeated is (RFC 9110 section 9.2.2).
        """
        if (yield from self.make_server_connection()):
            self.may_ask_again = False
            yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=True), self.context.server)
            if self.client_state == self.state_done:
                yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> "CommandGenerator[None]":
        """Answer for a server that broke off before its response; else break off on the other side too."""
        from_server = isinstance(event, ResponseProtocolError)
        if from_server and self.server_state == self.state_wait_for_response_headers:
            if self.may_ask_again:
                yield from self.ask_again()
            else:
                yield from self.fail(Reason.UPSTREAM_FAILED, event.message)
            return
        status = self.flow.response.status_code if self.flow.response else None
        reason = Reason.UPSTREAM_FAILED if from_server else None
        self.context.session.complete(self.flow.id, status, Outcome.FAILED, reason)
        yield from super().handle_protocol_error(event)


def what_is_wrong(response: http.Response) -> str | None:
    """Return why a response can't be passed on."""
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        return "it switches to a protocol that nobody asked for"
    try:
        validate_headers(response)
    except ValueError as error:
        return str(error)
    return None
