"""Cut connections: the cut reaches the other side as a cut, after all bytes before it (invariant 12)."""

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import time

import h2.events
import pytest

from tests.proxy.inspection.clients import Client, read_until
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.support.waiting import wait_until

DECLARED = 5_000_000  # Content-Length of every answer in this module


def _reset(connection):
    """Reset after all bytes have arrived, because a reset discards what is still in the kernel buffer."""
    wait_until(lambda: fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)) == bytes(4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()


def _end(connection):
    """End TCP alone, over TLS without a close_notify."""
    socket.socket(fileno=connection.detach()).close()


def _end_in_order(connection):
    """End in order, over TLS with a close_notify, which often arrives in one piece with the last bytes."""
    if isinstance(connection, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            connection.unwrap()
    connection.close()


ENDS = {"in order": _end_in_order, "TCP only": _end, "reset": _reset}


class EarlyEndLab:
    """A server that sends less than its Content-Length."""

    def __init__(self, directory, origins, *, tls):
        self.gate = GateLab(directory, origins)
        self.size, self.end = 0, _end
        self.origin = origins.script(self._answer, "good.example", tls=tls, alpn=["http/1.1"])
        self.site = make_site(self.gate, self.origin, tls=tls)

    def _answer(self, connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DECLARED + bytes(self.size))
        self.end(connection)
        return False


@pytest.fixture(scope="module", params=[True, False], ids=["tls", "plain"])
def early_end(request, tmp_path_factory, origins):
    lab = EarlyEndLab(tmp_path_factory.mktemp("early"), origins, tls=request.param)
    yield lab
    lab.gate.close()


def received(connection, *, late=False):
    """Return the number of body bytes, and whether the connection ended with a reset."""
    head = read_until(connection, b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    time.sleep(0.3 if late else 0)
    size = 0
    try:
        while piece := connection.recv(65536):
            size += len(piece)
    except ConnectionResetError:
        return size, True
    return size, False


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("size", [0, 5, 1000, 100_000])
def test_bytes_before_a_server_cut_are_delivered(early_end, size, end):
    early_end.size, early_end.end = size, end
    closed = len(early_end.gate.closed)
    with early_end.site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {early_end.site.host}\r\n\r\n".encode())
        assert received(connection) == (size, True)
    wait_until(lambda: len(early_end.gate.closed) > closed)
    completed = early_end.gate.events("request.completed")[-1]
    assert (completed["bytes"]["down"], completed["outcome"]) == (size, "failed")


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_client_that_reads_late_receives_the_bytes_before_a_cut(early_end, end):
    """The body exceeds the socket buffer of the client, and a reset would discard what is unsent."""
    early_end.size, early_end.end = 4_000_000, end
    with early_end.site.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {early_end.site.host}\r\n\r\n".encode())
        assert received(connection, late=True) == (4_000_000, True)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("end", [_end_in_order, _end], ids=["in order", "TCP only"])
def test_upload_bytes_before_a_client_cut_are_delivered(gate, origins, tls, end):
    arrived = []

    def answer(connection, _head):
        arrived.append(b"")
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                arrived.append(piece)
        arrived.append(None)

    site = make_site(gate, origins.script(answer, "good.example", tls=tls, alpn=["http/1.1"]), tls=tls)
    connection = site.connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise its kernel may discard the last bytes
    connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {DECLARED}\r\n\r\n".encode())
    wait_until(lambda: arrived)
    connection.sendall(bytes(1000))
    end(connection)
    wait_until(lambda: arrived[-1:] == [None])
    assert b"".join(arrived[:-1]) == bytes(1000)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_http2_client_receives_the_bytes_before_a_server_cut(gate, origins, end):
    """Bytes without credit wait in the gate, followed by the reset of the stream."""

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DECLARED + bytes(80_000))
        end(connection)
        return False

    client = Client(make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])))
    stream = client.request("/")
    while body_of(client) < 65_535:  # the initial window
        client.read()
    client.h2.increment_flow_control_window(80_000)
    client.h2.increment_flow_control_window(80_000, stream)
    client.flush()
    client.wait(h2.events.StreamReset, stream)
    assert body_of(client) == 80_000
    client.close()
    assert gate.events("request.completed")[0]["bytes"]["down"] == 80_000


def body_of(client):
    return sum(len(event.data) for event in client.events if isinstance(event, h2.events.DataReceived))
