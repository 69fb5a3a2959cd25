"""HTTP/1 towards both sides: mitmproxy's, with one strict reading of a head (`http1_heads`), limits, trailers and cuts.

mitmproxy has no limit on a head, takes an informational response for the final one, crashes on trailers, forwards an
HTTP/2 body without a length, and ends a broken transfer like a whole one; not here.
"""

from typing import TYPE_CHECKING, Final

import h11
from h2.errors import ErrorCodes
from h11._readers import ContentLengthReader
from hyperframe.frame import GoAwayFrame, SettingsFrame
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server, make_body_reader

from proxy.inspection.chunks import Chunks
from proxy.inspection.direct import Direct
from proxy.inspection.http1_heads import (
    UNREAD,
    is_bodiless,
    is_chunked,
    is_informational,
    is_last,
    parse_head,
    response_heads,
    split_head,
)
from proxy.inspection.messages import closing, request_of
from proxy.inspection.relaying import asked_of_proxy, is_relayed
from proxy.inspection.responses import MOST_INFORMATIONAL, Unreadable
from proxy.inspection.signals import Checkpoint, ClientEnded, ResetConnection, Unspoken
from proxy.request.request_head import NOTHING, Head, Unclear, body_size
from rules.verdicts import Reason

if TYPE_CHECKING:
    from mitmproxy.proxy.layer import CommandGenerator
    from mitmproxy.proxy.layers.http._http1 import TBodyReader

    from proxy.inspection.context import GateContext

MOST_LINE: Final = 64 * 1024  # of what can't be used before it is whole: a chunk's header, trailers
# Methods whose bodies mean nothing (RFC 9110 section 9.3): some servers take one for the next request, and that was not
# decided. Where the connection is to end, there is none (CL.0)
BODILESS: Final = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"})
MOST_AHEAD: Final = 64 * 1024  # of pipelined requests that wait
HEADS_AT_ONCE: Final = 8  # pipelined requests that are begun with before everybody else has had a turn

# What a client begins with that takes HTTP/2 for settled, cut where a head ends (RFC 9113 section 3.4)
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n", b"SM\r\n\r\n"
_SPEAKS_LATER: Final = (
    "its client waits for the server to speak first, as in IMAP, POP and SMTP: that isn't HTTP, and can't be inspected"
)
_NOT_HTTP2: Final = "HTTP/2 without TLS is not read here: use HTTP/1.1 there, or HTTPS"


class _Http1(Direct, Http1Connection):
    """What both directions share."""

    withheld: Final = ()  # credit, which HTTP/2 has
    context: "GateContext"
    in_front: bool  # with a task's client, or behind, with a server
    body_reader: "TBodyReader | Chunks"  # type: ignore[assignment]  # mitmproxy knows only its own
    trailers: http.Headers | None = None  # to be sent after the last chunk

    def _handle_event(self, event: events.Event) -> "CommandGenerator[None]":
        if isinstance(event, HttpEvent):
            return self.send(event)
        if type(event) is events.DataReceived:
            if self.is_all_body(event.data):
                return self.pass_on(event.data)
            if self.state != self.passthrough:
                self.buf += event.data
        return self.state(event)

    def is_all_body(self, data: bytes) -> bool:
        """Whether a piece is nothing but the middle of a body whose length is known, and nothing else waits."""
        return (
            self.state == self.read_body
            and type(self.body_reader) is ContentLengthReader
            and 0 < len(data) < self.body_reader._remaining  # noqa: SLF001  h11 has no name for it
            and not self.buf
        )

    def pass_on(self, data: bytes) -> "CommandGenerator[None]":
        """Pass a piece of a body on as it is: through the buffer and the reader it would be copied three times."""
        assert self.stream_id is not None
        assert isinstance(self.body_reader, ContentLengthReader)
        self.body_reader._remaining -= len(data)  # noqa: SLF001
        yield ReceiveHttp(self.ReceiveData(self.stream_id, data))

    def read_body(self, event: events.Event) -> "CommandGenerator[None]":
        """Pass on what there is of a body. As mitmproxy's, with trailers, a limit, and cuts told from ends."""
        assert self.stream_id is not None
        while True:
            try:
                if isinstance(event, events.DataReceived):
                    part = self.body_reader(self.buf)
                    if part is None and len(self.buf) > MOST_LINE:
                        raise h11.RemoteProtocolError("a chunk's header or the trailers are too long")
                else:
                    assert isinstance(event, events.ConnectionClosed)
                    if self.was_cut():
                        raise h11.RemoteProtocolError("the connection was cut")
                    part = self.body_reader.read_eof()
            except h11.ProtocolError as error:
                yield commands.CloseConnection(self.conn)
                yield ReceiveHttp(
                    self.ReceiveProtocolError(self.stream_id, str(error), code=self.ReceiveProtocolError.code)
                )
                return
            if part is None:
                return
            if isinstance(part, h11.Data):
                if part.data:
                    yield ReceiveHttp(self.ReceiveData(self.stream_id, bytes(part.data)))
                    yield Checkpoint()
                continue
            assert isinstance(part, h11.EndOfMessage)
            if isinstance(self.body_reader, Chunks) and self.body_reader.trailers:
                kind = RequestTrailers if self.in_front else ResponseTrailers
                yield ReceiveHttp(kind(self.stream_id, http.Headers(self.body_reader.trailers)))
            yield ReceiveHttp(self.ReceiveEndOfMessage(self.stream_id))
            yield from self.mark_done(request=self.in_front, response=not self.in_front)
            return

    def mark_done(self, *, request: bool = False, response: bool = False) -> "CommandGenerator[None]":
        """Note what is done, and go on with the next request or end. As mitmproxy's, where that is plain to see."""
        asked, answer = self.request, self.response
        if not (self.request_done or request) or not (self.response_done or response):
            self.request_done, self.response_done = self.request_done or request, self.response_done or response
            if self.in_front and self.request_done:
                self.state = self.wait
            return
        last = None if asked is None or answer is None else is_last(asked, answer)
        if last is None:
            yield from super().mark_done(request=request, response=response)
        elif last:
            self.request_done = self.response_done = True
            yield commands.CloseConnection(self.conn)
            self.state = self.done
        else:
            self.request_done = self.response_done = False
            self.request = self.response = None
            self.stream_id = self.stream_id + 2 if self.in_front and self.stream_id is not None else None
            self.state = self.read_headers
            if self.buf:
                yield from self.state(events.DataReceived(self.conn, b""))

    def was_cut(self) -> bool:
        """Whether the connection was cut off rather than ended."""
        raise NotImplementedError

    def last_chunk(self, message: http.Message) -> bytes:
        """Return what ends a chunked body, with the trailers that came."""
        trailers, self.trailers = self.trailers, None
        if not is_chunked(message) or (isinstance(message, http.Response) and is_bodiless(message)):
            return b""
        return b"0\r\n" + (bytes(trailers) if trailers else b"") + b"\r\n"


class FrontHttp1(_Http1, Http1Server):
    """HTTP/1 with a task's client."""

    in_front = True
    turns = HEADS_AT_ONCE  # how many heads may still be read before the others have theirs
    puts_off = False  # there may be another one, and it is put off
    ended = False  # the client sends nothing more, and may wait for answers (RFC 9112 section 9.6)

    def mark_done(self, *, request: bool = False, response: bool = False) -> "CommandGenerator[None]":
        """Note what is done, and end behind the last answer to a client that sends nothing more."""
        yield from super().mark_done(request=request, response=response)
        if self.ended and self.state == self.read_headers and not self.buf:
            yield from self.leave()

    def leave(self) -> "CommandGenerator[None]":
        """End: everything that was asked for is answered, and half a head will never be whole."""
        self.state = self.done
        yield commands.CloseConnection(self.conn)

    def _handle_event(self, event: events.Event) -> "CommandGenerator[None]":
        if type(event) is Unspoken:
            return self.refuse(NOTHING, Unclear(_SPEAKS_LATER, Reason.PROTOCOL_MISMATCH, advice=UNREAD))
        return super()._handle_event(event)

    def read_headers(self, event: events.ConnectionEvent) -> "CommandGenerator[None]":
        """Read the next request's head, or refuse it, or put that off."""
        if isinstance(event, events.ConnectionClosed):
            self.ended = True
            if not self.puts_off or event.connection.state is ConnectionState.CLOSED:
                self.puts_off = False
                yield from self.leave()
            return
        self.puts_off = not self.turns and bool(self.buf)
        if self.puts_off:
            return
        head = NOTHING
        try:
            raw = split_head(self.buf)
            if raw is None:
                if self.ended:
                    yield from self.leave()
                return
            self.turns -= 1
            if raw == _PREFACE[0] and bytes(self.buf).startswith(_PREFACE[1]):
                yield from self.refuse_http2()
                return
            head = parse_head(raw)
            size = body_size(head)
        except Unclear as problem:
            yield from self.refuse(head, problem)
            return
        self.request = request_of(head)
        yield ReceiveHttp(RequestHeaders(self.stream_id, self.request, end_stream=size == 0))
        self.body_reader = Chunks() if size is None else make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)
        if self.ended and self.state == self.read_body:  # the rest of its body won't come
            yield from self.state(events.ConnectionClosed(self.conn))

    def wait(self, event: events.Event) -> "CommandGenerator[None]":
        """Wait for the end of the answer. In the clear a client may end its side behind its last request.

        TLS has an end of its own, which clients send when they leave.
        """
        half = isinstance(event, events.ConnectionClosed) and event.connection.state is not ConnectionState.CLOSED
        if not half or self.context.session.place.tls:
            yield from super().wait(event)
            return
        self.ended = True
        if not self.buf:
            yield ReceiveHttp(ClientEnded(self.stream_id))

    def refuse(self, head: Head, problem: Unclear) -> "CommandGenerator[None]":
        """Answer what can't be read, and read nothing more: where its body ends is anybody's guess."""
        self.state = self.done
        page = self.context.session.misread(head, problem)
        yield commands.SendData(self.conn, page.http1(body=head.method != b"HEAD"))
        yield commands.CloseConnection(self.conn)

    def refuse_http2(self) -> "CommandGenerator[None]":
        """Refuse HTTP/2 in the clear so that its client understands it: no settings, and the words in a GOAWAY."""
        self.state = self.done
        self.context.session.misread(NOTHING, Unclear(_NOT_HTTP2))
        goaway = GoAwayFrame(0, 0, ErrorCodes.HTTP_1_1_REQUIRED, f"exeat: {_NOT_HTTP2}".encode())
        yield commands.SendData(self.conn, SettingsFrame(0).serialize() + goaway.serialize())
        yield commands.CloseConnection(self.conn)

    def send(self, event: HttpEvent) -> "CommandGenerator[None]":
        """Send a part of a response."""
        if isinstance(event, ResponseTrailers):
            self.trailers = event.trailers
        elif isinstance(event, ResponseEndOfMessage):
            assert self.request
            assert self.response
            if self.request.method != "HEAD" and (end := self.last_chunk(self.response)):
                yield commands.SendData(self.conn, end)
            yield from self.mark_done(response=True)
        elif isinstance(event, ResponseProtocolError):
            complete = (self.response is None or self.response_done) and self.state != self.passthrough
            cut = ResetConnection(self.conn, at_once=event.code is ErrorCode.CANCEL)
            yield commands.CloseConnection(self.conn) if complete else cut
        else:
            yield from super().send(event)

    def was_cut(self) -> bool:
        """Whether the client was cut off; its bodies all have lengths, so nothing hangs on it."""
        return False

    def too_far_ahead(self) -> bool:
        """Whether the client has sent more pipelined requests than are kept."""
        return self.state == self.wait and len(self.buf) > MOST_AHEAD


class BackHttp1(_Http1, Http1Client):
    """HTTP/1 with a server."""

    in_front = False
    informed = 0  # informational responses before the one that is waited for

    def send(self, event: HttpEvent) -> "CommandGenerator[None]":
        """Send a part of a request."""
        if isinstance(event, RequestHeaders):
            request = event.request
            if is_relayed(self.context.server):
                event.request = asked_of_proxy(request, self.context)
            if not event.end_stream and request.data.method in BODILESS:
                event.request = closing(event.request)
            request = event.request
            if request.is_http2 and not event.end_stream and "content-length" not in request.headers:
                # HTTP/2 has lengths of its own; without one here the body would be read as the next request
                request.headers["transfer-encoding"] = "chunked"
            yield from super().send(event)
        elif isinstance(event, RequestTrailers):
            self.trailers = event.trailers
        elif isinstance(event, RequestEndOfMessage):
            assert self.request
            if end := self.last_chunk(self.request):
                yield commands.SendData(self.conn, end)
            yield from self.mark_done(request=True)
        elif isinstance(event, RequestProtocolError):
            yield ResetConnection(self.conn, at_once=event.code is ErrorCode.CANCEL)
        else:
            yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> "CommandGenerator[None]":
        """Read a response's head."""
        if isinstance(event, events.DataReceived) and self.request:
            yield from self.read_response(event)
        else:
            yield from super().read_headers(event)

    def read_response(self, event: events.DataReceived) -> "CommandGenerator[None]":
        """Read heads up to the final one, and pass on each."""
        assert self.request
        assert self.stream_id is not None
        try:
            heads, before_final = response_heads(self.buf, MOST_INFORMATIONAL - self.informed)
            self.informed += before_final
            final = heads.pop() if heads and not is_informational(heads[-1]) else None
            size = None if final is None else http1.expected_http_body_size(self.request, final)
        except ValueError as error:
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(
                ResponseProtocolError(
                    self.stream_id,
                    Unreadable(f"the response can't be read: {error}"),
                    ErrorCode.GENERIC_SERVER_ERROR,
                )
            )
            return
        for response in heads:
            yield ReceiveHttp(ResponseHeaders(self.stream_id, response, end_stream=False))
        if final is None:
            return
        self.informed, self.response = 0, final
        yield ReceiveHttp(ResponseHeaders(self.stream_id, final, end_stream=size == 0))
        self.body_reader = Chunks(lenient=True) if size is None else make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def was_cut(self) -> bool:
        """Whether the server was cut off: a reset, or TLS without its ending."""
        return self.context.server.cut
