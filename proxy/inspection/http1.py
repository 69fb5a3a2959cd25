"""HTTP/1 codecs for client and server, without I/O: `receive` takes bytes, `next_event` returns events, as in h11.

A head is read in one strict way (`http1_heads`); heads, chunk lines and trailers have limits, and a cut is no end. A
codec reads the next head only when it is asked for its next event, never while it writes. States:

    HEAD  the next message's head is expected
    BODY  its body is expected
    WAIT  the message is complete, the other message of the exchange isn't
    PIPE  both sides have switched to another protocol (101): bytes in both directions
    DONE  nothing more is read, and the connection will be closed
"""

from collections import deque
from enum import Enum
from sys import maxsize
from typing import TYPE_CHECKING, Final

import h11
from mitmproxy import http
from mitmproxy.proxy.layers.http._base import HttpEvent
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

from proxy.request.chunked_body import Buffer, Chunks
from proxy.request.http1_heads import (
    UNREAD,
    is_chunked,
    is_informational,
    is_last,
    parse_head,
    response_heads,
    split_head,
)
from proxy.request.messages import MOST_INFORMATIONAL, Unreadable, body_size, closing, has_no_body
from proxy.request.mitmproxy_messages import RequestHeaders, ResponseHeaders
from proxy.request.request_head import NOTHING, Head, UnclearError
from proxy.request.request_head import body_size as request_size
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.request.messages import ResponseHead
    from proxy.request.request_head import Field

MOST_LINE: Final = 64 * 1024  # of what can't be used before it is whole: a chunk's header, trailers
# Methods whose bodies have no meaning (RFC 9110 section 9.3). Some servers parse such a body as the next request, which
# was never decided (CL.0); so the connection ends after it.
BODILESS: Final = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"})
MOST_AHEAD: Final = 64 * 1024  # bytes of pipelined requests that wait
SWITCHED: Final = 101

# The preface of an HTTP/2 client with prior knowledge, split where a head ends (RFC 9113 section 3.4)
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n", b"SM\r\n\r\n"
_SPEAKS_LATER: Final = (
    "its client waits for the server to speak first, as in IMAP, POP and SMTP: that isn't HTTP, and can't be inspected"
)
NOT_HTTP2: Final = "HTTP/2 without TLS is not read here: use HTTP/1.1 there, or HTTPS"


class State(Enum):
    """What a codec reads next."""

    HEAD = 1
    BODY = 2
    WAIT = 3
    PIPE = 4
    DONE = 5


class MisreadError(Exception):
    """Event: a request that can't be parsed; nothing after it is read, as its end is unknown."""

    def __init__(self, head: Head, problem: UnclearError, *, http2: bool = False) -> None:
        """`http2`: the client speaks HTTP/2, in the clear."""
        super().__init__(str(problem))
        self.head = head
        self.problem = problem
        self.http2 = http2


class ClientEnded(HttpEvent):
    """Event: the client has ended its side after a complete request, and may wait for the response."""


class Codec:
    """Base of both codecs."""

    faces_client: bool  # else it faces a server
    stream_id: int | None  # of the current request
    _data: type[RequestData | ResponseData]
    _trailers: type[RequestTrailers | ResponseTrailers]
    _end: type[RequestEndOfMessage | ResponseEndOfMessage]
    _error: type[RequestProtocolError | ResponseProtocolError]

    def __init__(self) -> None:
        self.state = State.HEAD
        self.buf = Buffer()
        self.ended = False  # the peer sends nothing more
        self.request: Head | None = None
        self.response: ResponseHead | None = None
        self.request_done = self.response_done = False
        self.found: deque[HttpEvent] = deque()  # parsed events that aren't returned yet
        self._cut = False  # the connection was cut off rather than ended
        self._chunks: Chunks | None = None  # reads a chunked body
        self._size = self._body_left = (
            0  # bytes of the body, all and still to come; `maxsize`: until the connection ends
        )
        self._unparsed = b""  # body bytes that bypass the buffer
        self._sends_chunks = False  # the sent message has a chunked body
        self._sent_trailers: http.Headers | None = None  # to be sent after the last chunk

    def receive(self, data: bytes) -> None:
        """Add received bytes. Take all events before the next call."""
        state = self.state
        if state is State.DONE:
            return
        if not self.buf and (
            state is State.PIPE or (state is State.BODY and not self._chunks and len(data) < self._body_left)
        ):
            self._unparsed = data  # through the buffer it would be copied three times
        else:
            self.buf += data

    def stop(self) -> None:
        """Stop reading, also bytes already received: the connection closes."""
        self.state = State.DONE
        self.found.clear()
        self.buf = Buffer()

    def next_event(self) -> HttpEvent | None:
        """Return the next event; None: incomplete, or nothing more (DONE). Raises MisreadError."""
        if self.found:
            return self.found.popleft()
        state = self.state
        if state is State.BODY:
            return self._next_of_body()
        if state is State.HEAD:
            return self._next_head()
        if state is State.PIPE:
            return self._next_of_pipe()
        return None

    def _next_head(self) -> HttpEvent | None:
        raise NotImplementedError

    def _begin_body(self, size: int | None, *, lenient: bool) -> None:
        """Read a body of `size` bytes next; None: chunked, -1: until the connection ends."""
        self.state = State.BODY
        self._chunks = Chunks(lenient=lenient) if size is None else None
        self._size = self._body_left = maxsize if size == -1 else size or 0

    def _next_of_body(self) -> HttpEvent | None:
        assert self.stream_id is not None
        try:
            if self._chunks is not None:
                return self._next_of_chunks(self._chunks, self.stream_id)
            if self._body_left and (data := self._unparsed or self.buf.take(self._body_left)):
                self._body_left -= len(data)
                self._unparsed = b""
                return self._data(self.stream_id, data)
            if self._body_left and self.ended:
                self._check_end()
        except h11.RemoteProtocolError as error:
            return self._fail_message(str(error))
        return None if self._body_left else self._end_message()

    def _next_of_chunks(self, chunks: Chunks, stream_id: int) -> HttpEvent | None:
        """Return the next event of a chunked body. Raises h11.RemoteProtocolError."""
        part = chunks(self.buf)
        if isinstance(part, h11.Data):
            return self._data(stream_id, bytes(part.data))
        if part is None:
            if len(self.buf) > MOST_LINE:
                raise h11.RemoteProtocolError("a chunk's header or the trailers are too long")
            if self.ended:
                self._check_end()
            return None
        self._chunks = None
        return self._trailers(stream_id, http.Headers(chunks.trailers)) if chunks.trailers else self._end_message()

    def _check_end(self) -> None:
        """Check that a body may end with its connection. Raises h11.RemoteProtocolError."""
        if self._cut:
            raise h11.RemoteProtocolError("the connection was cut")
        if self._chunks is not None:
            self._chunks.read_eof()
        if self._size != maxsize:
            raise h11.RemoteProtocolError(
                "peer closed connection without sending complete message body "
                f"(received {self._size - self._body_left} bytes, expected {self._size})"
            )
        self._body_left = 0

    def _fail_message(self, problem: str) -> HttpEvent:
        self.state = State.DONE
        assert self.stream_id is not None
        return self._error(self.stream_id, problem, self._error.code)

    def _end_message(self) -> HttpEvent:
        """Continue after the end of a message; the receiver of that event may start the next exchange."""
        assert self.stream_id is not None
        end = self._end(self.stream_id)
        if self.faces_client:
            self.request_done = True
        else:
            self.response_done = True
        self._continue_exchange()
        return end

    def _next_of_pipe(self) -> HttpEvent | None:
        assert self.stream_id is not None
        piece, self._unparsed = self._unparsed, b""
        if not piece and self.buf:
            piece = self.buf.take(len(self.buf))
        return self._data(self.stream_id, piece) if piece else None

    def _continue_exchange(self) -> None:
        """Continue after a complete message: wait for the other side, end, or read the next."""
        asked, answer = self.request, self.response
        if not (self.request_done and self.response_done) or asked is None or answer is None:
            self.state = State.WAIT if self.request_done is self.faces_client else self.state
        elif answer.status == SWITCHED:
            self.state = State.PIPE
            while self.buf.startswith((b"\r", b"\n")):
                self.buf.take(1)
        elif is_last(asked, answer):
            self.state = State.DONE
        else:
            self.state = State.HEAD
            self.request = self.response = None
            self.request_done = self.response_done = False
            self.stream_id = self.stream_id + 2 if self.faces_client and self.stream_id is not None else None

    def _last_chunk(self) -> bytes:
        """Return the last chunk with the trailers."""
        trailers = self._sent_trailers
        return b"0\r\n%b\r\n" % (bytes(trailers) if trailers else b"")


class ClientSideHttp1(Codec):
    """HTTP/1 codec for the client."""

    faces_client = True
    stream_id: int = 1
    _data, _trailers, _end, _error = RequestData, RequestTrailers, RequestEndOfMessage, RequestProtocolError

    def __init__(self, *, tls: bool) -> None:
        super().__init__()
        self._tls = tls

    def receive_end(self, *, cut: bool) -> None:
        """Handle the end of the client's data.

        Without TLS, a client may end its side after its last request and wait (RFC 9112 section 9.6). With TLS, clients
        send close_notify when they leave.
        """
        state = self.state
        if state is State.PIPE:
            self.found.append(RequestEndOfMessage(self.stream_id))
        elif state is State.HEAD:
            self.state = State.DONE  # an incomplete head
        elif state is State.BODY:
            self.ended = True
        elif state is State.WAIT and not (cut or self._tls):
            self.ended = True
            if not self.buf:
                self.found.append(ClientEnded(self.stream_id))
        elif state is State.WAIT:
            self.state = State.DONE
            left = RequestProtocolError(self.stream_id, "Client disconnected.", ErrorCode.CLIENT_DISCONNECTED)
            self.found.append(left)

    def give_up(self) -> MisreadError:
        """Stop; returns the error for a client that waits for its server to speak first."""
        self.state = State.DONE
        return MisreadError(NOTHING, UnclearError(_SPEAKS_LATER, Reason.PROTOCOL_MISMATCH, advice=UNREAD))

    def _next_head(self) -> HttpEvent | None:
        """Parse the next request's head, or reject it."""
        if not self.buf:
            if self.ended:
                self.state = State.DONE  # all requests have responses
            return None
        head = NOTHING
        try:
            raw = split_head(self.buf)
            if raw is None:
                if self.ended:
                    self.state = State.DONE
                return None
            if raw == _PREFACE[0] and self.buf.startswith(_PREFACE[1]):
                self.state = State.DONE
                raise MisreadError(NOTHING, UnclearError(NOT_HTTP2), http2=True)
            head = parse_head(raw)
            size = request_size(head)
        except UnclearError as problem:
            self.state = State.DONE
            raise MisreadError(head, problem) from problem
        self.request = head
        self._begin_body(size, lenient=False)
        return RequestHeaders(self.stream_id, head, end_stream=size == 0)

    def send(self, event: HttpEvent) -> bytes:
        """Return the bytes of a part of a response."""
        assert event.stream_id == self.stream_id
        kind = type(event)
        if kind is ResponseData:
            data: bytes = event.data  # type: ignore[attr-defined]  # `kind` says which event it is
            return _chunk_bytes(data) if self._sends_chunks and data else data
        if kind is ResponseHeaders:
            self.response = response = event.response  # type: ignore[attr-defined]
            self._sends_chunks, self._sent_trailers = is_chunked(response.fields), None
            return _message_bytes(b"%b %d %b" % (response.version, response.status, response.reason), response.fields)
        if kind is ResponseTrailers:
            self._sent_trailers = event.trailers  # type: ignore[attr-defined]
            return b""
        if kind is not ResponseEndOfMessage or self.request is None or self.response is None:
            raise RuntimeError(f"unexpected event {kind.__name__}")
        chunks = self._sends_chunks and not has_no_body(self.request.method, self.response.status)
        end = self._last_chunk() if chunks else b""
        self.response_done = True
        self._continue_exchange()
        return end

    @property
    def is_complete(self) -> bool:
        """Whether none or all of a response was sent, so that the connection may just end."""
        return (self.response is None or self.response_done) and self.state is not State.PIPE


class ServerSideHttp1(Codec):
    """HTTP/1 codec for a server."""

    faces_client = False
    stream_id: int | None = None
    _data, _trailers, _end, _error = ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError

    def __init__(self) -> None:
        super().__init__()
        self._informational_count = 0  # informational responses before the one that is waited for

    def receive_end(self, *, cut: bool) -> None:
        """Handle the end of the data. `cut`: by a reset, or without TLS's close_notify."""
        state, self.ended, self._cut = self.state, True, cut
        if state is State.PIPE:
            assert self.stream_id is not None
            self.found.append(ResponseEndOfMessage(self.stream_id))
        elif state is State.HEAD:
            self.state = State.DONE
            if self.stream_id is not None:
                # Quote no received data: masking doesn't know secrets in Python's notation
                where = " within the head of its response" if self.buf else ""
                self.found.append(self._fail_message(f"server closed connection{where}"))

    def _next_head(self) -> HttpEvent | None:
        """Parse heads up to the final one."""
        if not self.buf:
            return None
        if self.request is None or self.stream_id is None:
            self.state = State.DONE  # data without a request
            return None
        try:
            heads, before_final = response_heads(self.buf, MOST_INFORMATIONAL - self._informational_count)
            self._informational_count += before_final
            final = heads.pop() if heads and not is_informational(heads[-1].status) else None
            size = None if final is None else body_size(self.request.method, final)
        except ValueError as error:
            return self._fail_message(Unreadable(f"the response can't be read: {error}"))
        for response in heads:
            self.found.append(ResponseHeaders(self.stream_id, response, end_stream=False))
        if final is not None:
            self._informational_count, self.response = 0, final
            self._begin_body(size, lenient=True)
            self.found.append(ResponseHeaders(self.stream_id, final, end_stream=size == 0))
        return self.found.popleft() if self.found else None

    def send(self, event: HttpEvent) -> bytes:
        """Return the bytes of a part of a request."""
        kind = type(event)
        if kind is RequestHeaders:
            return self._send_head(event)  # type: ignore[arg-type]
        assert event.stream_id == self.stream_id
        if kind is RequestData:
            data: bytes = event.data  # type: ignore[attr-defined]  # `kind` says which event it is
            return _chunk_bytes(data) if self._sends_chunks and data else data
        if kind is RequestTrailers:
            self._sent_trailers = event.trailers  # type: ignore[attr-defined]
            return b""
        if kind is not RequestEndOfMessage:
            raise RuntimeError(f"unexpected event {kind.__name__}")
        end = self._last_chunk() if self._sends_chunks else b""
        self.request_done = True
        if self.response_done:
            self._continue_exchange()
        return end

    def _send_head(self, event: RequestHeaders) -> bytes:
        request = event.request
        assert self.stream_id is None
        self.stream_id = event.stream_id
        if not event.end_stream and request.method in BODILESS:
            request = closing(request)
        self.request = request
        authority, fields, version = request.authority, request.fields, request.version
        if version == b"HTTP/2.0":
            if not event.end_stream:
                fields = _with_body_framing(fields)
            version, authority, fields = b"HTTP/1.1", b"", _as_http1(authority, fields)
        self._sends_chunks, self._sent_trailers = is_chunked(fields), None
        target = b"%b://%b%b" % (request.scheme, authority, request.path) if authority else request.path
        return _message_bytes(b"%b %b %b" % (request.method, target, version), fields)


def _with_body_framing(fields: "tuple[Field, ...]") -> "tuple[Field, ...]":
    """Return an HTTP/2 request's fields with a length or chunked coding for HTTP/1."""
    names = {name.lower() for name, _ in fields}
    if b"content-length" in names:
        return fields
    other_fields = (field for field in fields if field[0].lower() != b"transfer-encoding")
    return (*other_fields, (b"transfer-encoding", b"chunked"))


def _as_http1(authority: bytes, fields: "tuple[Field, ...]") -> "tuple[Field, ...]":
    """Return an HTTP/2 request's fields for HTTP/1: with `Host`, and one `Cookie` (RFC 9113 section 8.2.3)."""
    if authority and not any(name.lower() == b"host" for name, _ in fields):
        fields = ((b"Host", authority), *fields)
    cookies = [value for name, value in fields if name.lower() == b"cookie"]
    if len(cookies) < 2:
        return fields
    joined, found = b"; ".join(cookies), False
    written: list[Field] = []
    for name, value in fields:
        if name.lower() != b"cookie":
            written.append((name, value))
        elif not found:
            found = True
            written.append((name, joined))
    return tuple(written)


def _chunk_bytes(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _message_bytes(first_line: bytes, fields: "tuple[Field, ...]") -> bytes:
    return b"%b\r\n%b\r\n" % (first_line, b"".join([b"%b: %b\r\n" % field for field in fields]))
