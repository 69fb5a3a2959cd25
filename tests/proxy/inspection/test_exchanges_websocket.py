"""The table of WebSocket exchanges on the wire, without a gate and through one gate: both sides receive the same bytes."""

import contextlib
import socket
import ssl
import threading

import pytest

from tests.proxy.inspection.clients import read_until
from tests.proxy.inspection.exchanges_websocket import CLIENT, EXCHANGES, SERVER
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.proxy.inspection.test_exchanges import DOCS, close_connection, documented, received

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


def format_head(*lines):
    return "\r\n".join([*lines, "", ""]).encode()


def read_exactly(connection, size):
    """Read `size` bytes, or fewer if the connection ends."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < size and (piece := connection.recv(min(65536, size - len(data)))):
            data += piece
    return data


class WebSocketExchangeLab:
    """A server, a gate in front of it, and direct connections to the server."""

    def __init__(self, directory, origins, *, tls):
        self.gate = GateLab(directory, origins)
        self.row = self.arrived = self.done = None
        self.origin = origins.script(self._answer, "good.example", tls=tls, alpn=["http/1.1"])
        self.site = make_site(self.gate, self.origin, tls=tls, http="{paths: [/chat], websocket: true}")
        self._context = ssl.create_default_context(cadata=origins.authority.pem().decode())

    def connect(self):
        """Connect to the server directly."""
        connection = socket.create_connection(("127.0.0.1", self.origin.port), 10)
        return self._context.wrap_socket(connection, server_hostname="good.example") if self.site.tls else connection

    def _answer(self, connection, head):
        row, done = self.row, self.done
        extensions = [f"Sec-WebSocket-Extensions: {row.extensions}"] if row.extensions else []
        agreed = [
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {ACCEPT}",
            *extensions,
            *row.agreed,
        ]
        connection.sendall(format_head("HTTP/1.1 101 Switching Protocols", *agreed) + row.down)
        arrived = read_exactly(connection, len(row.up))
        if row.late and row.ends_first == CLIENT:
            arrived += received(connection)[0]
            connection.sendall(row.late)
            close_connection(connection, "end")
        elif row.late:
            connection.shutdown(socket.SHUT_WR)
            arrived += received(connection)[0]
            connection.close()
        elif row.ends_first == SERVER:
            close_connection(connection, "end")
        else:
            with contextlib.suppress(OSError):
                arrived += received(connection)[0]
            connection.close()
        self.arrived = head + arrived
        done.set()

    def run(self, connect, row):
        """Return the bytes of client and server including handshakes, and how the connection of the client ended."""
        self.row, self.arrived, self.done = row, None, threading.Event()
        extensions = [f"Sec-WebSocket-Extensions: {row.extensions}"] if row.extensions else []
        hello = [
            "GET /chat HTTP/1.1", f"Host: {self.site.host}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", *extensions, *row.offered,
        ]  # fmt: skip
        with connect() as connection:
            connection.sendall(format_head(*hello))
            got = read_until(connection, b"\r\n\r\n")
            with contextlib.suppress(OSError):
                connection.sendall(row.up)
            got += read_exactly(connection, len(row.down))
            ended = ""
            if row.ends_first == CLIENT and row.arrives is None and not row.late:
                close_connection(connection, "end")
            else:
                if row.late and row.ends_first == CLIENT:
                    connection.shutdown(socket.SHUT_WR)
                more, ended = received(connection)
                got += more
                if row.late and row.ends_first == SERVER:
                    connection.sendall(row.late)
        assert self.done.wait(10)
        return got, self.arrived, ended


@pytest.fixture(scope="module")
def labs(tmp_path_factory, origins):
    labs = {tls: WebSocketExchangeLab(tmp_path_factory.mktemp("wire"), origins, tls=tls) for tls in (False, True)}
    yield labs
    for lab in labs.values():
        lab.gate.close()


RUNS = [(row, tls) for row in EXCHANGES for tls in (False, True) if not (row.late and tls)]


@pytest.mark.parametrize(("row", "tls"), RUNS, ids=[f"{'wss' if tls else 'ws'}: {row.name}" for row, tls in RUNS])
def test_websocket_exchange_is_unchanged_except_as_documented(labs, row, tls):
    lab = labs[tls]
    if row.arrives is None:
        without = lab.run(lab.connect, row)
        assert without[0].endswith(row.down + (row.late if row.ends_first == CLIENT else b""))
        assert without[1].endswith(row.up + (row.late if row.ends_first == SERVER else b""))
        assert lab.run(lab.site.connect, row) == without
    else:
        got, arrived, _ = lab.run(lab.site.connect, row)
        assert arrived.partition(b"\r\n\r\n")[2] == row.arrives
        assert b"exeat: " in got.partition(b"\r\n\r\n")[2]  # a close frame with the reason in it
    assert lab.gate.events("gate.error") == []


def test_every_websocket_difference_is_documented():
    assert DOCS.exists()
    assert {row.why for row in EXCHANGES if row.why} <= documented()
    assert [row.name for row in EXCHANGES if bool(row.why) is not (row.arrives is not None)] == []


def test_websocket_exchanges_have_unique_names():
    assert len({row.name for row in EXCHANGES}) == len(EXCHANGES) >= 50
