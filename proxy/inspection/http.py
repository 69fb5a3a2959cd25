"""Routes the HTTP of one client connection: events of its codecs to its requests, and what they send to the codecs.

One place is all that is ever dialled (invariant 3); a connection is used again only under the policy it was dialled
under; those that are over are forgotten; and what can't leave on one side is not taken in on the other. An event that
arises while something is sent waits until that is through. A generator here yields where a turn may end.
"""

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestProtocolError,
    ResponseProtocolError,
)

from proxy.inspection.brokering import Misused
from proxy.inspection.context import (
    FIELD,
    REQUEST,
    Checkpoint,
    ClientEnded,
    Decided,
    Far,
    Near,
    Opened,
    Relieved,
    Revoked,
    Unspoken,
    far,
)
from proxy.inspection.http1 import HEADS_AT_ONCE, MOST_AHEAD, NOT_HTTP2, BackHttp1, FrontHttp1, Misread, State
from proxy.inspection.http2 import BackHttp2, FrontHttp2
from proxy.inspection.link import FULL
from proxy.inspection.messages import RequestHeaders
from proxy.inspection.stream import WAIT, Steps, Stream
from proxy.inspection.tls import HTTP2

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from mitmproxy.proxy.layers.http._base import HttpEvent

    from proxy.dialing.connecting import Hop
    from proxy.inspection.context import GateContext, Room

type Turns = Generator[None]

_LEAVES: Final = frozenset({RequestProtocolError, ClientEnded})  # who does that waits for no person's answer


class Driver(Protocol):
    """Does what is to be done with connections: `proxy.inspection.conversation`."""

    def stops(self) -> bool:
        """Whether a turn has to stop at the next point where it can."""

    def send(self, connection: Near | Far, data: bytes) -> None:
        """Send with the end of the turn."""

    def open(self, server: Far) -> None:
        """Connect; `Opened` tells when that is done, or why it can't be."""

    def close(self, connection: Near | Far) -> None:
        """Send what waits, then close. Idempotent."""

    def end_sending(self, connection: Near | Far) -> None:
        """End our half alone."""

    def reset(self, connection: Near | Far, *, at_once: bool = False) -> None:
        """Cut a connection: what was being sent on it is not complete (invariant 12).

        What was sent before is delivered first, unless it is `at_once`: the gate's own refusals let nothing more
        through.
        """

    def decide(self, stream: Stream) -> None:
        """Have a request decided; `Decided` tells when it is."""


class GateHttp:
    """HTTP with one client."""

    def __init__(self, context: "GateContext", room: "Room", driver: Driver) -> None:
        self.context = context
        self.client = context.client
        self.session = context.session
        self.driver = driver
        self.front: FrontHttp1 | FrontHttp2 | None = None  # None: TLS isn't settled yet
        self.outgoing: dict[Far, BackHttp1 | BackHttp2 | None] = {}  # None: it isn't open yet
        self.streams: dict[int, Stream] = {}
        self.stinted = False  # whether something is left unread for want of room
        self._room = room
        self._requests = 0  # bytes that those under way take by themselves
        self._expecting: dict[Far, list[Stream]] = {}  # requests that wait for a connection
        self._queued: deque[HttpEvent] = deque()  # that came about while something was sent

    # --- what has come ---

    def handle(self, event: events.Event) -> Turns:  # noqa: C901  a table of what there is
        """Do all that there is to do about an event."""
        match event:
            case events.DataReceived():
                yield from self._receive(_ours(event.connection), event)
            case events.ConnectionClosed():
                yield from self._receive_end(_ours(event.connection), event)
            case Decided():
                yield from self._resume(event.stream)
            case Opened():
                yield from self._opened(event.server, event.problem)
            case Revoked():
                for stream in [one for one in self.streams.values() if one.is_of(event.flows)]:
                    yield from self._deliver(stream, event)
            case events.Start():
                yield from self._start()
            case Unspoken() if isinstance(self.front, FrontHttp1):
                self.front.unspoken()
        if isinstance(self.front, FrontHttp1):
            if type(event) is Relieved or not self.front.puts_off:  # what was put off has a turn of its own
                yield from self._pull(self.client, self.front)  # the next request may have begun behind the last
        elif self.client.alpn == HTTP2:  # HTTP/1 has no credit, and HTTP/1 in front has HTTP/1 behind
            yield from self._relieve()
        if self.outgoing:
            self._forget()

    def _start(self) -> Turns:
        if self.client.alpn != HTTP2:
            self.front = FrontHttp1(tls=self.session.place.tls)
            return
        self.front = FrontHttp2(self.context.fork(), self.stuck_behind)
        yield from self._carry_out(self.front.handle_event(events.Start()))

    def _codec(self, connection: Near | Far) -> FrontHttp1 | FrontHttp2 | BackHttp1 | BackHttp2 | None:
        return self.front if connection is self.client else self.outgoing.get(connection)  # type: ignore[arg-type]

    def _receive(self, connection: Near | Far, event: events.DataReceived) -> Turns:
        codec = self._codec(connection)
        if isinstance(codec, FrontHttp1 | BackHttp1):
            codec.receive(event.data)
            yield from self._pull(connection, codec)
        elif codec is not None:
            yield from self._carry_out(codec.handle_event(event))

    def _receive_end(self, connection: Near | Far, event: events.ConnectionClosed) -> Turns:
        codec = self._codec(connection)
        if isinstance(codec, FrontHttp1):
            codec.receive_end(cut=connection.state is ConnectionState.CLOSED)
            yield from self._pull(connection, codec)
        elif isinstance(codec, BackHttp1):
            codec.receive_end(cut=connection.cut)
            yield from self._pull(connection, codec)
        elif codec is not None:
            yield from self._carry_out(codec.handle_event(event))

    def _pull(self, connection: Near | Far, codec: FrontHttp1 | BackHttp1) -> Turns:
        """Give each event of HTTP/1 to its request; then close the connection, if nothing more can come."""
        while (event := codec.next_event()) is not None:
            if type(event) is Misread:
                self._refuse(event)
                continue
            if codec.state is State.DONE:
                self._close(connection)
            yield from self._route(event)  # type: ignore[arg-type]
            if self.driver.stops():
                yield
        if codec.state is State.DONE:
            self._close(connection)

    def _carry_out(self, steps: "Iterable[commands.Command]") -> Turns:
        """Do what a layer of HTTP/2 commands."""
        for command in steps:
            if type(command) is ReceiveHttp:
                yield from self._route(command.event)
                yield
            elif type(command) is Checkpoint:
                yield
            else:
                self._do(command)

    def _do(self, command: commands.Command) -> None:
        match command:
            case commands.SendData():
                self.driver.send(_ours(command.connection), command.data)
            case commands.CloseConnection():
                self.driver.close(_ours(command.connection))
            case commands.Log():
                pass  # what matters is told as an event
            case _:
                raise RuntimeError(f"unexpected command {type(command).__name__}")

    def _close(self, connection: Near | Far) -> None:
        if connection.state is not ConnectionState.CLOSED:
            self.driver.close(connection)

    def _refuse(self, misread: Misread) -> None:
        """Answer what can't be read; HTTP/2 in the clear so that its client understands it: in a GOAWAY."""
        page = self.session.misread(misread.head, misread.problem)
        if misread.http2:
            goaway = GoAwayFrame(0, 0, ErrorCodes.HTTP_1_1_REQUIRED, f"exeat: {NOT_HTTP2}".encode())
            said = SettingsFrame(0).serialize() + goaway.serialize()
        else:
            said = page.http1(body=misread.head.method != b"HEAD")
        self.driver.send(self.client, said)

    # --- requests ---

    def _route(self, event: "HttpEvent") -> Turns:
        """Give an event to its request; then the others that came about meanwhile to theirs."""
        if type(event) is RequestHeaders:
            self._begin_request(event)
        if stream := self.streams.get(event.stream_id):
            if stream.undecided and type(event) in _LEAVES:
                self.session.asked_about.leave(stream.request.key)  # itself it hears only when it is decided
            yield from self._deliver(stream, event)

    def _deliver(self, stream: Stream, event: events.Event) -> Turns:
        if stream.waiting is not None:
            stream.queue.append(event)
            return
        try:
            steps = stream.handle(event)
        except Misused as misuse:
            stream.stop_misuse(misuse)
            steps = None
        if steps is not None:
            yield from self._run(stream, steps)
        while self._queued:
            yield from self._route(self._queued.popleft())

    def _run(self, stream: Stream, steps: Steps) -> Turns:
        """Go on with what a request does, until that is through or waits."""
        try:
            for step in steps:
                if step is WAIT:
                    stream.waiting = steps
                    return
                yield
        except Misused as misuse:
            stream.stop_misuse(misuse)

    def _resume(self, stream: Stream) -> Turns:
        """Go on with a request that has waited, then with what came for it meanwhile."""
        steps, stream.waiting = stream.waiting, None
        if steps is not None:
            yield from self._run(stream, steps)
        while True:
            if self.driver.stops():
                yield
            while self._queued:
                yield from self._route(self._queued.popleft())
            if stream.waiting is not None or not stream.queue:
                return
            yield from self._deliver(stream, stream.queue.popleft())

    def _begin_request(self, event: RequestHeaders) -> None:
        stream = self.streams[event.stream_id] = Stream(self, event.stream_id)
        head = event.request
        stream.takes = REQUEST + len(head.path) + sum([len(n) + len(v) + FIELD for n, v in head.fields])
        self._requests += stream.takes

    def drop(self, stream: Stream) -> None:
        """Forget a request that is over. Idempotent."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self._requests -= stream.takes

    # --- what requests want ---

    def send_to_client(self, event: "HttpEvent") -> None:
        """Send a part of a response."""
        front = self.front
        if isinstance(front, FrontHttp2):
            self._send_http2(front, event)
        elif type(event) is ResponseProtocolError:
            assert front is not None
            if front.is_complete:
                self.driver.close(self.client)
            else:
                self.driver.reset(self.client, at_once=event.code is ErrorCode.CANCEL)
        elif front is not None and (data := front.send(event)):
            self.driver.send(self.client, data)

    def send_to_server(self, server: Far | None, event: "HttpEvent") -> None:
        """Send a part of a request; to nobody, where the connection is over."""
        back = None if server is None else self.outgoing.get(server)
        if back is None or server is None:
            return
        if isinstance(back, BackHttp2):
            self._send_http2(back, event)
        elif type(event) is RequestProtocolError:
            back.state = State.DONE
            self.driver.reset(server, at_once=event.code is ErrorCode.CANCEL)
        elif data := back.send(event):
            self.driver.send(server, data)

    def _send_http2(self, codec: FrontHttp2 | BackHttp2, event: "HttpEvent") -> None:
        for command in codec.handle_event(event):
            if type(command) is ReceiveHttp:
                self._queued.append(command.event)
            else:
                self._do(command)

    def connect(self, stream: Stream) -> Far | None:
        """Return a connection to an address that was checked for this very request; None: it has to wait for one."""
        for server in self.outgoing:
            if not stream.may_trust(server.authorities):
                continue
            if server in self._expecting and stream.may_use(*server.addresses):
                self._expecting[server].append(stream)
                return None
            if self.usable(server) and server.dialled and stream.may_use(server.dialled):
                return server
        self._open_for(stream)
        return None

    def _open_for(self, stream: Stream) -> None:
        server = far(self.session.place, stream.request.addresses or (), stream.request.authorities)
        self.outgoing[server] = None
        self._expecting[server] = [stream]
        self.driver.open(server)

    def _opened(self, server: Far, problem: str | None) -> Turns:
        """Have those go on that wait for a connection; it speaks what was agreed on."""
        waiting = self._expecting.pop(server)
        if problem is None and server.alpn == HTTP2:
            context = self.context.fork()
            context.server = server
            back = self.outgoing[server] = BackHttp2(context, self.stuck_in_front)
            yield from self._carry_out(back.handle_event(events.Start()))
        elif problem is None:
            self.outgoing[server] = BackHttp1(self.session.place, server)
            if self.client.alpn == HTTP2:  # HTTP/1 behind it has one request a connection
                for stream in waiting[1:]:
                    self._open_for(stream)
                del waiting[1:]
        for stream in waiting:
            stream.opened = problem or server
            yield from self._resume(stream)

    def usable(self, server: Far) -> bool:
        """Whether a connection can take one more request: open, and free."""
        if not server.connected:
            return False
        back = self.outgoing.get(server)
        if self.client.alpn != HTTP2:
            return isinstance(back, BackHttp1) and back.stream_id is None
        # HTTP/1 behind HTTP/2 has one request a connection: its response may end with the connection
        return isinstance(back, BackHttp2) and not back.draining

    # --- what the driver asks ---

    def kept(self, *, weigh: bool = False) -> int:
        """Return how many bytes are kept here for peers that don't take them, and of requests under way.

        With `weigh` exactly; else some may count that were dropped since.
        """
        front, kept = self.front, self._requests
        if isinstance(front, FrontHttp1):
            kept += len(front.buf)
        elif front is not None:
            kept += front.h2_conn.weigh() if weigh else front.h2_conn.kept
            kept += front.h2_conn.incoming_buffer.size
            if front.withheld:  # what came of uploads and can't leave: it is with their streams, or behind them
                kept += sum(front.withheld.values())
        for back in self.outgoing.values():
            if back is not None:
                kept += len(back.buf) if isinstance(back, BackHttp1) else back.h2_conn.incoming_buffer.size
        return kept

    def under_way(self) -> "dict[str, Hop]":
        """Return where each request was sent to, by their keys; nothing of those that wait for a dial."""
        return {
            stream.request.key: stream.server.dialled
            for stream in self.streams.values()
            if stream.settled and stream.server is not None and stream.server.dialled is not None
        }

    def _forget(self) -> None:
        """Drop what is left of connections that are over."""
        for server in [each for each in self.outgoing if each.over]:
            del self.outgoing[server]

    def begin_turn(self) -> None:
        """Read some pipelined requests more."""
        if isinstance(self.front, FrontHttp1):
            self.front.turns = HEADS_AT_ONCE

    def puts_off(self) -> bool:
        """Whether there are pipelined requests that have to wait for another turn."""
        return isinstance(self.front, FrontHttp1) and self.front.puts_off

    def begun_head(self) -> int | None:
        """Return which head a client has begun with and not ended, or TLS before the first: nobody can decide on it."""
        front = self.front
        if front is None:
            return 0
        if isinstance(front, FrontHttp1):
            return front.stream_id if front.has_begun else None
        return front.h2_conn.highest_inbound_stream_id + 1 if front.h2_conn.incoming_buffer.in_fields() else None

    def is_unspoken(self) -> bool:
        """Whether a client without ALPN, which those of HTTP have, has said nothing since its handshake."""
        silent = isinstance(self.front, FrontHttp1) and self.front.is_silent
        return silent and self.client.tls and not self.client.alpn and not self.session.asked

    def stuck_in_front(self, stream_id: int) -> bool:
        """Whether what is for the client on this stream can't leave now."""
        return self.client.full or (isinstance(self.front, FrontHttp2) and self.front.h2_conn.waits(stream_id))

    def stuck_behind(self, stream_id: int) -> bool:
        """Whether what is for the server on this stream can't leave now."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        if stream.is_waiting:
            return True
        server = stream.server
        if server is None:
            return False
        back = self.outgoing.get(server)
        return server.full or (isinstance(back, BackHttp2) and back.waits(stream_id))

    def _relieve(self) -> Turns:
        """Give the credit that was withheld for what has left since."""
        for codec in (self.front, *self.outgoing.values()):
            if isinstance(codec, FrontHttp2 | BackHttp2) and codec.withheld:
                yield from self._carry_out(codec.return_credit())

    def paused(self, connection: Near | Far) -> bool:
        """Whether nothing should be read from a connection now, because what it brings can't leave."""
        if connection is self.client:
            front = self.front
            if not isinstance(front, FrontHttp1):
                return connection.full  # it asks and doesn't listen
            if front.state is State.BODY or front.state is State.PIPE:
                stream = self.streams.get(front.stream_id)  # if it waits: what is read now would only be kept
                return (stream is not None and stream.is_waiting) or bool(
                    [server for server in self.outgoing if server.full]
                )
            ahead = front.state is State.WAIT and len(front.buf) > MOST_AHEAD
            return (
                front.puts_off or ahead or connection.full or bool([server for server in self.outgoing if server.full])
            )
        back = self.outgoing.get(connection)  # type: ignore[arg-type]
        if type(back) is BackHttp1 and back.stream_id is not None:
            return self.stuck_in_front(back.stream_id)
        return connection.full or self._is_stinted()

    def _is_stinted(self) -> bool:
        """Whether there is less room than a server has credit for, and nothing that it sends could leave."""
        if not self._room.is_tight or not isinstance(self.front, FrontHttp2):
            return False
        waiting = self.front.h2_conn
        stinted = waiting.kept > FULL and all(map(waiting.waits, self.streams))
        self.stinted = self.stinted or stinted
        return stinted


def _ours(connection: object) -> Near | Far:
    assert type(connection) is Far or type(connection) is Near
    return connection
