"""Who sends faster than the other reads, stops reading, or waits: nothing piles up, nothing is lost."""

import asyncio
import http.client
import socket
import threading
import time

import pytest

from proxy.inspection.http1 import FrontHttp1, State
from proxy.inspection.router import HEADS_AT_ONCE
from proxy.inspection.session import Session
from tests.proxy.inspection.bodies_harness import MIB, send_until
from tests.proxy.inspection.inspection_clients import resident, rest, until, wait_for
from tests.proxy.inspection.inspection_harness import site


def test_a_flood_of_pipelined_refusals_takes_no_memory(gate, origins):
    """It asks and doesn't read the answers: then it isn't read either."""
    place = site(gate, origins.web("good.example", tls=False), tls=False, http="{methods: [PUT]}")
    one = f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode()
    before = resident()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel takes megabytes of answers
        connection.connect(("127.0.0.1", place.door))
        connection.setblocking(False)
        idle = time.monotonic()
        sent = 0
        while time.monotonic() - idle < 0.5 and sent < 20 * MIB:
            try:
                sent += connection.send(one * 200)
                idle = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 15 * MIB
        assert resident() - before < 20 * MIB


def test_a_client_that_doesn_t_read_stops_the_server(gate, origins):
    sent = []

    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        connection.settimeout(1.0)
        try:
            while True:
                sent.append(connection.send(b"x" * 65536))
        except TimeoutError:
            sent.append("stopped")

    place = site(gate, origins.script(answer), tls=False)
    with place.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        wait_for(lambda: sent and sent[-1] == "stopped")
        assert sum(sent[:-1]) < 30 * MIB


def test_a_server_that_doesn_t_read_stops_the_client(gate, origins):
    def answer(connection, head):
        time.sleep(3)

    place = site(gate, origins.script(answer), tls=False)
    with place.connect() as connection:
        connection.settimeout(0.5)
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 1000000000\r\n\r\n".encode())
        assert send_until(TimeoutError, connection, 100 * MIB) < 30 * MIB


def test_server_sent_events_come_as_they_are_sent(gate, origins):
    seen = threading.Semaphore(0)

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            connection.sendall(b"9\r\ndata: %d\n\n\r\n" % number)
            assert seen.acquire(timeout=30)
        connection.sendall(b"0\r\n\r\n")

    place = site(gate, origins.script(answer, "good.example", tls=True, alpn=["http/1.1"]))
    client = http.client.HTTPSConnection(place.host)
    client.sock = place.connect()
    client.request("GET", "/events")
    response = client.getresponse()
    for number in range(3):  # the next one is sent when this one has come
        assert response.read1(100) == b"data: %d\n\n" % number
        seen.release()
    assert response.read() == b""
    client.close()


@pytest.mark.usefixtures("often")
def test_an_idle_connection_is_ended_and_told(gate, origins):
    place = site(gate, origins.web("good.example", tls=False), tls=False, idle=0.2)
    with place.connect() as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        rest(connection)
    assert str(gate.wait_closed()[0].reason) == "limit_exceeded"


def test_what_is_under_way_is_ended_on_close(gate, origins):
    place = site(gate, origins.web("good.example", tls=False), tls=False)
    with place.connect() as connection:
        connection.sendall(f"GET /slow/100/1 HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        assert connection.recv(10)
        gate.loop.run(gate.inspection.close)
        with pytest.raises(ConnectionResetError):
            rest(connection)
    assert len(gate.closed) == 1

    def come_late():
        with socket.create_connection(("127.0.0.1", place.door), 5) as late:  # the reset may be there before it
            late.sendall(b"GET / HTTP/1.1\r\n")
            rest(late)

    with pytest.raises(ConnectionResetError):
        come_late()
    assert len(gate.wait_closed(2)) == 2


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_a_slow_reader_gets_it_all(gate, origins, tls):
    """What it didn't take at first goes out little by little, and more is fetched in time."""
    size = 24 * MIB  # more than the kernel's buffers
    place = site(gate, origins.web("good.example", tls=tls), tls=tls)
    with place.connect() as connection:
        connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: {place.host}\r\nConnection: close\r\n\r\n".encode())
        until(connection, b"\r\n\r\n")
        got = 0
        while piece := connection.recv(65536):
            got += len(piece)
            time.sleep(0.0005)
    assert got == size


def test_a_slow_server_gets_it_all(gate, origins):
    got = []

    def answer(connection, head):
        while sum(got) < 24 * MIB:
            got.append(len(connection.recv(65536)))
            time.sleep(0.0005)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    place = site(gate, origins.script(answer), tls=False)
    with place.connect() as connection:
        head = f"POST / HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: {24 * MIB}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + bytes(24 * MIB))
        assert rest(connection).startswith(b"HTTP/1.1 204")


def test_many_pipelined_requests_take_many_turns(gate, origins, monkeypatch):
    """They wait behind one that is slow, and are all there when it is answered: everybody else would wait for them."""
    slow = threading.Event()

    def answer(connection, _head):
        assert slow.wait(timeout=30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    turns, told = [0], []

    def another():
        turns[0] += 1
        if len(told) < 500:
            asyncio.get_running_loop().call_soon(another)

    rule = Session.rule

    def ruled(self, request, **more):
        if request.head.method == b"PATCH":
            told.append(turns[0])
        return rule(self, request, **more)

    monkeypatch.setattr(Session, "rule", ruled)
    place = site(gate, origins.script(answer), tls=False, http="{methods: [GET]}")
    one = f"PATCH / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode()
    with place.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode() + one * 499)
        last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        connection.sendall(last)
        wait_for(gate.decided)
        gate.loop.run(another)
        slow.set()
        answers = rest(connection)
    assert answers.count(b"HTTP/1.1 403") == len(told) == 500
    each = [told.count(turn) for turn in set(told)]
    assert max(each) <= HEADS_AT_ONCE
    assert len(gate.wait_closed()) == 1


@pytest.mark.parametrize("slices", [None, 0.0], ids=["turns as they are", "a turn for each piece of work"])
@pytest.mark.parametrize("answers", ["the gate", "the server"])
def test_what_comes_behind_a_request_that_was_answered_early_is_never_decided(
    gate, origins, monkeypatch, answers, slices
):
    """Where its body ends, the client's next request would begin; but the connection is to end with the answer."""
    if slices is not None:
        monkeypatch.setattr("proxy.inspection.connection.SLICE", slices)

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        time.sleep(0.2)
        return True

    origin = origins.script(answer)
    allowed = "{methods: [GET, POST]}" if answers == "the server" else "{methods: [GET]}"
    place = site(gate, origin, tls=False, http=allowed)
    head = f"POST /upload HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 10\r\n\r\n".encode()
    behind = b"x" * 10 + f"GET /behind HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode()
    said = b""
    with place.connect() as connection:
        if answers == "the gate":
            connection.sendall(head + behind)
        else:
            connection.sendall(head)
            said = until(connection, b"no")
            connection.sendall(behind)
        said += rest(connection)
    gate.wait_closed()
    assert said.count(b"HTTP/1.1 ") == 1
    assert [path for _, path, *_ in gate.decided()] == ["/upload"]
    assert not [request for request in origin.requests if b"/behind" in request]


def test_informational_responses_that_come_together_go_out_before_the_final_one(gate, origins):
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    read = threading.Event()

    def answer(connection, _head):
        connection.sendall(hint * 3)
        assert read.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    place = site(gate, origins.script(answer), tls=False)
    with place.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\nConnection: close\r\n\r\n".encode())
        said = until(connection, hint * 3)
        read.set()
        assert (said + rest(connection)).endswith(b"ok")


def test_nothing_is_read_of_a_connection_that_is_being_closed():
    codec = FrontHttp1(tls=False)
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok" + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert codec.next_event() is not None
    codec.stop()
    codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (codec.next_event(), codec.state) == (None, State.DONE)
