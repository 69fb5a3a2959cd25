"""One request and its response: decides at its head, forwards it piece by piece, and ends it once.

A denied request is answered at once, and its body is not read. An upstream failure becomes a page with its cause. A
response that ends before its request ends the request. The gate sends a page only if no part of a response was sent;
after that, a reset tells the client that the response is incomplete (invariant 12).

Long or waiting work is a generator: it yields None where a turn may end, and `WAIT` for a decision or a connection.
Events for a waiting request are queued (`proxy.inspection.router`).
"""

from collections import deque
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy import http
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseProtocolError,
    ResponseTrailers,
)

from proxy.gate.block_page import page_head
from proxy.inspection.connection_ends import RequestsRevoked, ServerFailure, next_key
from proxy.inspection.http1 import ClientEnded
from proxy.inspection.stages.request_context import RequestContext
from proxy.inspection.stages.secret_scan import LONG_HEAD, scan_ahead
from proxy.inspection.stages.stage import RequestStoppedError
from proxy.inspection.stream_states import RequestState, ResponseState, handler_name
from proxy.inspection.tls import HTTP2
from proxy.inspection.upstream_proxy import request_to_proxy, response_from_proxy
from proxy.inspection.websocket import POLICY, REVOKED, Steps, Switched, close_frame
from proxy.request.messages import (
    GO_ON,
    MOST_INFORMATIONAL,
    ResponseHead,
    Unreadable,
    announced,
    checked_length,
    ends_with_connection,
    has_no_body,
)
from proxy.request.mitmproxy_messages import RequestHeaders, ResponseHeaders
from proxy.request.request_head import may_trail, size_of, values
from proxy.request.websocket_frames import agrees
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Generator

    from mitmproxy.proxy.events import Event
    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.gate.block_page import Page
    from proxy.inspection.connection_ends import ServerEnd
    from proxy.inspection.router import HttpRouter
    from proxy.inspection.stages.pending_body import PendingBody
    from proxy.inspection.stages.stage import RequestPart, ResponsePart

WAIT: Final = object()  # what a request yields that waits for a decision or a connection
REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_WANTS_CERTIFICATE: Final = "the server asks for a client certificate"
_NO_CERT: Final = (
    f"{_WANTS_CERTIFICATE}, and the gate has none for it: a secret with `in: client_certificate` can be one"
)
_UNIDENTIFIED: Final = frozenset({400, 401, 403, 495, 496})  # nginx has the last two
_LEAVES: Final = frozenset({RequestProtocolError, ClientEnded})  # a client that ends no longer waits for an approval
_NO_BODY: Final = "a body came with a response that has none"


class Stream:
    """A request and its response on one client connection."""

    def __init__(self, router: "HttpRouter", stream_id: int) -> None:
        self.http = router
        self.session = router.session
        self.client = router.client
        self.stream_id = stream_id
        self.server: ServerEnd | None = None  # once there is a connection for it
        self.request_state = RequestState.HEAD
        self.response_state = ResponseState.NOTHING
        self.undecided = False  # its decision is being made
        self.is_allowed = False  # its decision is made, and allows it
        self.takes = 0  # bytes of memory that the request itself uses
        self.waiting: Steps | None = None  # work to resume after a decision or a connection
        self.queue: deque[Event] = deque()  # events received meanwhile
        self.opened: ServerEnd | str = ""  # the connection it waited for, or the error
        self.request: RequestContext  # with its head
        self.response: ResponseHead | None = None  # of its server
        self.websocket: Switched | None = None  # once both sides have agreed
        self._bodiless = False  # the request has only a head
        self._pending_body: PendingBody | None = None
        self._client_ended = False  # the client has ended its side, or left: which of both it is shows later
        self._sent_continue = False  # the gate has sent 100 Continue
        self._informational = 0  # informational responses that came
        self._may_retry = False

    def handle(self, event: "Event") -> Steps | None:
        """Handle an event, after the work it waits for; returns work that takes long or waits."""
        kind = type(event)
        if self.waiting is not None:
            if self.undecided and kind in _LEAVES:
                self.session.approvals.end_for_client(self.request.key)  # itself it hears only when it is decided
            self.queue.append(event)
            return None
        name = handler_name(kind, self.request_state, self.response_state)
        steps: Steps | None = getattr(self, name)(event)
        return steps

    @property
    def is_waiting(self) -> bool:
        """Whether nothing can be sent yet: the request waits for its decision or a connection."""
        return self.undecided or self.waiting is not None

    # --- sending ---

    def to_client(self, event: "HttpEvent") -> None:
        """Send a part of the response, through the stages that receive it."""
        events = [event]
        for stage in self.request.receivers:
            events = [each for event_ in events for each in stage.receive(event_)]
        for each in events:
            self.http.send_to_client(each)

    def through_stages(self, part: "RequestPart") -> "Generator[object, None, list[RequestPart] | None]":
        """Return the parts to send in place of a part of the request; None: a stage or a review has ended it."""
        try:
            parts = yield from self.request.parts_to_send(part)
        except RequestStoppedError as stopped:
            self._stop(stopped)
            return None
        if self.request.by is not None:  # since it came: it may have waited for another turn
            self.cut_off(REVOKED)
            return None
        return parts

    def to_server(self, event: "HttpEvent") -> None:
        """Send a part of the request."""
        self.http.send_to_server(self.server, event)

    def _stop_server(self, why: str) -> None:
        self.to_server(RequestProtocolError(self.stream_id, why, ErrorCode.CANCEL))

    # --- the request ---

    def state_request_head(self, event: RequestHeaders) -> Steps:
        """Decide on the request; then send a page, or forward its head."""
        self._bodiless = event.end_stream
        head = event.request
        # HTTP/2 may say with a later frame that there is no body: a client could keep that back until it is allowed
        body = not event.end_stream and values(head, b"content-length") != ("0",)
        request = self.request = RequestContext(next_key(), head, body=body)
        yield from self._decide()
        if self.is_allowed:
            yield from self._send_head()
        elif request.pending_body is not None and self.request_state is RequestState.HEAD:
            self._pending_body = request.pending_body
            self.request_state = RequestState.HOLD
            self._send_continue()

    def _decide(self) -> Steps:
        """Wait for the decision; answer a denial at once."""
        request = self.request
        self.undecided = True  # and until it is there, no more is read than fits
        if request.head.size > LONG_HEAD:
            yield from scan_ahead(self.session, request)
        if not self.http.decide(self):
            yield WAIT
        self.undecided = False
        if self.queue and any(type(event) is RequestProtocolError for event in self.queue):  # its client has left
            self.session.complete(request, None, Outcome.FAILED)
            self.session.abandon(request)
            self.to_client(ResponseProtocolError(self.stream_id, "killed", ErrorCode.KILL))
            self.leave()
        elif request.refusal is not None:
            if self._is_whole() or not request.reads_on:
                self._answer(request.refusal)
            else:
                self.request_state = RequestState.SINK
        elif request.addresses is not None:
            self.is_allowed = True
            self.request_state, self.response_state = RequestState.BODY, ResponseState.HEAD

    def state_hold(self, event: "RequestPart") -> Steps:
        """Buffer the body until it suffices for a decision; then forward it, or nothing of it."""
        pending_body = self._pending_body
        assert pending_body is not None
        if not (yield from pending_body.take(event, self.session)):
            return
        self.request_state = RequestState.DONE if isinstance(event, RequestEndOfMessage) else RequestState.SINK
        try:
            yield from pending_body.decide_refs_ahead(self.session)
            yield from self._decide()
            if self.is_allowed:
                yield from self._send_head()  # its body stays counted as buffered until its server is dialed
                for one in list(pending_body.events):
                    if self.request_state is RequestState.BODY:
                        yield from self.state_request_body(one) or ()
        finally:
            pending_body.let_go(self.session)
            self._pending_body = None

    def revoke(self, _event: RequestsRevoked) -> None:
        """End a request that the rules now in force deny."""
        self.cut_off(REVOKED)

    def ignore(self, _event: "Event") -> None:
        """Ignore an event."""

    def state_sink(self, event: "Event") -> None:
        """Discard the rest of a denied request, and answer at its end."""
        if isinstance(event, RequestEndOfMessage) and self.request.refusal is not None:
            self.request_state = RequestState.DONE
            self._answer(self.request.refusal)

    def _send_head(self, *, again: bool = False) -> Steps:
        """Wait for a server connection and send the head on it; if there is none, answer with the reason.

        `again`: send it a second time, because a reused server connection ended under it. The client can't see that,
        as its own connection is open. Only requests that may be repeated are (RFC 9110 section 9.2.2).
        """
        request, session = self.request, self.session
        self._may_retry = False
        server: ServerEnd | str | None = self.http.connect(self)
        if server is None:
            yield WAIT
            server = self.opened
        if isinstance(server, str):
            self._fail(server.reason if isinstance(server, ServerFailure) else Reason.UPSTREAM_FAILED, server)
            return
        self.server = server
        if not (yield from session.may_go(request, server.dialled)):
            self.cut_off(REVOKED)
            return
        request.server_proven = server.proven
        if again and not request.may_repeat():
            self.cut_off()
            return
        self._may_retry = server.used and self._bodiless and not again and request.head.method in REPEATABLE
        server.used = True
        self._send_continue()
        head = request.head
        for stage in request.senders:
            head = stage.request_head(head)
        if server.relayed:
            head = request_to_proxy(head, server.origin, server.login)
        self.http.send_to_server(server, RequestHeaders(self.stream_id, head, self._bodiless))
        if self.request_state is RequestState.DONE:  # which it is of what is sent again
            self.http.send_to_server(server, RequestEndOfMessage(self.stream_id))

    def _send_continue(self) -> None:
        """Send 100 Continue to a client that waits for it (RFC 9110 section 10.1.1)."""
        head = self.request.head
        fields = [field for field in head.fields if field[0].lower() != b"expect"]
        if len(fields) == len(head.fields):
            return
        self.request.head = replace(head, fields=tuple(fields))
        if not self._bodiless and head.version != b"HTTP/1.0":
            self._sent_continue = True
            self.to_client(ResponseHeaders(self.stream_id, GO_ON))

    def state_request_body(self, event: "RequestPart") -> Steps | None:
        """Forward a piece of the request."""
        request, fields = self.request, []
        if isinstance(event, RequestTrailers):
            fields = [field for field in event.trailers.fields if self.session.may_trail(field[0])]
            event.trailers = http.Headers(fields)
            if not fields:
                return None
        if isinstance(event, RequestEndOfMessage):
            self.request_state = RequestState.DONE
        elif not request.may_send(len(event.data) if isinstance(event, RequestData) else size_of(fields)):
            self.cut_off()
            return None
        if request.senders and not self._bodiless:
            return self._send_through(event)
        if request.by is not None:  # since it came: it may have waited for its connection, or for another turn
            self.cut_off(REVOKED)
            return None
        self.to_server(event)
        if self.request_state is RequestState.DONE and self.response_state is ResponseState.DONE:
            self.http.drop(self)
        return None

    def _send_through(self, event: "RequestPart") -> Steps:
        parts = yield from self.through_stages(event)
        if parts is not None:
            for part in parts:
                self.to_server(part)
            if self.request_state is RequestState.DONE and self.response_state is ResponseState.DONE:
                self.http.drop(self)

    def end_sending(self, _event: ClientEnded) -> None:
        """Forward the end of the client's data."""
        self._client_ended = True
        server = self.server
        if self.is_allowed and server is not None and server.connected and not server.relayed:
            self.http.driver.end_sending(server)

    # --- the response ---

    def state_response_head(self, event: ResponseHeaders) -> None:
        """Forward the response's head."""
        request, response, server = self.request, event.response, self.server
        assert server is not None
        if server.relayed:
            answer = response_from_proxy(response, server.dialled, server.login)
            if isinstance(answer, str):
                self.http.driver.reset(server, at_once=True)
                self._fail(Reason.UPSTREAM_FAILED, answer)
                return
            response = answer
        self.response = response
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS and agrees(request.head, response):
            self.response_state = ResponseState.SWITCH
            request.note_response(response.status, None)
            self.to_client(event)
            return
        try:
            length = checked_length(request.head.method, response)
        except ValueError as problem:
            self._stop_server(str(problem))
            self._fail(Reason.UPSTREAM_FAILED, Unreadable(f"the server's response can't be passed on: {problem}"))
            return
        if response.status < HTTPStatus.OK:
            self._announce(response)
            return
        if response.status == HTTPStatus.NO_CONTENT:  # there is no body to have a length (RFC 9110 section 8.6)
            fields = [field for field in response.fields if field[0].lower() != b"content-length"]
            self.response = response = response._replace(fields=tuple(fields))
        request.note_response(response.status, length)
        event.response = response
        self.to_client(event)
        self.response_state = ResponseState.BODY

    def _announce(self, response: ResponseHead) -> None:
        """Forward an informational response (RFC 9110 section 15.2), but no second 100 Continue."""
        self._informational += 1
        if self._informational > MOST_INFORMATIONAL:
            detail = Unreadable("the response can't be read: there is no end of informational responses")
            self._stop_server(detail)
            self._fail(Reason.UPSTREAM_FAILED, detail)
            return
        if self.request.head.version == b"HTTP/1.0" or (response.status == HTTPStatus.CONTINUE and self._sent_continue):
            return
        if self.request.may_receive(size_of(response.fields)):
            self.to_client(ResponseHeaders(self.stream_id, announced(response)))
        else:
            self.cut_off()

    def state_response_body(self, event: "ResponsePart") -> Steps | None:
        """Forward a piece of the response."""
        request, response, fields = self.request, self.response, []
        assert response is not None
        if isinstance(event, ResponseEndOfMessage):
            self._end_response(response)
            return None
        if isinstance(event, ResponseTrailers):
            fields = [field for field in event.trailers.fields if may_trail(field[0])]
            if self.client.alpn == HTTP2:
                fields = [(name.lower(), value) for name, value in fields]
            event.trailers = http.Headers(fields)
            if not fields:
                return None
        elif has_no_body(request.head.method, response.status):
            # HTTP/2 has frames for it; to an HTTP/1 client it would be the next response (RFC 9112 section 6.3)
            self._stop_server(_NO_BODY)
            error = ResponseProtocolError(self.stream_id, _NO_BODY, ErrorCode.GENERIC_SERVER_ERROR)
            return self.handle_protocol_error(error)
        if request.may_receive(len(event.data) if isinstance(event, ResponseData) else size_of(fields)):
            self.to_client(event)
        else:
            self.cut_off()
        return None

    def _end_response(self, response: ResponseHead) -> None:
        request, status = self.request, response.status
        detail = _NO_CERT if status in _UNIDENTIFIED and self.server is not None and self.server.unidentified else ""
        if self._client_ended and ends_with_connection(request.head.method, response):
            self.session.complete_for_leaving_client(request)  # the response may be incomplete
        self.session.complete(request, status, detail=detail)
        self.response_state = ResponseState.DONE
        uploads = self.request_state is RequestState.BODY  # ... and a 401 or 413 to that is final
        if uploads:
            self._stop_server("the server has answered")
        self.to_client(ResponseEndOfMessage(self.stream_id))
        if uploads:
            self._finish()
        elif self.request_state is RequestState.DONE:
            self.http.drop(self)

    # --- WebSocket ---

    def state_switch(self, event: ResponseEndOfMessage) -> None:
        """Continue as a WebSocket: only frame boundaries are parsed, and stages see what is sent."""
        assert self.response
        self.websocket = Switched(self, self.http.driver, self.response)
        self.request_state, self.response_state = RequestState.PIPE, ResponseState.PIPE
        self.to_client(event)

    def state_pass(self, event: RequestData | RequestEndOfMessage | ResponseData | ResponseEndOfMessage) -> Steps:
        """Forward data of either side."""
        assert self.websocket is not None
        return self.websocket.pass_on(event)

    # --- how it ends ---

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Steps | None:
        """Answer for a server that broke off before its response; else break off the other side, too."""
        from_server = isinstance(event, ResponseProtocolError)
        if self._pending_body is not None:
            self._pending_body.let_go(self.session)
            self.session.abandon(self.request)
        if from_server and self._client_ended:
            self.session.complete_for_leaving_client(self.request)  # it ended as the client did
        if from_server and self.response_state is ResponseState.HEAD:
            if self._may_retry and not self._client_ended and not isinstance(event.message, Unreadable):
                return self._send_head(again=True)
            if self.server is not None and self.server.unidentified:  # TLS 1.3 says so only behind the handshake
                self._fail(Reason.CLIENT_CERTIFICATE, f"{_WANTS_CERTIFICATE}, and broke off")
            else:
                self._fail(Reason.UPSTREAM_FAILED, event.message)
            return None
        if from_server:
            self.session.complete(self.request, None, Outcome.FAILED, Reason.UPSTREAM_FAILED)
            if self.request_state is not RequestState.OVER:
                self.to_client(event)
        else:
            self.session.complete_for_leaving_client(self.request)
            if self.request_state in (RequestState.BODY, RequestState.DONE):
                self.to_server(event)
        self.leave()
        return None

    def _stop(self, stopped: RequestStoppedError) -> None:
        """End a request that a stage has stopped, with a page if nothing was sent to the client."""
        page, why = self.session.stop(self.request, stopped), str(stopped)
        if self.response_state is ResponseState.HEAD:
            self.session.complete(self.request, page.status)
            self._stop_server("it is refused")
            self._answer(page)
        else:
            self.cut_off(why)

    def cut_off(self, why: str = "a limit is used up") -> None:
        """Break off both sides: a limit is used up, or the rules have changed."""
        self.session.complete(self.request, None, Outcome.FAILED, Reason.LIMIT_EXCEEDED)
        if self.response_state is not ResponseState.DONE:
            self._stop_server(why)
        if self.websocket is not None and self.websocket.answered.between:  # a WebSocket has words for it
            self.to_client(ResponseData(self.stream_id, close_frame(POLICY, f"exeat: {why}")))
            self.http.driver.close(self.client)
        else:
            self.to_client(ResponseProtocolError(self.stream_id, why, ErrorCode.CANCEL))
        self._finish()

    def _fail(self, reason: Reason, detail: str) -> None:
        """Tell the client that an allowed request failed, before any response."""
        self._answer(self.session.fail(self.request, reason, detail))

    def _answer(self, page: "Page") -> None:
        """Send a response of our own, even if the request isn't complete."""
        # What comes after a request that can't be read can't be read either
        last = self.request.is_last or (self.client.alpn != HTTP2 and not self._is_whole())
        body = page.body if self.request.head.method.upper() != b"HEAD" else b""
        # Without one the head ends the stream: gRPC takes a status only from what comes last
        self.to_client(ResponseHeaders(self.stream_id, page_head(page, last=last), end_stream=not body))
        if body:
            self.to_client(ResponseData(self.stream_id, body))
        self.to_client(ResponseEndOfMessage(self.stream_id))
        self._finish()

    def _finish(self) -> None:
        """Stop handling this request; HTTP/1 can't skip the rest of it without closing."""
        close = self.client.alpn != HTTP2 and not self._is_whole()
        self.leave()
        if close:
            self.http.driver.close(self.client)

    def leave(self) -> None:
        """Ignore what still comes: the request has ended."""
        self.request_state, self.response_state = RequestState.OVER, ResponseState.OVER
        self.http.drop(self)

    def _is_whole(self) -> bool:
        """Whether the request is complete."""
        return self._bodiless or self.request_state is RequestState.DONE
