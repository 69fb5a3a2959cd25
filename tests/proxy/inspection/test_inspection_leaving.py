"""A client that leaves is no failure of the network: what is recorded says who ended a request, and when."""

import socket
import struct
import threading

import h2.errors
import h2.events
import pytest

from tests.proxy.inspection.http2_client import Client
from tests.proxy.inspection.inspection_clients import cut_off, rest, until, wait_for
from tests.proxy.inspection.inspection_harness import site

EVENT = b"data: done\n\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(EVENT), EVENT)
UNTIL_CLOSED = STREAM + b"Connection: close\r\n\r\n" + EVENT
PART = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + EVENT
NOTHING = b""
LEFT, LEFT_EARLY, LEFT_WAITING = (
    "the client left before the end",
    "the client left before it had the whole response",
    "the client left before the server answered",
)


def close(connection):
    connection.close()


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()


def half_close_and_go(connection):
    connection.shutdown(socket.SHUT_WR)
    socket.socket(fileno=connection.detach()).close()


def told(gate):
    wait_for(lambda: gate.events("request.completed"))
    (event,) = gate.events("request.completed")
    return event["outcome"], event.get("reason"), event.get("detail")


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("leave", [close, reset, half_close_and_go])
@pytest.mark.parametrize(
    "case",
    [
        (CHUNKED, ("passed", None, LEFT)),  # an agent that has read the event it waited for
        (UNTIL_CLOSED, ("passed", None, LEFT)),
        (PART, ("failed", None, LEFT_EARLY)),  # a download that its length says is not whole
        (NOTHING, ("failed", None, LEFT_WAITING)),
    ],
    ids=["chunked", "until it is closed", "a part of a length", "nothing"],
)
def test_client_that_leaves_is_recorded_as_what_it_had(gate, origins, tls, leave, case):
    answer, what = case
    asked = []

    def serve(connection, _head):
        connection.sendall(answer)
        asked.append(True)
        while connection.recv(1):
            pass

    place = site(gate, origins.script(serve, "good.example", tls=tls, alpn=["http/1.1"]), tls=tls)
    connection = place.connect()
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
    wait_for(lambda: asked)
    if answer:
        until(connection, EVENT)
    leave(connection)
    assert told(gate) == what
    gate.wait_closed()
    assert gate.closed[0].reason is None
    assert ("failed 1 request" in gate.recorder.summary().describe()) is (
        what[0] == "failed"
    )  # what the closing lines count


@pytest.mark.parametrize("code", ["CANCEL", "NO_ERROR", "INTERNAL_ERROR"])
def test_client_that_resets_its_stream_of_events_has_not_failed(gate, origins, talk, code):
    """curl, Go and hyper say CANCEL, Node's `close()` NO_ERROR."""
    client = talk(site(gate, origins.web("good.example")))
    stream = client.request("/slow/100/0.05")
    client.wait(h2.events.DataReceived, stream)
    client.h2.reset_stream(stream, h2.errors.ErrorCodes[code])
    client.flush()
    assert told(gate) == ("passed", None, LEFT)
    assert "failed" not in gate.recorder.summary().describe()


def test_server_that_cuts_a_stream_of_events_has_failed(gate, origins):
    def serve(connection, _head):
        connection.sendall(CHUNKED)
        cut_off(connection)

    place = site(gate, origins.script(serve), tls=False)
    connection = place.connect()
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
    assert told(gate)[:2] == ("failed", "upstream_failed")
    connection.close()


def test_stream_of_events_that_the_gate_ends_is_not_told_as_left(gate, origins):
    """Neither by its idle time-out, nor where everything ends."""

    def serve(connection, _head):
        connection.sendall(CHUNKED)
        while connection.recv(1):
            pass

    place = site(gate, origins.script(serve), tls=False, idle=0)
    connection = place.connect()
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
    assert told(gate)[:2] == ("failed", "limit_exceeded")
    connection.close()


@pytest.fixture
def talk():
    clients = []

    def make(place):
        clients.append(Client(place))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_client_that_ends_behind_half_a_body_that_is_pipelined_isn_t_waited_for(gate, origins):
    ended = threading.Event()

    def serve(connection, _head):
        assert ended.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        while connection.recv(100):  # the second request, whose body never comes
            pass

    place = site(gate, origins.script(serve, "good.example"), tls=False)
    first = f"GET /1 HTTP/1.1\r\nHost: {place.host}\r\n\r\n"
    second = f"POST /2 HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 100\r\n\r\nhalf"
    with place.connect() as connection:
        connection.settimeout(20)
        connection.sendall((first + second).encode())
        connection.shutdown(socket.SHUT_WR)
        ended.set()
        assert rest(connection).startswith(b"HTTP/1.1 200 OK")
    gate.wait_closed()
