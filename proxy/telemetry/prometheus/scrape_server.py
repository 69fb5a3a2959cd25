"""Scrape server: answers `GET /metrics`, one request a connection, and nothing else.

Any client that reaches the socket may send a request. No client can occupy much of the process: request heads are
bounded, every connection has a deadline, and few are open at a time. Beyond that the oldest is closed, so that no user
of the host can lock Prometheus out with idle connections.

`serve` runs the process that is scraped for a whole service. The service sends it the numbers, so that a scrape delays
no task and the replacement of a worker leaves no gap.
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
    """Source of metrics for a scrape."""

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""

    def failed(self, where: Component) -> None:
        """Count a failed scrape."""


class ScrapeServer:
    """Serves metrics on a listening socket."""

    def __init__(self, listener: "socket.socket", metrics: Scraped, deadline: float = _DEADLINE) -> None:
        self._listener = listener
        self._metrics = metrics
        self._deadline = deadline
        self._clients: dict[asyncio.StreamWriter, None] = {}  # in order of arrival
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Start serving in the running loop. The server owns the socket."""
        self._listener.setblocking(False)
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=_LONGEST_HEAD)

    async def close(self) -> None:
        """Stop, and abort open connections; idempotent."""
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
        # drain() then returns when the kernel has all bytes: no buffer remains for a client that doesn't read.
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(self._deadline):
                writer.write(await self._respond(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, EOFError):
            pass  # a slow, closed or malformed connection: the next scrape opens a new one
        finally:
            writer.transport.abort()
            self._clients.pop(writer, None)

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request head and return the response. Raises EOFError when the client closed the connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large", _TEXT, b"the request is too long\n")
        try:
            request = parse_head(head)
        except UnclearError as why:
            return _response("400 Bad Request", _TEXT, f"this is not an HTTP/1.1 request: {why}\n".encode())
        if request.path.partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found", _TEXT, b"there is only /metrics\n")
        if request.method != b"GET":
            return _response("405 Method Not Allowed", _TEXT, b"only GET\n", b"Allow: GET\r\n")
        try:
            # In a thread: the first import takes 75 ms, which would delay every decision.
            exposition = await asyncio.to_thread(importlib.import_module, "proxy.telemetry.prometheus.exposition")
            return _response("200 OK", exposition.CONTENT_TYPE, self._metrics.render())
        except Exception as error:  # noqa: BLE001  the gate continues, and the scrape shows the error
            self._metrics.failed(Component.METRICS)
            return _response("500 Internal Server Error", _TEXT, f"{type(error).__name__}\n".encode())


def _response(status: str, content_type: str, body: bytes, more: bytes = b"") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
    )
    return head.encode("ascii") + more + b"\r\n" + body


def serve(control: "socket.socket", listener: "socket.socket") -> None:
    """Serve the metrics that the service sends over `control`, until the service ends."""
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
