"""Scrape server: answers `GET /metrics`, one request a connection, and nothing else.

Anybody who can reach the listening socket may ask. No client can hold more than a small piece of the process: the head
of a request is bounded, every connection has a deadline, and there are few at a time. When there are too many, the
oldest is closed: else any user of the host could keep Prometheus out with connections that send nothing.

`serve` is the process that is scraped for a whole service. It has its numbers from the service, so that a scrape costs
no task its turn, and a worker that is replaced leaves no gap.
"""

import asyncio
import importlib
from typing import TYPE_CHECKING, Protocol

from proxy.request.http1_heads import parse_head
from proxy.request.request_head import UnclearError
from proxy.telemetry.events import Component
from proxy.telemetry.prometheus.totals import ReportedMetrics
from proxy.wire import message

if TYPE_CHECKING:
    import socket

_LONGEST_HEAD = 8 * 1024  # bytes
_MOST_CLIENTS = 16  # at a time
_DEADLINE = 10.0  # seconds, from the first byte awaited to the last one sent: Prometheus' own default
_TEXT = "text/plain; charset=utf-8"


class Scraped(Protocol):
    """What has numbers to show."""

    def render(self) -> bytes:
        """Return them as Prometheus' text format."""

    def failed(self, where: Component) -> None:
        """Take note that this could not be done."""


class ScrapeServer:
    """Serves one process's metrics on a socket that is bound and listening already."""

    def __init__(self, listener: "socket.socket", metrics: Scraped, deadline: float = _DEADLINE) -> None:
        self._listener = listener
        self._metrics = metrics
        self._deadline = deadline
        self._clients: dict[asyncio.StreamWriter, None] = {}  # in the order in which they came
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer, in the running loop. The socket becomes the server's."""
        self._listener.setblocking(False)
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=_LONGEST_HEAD)

    async def close(self) -> None:
        """Stop, cutting off whoever is still being answered; idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for writer in self._clients:
            writer.transport.abort()
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MOST_CLIENTS:
            longest = next(iter(self._clients))
            del self._clients[longest]
            longest.transport.abort()
        self._clients[writer] = None
        # Draining then means that the kernel has it all: nothing is left behind for a client that doesn't read.
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(self._deadline):
                writer.write(await self._respond(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, EOFError):
            pass  # slow, gone or garbage: the next scrape is a new connection
        finally:
            writer.transport.abort()
            self._clients.pop(writer, None)

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request's head and return the whole response. Raises EOFError when the client hung up."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large", _TEXT, b"the request is too long\n")
        try:
            request = parse_head(head)
        except UnclearError as why:
            return _response("400 Bad Request", _TEXT, f"this is no request of HTTP/1.1: {why}\n".encode())
        if request.path.partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found", _TEXT, b"there is only /metrics\n")
        if request.method != b"GET":
            return _response("405 Method Not Allowed", _TEXT, b"only GET\n", b"Allow: GET\r\n")
        try:
            # Off the loop's thread: the first import takes 75 ms, in which no connection would be decided.
            exposition = await asyncio.to_thread(importlib.import_module, "proxy.telemetry.prometheus.exposition")
            return _response("200 OK", exposition.CONTENT_TYPE, self._metrics.render())
        except Exception as error:  # noqa: BLE001  whatever it is, the gate goes on and the scrape shows it
            self._metrics.failed(Component.METRICS)
            return _response("500 Internal Server Error", _TEXT, f"{type(error).__name__}\n".encode())


def _response(status: str, content_type: str, body: bytes, more: bytes = b"") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
    )
    return head.encode("ascii") + more + b"\r\n" + body


def serve(control: "socket.socket", listener: "socket.socket") -> None:
    """Answer with the numbers that the service sends over `control`, until the service is gone."""
    asyncio.run(_serve_service(control, listener))


async def _serve_service(control: "socket.socket", listener: "socket.socket") -> None:
    reported, is_service_gone, loop = ReportedMetrics(), asyncio.Event(), asyncio.get_running_loop()
    control.setblocking(False)

    def receive_report() -> None:
        try:
            report, _ = message.receive(control)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            report = {}
        if report:
            reported.take(report)
        else:
            loop.remove_reader(control)
            is_service_gone.set()

    loop.add_reader(control, receive_report)
    server = ScrapeServer(listener, reported)
    await server.start()
    await is_service_gone.wait()
    await server.close()
