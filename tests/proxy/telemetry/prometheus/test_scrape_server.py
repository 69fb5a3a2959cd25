"""Scrape server with ordinary, slow, malformed and huge clients."""

import asyncio
import contextlib
import socket
import struct

import pytest

from proxy.telemetry.events import Component
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.telemetry.prometheus.scrape_server import ScrapeServer
from tests.support.waiting import wait_until_async


class ScrapeLab:
    def __init__(self, deadline):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.metrics = Metrics()
        self.server = ScrapeServer(self.listener, self.metrics, deadline)

    async def open(self):
        return await asyncio.open_connection(*self.address)

    async def ask(self, request):
        """Send bytes and return everything that comes back; a reset counts as the end."""
        reader, writer = await self.open()
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                answer += piece
        writer.close()
        return answer


def run_scenario(scenario, deadline=20.0):
    """Run a scenario against a running server, and see that it leaves nothing behind."""

    async def run():
        lab = ScrapeLab(deadline)
        await lab.server.start()
        try:
            await scenario(lab)
            assert b" 200 OK" in await lab.ask(b"GET /metrics HTTP/1.1\r\n\r\n")
        finally:
            await lab.server.close()
            await lab.server.close()
        assert lab.listener.fileno() == -1
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_metrics_are_served_with_their_type_and_length():
    async def scenario(lab):
        lab.metrics.worker_restarts = 7
        head, _, body = (await lab.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in lines
        assert b"Content-Length: %d" % len(body) in lines
        assert b"\nexeat_worker_restarts_total 7.0\n" in body

    run_scenario(scenario)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"get /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n folded\r\n\r\n", b"400"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"\x00" * 64 + b"\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_only_get_metrics_is_answered_with_metrics(request_bytes, status):
    async def scenario(lab):
        assert (await lab.ask(request_bytes)).split(b" ")[1:2] == [status]

    run_scenario(scenario)


def test_a_request_in_single_bytes_is_a_request():
    async def scenario(lab):
        reader, writer = await lab.open()
        for byte in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    run_scenario(scenario)


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n"])
def test_closed_and_reset_connections_leave_no_error(sent):
    async def scenario(lab):
        for linger in (None, struct.pack("ii", 1, 0)):
            client = socket.create_connection(lab.address)
            client.sendall(sent)
            if linger:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
        await wait_until_async(lambda: not lab.server._clients)

    run_scenario(scenario)


def test_unfinished_request_is_aborted_at_the_deadline():
    async def scenario(lab):
        reader, writer = await lab.open()
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert not lab.server._clients
        writer.close()

    run_scenario(scenario, deadline=0.3)


def test_client_that_never_reads_is_aborted_at_the_deadline():
    class Huge(Metrics):
        huge = True

        def render(self):
            # More than the sockets' buffers hold, so that it can't leave without being read.
            return b"x" * 30_000_000 if self.huge else super().render()

    async def scenario(lab):
        lab.server._metrics = Huge()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(lab.address)
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            await wait_until_async(lambda: lab.server._clients)
            await wait_until_async(lambda: not lab.server._clients)
        Huge.huge = False

    run_scenario(scenario, deadline=0.5)


def test_oldest_idle_client_is_closed_for_a_new_one():
    # Whoever can reach the port has as many connections as they like, and could keep Prometheus out.
    async def scenario(lab):
        idle = [await lab.open() for _ in range(16)]
        await wait_until_async(lambda: len(lab.server._clients) == 16)
        for _ in range(3):
            assert b" 200 OK" in await lab.ask(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert len(lab.server._clients) == 15, "the first to come has gone, and no other"
        for reader, writer in idle[:1]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        more = [await lab.open() for _ in range(40)]
        await wait_until_async(lambda: len(lab.server._clients) == 16)
        for _, writer in [*idle[1:], *more]:
            writer.close()
        await wait_until_async(lambda: not lab.server._clients)

    run_scenario(scenario)


def test_huge_request_is_refused_without_reading_it_all():
    async def scenario(lab):
        answer = await lab.ask(b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000_000)
        assert answer == b"" or b" 431 " in answer

    run_scenario(scenario)


def test_close_aborts_open_connections():
    async def scenario(lab):
        for _ in range(3):
            _, writer = await lab.open()
            writer.write(b"GET ")

    run_scenario(scenario)


def test_render_error_is_counted_and_answered_with_500():
    class Broken(Metrics):
        broken = True

        def render(self):
            if self.broken:
                raise RuntimeError("secret detail")
            return super().render()

    async def scenario(lab):
        lab.server._metrics = lab.metrics = Broken()
        answer = await lab.ask(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b" 500 " in answer
        assert b"secret" not in answer
        assert lab.metrics.gate_errors == {Component.METRICS: 1}
        Broken.broken = False

    run_scenario(scenario)
