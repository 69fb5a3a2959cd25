"""HTTP/2 for client and server: mitmproxy's layers with end-to-end flow control and limits.

mitmproxy opens every window to two gigabytes and sends window updates at once, so the gate would buffer the whole
download of a client that stops reading. This module withholds a stream's window updates (RFC 9113 section 5.2) while
its data can't be forwarded. Other streams don't wait for it.
"""

import re
from typing import TYPE_CHECKING, Final

import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.stream
from hyperframe.frame import DataFrame, WindowUpdateFrame
from mitmproxy.proxy import commands
from mitmproxy.proxy.events import DataReceived
from mitmproxy.proxy.layers.http import _events as mitmproxy_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http2 import (
    Http2Client,
    Http2Connection,
    Http2Server,
    StreamState,
    split_pseudo_headers,
)
from mitmproxy.proxy.layers.http._http_h2 import SendH2Data

from proxy.inspection.connection_ends import LayerContext
from proxy.inspection.frames import BoundedH2Connection, MalformedMessage
from proxy.request.http1_heads import one_length
from proxy.request.messages import ResponseHead, Unreadable
from proxy.request.mitmproxy_messages import RequestHeaders, ResponseHeaders, request_of, response_of
from proxy.request.request_head import NOTHING, Head, UnclearError
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from h2.config import H2Configuration
    from hyperframe.frame import Frame, GoAwayFrame
    from mitmproxy.proxy.events import Event
    from mitmproxy.proxy.layer import CommandGenerator

    from proxy.inspection.connection_ends import ClientEnd, ServerEnd
    from proxy.inspection.session import Session

MIB: Final = 1 << 20
CLIENT_STREAM_WINDOW, CLIENT_CONNECTION_WINDOW = MIB, 4 * MIB  # only a socket is between gate and client
SERVER_STREAM_WINDOW, SERVER_CONNECTION_WINDOW = 4 * MIB, 16 * MIB  # a stream fills 300 Mbit/s at 100 ms
TAKEN_IN: Final = (
    64 * MIB
)  # bytes of an upload accepted after its response: some clients read nothing before they can send all
JOINED: Final = 16 * 1024  # bytes up to which small pieces are joined: every peer accepts frames of that size
REMEMBERED: Final = 1000  # streams of one connection to a server
_PSEUDO: Final = b":method", b":scheme", b":authority", b":path"  # of a request (RFC 9113 section 8.3.1)
_STATUS: Final = re.compile(rb"[1-9][0-9]{2}")
RESETS: Final = 200  # streams that a client may reset beyond half of its requests: CVE-2023-44487, rapid reset


class Checkpoint(commands.Command):
    """A point in long work where a turn may end and the work continue in the next (`slices`)."""


class Windowed(BoundedH2Connection):
    """h2 connection state with bounded flow-control windows."""

    def __init__(self, config: "H2Configuration", stream: int, connection: int) -> None:
        super().__init__(config)
        self._connection_window = connection
        self._kept = 0
        self._deferred_resets: dict[
            int, int
        ] = {}  # error codes of streams that are reset once their buffered data is sent
        self.local_settings.initial_window_size = stream
        self.local_settings.acknowledge()  # or h2 would announce the old settings

    def initiate_connection(self) -> None:
        """Send the preface, and open the connection's window to its maximum."""
        h2.connection.H2Connection.initiate_connection(self)
        self.increment_flow_control_window(self._connection_window - self.inbound_flow_control_window)

    def send_data(  # type: ignore[override]  # mitmproxy takes bytes alone, too
        self,
        stream_id: int,
        data: bytes,
        end_stream: bool = False,  # noqa: FBT001, FBT002  h2's own
        pad_length: None = None,
    ) -> None:
        """Send data, or buffer it until the window opens; small pieces are joined."""
        if len(data) <= self.max_outbound_frame_size:  # else h2 calls this again with pieces
            self._kept += len(data)
        waiting = self.stream_buffers.get(stream_id)
        if waiting and len(waiting[-1].data) + len(data) <= JOINED and not waiting[-1].end_stream:
            waiting[-1] = SendH2Data(waiting[-1].data + data, end_stream)
        else:
            super().send_data(stream_id, data, end_stream, pad_length)

    def _prepare_for_sending(self, frames: "list[Frame]") -> None:
        super()._prepare_for_sending(frames)
        for frame in frames:
            if isinstance(frame, DataFrame):
                self._kept -= len(frame.data)

    @property
    def kept(self) -> int:
        """Upper bound of the bytes that wait for the peer's window."""
        if not self.stream_buffers:
            self._kept = 0
        return self._kept

    def weigh(self) -> int:
        """Return the exact number of bytes that wait for the peer's window."""
        self._kept = sum(len(piece.data) for waiting in self.stream_buffers.values() for piece in waiting)
        return self._kept

    def spare_the_others(self) -> None:
        """Flush streams when the connection's window opens, which h2 does only for a stream's own window."""
        if self.inbound_flow_control_window == 0:
            given = self._inbound_flow_control_window_manager.process_bytes(0)
            if given:
                frame = WindowUpdateFrame(0)
                frame.window_increment = given
                self._prepare_for_sending([frame])

    def reset_stream(self, stream_id: int, error_code: int = 0) -> None:
        """Reset a stream; after a reset of the other side, send earlier data first."""
        if error_code == h2.errors.ErrorCodes.INTERNAL_ERROR and self.waits(stream_id):
            self._deferred_resets[stream_id] = error_code
        else:
            self._deferred_resets.pop(stream_id, None)
            super().reset_stream(stream_id, error_code)

    def stream_window_updated(self, stream_id: int) -> bool:
        """Send the data that waited for this window."""
        sent = super().stream_window_updated(stream_id)
        if (
            self._deferred_resets
            and not self.waits(stream_id)
            and (code := self._deferred_resets.pop(stream_id, None)) is not None
        ):
            super().reset_stream(stream_id, code)
        return sent

    def waits(self, stream_id: int) -> bool:
        """Whether data of this stream waits for the peer's window."""
        return bool(self.stream_buffers.get(stream_id))

    def has_ended(self, stream_id: int) -> bool:
        """Whether both sides of a stream have ended in order, without a reset."""
        return self._stream_is_closed_by_end(stream_id)


class Leaving(Windowed):
    """h2 connection state where streams under way continue after a GOAWAY (RFC 9113 section 6.8)."""

    def _receive_goaway_frame(self, frame: "GoAwayFrame") -> "tuple[list[Frame], list[h2.events.Event]]":
        if frame.error_code != h2.errors.ErrorCodes.NO_ERROR:
            return super()._receive_goaway_frame(frame)
        left = h2.events.ConnectionTerminated()  # h2 would reject every later frame
        left.error_code, left.last_stream_id = h2.errors.ErrorCodes.NO_ERROR, frame.last_stream_id
        return [], [left]


class _Http2(Http2Connection):
    """Base of both HTTP/2 layers."""

    h2_conn: Windowed
    stuck: "Callable[[int], bool]"  # whether data of a stream (by its id here) can't be forwarded
    withheld: dict[int, int]  # bytes of credit, by stream

    def _handle_event(self, event: "Event") -> "CommandGenerator[None]":
        if type(event) is DataReceived:
            for piece in self.h2_conn.incoming_buffer.pieces(event.data):
                yield from super()._handle_event(DataReceived(self.conn, piece))
                if self.is_done:
                    return
                yield Checkpoint()
        elif isinstance(event, RequestHeaders):
            request = request_of(event.request)
            yield from super()._handle_event(
                mitmproxy_events.RequestHeaders(event.stream_id, request, event.end_stream)
            )
        elif isinstance(event, ResponseHeaders):
            response = response_of(event.response)
            yield from super()._handle_event(
                mitmproxy_events.ResponseHeaders(event.stream_id, response, event.end_stream)
            )
        else:
            yield from super()._handle_event(event)

    @property
    def is_done(self) -> bool:
        """Whether the connection has ended: mitmproxy then replaces `_handle_event` by `done`."""
        return "_handle_event" in self.__dict__

    def return_credit(self) -> "CommandGenerator[None]":
        """Send window updates for data that was forwarded meanwhile."""
        if self.is_done:  # h2 would refuse it
            self.withheld.clear()
            return
        for stream_id in [stream for stream in self.withheld if not self.stuck(stream)]:
            self.h2_conn.acknowledge_received_data(self.withheld.pop(stream_id), stream_id)
        if data := self.h2_conn.data_to_send():
            yield commands.SendData(self.conn, data)

    def handle_h2_event(self, event: h2.events.Event) -> "CommandGenerator[bool]":
        """Handle an event; returns whether the connection has ended. Differs from mitmproxy in window updates."""
        if isinstance(event, MalformedMessage):
            yield from self.break_off(event)
            return False
        if not isinstance(event, h2.events.DataReceived):
            return (yield from super().handle_h2_event(event))
        state = self.streams.get(event.stream_id)
        if state is StreamState.EXPECTING_HEADERS:
            yield from self.protocol_error("received a DATA frame before the headers")
            return True
        if state is StreamState.HEADERS_RECEIVED and event.data:
            yield ReceiveHttp(self.ReceiveData(event.stream_id, event.data))
        size = event.flow_controlled_length
        if state is not None and self.stuck(event.stream_id):
            self.withheld[event.stream_id] = self.withheld.get(event.stream_id, 0) + size
            self.h2_conn.spare_the_others()
        elif size:
            self.h2_conn.acknowledge_received_data(size, event.stream_id)
        return False

    def break_off(self, event: MalformedMessage) -> "CommandGenerator[None]":
        """Reset the one stream of a malformed message (RFC 9113 section 8.1.1)."""
        if not self.is_closed(event.stream_id):
            self.h2_conn.reset_stream(event.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
        if self.streams.pop(event.stream_id, None) is not None:
            problem = Unreadable(f"the message can't be read: {event.problem}")
            yield ReceiveHttp(self.ReceiveProtocolError(event.stream_id, problem, self.ReceiveProtocolError.code))


class ClientSideHttp2(_Http2, Http2Server):
    """HTTP/2 for the client."""

    def __init__(self, session: "Session", client: "ClientEnd", stuck: "Callable[[int], bool]") -> None:
        super().__init__(LayerContext(client))  # type: ignore[arg-type]  # what layers read of one
        self.session = session
        self.stuck = stuck
        self.withheld = {}
        self.h2_conn = Leaving(self.h2_conf, CLIENT_STREAM_WINDOW, CLIENT_CONNECTION_WINDOW)
        self._resets = 0
        self._answered: dict[
            int, int
        ] = {}  # streams with a complete response and an open request: bytes that are still accepted

    def _handle_event(self, event: "Event") -> "CommandGenerator[None]":
        yield from super()._handle_event(event)
        if isinstance(event, ResponseEndOfMessage) and self._is_sending(event.stream_id):
            self._answered[event.stream_id] = TAKEN_IN

    def _is_sending(self, stream_id: int) -> bool:
        """Whether a client has its whole response but is still sending its request."""
        stream = self.h2_conn.streams.get(stream_id)
        return stream is not None and stream.state_machine.state is h2.stream.StreamState.HALF_CLOSED_LOCAL

    def _stop_upload(self, stream_id: int) -> "CommandGenerator[None]":
        """Ask a client to stop sending: its response is complete (RFC 9113 section 8.1)."""
        if self._is_sending(stream_id):
            self.h2_conn.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            self.streams.pop(stream_id, None)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())

    def _count_late_upload(self, event: h2.events.DataReceived) -> "CommandGenerator[None]":
        """Count request data after a complete response, and stop it if that is too much."""
        self._answered[event.stream_id] -= event.flow_controlled_length
        if self._answered[event.stream_id] <= 0:
            del self._answered[event.stream_id]
            yield from self._stop_upload(event.stream_id)

    def handle_h2_event(self, event: h2.events.Event) -> "CommandGenerator[bool]":
        """Handle an event; returns whether the connection has ended."""
        if isinstance(event, h2.events.StreamReset | MalformedMessage):
            self._resets += 1
            if self._resets > RESETS + self.session.request_count // 2:
                self.session.misread(NOTHING, UnclearError("too many streams broken off", Reason.LIMIT_EXCEEDED))
                yield from self.protocol_error("too many streams broken off", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return True
        elif isinstance(event, h2.events.RequestReceived):
            yield from self._handle_request(event)
            return False
        elif isinstance(event, h2.exceptions.ProtocolError):
            flood = isinstance(event, h2.exceptions.DenialOfServiceError)
            reason = Reason.LIMIT_EXCEEDED if flood else Reason.AMBIGUOUS_REQUEST
            self.session.misread(NOTHING, UnclearError(str(event), reason))
        if isinstance(event, h2.events.StreamEnded):
            over = yield from self._end(event)
        else:
            over = yield from super().handle_h2_event(event)
        if self._answered:
            if isinstance(event, h2.events.DataReceived) and event.stream_id in self._answered:
                yield from self._count_late_upload(event)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self._answered.pop(event.stream_id, None)
        return over

    def _end(self, event: h2.events.StreamEnded) -> "CommandGenerator[bool]":
        """Forward the end of a request. A reset may arrive together with it, and is handled afterwards."""
        state = self.streams.get(event.stream_id)
        over = yield from super().handle_h2_event(event)
        if state is not None and not self.h2_conn.has_ended(event.stream_id):
            self.streams[event.stream_id] = (
                state  # mitmproxy drops streams that h2 has closed, and would send all of them
            )
        return over

    def _handle_request(self, event: h2.events.RequestReceived) -> "CommandGenerator[None]":
        """Forward a request's head; the decision checks it."""
        pseudo, headers = split_pseudo_headers(event.headers)
        method, scheme, authority, path = (pseudo.pop(name, b"") for name in _PSEUDO)
        head = Head(b"HTTP/2.0", method, scheme, authority, path, headers.fields)
        if pseudo:
            yield from self._send_denial(
                event.stream_id, head, UnclearError("there is no such pseudo-header in a request")
            )
            return
        self.streams[event.stream_id] = StreamState.HEADERS_RECEIVED
        yield ReceiveHttp(RequestHeaders(event.stream_id, head, end_stream=bool(event.stream_ended)))

    def break_off(self, event: MalformedMessage) -> "CommandGenerator[None]":
        """Reject an undecided request, or reset a decided one."""
        if event.stream_id in self.streams:
            yield from super().break_off(event)
        else:
            yield from self._send_denial(event.stream_id, NOTHING, UnclearError(event.problem))

    def _send_denial(self, stream_id: int, head: Head, problem: UnclearError) -> "CommandGenerator[None]":
        """Answer a request whose head can't be parsed; other streams go on."""
        page = self.session.misread(head, problem)
        if self.is_open_for_us(stream_id):
            fields = [(name.lower(), value) for name, value in page.headers]
            self.h2_conn.send_headers(stream_id, [(b":status", b"%d" % page.status), *fields])
            self.h2_conn.send_data(stream_id, b"" if head.method == b"HEAD" else page.body, end_stream=True)
        yield from self._stop_upload(stream_id)
        if data := self.h2_conn.data_to_send():
            yield commands.SendData(self.conn, data)


class ServerSideHttp2(_Http2, Http2Client):
    """HTTP/2 for a server."""

    draining = False  # the server accepts no more requests
    our_stream_id: dict[int, int]
    their_stream_id: dict[int, int]

    def __init__(self, client: "ClientEnd", server: "ServerEnd", stuck: "Callable[[int], bool]") -> None:
        super().__init__(LayerContext(client, server))  # type: ignore[arg-type]  # what layers read of one
        self.stuck = lambda ours: stuck(self.their_stream_id.get(ours, 0))
        self.withheld = {}
        self._failed_streams: list[int] = []  # queued client streams that no server will receive
        self.h2_conn = Leaving(self.h2_conf, SERVER_STREAM_WINDOW, SERVER_CONNECTION_WINDOW)
        self.h2_conn.local_settings.enable_push = 0
        self.h2_conn.local_settings.acknowledge()

    def _handle_event(self, event: "Event") -> "CommandGenerator[None]":
        if isinstance(event, RequestProtocolError) and event.stream_id in self.stream_queue:
            del self.stream_queue[event.stream_id]  # mitmproxy would send the whole request
            return
        if isinstance(event, RequestHeaders) and (ours := self.our_stream_id.pop(event.stream_id, None)) is not None:
            self.their_stream_id.pop(ours, None)  # the server reset it, and the request is sent again
        yield from super()._handle_event(event)
        while self._failed_streams:
            yield ReceiveHttp(
                ResponseProtocolError(
                    self._failed_streams.pop(0), "the server takes no more requests", ErrorCode.GENERIC_SERVER_ERROR
                )
            )
        if len(self.our_stream_id) > REMEMBERED:
            self._drop_ended_streams()

    def _fail_queued(self) -> None:
        """Fail streams that wait for their turn after a GOAWAY; mitmproxy would let them wait."""
        self._failed_streams += self.stream_queue
        self.stream_queue.clear()

    def close_connection(self, msg: str) -> "CommandGenerator[None]":
        """End the connection for all its streams."""
        self._fail_queued()
        yield from super().close_connection(msg)

    def _drop_ended_streams(self) -> None:
        """Drop the ids of ended streams, which mitmproxy would keep."""
        _ = self.h2_conn.open_outbound_streams  # h2 drops its own then
        open_streams = self.h2_conn.streams.keys() | self.streams.keys()
        self.our_stream_id = {theirs: ours for theirs, ours in self.our_stream_id.items() if ours in open_streams}
        self.their_stream_id = {ours: theirs for theirs, ours in self.our_stream_id.items()}

    def waits(self, theirs: int) -> bool:
        """Whether data of a client's stream waits for the server's window."""
        ours = self.our_stream_id.get(theirs)
        return theirs in self.stream_queue or (ours is not None and self.h2_conn.waits(ours))

    def handle_h2_event(self, event: h2.events.Event) -> "CommandGenerator[bool]":
        """Handle an event; returns whether the connection has ended."""
        if isinstance(event, h2.events.ConnectionTerminated) and event.error_code == h2.errors.ErrorCodes.NO_ERROR:
            yield from self._drain(event.last_stream_id or 0)
            return not self.streams
        if isinstance(event, h2.events.InformationalResponseReceived | h2.events.ResponseReceived):
            yield from self._answered(event)
            return False
        over = yield from super().handle_h2_event(event)
        if self.draining and not self.streams and not over:
            yield from self.close_connection("the server has ended the connection")
            return True
        return over

    def _answered(
        self, event: h2.events.InformationalResponseReceived | h2.events.ResponseReceived
    ) -> "CommandGenerator[None]":
        """Forward the head of a response, informational or final."""
        if self.streams.get(event.stream_id) is not StreamState.EXPECTING_HEADERS:
            return  # reset meanwhile
        pseudo, headers = split_pseudo_headers(event.headers)
        status = pseudo.get(b":status", b"")
        if len(pseudo) != 1 or not _STATUS.fullmatch(status):
            yield from self.break_off(MalformedMessage(event.stream_id, "its status is not one of a response"))
            return
        try:
            fields = one_length(b"HTTP/2.0", int(status), list(headers.fields))
        except ValueError as problem:
            yield from self.break_off(MalformedMessage(event.stream_id, str(problem)))
            return
        response = ResponseHead(b"HTTP/2.0", int(status), b"", tuple(fields))
        ended = isinstance(event, h2.events.ResponseReceived) and event.stream_ended is not None
        if isinstance(event, h2.events.ResponseReceived):
            self.streams[event.stream_id] = StreamState.HEADERS_RECEIVED
        yield ReceiveHttp(ResponseHeaders(event.stream_id, response, ended))

    def _drain(self, last: int) -> "CommandGenerator[None]":
        """Let streams that the server has accepted finish."""
        self.draining = True
        self._fail_queued()
        for stream_id in [stream for stream in self.streams if stream > last]:
            del self.streams[stream_id]
            yield ReceiveHttp(
                ResponseProtocolError(stream_id, "the server takes no more requests", ErrorCode.GENERIC_SERVER_ERROR)
            )
        if not self.streams:
            yield from self.close_connection("the server has ended the connection")
