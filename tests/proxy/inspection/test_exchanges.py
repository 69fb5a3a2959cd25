"""The table of HTTP/1.1 exchanges on the wire, without a gate and through one gate: both sides receive the same bytes."""

import contextlib
import re
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest

from tests.proxy.inspection.exchanges import CUT, END, EXCHANGES, RESET, Page
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.proxy.inspection.origins import stop
from tests.proxy.inspection.smuggling import NEXT, raw

NEXT_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"
DOCS = Path(__file__).resolve().parents[3] / "docs/reference/clients.md"


class Server:
    """Sends the answer of a row once the expected bytes have arrived, then answers the next request."""

    def __init__(self, context):
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.expected = self.answer = self.arrived = b""
        self.end = ""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            connection.settimeout(5)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            data, answered = b"", False
            while True:
                if not answered and self.expected and len(data) >= len(self.expected) and not is_next(data):
                    self.arrived, data, answered = data[: len(self.expected)], data[len(self.expected) :], True
                    connection.sendall(self.answer)
                    if self.end:
                        close_connection(connection, self.end)
                        return
                if is_next(data) and data.endswith(b"\r\n\r\n"):
                    connection.sendall(NEXT_ANSWER)
                    close_connection(connection, END)
                    return
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece

    def close(self):
        stop(self._listener)


def is_next(data):
    return data.startswith(b"GET /next ")


def close_connection(connection, end):
    """End a connection, over TLS with a close_notify, or with a reset."""
    if end == RESET:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket(fileno=connection.detach()).close()
        return
    if isinstance(connection, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            connection.unwrap()
    connection.close()


def received(connection):
    """Return all bytes received and how the connection ended."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        return data, RESET
    except ssl.SSLEOFError:
        return data, CUT
    return data, END


class ExchangeLab:
    """A server, a gate in front of it, and direct connections to the server."""

    def __init__(self, directory, origins, *, tls):
        self.gate = GateLab(directory, origins)
        self.server = Server(origins.context("good.example", alpn=["http/1.1"]) if tls else None)
        self.site = make_site(self.gate, self.server, tls=tls, http="{paths: ['/**'], body: true}")
        self._context = ssl.create_default_context(cadata=origins.authority.pem().decode())

    def connect(self):
        """Connect to the server directly."""
        connection = socket.create_connection(("127.0.0.1", self.server.port), 10)
        return self._context.wrap_socket(connection, server_hostname="good.example") if self.site.tls else connection

    def raw(self, text):
        scheme = "https" if self.site.tls else "http"
        return raw(text.replace("PORT", str(self.server.port)).replace("SCHEME", scheme), self.site.host)

    def run(self, connect, row, expected, *, more):
        """Return the bytes of the client, how its connection ended, and the bytes of the server."""
        server = self.server
        server.expected, server.answer, server.end, server.arrived = expected, self.raw(row.answer), row.server, b""
        with connect() as connection:
            connection.sendall(self.raw(row.request) + (self.raw(NEXT) if more else b""))
            if row.half:
                connection.shutdown(socket.SHUT_WR)
            return *received(connection), server.arrived


def has_next_request(row):
    """Return whether another request follows on the connection of the client."""
    return not (row.server or row.half)


@pytest.fixture(scope="module")
def labs(tmp_path_factory, origins):
    labs = {
        tls: ExchangeLab(tmp_path_factory.mktemp("wire"), origins, tls=tls) for tls in (False, True)
    }  # fmt: skip
    yield labs
    for lab in labs.values():
        lab.server.close()
        lab.gate.close()


RUNS = [(row, tls) for row in EXCHANGES for tls in (False, True) if not (row.half and tls)]


@pytest.mark.parametrize(("row", "tls"), RUNS, ids=[f"{'tls' if tls else 'plain'}: {row.name}" for row, tls in RUNS])
def test_http1_exchange_is_unchanged_except_as_documented(labs, row, tls):
    lab = labs[tls]
    request, answer = lab.raw(row.request), lab.raw(row.answer)
    more = has_next_request(row)
    without = lab.run(lab.connect, row, request, more=more)
    assert without == (answer + (NEXT_ANSWER if more else b""), row.server or END, request)

    arrives = request if row.arrives is None else lab.raw(row.arrives)
    more = more or row.gets == Page(502)  # the connection of the client stays usable
    got, ended, arrived = lab.run(lab.site.connect, row, arrives, more=more)
    behind = NEXT_ANSWER if more else b""
    assert arrived == arrives
    assert ended == row.ends
    if isinstance(row.gets, Page):
        assert re.match(rb"HTTP/1\.1 %d (?:Blocked|Failed) by Exeat: " % row.gets.status, got)
        assert got.endswith(behind if row.arrives is None else b"}\n")
    else:
        gets = answer if row.gets is None else lab.raw(row.gets)
        assert got == gets + (behind if row.ends == END else b"")
    assert [e["fault"] for e in lab.gate.events("gate.error")] == []


def documented():
    """Return the changes that the docs list."""
    section = DOCS.read_text().partition("## What the gate changes\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| \*\*(.+?)\*\* \|", section, re.MULTILINE))


def differs(row):
    """Return whether the row differs with the gate."""
    return row.gets is not None or row.arrives is not None or row.ends != (row.server or END)


def test_every_http1_difference_is_documented():
    assert {row.why for row in EXCHANGES if differs(row)} <= documented()
    assert [row.name for row in EXCHANGES if bool(row.why) is not differs(row)] == []


def test_http1_exchanges_have_unique_names():
    assert len(RUNS) >= 150
    assert len({row.name for row in EXCHANGES}) == len(EXCHANGES)
