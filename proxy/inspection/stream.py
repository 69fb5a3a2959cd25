"""One request and its response: mitmproxy's stream, which decides at the head and never keeps a body.

What differs from mitmproxy's: a refused request is answered at once and its body is not read; a failure upstream
becomes a page with the true cause; a response that is complete before its request ends the request.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy import http
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpStream, SendHttp
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

from proxy.dlp.body_scan import Leaking
from proxy.inspection.brokering import Brokering, Misused
from proxy.inspection.context import Far, flow_of
from proxy.inspection.contexts import HTTP2
from proxy.inspection.deciding import ADDRESSES, AUTHORITIES, BODY, HELD, READ_ON
from proxy.inspection.http1_heads import is_informational
from proxy.inspection.messages import head_of
from proxy.inspection.relaying import answered_by_proxy, is_relayed
from proxy.inspection.responses import (
    MOST_INFORMATIONAL,
    Unreadable,
    announced,
    body_length,
    ends_with_connection,
    has_no_body,
    what_is_wrong,
)
from proxy.inspection.signals import ClientEnded, Failure, ResetConnection, Revoked, checkpoints
from proxy.inspection.switched import Switched
from proxy.request.request_head import may_trail
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from mitmproxy.proxy.events import Event
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.dialling.connecting import Hop
    from proxy.inspection.holding import Held
    from proxy.request.request_head import Field
    from proxy.secrets import Broker


_OF_REQUESTS: Final = frozenset({RequestHeaders, RequestData, RequestTrailers, RequestEndOfMessage})
_OF_RESPONSES: Final = frozenset({ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage})
REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_WANTS_CERTIFICATE: Final = "the server asks for a client certificate"
_GAVE_NONE: Final = (
    f"{_WANTS_CERTIFICATE}, and the gate has none for it: a secret with `in: client_certificate` can be one"
)
_UNIDENTIFIED: Final = frozenset({400, 401, 403, 495, 496})  # nginx has the last two
_NO_BODY: Final = "a body came with a response that has none"


class Stream(Switched):
    """A request and its response on one client connection."""

    may_ask_again = False
    undecided = False  # the decision is being made
    settled = False  # ... and lets it out
    takes = 0  # bytes, by itself
    client_ended = False  # the client has ended its side, or left: which of both it is shows later
    has_leave = False  # the client, to send its body: from the gate
    informed = 0  # informational responses that came
    held: "Held | None" = None
    brokering: Brokering | None = None  # where the task has placeholders
    addresses: "tuple[Hop, ...]" = ()  # that may be dialled for it
    authorities: tuple[bytes, ...] = ()  # that its server may be verified with beside the host's
    if not TYPE_CHECKING:  # where it would be a method, and no state could be assigned
        client_state = server_state = HttpStream.state_errored  # once it is let go

    def _handle_event(self, event: "Event") -> "CommandGenerator[None]":
        kind = type(event)
        if kind in _OF_RESPONSES:
            steps = self.server_state(event)
        elif kind in _OF_REQUESTS:
            steps = self.client_state(event)
        elif kind is ClientEnded:
            steps = self.end_sending()
        elif kind is Revoked:
            steps = self.cut_off("the rules don't let it out any more")
        else:
            steps = super()._handle_event(event)
        broker = self.context.session.recorder.tenant.broker
        return steps if broker is None else self.brokered(steps, broker)

    def brokered(self, steps: "CommandGenerator[None]", broker: "Broker") -> "CommandGenerator[None]":
        """Let what is sent go through the broker; what it doesn't let pass ends the request."""
        if self.brokering is None:
            self.brokering = Brokering(broker, self.context.session.place)
        try:
            yield from self.brokering.through(steps, self.context.client)
        except Misused as misuse:
            yield from self.stop_misuse(misuse)

    def let_go(self) -> None:
        """Refer to itself no more: it is dropped, and all that it took is freed as soon as nobody is at it."""
        del self.client_state, self.server_state
        self.context.layers.clear()

    def is_of(self, revoked: Revoked) -> bool:
        """Whether this is one of the requests that are to end."""
        return self.settled and self.flow.id in revoked.flows

    def state_wait_for_request_headers(self, event: RequestHeaders) -> "CommandGenerator[None]":
        """Have the request decided; then answer it ourselves, or pass its head on."""
        flow = self.flow = flow_of(self.context.client, self.context.server)
        flow.request = event.request
        self.bodiless = event.end_stream
        # HTTP/2 may say with an empty frame of its own that there is no body. Nobody waits for that here: what doesn't
        # say so with its head counts as one that has a body, or a client could keep it open until it is let out
        flow.metadata[BODY] = not event.end_stream and event.request.headers.get("content-length") != "0"
        yield from self.decide()
        if (held := flow.metadata.get(HELD)) and flow.response is None and not self.settled:
            self.held = held
            self.client_state = self.state_hold
            yield from self.go_on()
        elif self.settled:
            yield from self.begin()

    def decide(self) -> "CommandGenerator[None]":
        """Ask for the decision; a refusal is answered at once."""
        self.undecided = True  # and until it is there, no more is read than fits
        yield from checkpoints(self.context.session.look_through(self.flow.id, head_of(self.flow.request)))
        yield HttpRequestHeadersHook(self.flow)
        self.undecided = False
        if (yield from self.check_killed(emit_error_hook=True)):
            return
        if self.flow.response is not None:
            if self.request_is_whole() or not self.flow.metadata.get(READ_ON, False):
                yield from self.answer(self.flow.response)
        elif ADDRESSES in self.flow.metadata:
            self.settled = True

    def state_hold(self, event: RequestData | RequestTrailers | RequestEndOfMessage) -> "CommandGenerator[None]":
        """Keep what comes until it says enough to be decided, then pass it on, or nothing of it."""
        held = self.held
        assert held is not None
        if not (yield from checkpoints(held.taking(event, self.context.session))):
            return
        self.client_state = self.state_done if isinstance(event, RequestEndOfMessage) else self.state_sink
        if self.brokering is not None and held.content is not None:
            self.brokering.content = held.content
        try:
            yield from checkpoints(held.judging(self.context.session))
            yield from self.decide()
            if self.settled:
                yield from self.begin()  # and while its server is dialled it counts as held still
                for one in list(held.events):
                    if self.client_state == self.state_stream_request_body:
                        yield from self.state_stream_request_body(one)
        finally:
            held.let_go(self.context.session)
            self.held = None

    def state_sink(self, event: RequestData | RequestTrailers | RequestEndOfMessage) -> "CommandGenerator[None]":
        """Throw away what comes of a refused request, and answer when it is over."""
        if isinstance(event, RequestEndOfMessage) and self.flow.response is not None:
            self.client_state = self.state_done
            yield from self.answer(self.flow.response)

    def begin(self) -> "CommandGenerator[None]":
        """Pass the head on, to where it was decided that it may go."""
        flow = self.flow
        self.addresses, self.authorities = flow.metadata[ADDRESSES], flow.metadata[AUTHORITIES]
        place = self.context.session.place
        data = flow.request.data
        data.host, data.port = str(place.target), place.port
        data.scheme = b"https" if place.tls else b"http"
        self.client_state = self.state_stream_request_body
        self.server_state = self.state_wait_for_response_headers
        if not (yield from self.make_server_connection()):
            return
        yield from self.go_on()
        if not self.bodiless:
            self.outgoing = self.context.session.outgoing(flow.id, head_of(flow.request))
        yield SendHttp(RequestHeaders(self.stream_id, flow.request, self.bodiless), self.context.server)

    def go_on(self) -> "CommandGenerator[None]":
        """Let a client go on that waits for it (RFC 9110 section 10.1.1); its server isn't asked any more."""
        request = self.flow.request
        if "expect" not in request.headers:
            return
        del request.headers["expect"]
        if not self.bodiless and not request.is_http10:
            self.has_leave = True
            go_on = http.Response.make(100)
            go_on.headers.clear()
            yield SendHttp(ResponseHeaders(self.stream_id, go_on), self.context.client)

    def may_use(self, *addresses: "Hop") -> bool:
        """Whether a connection that leads to one of these may carry this request."""
        return all(address in self.addresses for address in addresses)

    def may_trust(self, authorities: tuple[bytes, ...]) -> bool:
        """Whether a connection that was verified with these, too, may carry this request."""
        return set(authorities) <= set(self.authorities)

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
        if not (yield from checkpoints(self.context.session.may_go(self.flow.id, connection.dialled))):
            yield from self.cut_off("the rules don't let it out any more")
            return False
        self.may_ask_again = connection.used and self.bodiless and request.method in REPEATABLE
        connection.used = True
        return True

    def state_stream_request_body(
        self, event: RequestData | RequestTrailers | RequestEndOfMessage
    ) -> "CommandGenerator[None]":
        """Pass a piece of the request on."""
        session = self.context.session
        if isinstance(event, RequestTrailers):
            event.trailers = http.Headers([field for field in event.trailers.fields if session.may_trail(field[0])])
            if not event.trailers:
                return
        if not isinstance(event, RequestEndOfMessage):
            exchange = session.exchange(self.flow.id)
            if exchange is None or not exchange.may_send(_size(event)):
                yield from self.cut_off()
                return
        else:
            self.client_state = self.state_done
        try:
            pieces = [event] if self.outgoing is None else (yield from checkpoints(self.outgoing.through(event)))
        except Leaking as leak:
            yield from self.stop_leak(leak)
            return
        if self.is_revoked():
            yield from self.cut_off("the rules don't let it out any more")
            return
        for piece in pieces:
            yield SendHttp(piece, self.context.server)
        if self.client_state == self.state_done == self.server_state:
            yield from self.flow_done()

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> "CommandGenerator[None]":
        """Pass the response's head on."""
        response = self.flow.response = event.response
        if is_relayed(self.context.server) and (refused := answered_by_proxy(response, self.context.server)):
            yield ResetConnection(self.context.server, at_once=True)
            yield from self.fail(Reason.UPSTREAM_FAILED, refused)
            return
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS and self.switches(response):
            self.server_state = self.state_switch
            self.answered(response, None)
            yield SendHttp(ResponseHeaders(self.stream_id, response, event.end_stream), self.context.client)
            return
        if problem := what_is_wrong(response):
            yield SendHttp(RequestProtocolError(self.stream_id, problem, ErrorCode.CANCEL), self.context.server)
            detail = Unreadable(f"the server's response can't be passed on: {problem}")
            yield from self.fail(Reason.UPSTREAM_FAILED, detail)
            return
        if is_informational(response):
            yield from self.announce(response)
            return
        if response.status_code == HTTPStatus.NO_CONTENT:
            response.headers.pop("content-length", None)  # there is none to have a length (RFC 9110 section 8.6)
        self.answered(response, body_length(self.flow.request, response))
        yield SendHttp(ResponseHeaders(self.stream_id, response, event.end_stream), self.context.client)
        self.server_state = self.state_stream_response_body

    def announce(self, response: http.Response) -> "CommandGenerator[None]":
        """Pass on an informational response (RFC 9110 section 15.2), but not a leave that the client has already."""
        self.informed += 1
        if self.informed > MOST_INFORMATIONAL:
            detail = Unreadable("the response can't be read: there is no end of informational responses")
            yield SendHttp(RequestProtocolError(self.stream_id, detail, ErrorCode.CANCEL), self.context.server)
            yield from self.fail(Reason.UPSTREAM_FAILED, detail)
            return
        if self.flow.request.is_http10 or (response.status_code == HTTPStatus.CONTINUE and self.has_leave):
            return
        exchange = self.context.session.exchange(self.flow.id)
        if exchange is None or not exchange.may_receive(_size_of(response.headers.fields)):
            yield from self.cut_off()
            return
        yield SendHttp(ResponseHeaders(self.stream_id, announced(response)), self.context.client)

    def is_unidentified(self) -> bool:
        """Whether the server has asked for a client certificate, and got none."""
        server = self.context.server
        return isinstance(server, Far) and server.unidentified

    def answered(self, response: http.Response, length: int | None) -> None:
        """Note what its client hears, for whatever ends it."""
        if (exchange := self.context.session.exchange(self.flow.id)) is not None:
            exchange.answered(response.status_code, length)

    def state_stream_response_body(
        self, event: ResponseData | ResponseTrailers | ResponseEndOfMessage
    ) -> "CommandGenerator[None]":
        """Pass a piece of the response on."""
        if isinstance(event, ResponseTrailers):
            fields = [field for field in event.trailers.fields if may_trail(field[0])]
            if self.context.client.alpn == HTTP2:
                fields = [(name.lower(), value) for name, value in fields]
            event.trailers = http.Headers(fields)
            if not event.trailers:
                return
        if isinstance(event, ResponseData) and has_no_body(self.flow.request, self.flow.response):
            # HTTP/2 has frames for it; to an HTTP/1 client it would be the next response (RFC 9112 section 6.3)
            yield SendHttp(RequestProtocolError(self.stream_id, _NO_BODY, ErrorCode.CANCEL), self.context.server)
            error = ResponseProtocolError(self.stream_id, _NO_BODY, ErrorCode.GENERIC_SERVER_ERROR)
            yield from self.handle_protocol_error(error)
            return
        if not isinstance(event, ResponseEndOfMessage):
            exchange = self.context.session.exchange(self.flow.id)
            if exchange is None or not exchange.may_receive(_size(event)):
                yield from self.cut_off()
                return
            yield SendHttp(event, self.context.client)
            return
        assert self.flow.response
        status = self.flow.response.status_code
        detail = _GAVE_NONE if status in _UNIDENTIFIED and self.is_unidentified() else ""
        if self.client_ended and ends_with_connection(self.flow.request, self.flow.response):
            self.context.session.left(self.flow.id)  # nobody can tell whether the server has said all that it had to
        self.context.session.complete(self.flow.id, status, detail=detail)
        self.server_state = self.state_done
        if self.client_state == self.state_done:
            yield from self.flow_done()
        elif self.client_state == self.state_stream_request_body:
            yield from self.end_early()

    def end_sending(self) -> "CommandGenerator[None]":
        """Tell the server, too, that nothing more comes: what it makes of that is its own."""
        self.client_ended = True
        server = self.context.server
        if self.settled and isinstance(server, Far) and server.connected and not is_relayed(server):
            yield commands.CloseTcpConnection(server, half_close=True)

    def ask_again(self) -> "CommandGenerator[None]":
        """Send the request on another connection: this one ended while it was being used again.

        The client can't know: its own connection is still open. Only what may be repeated is (RFC 9110 section 9.2.2).
        """
        if (yield from self.make_server_connection()):
            self.may_ask_again = False
            exchange = self.context.session.exchange(self.flow.id)
            if exchange is None or not exchange.may_repeat(head_of(self.flow.request).size):
                yield from self.cut_off()
                return
            yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=True), self.context.server)
            if self.client_state == self.state_done:
                yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> "CommandGenerator[None]":
        """Answer for a server that broke off before its response; else break off on the other side too."""
        from_server = isinstance(event, ResponseProtocolError)
        if self.held is not None:
            self.held.let_go(self.context.session)
            self.context.session.abandon(self.flow.id)
        if from_server and self.client_ended:
            self.context.session.left(self.flow.id)  # it ended as the client did
        if from_server and self.server_state == self.state_wait_for_response_headers:
            if self.may_ask_again and not self.client_ended and not isinstance(event.message, Unreadable):
                yield from self.ask_again()
            elif self.is_unidentified():  # TLS 1.3 says so only behind the handshake
                yield from self.fail(Reason.CLIENT_CERTIFICATE, f"{_WANTS_CERTIFICATE}, and broke off")
            else:
                yield from self.fail(Reason.UPSTREAM_FAILED, event.message)
            return
        if from_server:
            self.context.session.complete(self.flow.id, None, Outcome.FAILED, Reason.UPSTREAM_FAILED)
        else:
            self.context.session.left(self.flow.id)
        yield from super().handle_protocol_error(event)


def _size(event: RequestData | RequestTrailers | ResponseData | ResponseTrailers) -> int:
    """Return how many bytes a piece of a message has: trailers are written as a head's fields are."""
    if isinstance(event, RequestData | ResponseData):
        return len(event.data)
    return _size_of(event.trailers.fields)


def _size_of(fields: "tuple[Field, ...]") -> int:
    return sum(len(name) + len(value) + 4 for name, value in fields)
