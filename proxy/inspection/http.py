"""All requests of one client connection, and the connections to the internet that they use: mitmproxy's HTTP layer.

What differs from mitmproxy's: one place is all that is ever dialled (invariant 3); a connection is used again only
under the policy it was dialled under; those that are over are forgotten; and what can't leave on one side is not taken
in on the other.
"""

from typing import TYPE_CHECKING, Final, cast

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import HttpCommand, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders, RequestProtocolError

from proxy.inspection.context import Far, Near, far
from proxy.inspection.contexts import HTTP2
from proxy.inspection.direct import Direct
from proxy.inspection.http1 import HEADS_AT_ONCE, BackHttp1, FrontHttp1
from proxy.inspection.http2 import BackHttp2, FrontHttp2
from proxy.inspection.link import FULL
from proxy.inspection.room import FIELD, REQUEST
from proxy.inspection.signals import ClientEnded, Relieved, Revoked, Unspoken
from proxy.inspection.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy.proxy.layer import CommandGenerator, Layer

    from proxy.dialling.connecting import Hop
    from proxy.inspection.context import GateContext
    from proxy.inspection.room import Room


_LEAVES: Final = frozenset({RequestProtocolError, ClientEnded})  # who does that waits for no person's answer


class Outgoing(layer.Layer):
    """HTTP on one connection to the internet, in the version that it turns out to speak."""

    context: "GateContext"
    back: BackHttp1 | BackHttp2 | None = None

    def __init__(self, context: "GateContext", stuck: "Callable[[int], bool]") -> None:
        super().__init__(context)
        self._stuck = stuck

    def _handle_event(self, event: events.Event) -> "CommandGenerator[None]":
        assert isinstance(event, events.Start)
        server = self.context.server
        error = yield commands.OpenConnection(server)
        if not error:
            http2 = server.alpn == HTTP2
            self.back = BackHttp2(self.context, self._stuck) if http2 else BackHttp1(self.context)
            self._handle_event = self.back.handle_event  # type: ignore[method-assign]
            yield from self._handle_event(event)
            self.handle_event = self.back.handle_event  # type: ignore[method-assign]  # nothing blocks any more
        yield RegisterHttpConnection(server, error)


class GateHttp(Direct, HttpLayer):
    """HTTP with one client."""

    context: "GateContext"
    front: FrontHttp1 | FrontHttp2 | None = None  # None: TLS isn't settled yet
    outgoing: dict[Far, Outgoing]

    def __init__(self, context: "GateContext", room: "Room") -> None:
        super().__init__(context, HTTPMode.transparent)
        self.outgoing = {}
        self._room = room
        self.stinted = False  # whether something is left unread for want of room
        self._requests = 0  # bytes that those under way take by themselves

    def _handle_event(self, event: events.Event) -> "CommandGenerator[None]":
        if isinstance(event, events.ConnectionEvent):
            handler = self.connections.get(event.connection)
            if handler is None:
                return  # over, and forgotten
            yield from self.event_to_child(handler, event)
        elif isinstance(event, events.Start):
            context = self.context.fork()
            http2 = context.client.alpn == HTTP2
            front = FrontHttp2(context, self.stuck_behind) if http2 else FrontHttp1(context)
            self.front = self.connections[context.client] = front
            yield from self.event_to_child(front, event)
        elif isinstance(event, Revoked | Unspoken):
            for one in self._concerned(event):
                yield from self.event_to_child(one, event)
        elif not isinstance(event, Relieved):
            yield from super()._handle_event(event)
        elif self.puts_off():
            assert self.front is not None
            yield from self.event_to_child(self.front, events.DataReceived(self.context.client, b""))
        if self.context.client.alpn == HTTP2:  # HTTP/1 has no credit, and HTTP/1 in front has HTTP/1 behind
            yield from self.relieve()
        if self.outgoing:
            self.forget()

    def event_to_child(  # noqa: C901  no more calls than there are: this runs some thirty times a request
        self, child: "Layer", event: events.Event
    ) -> "CommandGenerator[None]":
        """Give an event to a layer and do what it commands, as mitmproxy does; what is sent to nobody is dropped."""
        for command in child.handle_event(event):
            if type(command) is SendHttp:  # most are one of three
                if handler := self.connections.get(command.connection):
                    yield from self.event_to_child(handler, command.event)
            elif type(command) is ReceiveHttp:
                if type(command.event) is RequestHeaders:
                    yield from self.begin_request(command.event)
                if stream := self.streams.get(command.event.stream_id):
                    if type(command.event) in _LEAVES and isinstance(stream, Stream) and stream.undecided:
                        self.context.session.asked_about.leave(
                            stream.flow.id
                        )  # itself it hears only when it is decided
                    yield from self.event_to_child(stream, command.event)
            elif type(command) is commands.SendData:
                yield command
            else:
                if command.blocking or isinstance(command, commands.RequestWakeup):
                    self.command_sources[command] = child
                if isinstance(command, HttpCommand):
                    yield from self.between_layers(command)
                else:
                    yield command

    def between_layers(self, command: HttpCommand) -> "CommandGenerator[None]":
        """Do what else one layer of HTTP wants of another."""
        match command:
            case DropStream():
                if isinstance(stream := self.streams.pop(command.stream_id, None), Stream):
                    self._requests -= stream.takes
                    stream.let_go()
            case GetHttpConnection():
                yield from self.get_connection(command)
            case RegisterHttpConnection():
                yield from self.register_connection(command)
            case _:
                raise RuntimeError(f"unexpected command {type(command).__name__}")

    def begin_request(self, event: RequestHeaders) -> "CommandGenerator[None]":
        """Begin a request."""
        stream = self.streams[event.stream_id] = Stream(self.context.fork(), event.stream_id)
        data = event.request.data
        stream.takes = REQUEST + len(data.path) + sum([len(n) + len(v) + FIELD for n, v in data.headers.fields])
        self._requests += stream.takes
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> "CommandGenerator[None]":
        """Find a connection to an address that was checked for this very request, or make one."""
        stream = self.command_sources[event]
        assert isinstance(stream, Stream)
        for connection in self.outgoing if reuse else ():
            if not stream.may_trust(connection.authorities):
                continue
            if connection in self.waiting_for_establishment and stream.may_use(*connection.addresses):
                self.waiting_for_establishment[connection].append(event)
                return
            if self.usable(connection) and connection.dialled and stream.may_use(connection.dialled):
                del self.command_sources[event]
                yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (connection, None)))
                return
        context = self.context.fork()
        server = context.server = far(self.context.session.place, stream.addresses, stream.authorities)
        outgoing = self.outgoing[server] = self.connections[server] = Outgoing(context, self.stuck_in_front)
        self.waiting_for_establishment[server].append(event)
        yield from self.event_to_child(outgoing, events.Start())

    def usable(self, connection: Far) -> bool:
        """Whether a connection can take one more request: open, and free."""
        if not connection.connected:
            return False
        if self.context.client.alpn != HTTP2:
            return True
        # HTTP/1 behind HTTP/2 has one request a connection: its response may end with the connection
        back = self.outgoing[connection].back
        return isinstance(back, BackHttp2) and not back.draining

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
        for outgoing in self.outgoing.values():
            if (back := outgoing.back) is not None:
                kept += len(back.buf) if isinstance(back, BackHttp1) else back.h2_conn.incoming_buffer.size
        return kept

    def under_way(self) -> "dict[str, Hop]":
        """Return where each request was sent to, by the ids of their flows; nothing of those that wait for a dial."""
        found: dict[str, Hop] = {}
        for stream in self.streams.values():
            server = stream.context.server
            if isinstance(stream, Stream) and stream.settled and isinstance(server, Far) and server.dialled is not None:
                found[stream.flow.id] = server.dialled
        return found

    def forget(self) -> None:
        """Drop what is left of connections that are over."""
        for connection in [c for c in self.outgoing if c.over]:
            del self.outgoing[connection]
            self.connections.pop(connection, None)

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
            return front.stream_id if front.buf and front.state == front.read_headers else None
        return front.h2_conn.highest_inbound_stream_id + 1 if front.h2_conn.incoming_buffer.in_fields() else None

    def _concerned(self, event: "Revoked | Unspoken") -> "list[Layer]":
        """Return those that something happens to which the driver has found out."""
        if isinstance(event, Revoked):
            return [stream for stream in self.streams.values() if isinstance(stream, Stream) and stream.is_of(event)]
        return [self.front] if isinstance(self.front, FrontHttp1) else []

    def is_unspoken(self) -> bool:
        """Whether a client without ALPN, which those of HTTP have, has said nothing since its handshake."""
        front = self.front
        silent = isinstance(front, FrontHttp1) and front.state == front.read_headers and not front.buf
        return silent and self.context.client.tls and not self.context.client.alpn and not self.context.session.asked

    def stuck_in_front(self, stream_id: int) -> bool:
        """Whether what is for the client on this stream can't leave now."""
        return self.context.client.full or (isinstance(self.front, FrontHttp2) and self.front.h2_conn.waits(stream_id))

    def stuck_behind(self, stream_id: int) -> bool:
        """Whether what is for the server on this stream can't leave now."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        if isinstance(stream, Stream) and stream.undecided:
            return True
        server = stream.context.server
        assert isinstance(server, Far)
        outgoing = self.outgoing.get(server)
        back = outgoing.back if outgoing else None
        return server.full or (isinstance(back, BackHttp2) and back.waits(stream_id))

    def relieve(self) -> "CommandGenerator[None]":
        """Give the credit that was withheld for what has left since."""
        if self.front is not None and self.front.withheld:
            yield from self.event_to_child(self.front, Relieved())
        for connection, outgoing in list(self.outgoing.items()):
            if outgoing.back is not None and outgoing.back.withheld:
                yield from self.event_to_child(self.connections[connection], Relieved())

    def paused(self, connection: Near | Far) -> bool:
        """Whether nothing should be read from a connection now, because what it brings can't leave."""
        if connection is self.context.client:
            if isinstance(self.front, FrontHttp1):
                uploading = self.front.state in (self.front.read_body, self.front.passthrough)
                stream = self.streams.get(self.front.stream_id)
                if uploading and isinstance(stream, Stream) and stream.undecided:
                    return True  # what is read now would only be kept
                if (
                    self.front.puts_off
                    or self.front.too_far_ahead()
                    or [server for server in self.outgoing if server.full]
                ):
                    return True
                return connection.full and not uploading
            return connection.full  # it asks and doesn't listen
        outgoing = self.outgoing.get(cast("Far", connection))
        if outgoing and type(outgoing.back) is BackHttp1 and outgoing.back.stream_id is not None:
            return self.stuck_in_front(outgoing.back.stream_id)
        return connection.full or self._is_stinted()

    def _is_stinted(self) -> bool:
        """Whether there is less room than a server has credit for, and nothing that it sends could leave."""
        if not self._room.is_tight or not isinstance(self.front, FrontHttp2):
            return False
        waiting = self.front.h2_conn
        stinted = waiting.kept > FULL and all(map(waiting.waits, self.streams))
        self.stinted = self.stinted or stinted
        return stinted
