"""Routes HTTP on one client connection: events of its codecs to its requests, and their answers to the codecs.

Only one origin is ever dialed (invariant 3). A server connection is reused only under the policy it was dialed under.
Bytes that can't be sent on one side are not read on the other.

`todo` is a queue of calls; a call returns the steps that it begins. `work` runs them for one turn. It finishes the
steps of a request, and of the last call, before it takes the next call.
"""

from collections import deque
from time import thread_time
from typing import TYPE_CHECKING, Any, Final

from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestProtocolError, ResponseProtocolError

from proxy.inspection.connection_ends import FIELD, REQUEST, ClientEnd, RequestsRevoked, ServerEnd
from proxy.inspection.http1 import MOST_AHEAD, NOT_HTTP2, ClientSideHttp1, Codec, MisreadError, ServerSideHttp1, State
from proxy.inspection.http2 import Checkpoint, ClientSideHttp2, ServerSideHttp2
from proxy.inspection.stream import WAIT, Stream
from proxy.inspection.tls import HTTP2
from proxy.inspection.transport import FULL
from proxy.inspection.websocket import Steps
from proxy.request.mitmproxy_messages import RequestHeaders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.dialing.connect_race import Hop
    from proxy.inspection.connection_ends import ConnectionControl, MemoryQuota
    from proxy.inspection.session import Session

HEADS_AT_ONCE: Final = 8  # pipelined requests that begin in one turn, before other connections have theirs
_THROUGH: Final = object()  # `next` of steps that are complete

type Begun = Iterator[object] | None  # the steps of a call that takes more than one; None: it is complete


class HttpRouter:
    """HTTP of one client connection."""

    def __init__(
        self,
        client: ClientEnd,
        session: "Session",
        memory_quota: "MemoryQuota",
        driver: "ConnectionControl",
        decide: "Callable[[Stream], bool]",
    ) -> None:
        """`decide` decides on a request and returns True; or returns False, and resumes the request later."""
        self.decide = decide
        self.client = client
        self.session = session
        self.driver = driver
        self.servers: list[ServerEnd] = []
        self.streams: dict[int, Stream] = {}
        self.stinted = False  # whether a server is left unread because memory is short
        self.stopped = False  # nothing more is begun: the connection has ended, or a review comes first
        self.todo: deque[tuple[Callable[..., Begun], tuple[Any, ...]]] = deque()
        self._memory_quota = memory_quota
        self._requests = 0  # bytes of memory that the requests under way use themselves
        self._awaiting_server: dict[ServerEnd, list[Stream]] = {}  # requests that wait for a connection
        self._until = 0.0  # end of the turn, in processor time of this thread
        self._heads_left = 0  # how many HTTP/1 requests may still begin in this turn
        # Work to finish before the next call, in this order
        self._running: tuple[Stream, Steps] | None = None  # a request with its steps
        self._queued: deque[HttpEvent] = deque()  # events that sending has caused
        self._call_steps: Begun = None  # the steps of the last call
        self._is_continuing = False  # `continue_after_call` is next: it follows each call

    # --- turns ---

    def work(self, until: float) -> bool:
        """Do what there is to do, `until` so much of this thread's processor time has passed (seconds).

        Returns whether all is done, and not just the turn over.
        """
        self._until = until
        self._heads_left = HEADS_AT_ONCE
        while not self.stopped:
            if self._running is not None:
                self._run(*self._running)
            elif self._queued:
                self._route(self._queued.popleft())
            elif self._call_steps is not None:
                if next(self._call_steps, _THROUGH) is _THROUGH:
                    self._call_steps = None
            elif self._is_continuing:
                self._is_continuing = False
                self._call_steps = self.continue_after_call()
            elif self.todo:
                self._is_continuing = True
                function, arguments = self.todo.popleft()
                self._call_steps = function(*arguments)
            else:
                return True
            if not self._heads_left or thread_time() >= until:
                return False
        return False

    def drop_all(self) -> None:
        """Stop: the connection is closed."""
        self.stopped = True
        running, self._running = self._running, None
        if running is not None:
            running[1].close()

    def continue_after_call(self) -> Begun:
        """Do what a call made possible: begin the next request, send withheld window updates."""
        if [server for server in self.servers if server.over]:
            self.servers = [server for server in self.servers if not server.over]
        client_codec = self.client.codec
        if type(client_codec) is ClientSideHttp1:
            state = client_codec.state
            if state is not State.WAIT and (state is not State.HEAD or client_codec.buf or client_codec.ended):
                return self._pull(self.client)  # the next request may have begun behind the last
        elif isinstance(client_codec, ClientSideHttp2):  # HTTP/1 has no credit, and HTTP/1 in front has HTTP/1 behind
            for codec in (client_codec, *[server.codec for server in self.servers]):
                if not isinstance(codec, Codec) and codec is not None and codec.withheld:
                    for command in codec.return_credit():
                        self._do(command)
        return None

    # --- received data ---

    def start(self) -> Begun:
        """Start the protocol agreed on with the client."""
        if self.client.alpn == HTTP2:
            client_codec = self.client.codec = ClientSideHttp2(self.session, self.client, self.is_server_stuck)
            return self._carry_out(client_codec.handle_event(events.Start()))
        self.client.codec = ClientSideHttp1(tls=self.session.origin.tls)
        return None

    def receive(self, connection: ClientEnd | ServerEnd, data: bytes) -> Begun:
        """Parse received bytes."""
        codec = connection.codec
        if isinstance(codec, Codec):
            codec.receive(data)
            return self._pull(connection)
        if codec is None:
            return None
        return self._carry_out(codec.handle_event(events.DataReceived(connection, data)))  # type: ignore[arg-type]  # ours, not mitmproxy's

    def receive_end(self, connection: ClientEnd | ServerEnd) -> Begun:
        """Handle the end of the data."""
        codec = connection.codec
        if isinstance(codec, Codec):
            codec.receive_end(cut=connection.cut)
            return self._pull(connection)
        if codec is None:
            return None
        return self._carry_out(codec.handle_event(events.ConnectionClosed(connection)))  # type: ignore[arg-type]  # ours, too

    def opened(self, server: ServerEnd, problem: str | None) -> Begun:
        """Continue the requests that waited for a connection, with the protocol agreed on."""
        waiting, begun = self._awaiting_server.pop(server), None
        if problem is None and server.over:  # since it opened: this may have waited for another turn
            problem = "server closed connection"
        if problem is None and server.alpn == HTTP2:
            server_codec = server.codec = ServerSideHttp2(self.client, server, self.is_client_stuck)
            begun = self._carry_out(server_codec.handle_event(events.Start()))
        elif problem is None:
            server.codec = ServerSideHttp1()
            if self.client.alpn == HTTP2:  # HTTP/1 behind it has one request a connection
                for stream in waiting[1:]:
                    self._open_for(stream)
                del waiting[1:]
        for stream in waiting:
            stream.opened = problem or server
        self.todo.extendleft([(self.resume, (stream,)) for stream in reversed(waiting)])
        return begun

    def revoke(self, keys: frozenset[str]) -> None:
        """End requests (by their keys) that the rules now in force deny."""
        for stream in [one for one in self.streams.values() if one.is_allowed and one.request.key in keys]:
            stream.handle(RequestsRevoked(keys))

    def refuse_silent(self) -> Begun:
        """Reject a client that waits for its server to speak first."""
        if not isinstance(self.client.codec, ClientSideHttp1) or not self.is_unspoken():  # it may have spoken since
            return None
        self._refuse(self.client.codec.give_up())
        return self._pull(self.client)

    def _pull(self, connection: ClientEnd | ServerEnd) -> "Iterator[None]":
        """Pass each HTTP/1 event to its request; close the connection if nothing more can come."""
        codec = connection.codec
        assert isinstance(codec, Codec)
        while True:
            try:
                event = codec.next_event()
            except MisreadError as misread:
                self._refuse(misread)
                event = None
            if codec.state is State.DONE and (connection.can_read or connection.can_write):
                self.driver.close(connection)
            if event is None:
                return
            state = codec.state
            waits = state is State.WAIT or (state is State.HEAD and not (codec.buf or codec.ended))
            more = not waits or codec.found  # ... before something is received, or sent on the other side
            if type(event) is RequestHeaders:
                self._heads_left -= 1
            self._route(event)
            if not more:
                return
            yield

    def _carry_out(self, steps: "Iterator[commands.Command]") -> "Iterator[None]":
        """Execute the commands of an HTTP/2 layer; a step ends where a request has work to do."""
        for command in steps:
            if type(command) is ReceiveHttp:
                self._route(command.event)
                yield
            elif type(command) is Checkpoint:
                yield
            else:
                self._do(command)

    def _do(self, command: commands.Command) -> None:
        match command:
            case commands.SendData():
                self._send(command.connection, command.data)  # type: ignore[arg-type]  # it is one of ours
            case commands.CloseConnection():
                self.driver.close(command.connection)  # type: ignore[arg-type]  # this one, too
            case commands.Log():
                pass  # what matters is recorded as an event
            case _:
                raise RuntimeError(f"unexpected command {type(command).__name__}")

    def _send(self, connection: ClientEnd | ServerEnd, data: bytes) -> None:
        """Send at the end of the turn."""
        if connection.transport is not None:
            connection.transport.new.append(data)

    def _refuse(self, misread: MisreadError) -> None:
        """Answer bytes that can't be parsed; for HTTP/2 in the clear with a GOAWAY."""
        page = self.session.misread(misread.head, misread.problem)
        if misread.http2:
            goaway = GoAwayFrame(0, 0, ErrorCodes.HTTP_1_1_REQUIRED, f"exeat: {NOT_HTTP2}".encode())
            said = SettingsFrame(0).serialize() + goaway.serialize()
        else:
            said = page.http1(body=misread.head.method != b"HEAD")
        self._send(self.client, said)

    # --- requests ---

    def _route(self, event: "HttpEvent") -> None:
        """Pass an event to its request."""
        if type(event) is RequestHeaders:
            stream = self._begin_request(event)
        elif (known := self.streams.get(event.stream_id)) is not None:
            stream = known
        else:
            return
        steps = stream.handle(event)
        if steps is not None:
            self._run(stream, steps)

    def _run(self, stream: Stream, steps: Steps) -> None:
        """Run a request's work until it is done, it waits, or the turn is over."""
        self._running = None
        for step in steps:
            if step is WAIT:
                stream.waiting = steps
                return
            if self.stopped or thread_time() >= self._until:
                self._running = stream, steps
                return

    def resume(self, stream: Stream) -> "Iterator[None]":
        """Continue a request that has waited, then handle the events that came meanwhile."""
        steps, stream.waiting = stream.waiting, None
        if steps is not None:
            self._run(stream, steps)
        while stream.queue:
            yield
            if stream.is_waiting:
                return
            steps = stream.handle(stream.queue.popleft())
            if steps is not None:
                self._run(stream, steps)

    def _begin_request(self, event: RequestHeaders) -> Stream:
        stream = self.streams[event.stream_id] = Stream(self, event.stream_id)
        head = event.request
        stream.takes = REQUEST + len(head.path) + sum([len(n) + len(v) + FIELD for n, v in head.fields])
        self._requests += stream.takes
        return stream

    def drop(self, stream: Stream) -> None:
        """Remove a request that has ended. Idempotent."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self._requests -= stream.takes
            if stream.request.stages:
                stream.request.enter(())  # they refer to each other

    # --- what requests call ---

    def send_to_client(self, event: "HttpEvent") -> None:
        """Send a part of a response."""
        client_codec = self.client.codec
        if isinstance(client_codec, ClientSideHttp2):
            self._send_http2(client_codec, event)
        elif type(event) is ResponseProtocolError:
            assert client_codec is not None
            if client_codec.is_complete:
                self.driver.close(self.client)
            else:
                self.driver.reset(self.client, at_once=event.code is ErrorCode.CANCEL)
        elif client_codec is not None and (data := client_codec.send(event)):
            self.client.transport.new.append(data)

    def send_to_server(self, server: ServerEnd | None, event: "HttpEvent") -> None:
        """Send a part of a request; nothing if the connection is closed."""
        server_codec = None if server is None or server.over else server.codec
        if server_codec is None or server is None:
            return
        if isinstance(server_codec, ServerSideHttp2):
            self._send_http2(server_codec, event)
        elif type(event) is RequestProtocolError:
            self.driver.reset(server, at_once=event.code is ErrorCode.CANCEL)
        elif (data := server_codec.send(event)) and server.transport is not None:
            server.transport.new.append(data)

    def _send_http2(self, codec: ClientSideHttp2 | ServerSideHttp2, event: "HttpEvent") -> None:
        """Send with HTTP/2. Events that this causes wait until it is done."""
        for command in codec.handle_event(event):
            if type(command) is ReceiveHttp:
                self._queued.append(command.event)
            else:
                self._do(command)

    def connect(self, stream: Stream) -> ServerEnd | None:
        """Return a connection to an address checked for this request; None: the request has to wait for one."""
        for server in self.servers:
            if not stream.request.may_trust(server.authorities):
                continue
            if server in self._awaiting_server and stream.request.may_use(*server.addresses):
                self._awaiting_server[server].append(stream)
                return None
            if self.usable(server) and server.dialled and stream.request.may_use(server.dialled):
                return server
        self._open_for(stream)
        return None

    def _open_for(self, stream: Stream) -> None:
        server = ServerEnd(self.session.origin, stream.request.addresses or (), stream.request.authorities)
        self.servers.append(server)
        self._awaiting_server[server] = [stream]
        self.driver.open(server)

    def usable(self, server: ServerEnd) -> bool:
        """Whether a connection can take one more request: open, and not in use."""
        server_codec = server.codec
        if server_codec is None or not (server.can_read and server.can_write):
            return False
        if isinstance(server_codec, ServerSideHttp1):
            # HTTP/1 behind HTTP/2 has one request a connection: its response may end with the connection
            return server_codec.stream_id is None and not server_codec.buf and self.client.alpn != HTTP2
        return not server_codec.draining

    # --- memory and back-pressure ---

    def weigh(self, *, exactly: bool) -> int:
        """Return the bytes buffered for peers that don't take them, and of requests under way.

        If not `exactly`, bytes that were dropped since may count.
        """
        client_codec, kept = self.client.codec, self._requests + self.session.pending_body_bytes
        for transport in self.driver.transports:
            kept += transport.kept
        if isinstance(client_codec, ClientSideHttp1):
            kept += len(client_codec.buf)
        elif client_codec is not None:
            kept += client_codec.h2_conn.weigh() if exactly else client_codec.h2_conn.kept
            kept += client_codec.h2_conn.incoming_buffer.size
            if client_codec.withheld:  # bytes of uploads that can't be sent yet
                kept += sum(client_codec.withheld.values())
        for server in self.servers:
            if (server_codec := server.codec) is not None:
                kept += (
                    len(server_codec.buf)
                    if isinstance(server_codec, ServerSideHttp1)
                    else server_codec.h2_conn.incoming_buffer.size
                )
        return kept

    def under_way(self) -> "dict[str, Hop]":
        """Return the address that each request was sent to, by key; without requests that are being dialed."""
        return {
            stream.request.key: stream.server.dialled
            for stream in self.streams.values()
            if stream.is_allowed and stream.server is not None and stream.server.dialled is not None
        }

    def is_unspoken(self) -> bool:
        """Whether a client without ALPN has sent nothing since its handshake; HTTP clients send ALPN."""
        client_codec, client = self.client.codec, self.client
        silent = isinstance(client_codec, ClientSideHttp1) and client_codec.state is State.HEAD and not client_codec.buf
        return silent and client.origin.tls and not client.alpn and not self.session.request_count

    def is_client_stuck(self, stream_id: int) -> bool:
        """Whether data for the client on this stream can't be sent now."""
        client_codec = self.client.codec
        return self.client.transport.full or (
            isinstance(client_codec, ClientSideHttp2) and client_codec.h2_conn.waits(stream_id)
        )

    def is_server_stuck(self, stream_id: int) -> bool:
        """Whether data for the server on this stream can't be sent now."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        if stream.is_waiting:
            return True
        server = stream.server
        if server is None or server.transport is None:
            return False
        return server.transport.full or (isinstance(server.codec, ServerSideHttp2) and server.codec.waits(stream_id))

    def balance(self) -> int | None:
        """Read only from those whose bytes can leave on the other side.

        Returns which head a client has begun with and not ended, or TLS before the first: nobody can decide on it.
        """
        self.stinted, head = False, None
        client, client_codec = self.client.transport, self.client.codec
        http2, paused = isinstance(client_codec, ClientSideHttp2), False
        for transport, server_codec in [
            (server.transport, server.codec) for server in self.servers if server.transport is not None
        ]:
            paused = paused or transport.full
            if isinstance(server_codec, ServerSideHttp1) and server_codec.stream_id is not None:
                stuck = client.full or (http2 and self.is_client_stuck(server_codec.stream_id))
            else:
                stuck = transport.full or (http2 and self._is_stinted())
            if transport.paused is not stuck:
                transport.pause(paused=stuck)
        if client_codec is None:
            paused, head = client.full, 0
        elif not isinstance(client_codec, ClientSideHttp1):
            paused = client.full  # it asks and doesn't listen
            if client_codec.h2_conn.incoming_buffer.in_fields():
                head = client_codec.h2_conn.highest_inbound_stream_id + 1
        elif client_codec.state is State.BODY or client_codec.state is State.PIPE:
            stream = self.streams.get(client_codec.stream_id)
            paused = paused or (stream is not None and stream.is_waiting)  # what is read now would only be kept
        else:
            paused = paused or client.full or (client_codec.state is State.WAIT and len(client_codec.buf) > MOST_AHEAD)
            if client_codec.state is State.HEAD and client_codec.buf:
                head = client_codec.stream_id
        if client.paused is not paused:
            client.pause(paused=paused)
        return head

    def _is_stinted(self) -> bool:
        """Whether the quota is below a server's window and none of its data could be sent."""
        client_codec = self.client.codec
        if not isinstance(client_codec, ClientSideHttp2) or not self._memory_quota.is_tight:
            return False
        waiting = client_codec.h2_conn
        stinted = waiting.kept > FULL and all(map(waiting.waits, self.streams))
        self.stinted = self.stinted or stinted
        return stinted
