"""Connection to the info API: reads one request, sends one answer, closes.

A task chooses how its request arrives and how much work it is. So a head is parsed once, however many pieces its body
comes in, and long work yields to other connections (invariant 11).
"""

import asyncio
import contextlib
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.event_loop.poller import OUT, finish
from proxy.gate.served_connection import ServedConnection
from proxy.info_api.info_handler import Answer, InfoHandler, refused
from proxy.info_api.requests import (
    MOST_HEAD,
    PartialRequest,
    Port,
    Request,
    RequestRefusedError,
    read_head,
    read_request,
)
from proxy.info_api.telemetry_handler import TelemetryHandler
from proxy.telemetry.events import Component

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from proxy.dialing.dialer import Dialer
    from proxy.gate.listener import Gate
    from proxy.gate.record import ConnectionRecord
    from proxy.info_api.access_requests import PendingAnswer
    from proxy.sandbox.recorder import Recorder
    from proxy.supervisor_channel.channel import Attribution

_LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
INTAKE_PORT: Final = 4318  # OTLP over HTTP
_AT_ONCE: Final = 65536  # bytes
_A_TURN: Final = 0.001  # seconds of work before the others have theirs


class RequestHandler(Protocol):
    """Handler of requests at one port of the info API."""

    port: Port
    most_connections: int
    connections: int

    def work(
        self, request: Request, attribution: "Callable[[], Attribution | None]"
    ) -> "Iterator[Answer | PendingAnswer[Any] | Attribution | None]":
        """Answer a request, in short steps: each but the last is None, or what has to be waited for.

        `attribution` identifies the calling process. Must not raise for a task's input.
        """
        ...


class InfoApi:
    """Serves the ports of `exeat.internal` for one sandbox. What answers at a port is made at its first connection."""

    __slots__ = ("_dialer", "_recorder", "handlers")

    def __init__(self, recorder: "Recorder", dialer: "Dialer") -> None:
        self._recorder = recorder
        self._dialer = dialer
        self.handlers: dict[int, RequestHandler] = {}

    def connection(self, gate: "Gate", client: "socket.socket", record: "ConnectionRecord") -> "InfoApiConnection":
        """Return what serves a connection; its caller begins it."""
        port = record.destination.port
        handler = self.handlers.get(port)
        if handler is None:
            handler = (
                TelemetryHandler(self._recorder)
                if port == INTAKE_PORT
                else InfoHandler(self._recorder, dialer=self._dialer)
            )
            self.handlers[port] = handler
        return InfoApiConnection(gate, client, record, handler)


class InfoApiConnection(ServedConnection):
    """Connection of a task to the info API."""

    __slots__ = ("_begun", "_gate", "_handler", "_kept", "_left", "_work")

    where = Component.INFO_API

    def __init__(
        self, gate: "Gate", client: "socket.socket", record: "ConnectionRecord", handler: RequestHandler
    ) -> None:
        super().__init__(gate.poller, client, record, gate.forget)
        self._gate = gate
        self._handler = handler
        self._kept = bytearray()
        self._begun: PartialRequest | None = None
        self._work: Iterator[Answer | PendingAnswer[Any] | Attribution | None] | None = None
        self._left = b""  # of the answer

    def begin(self) -> None:
        """Wait for the request, if there is room for one more."""
        self._handler.connections += 1
        super().begin()
        if self._handler.connections > self._handler.most_connections:
            self._answer(
                refused(RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many at once: ask again in a second"))
            )

    def ready(self, _events: int) -> None:
        """Read on, or go on sending."""
        if self._left:
            self._send()
            return
        if self._work is not None:
            self.abort()  # nothing is waited for meanwhile: it has broken
            return
        try:
            data = self._client.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not data:
            self.abort()
            return
        self._kept += data
        try:
            self._read()
        except RequestRefusedError as bad:
            self._answer(refused(bad))

    def _read(self) -> None:
        """Begin to work once the request is whole. Raises RequestRefusedError."""
        if self._begun is None:
            self._begun = read_head(self._kept, self._handler.port)
        request = None if self._begun is None else read_request(self._begun, self._kept)
        if request is not None:
            self._work = self._handler.work(request, self._attribution)
            self._kept.clear()
            self._poller.change(self._client.fileno(), 0)
            self._go_on()

    def _attribution(self) -> "Attribution | None":
        return self._gate.attribute(self._record)

    def _go_on(self) -> None:
        """Run the handler for a moment, then yield to others. Never raises."""
        until = time.monotonic() + _A_TURN
        try:
            while not self._over and self._work is not None:
                answer = next(self._work)
                if answer is not None and not isinstance(answer, Answer):
                    answer.then(self._go_on)
                    return
                if answer is not None:
                    self._answer(answer, bare=self._begun is not None and self._begun.resource.method == "HEAD")
                    return
                if time.monotonic() >= until:
                    asyncio.get_running_loop().call_soon(self._go_on)
                    return
        except Exception as error:  # noqa: BLE001 - there may be nobody above to catch it
            self.failed(error)

    def _answer(self, answer: Answer, *, bare: bool = False) -> None:
        retry = "Retry-After: 1\r\n" if answer.status in _LATER else ""
        head = (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.kind}\r\n"
            f"Content-Length: {len(answer.body)}\r\n{retry}Cache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self._left = head.encode() + (b"" if bare else answer.body)
        self._heard()
        self._poller.change(self._client.fileno(), OUT)
        self._send()

    def _send(self) -> None:
        try:
            self._left = self._left[self._client.send(self._left) :]
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not self._left:
            self._drain()

    def _drain(self) -> None:
        """End in peace. What the task has sent besides is read first: it would turn the end into a reset."""
        with contextlib.suppress(OSError):  # nothing is there, or nobody
            self._client.recv(2 * MOST_HEAD)
        self._end(finish)

    def _ended(self) -> None:
        self._work = None
        self._handler.connections -= 1
