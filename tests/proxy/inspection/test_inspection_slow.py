"""Slow clients: a head has a while to come, however it drips; what is decided may take its time."""

import contextlib
import socket
import ssl
import threading
import time
from ipaddress import ip_address

import pytest

from proxy.inspection import connection as inspected
from tests.proxy.inspection.http2_client import Client
from tests.proxy.inspection.inspection_clients import rest, until, wait_for
from tests.proxy.inspection.inspection_harness import site

A_WHILE = 0.3  # seconds


@pytest.fixture
def hasty(gate, monkeypatch):
    monkeypatch.setattr(inspected, "HEAD_TIMEOUT", A_WHILE)
    return gate


def drip(connection, data):
    """Send a byte at a time until the end, or until nobody takes any more; returns how many."""
    sent = 0
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            sent += 1
            time.sleep(A_WHILE / 20)
    return sent


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
DRIPS = {
    "an HTTP/1 head": (("http/1.1",), b"GET / HTTP/1.1\r\nX: "),
    "an HTTP/1 head behind another": (("http/1.1",), b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\nGET / HTTP/1.1\r\nX: "),
    "a frame of HTTP/2": (("h2",), HTTP2 + b"\0\x10\0\x01\x05\0\0\0\x01"),
    "a block of fields in many frames": (
        ("h2",),
        HTTP2 + b"\0\0\x01\x01\x01\0\0\0\x01\x82" + b"\0\x10\0\x09\0\0\0\0\x01",
    ),
}


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("what", DRIPS)
def test_what_can_t_be_decided_has_a_while_to_come(hasty, origins, what):
    place = site(hasty, origins.web("good.example"))
    alpn, begun = DRIPS[what]
    with place.connect(alpn=alpn) as connection:
        connection.sendall(begun.replace(b"HOST", place.host.encode()))
        assert drip(connection, b"a" * 1000) < 1000
    assert str(hasty.wait_closed()[0].reason) == "limit_exceeded"


@pytest.mark.usefixtures("often")
def test_a_handshake_has_a_while_to_come(hasty, origins):
    place = site(hasty, origins.web("good.example"))
    context = ssl.create_default_context(cadata=hasty.ca.certificate_pem.decode())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=place.name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with socket.create_connection(("127.0.0.1", place.door), 5) as connection:
        connection.sendall(outgoing.read())
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
    assert str(hasty.wait_closed()[0].reason) == "limit_exceeded"


def test_what_is_decided_may_take_its_time(hasty, origins):
    """An upload in drips, a long poll, a connection that is kept, and a head in two pieces."""

    def answer(connection, head):
        if b"Content-Length: 3" in head:
            until(connection, b"abc")
            time.sleep(1.5 * A_WHILE)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    place = site(hasty, origins.script(answer), tls=False)
    with place.connect() as connection:
        for body in (b"abc", b""):
            head = f"POST / HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head[:20])
            time.sleep(A_WHILE / 6)
            connection.sendall(head[20:])
            for byte in body:
                time.sleep(A_WHILE / 2)
                connection.sendall(bytes([byte]))
            assert until(connection, b"ok").endswith(b"\r\n\r\nok")
            time.sleep(1.2 * A_WHILE if body else 0)
    wait_for(lambda: len(hasty.events("request.completed")) == 2)
    assert {event["outcome"] for event in hasty.events("request.completed")} == {"passed"}


def test_time_that_deciding_took_is_nobody_s_silence(gate, origins, monkeypatch):
    asked, answers, kept = threading.Event(), threading.Event(), []

    def answer(connection, _head):
        asked.set()
        answers.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    place = site(gate, origins.script(answer), tls=False)
    gate.name()
    gate.loop.run(gate.lookup._kept.clear)
    monkeypatch.setattr(type(gate.dialer), "find", lambda *what: kept.append(what[-1]))

    def decided_after_a_day():
        [one] = gate.inspection._engine._connections.values()
        one._last -= 86400
        one.tick(time.monotonic())
        kept[0]((ip_address("127.0.0.1"),))

    def look_at_the_time():
        [one] = gate.inspection._engine._connections.values()
        one.tick(time.monotonic())

    with place.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        wait_for(lambda: kept)
        gate.loop.run(decided_after_a_day)
        assert asked.wait(30)
        gate.loop.run(look_at_the_time)
        answers.set()
        assert until(connection, b"ok").endswith(b"\r\n\r\nok")


STALLS = {
    "an upload that stops": ("POST /upload HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\nabc", False),
    "chunks that stop": ("POST /upload HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nabc", False),
    "trailers that stop": (
        "POST /upload HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y", False
    ),
    "a download that nobody reads": ("GET /bytes/100000000 HTTP/1.1\r\nHost: HOST\r\n\r\n", True),
}  # fmt: skip


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("what", STALLS)
def test_what_stops_ends_when_it_was_silent_for_too_long(gate, origins, what):
    """A reset for both sides: none of them has all of it."""
    sent, answered = STALLS[what]
    place = site(gate, origins.web("good.example", tls=False), tls=False, idle=A_WHILE)
    with place.connect() as connection:
        connection.sendall(sent.replace("HOST", place.host).encode())
        assert str(gate.wait_closed()[0].reason) == "limit_exceeded"
        with pytest.raises(ConnectionResetError):
            rest(connection)
    (told,) = gate.events("request.completed")
    assert (told["outcome"], told["reason"]) == ("failed", "limit_exceeded")
    assert ("status" in told["http"]) is False or answered


def test_one_stream_that_stops_is_nobody_else_s_business(gate, origins):
    """Its connection goes on as long as others' bytes come; what it holds is bounded by its window."""
    client = Client(site(gate, origins.web("good.example"), idle=2 * A_WHILE))
    client.request("/upload", "POST", end=False)
    for _ in range(6):
        assert client.status(client.request("/ok")) == "200"
        time.sleep(A_WHILE / 2)
    client.close()
