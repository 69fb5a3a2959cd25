"""HTTP/1.1 (h11) and HTTP/2 (h2) servers for one connection each; they pass `pages.Request` to the pages."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11

from .pages import Request, serve

_READ = 65536
_H2_SETTINGS_WINDOW = 1 << 20


@dataclass
class Peer:
    """SNI and addresses of a connection."""

    sni: str | None
    destination: tuple[str, int]
    client: tuple[str, int]


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset and without a close_notify (SO_LINGER of zero)."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve_http1(reader, writer, peer: Peer, seen) -> None:
    """Answer requests on a connection until one side ends it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    while True:
        event = await _next_event(connection, reader)
        if not isinstance(event, h11.Request):
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
        authority = next((value for name, value in headers if name == "host"), "")
        target, method = event.target.decode("latin-1"), event.method.decode("latin-1")
        request = Request(
            method,
            target,
            authority,
            headers,
            "1.1",
            peer.sni,
            peer.destination,
            peer.client,
            _body(connection, reader),
        )
        seen(request)
        answer = _Http1Answer(connection, writer, request)
        if connection.they_are_waiting_for_100_continue:
            writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
        await serve(request, answer)
        async for _ in request.body:  # drain what the page did not read
            pass
        if answer.ended or connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


async def _next_event(connection, reader):
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_READ))
    return event


async def _body(connection, reader):
    while connection.their_state is h11.SEND_BODY:
        event = await _next_event(connection, reader)
        if not isinstance(event, h11.Data):
            return
        yield bytes(event.data)


class _Http1Answer:
    def __init__(self, connection, writer, request) -> None:
        self._connection, self._writer, self._head = connection, writer, request.method == "HEAD"
        self.ended = False

    async def start(self, status, headers) -> None:
        self._writer.write(self._connection.send(h11.Response(status_code=status, headers=headers)))

    async def send(self, data) -> None:
        if data and not self._head:
            self._writer.write(self._connection.send(h11.Data(data=data)))
            await self._writer.drain()

    async def end(self) -> None:
        self._writer.write(self._connection.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()

    async def reset(self) -> None:
        self.ended = True
        reset(self._writer)

    async def cut(self) -> None:
        self.ended = True
        self._writer.close()


@dataclass
class _Stream:
    """One open stream: queue of body pieces, and an event for flow control credit."""

    body: asyncio.Queue = field(default_factory=asyncio.Queue)
    may_send: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task | None = None


class Http2:
    """One HTTP/2 connection with a task per stream and flow control both ways."""

    def __init__(self, reader, writer, peer: Peer, seen) -> None:
        self._reader, self._writer, self._peer, self._seen = reader, writer, peer, seen
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="latin-1")
        )
        self._streams: dict[int, _Stream] = {}

    async def serve(self) -> None:
        """Answer requests until one side ends the connection."""
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(_H2_SETTINGS_WINDOW)
        await self.flush()
        try:
            while data := await self._reader.read(_READ):
                for event in self.connection.receive_data(data):
                    self._handle(event)
                await self.flush()
        except h2.exceptions.ProtocolError:
            await self.flush()
        finally:
            for stream in self._streams.values():
                stream.task.cancel()

    async def flush(self) -> None:
        """Write the pending bytes of h2."""
        if data := self.connection.data_to_send():
            self._writer.write(data)
            await self._writer.drain()

    def _handle(self, event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.RequestReceived):
            stream = self._streams[event.stream_id] = _Stream()
            stream.task = asyncio.create_task(self._answer(event, stream))
        elif isinstance(event, h2.events.DataReceived) and stream:
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            stream.body.put_nowait(event.data)
        elif isinstance(event, h2.events.StreamEnded) and stream:
            stream.body.put_nowait(None)
        elif isinstance(event, h2.events.StreamReset) and stream:
            stream.task.cancel()
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for waiting in [stream] if stream else self._streams.values():
                waiting.may_send.set()

    async def _answer(self, event, stream: _Stream) -> None:
        pseudo = {name: value for name, value in event.headers if name.startswith(":")}
        headers = [(name, value) for name, value in event.headers if not name.startswith(":")]
        request = Request(
            pseudo[":method"], pseudo.get(":path", ""), pseudo.get(":authority", ""), headers, "2",
            self._peer.sni, self._peer.destination, self._peer.client, _queued(stream.body),
        )  # fmt: skip
        self._seen(request)
        with contextlib.suppress(h2.exceptions.ProtocolError, ConnectionError):
            await serve(request, _Http2Answer(self, event.stream_id, stream))
        self._streams.pop(event.stream_id, None)

    def reset(self) -> None:
        """Reset the whole connection."""
        reset(self._writer)

    def close(self) -> None:
        """Close the whole connection."""
        self._writer.close()


async def _queued(queue):
    while (data := await queue.get()) is not None:
        yield data


class _Http2Answer:
    def __init__(self, http2: Http2, number: int, stream: _Stream) -> None:
        self._http2, self._number, self._stream = http2, number, stream

    async def start(self, status, headers) -> None:
        self._http2.connection.send_headers(self._number, [(":status", str(status)), *headers])
        await self._http2.flush()

    async def send(self, data) -> None:
        connection = self._http2.connection
        while data:
            size = min(connection.local_flow_control_window(self._number), connection.max_outbound_frame_size)
            if size <= 0:
                self._stream.may_send.clear()
                await self._stream.may_send.wait()
                continue
            connection.send_data(self._number, data[:size])
            data = data[size:]
            await self._http2.flush()

    async def end(self) -> None:
        self._http2.connection.end_stream(self._number)
        await self._http2.flush()

    async def reset(self) -> None:
        self._http2.reset()

    async def cut(self) -> None:
        self._http2.close()
