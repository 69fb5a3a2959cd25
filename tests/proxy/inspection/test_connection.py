"""One inspected connection: timeouts, flow control, protocols that are not HTTP, and refused connections."""

import asyncio
import contextlib
import http.client
import imaplib
import json
import math
import os
import socket
import ssl
import threading
import time
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from proxy.inspection import connection as inspected
from proxy.inspection.connection_ends import ClientEnd, MemoryQuota
from proxy.inspection.http1 import ClientSideHttp1, State
from proxy.inspection.router import HEADS_AT_ONCE, HttpRouter
from proxy.inspection.session import Session
from proxy.request.messages import WebOrigin
from rules.decision import Decision
from rules.explain.reasons import REASONS
from rules.values.names import HostName
from rules.verdicts import Outcome, Reason, Verdict
from tests.proxy.inspection.clients import MIB, Client, read_all, read_until, resident_memory, send_until
from tests.proxy.inspection.inspection_lab import TLS_AND_PLAIN, make_site
from tests.support.waiting import wait_until


def test_pipelined_refusals_to_a_client_that_does_not_read_are_bounded(gate, origins):
    """A client that does not read its responses is not read from either."""
    site = make_site(gate, origins.web("good.example", tls=False), tls=False, http="{methods: [PUT]}")
    one = f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode()
    before = resident_memory()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel takes megabytes of answers
        connection.connect(("127.0.0.1", site.gate_port))
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
        assert resident_memory() - before < 20 * MIB


def test_client_that_does_not_read_stops_the_server(gate, origins):
    sent = []

    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        connection.settimeout(1.0)
        try:
            while True:
                sent.append(connection.send(b"x" * 65536))
        except TimeoutError:
            sent.append("stopped")

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        wait_until(lambda: sent and sent[-1] == "stopped")
        assert sum(sent[:-1]) < 30 * MIB


def test_server_that_does_not_read_stops_the_client(gate, origins):
    def answer(connection, head):
        time.sleep(3)

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        connection.settimeout(0.5)
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 1000000000\r\n\r\n".encode())
        assert send_until(TimeoutError, connection, 100 * MIB) < 30 * MIB


def test_server_sent_events_arrive_one_by_one(gate, origins):
    seen = threading.Semaphore(0)

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            connection.sendall(b"9\r\ndata: %d\n\n\r\n" % number)
            assert seen.acquire(timeout=30)
        connection.sendall(b"0\r\n\r\n")

    site = make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["http/1.1"]))
    client = http.client.HTTPSConnection(site.host)
    client.sock = site.connect()
    client.request("GET", "/events")
    response = client.getresponse()
    for number in range(3):  # the server sends the next event when this one has arrived
        assert response.read1(100) == b"data: %d\n\n" % number
        seen.release()
    assert response.read() == b""
    client.close()


@pytest.mark.usefixtures("frequent_ticks")
def test_idle_connection_is_reset_and_recorded(gate, origins):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False, idle=0.2)
    with site.connect() as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        read_all(connection)
    assert str(gate.wait_closed()[0].reason) == "limit_exceeded"


def test_open_and_late_connections_are_reset_when_inspection_closes(gate, origins):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False)
    with site.connect() as connection:
        connection.sendall(f"GET /slow/100/1 HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        assert connection.recv(10)
        gate.loop.run(gate.inspection.close)
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert len(gate.closed) == 1

    def come_late():
        with socket.create_connection(("127.0.0.1", site.gate_port), 5) as late:  # the reset may be there before it
            late.sendall(b"GET / HTTP/1.1\r\n")
            read_all(late)

    with pytest.raises(ConnectionResetError):
        come_late()
    assert len(gate.wait_closed(2)) == 2


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_slow_client_receives_the_whole_response(gate, origins, tls):
    """The gate sends what the client did not take at first in pieces, and then reads more."""
    size = 24 * MIB  # more than the kernel's buffers
    site = make_site(gate, origins.web("good.example", tls=tls), tls=tls)
    with site.connect() as connection:
        connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())
        read_until(connection, b"\r\n\r\n")
        got = 0
        while piece := connection.recv(65536):
            got += len(piece)
            time.sleep(0.0005)
    assert got == size


def test_slow_server_receives_the_whole_upload(gate, origins):
    got = []

    def answer(connection, head):
        while sum(got) < 24 * MIB:
            got.append(len(connection.recv(65536)))
            time.sleep(0.0005)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {24 * MIB}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + bytes(24 * MIB))
        assert read_all(connection).startswith(b"HTTP/1.1 204")


def test_pipelined_requests_are_decided_over_several_turns(gate, origins, monkeypatch):
    """They wait behind a slow request and are decided over several turns, so that other connections get theirs."""
    slow = threading.Event()

    def answer(connection, _head):
        assert slow.wait(timeout=30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    turns, decided_in_turn = [0], []

    def another():
        turns[0] += 1
        if len(decided_in_turn) < 500:
            asyncio.get_running_loop().call_soon(another)

    rule = Session.evaluate

    def ruled(self, request, **more):
        if request.head.method == b"PATCH":
            decided_in_turn.append(turns[0])
        return rule(self, request, **more)

    monkeypatch.setattr(Session, "evaluate", ruled)
    site = make_site(gate, origins.script(answer), tls=False, http="{methods: [GET]}")
    one = f"PATCH / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode()
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode() + one * 499)
        last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        connection.sendall(last)
        wait_until(gate.decided)
        gate.loop.run(another)
        slow.set()
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 403") == len(decided_in_turn) == 500
    each = [decided_in_turn.count(turn) for turn in set(decided_in_turn)]
    assert max(each) <= HEADS_AT_ONCE
    assert len(gate.wait_closed()) == 1


@pytest.mark.parametrize("slices", [None, 0.0], ids=["normal turns", "a turn per piece of work"])
@pytest.mark.parametrize("answers", ["the gate", "the server"])
def test_request_behind_an_early_answer_is_never_decided(gate, origins, monkeypatch, answers, slices):
    """Its body is followed by another request, but the connection ends with the early answer."""
    if slices is not None:
        monkeypatch.setattr("proxy.inspection.connection.SLICE", slices)

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        time.sleep(0.2)
        return True

    origin = origins.script(answer)
    allowed = "{methods: [GET, POST]}" if answers == "the server" else "{methods: [GET]}"
    site = make_site(gate, origin, tls=False, http=allowed)
    head = f"POST /upload HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 10\r\n\r\n".encode()
    behind = b"x" * 10 + f"GET /behind HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode()
    received = b""
    with site.connect() as connection:
        if answers == "the gate":
            connection.sendall(head + behind)
        else:
            connection.sendall(head)
            received = read_until(connection, b"no")
            connection.sendall(behind)
        received += read_all(connection)
    gate.wait_closed()
    assert received.count(b"HTTP/1.1 ") == 1
    assert [path for _, path, *_ in gate.decided()] == ["/upload"]
    assert not [request for request in origin.requests if b"/behind" in request]


def test_informational_responses_are_sent_before_the_final_one(gate, origins):
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    read = threading.Event()

    def answer(connection, _head):
        connection.sendall(hint * 3)
        assert read.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())
        received = read_until(connection, hint * 3)
        read.set()
        assert (received + read_all(connection)).endswith(b"ok")


def test_stopped_codec_reads_no_further_request():
    codec = ClientSideHttp1(tls=False)
    codec.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok" + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert codec.next_event() is not None
    codec.stop()
    codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (codec.next_event(), codec.state) == (None, State.DONE)


# --- slow clients and timeouts ---


HEAD_TIMEOUT_IN_TEST = 0.3  # seconds


@pytest.fixture
def short_head_timeout(gate, monkeypatch):
    monkeypatch.setattr(inspected, "HEAD_TIMEOUT", HEAD_TIMEOUT_IN_TEST)
    return gate


def drip(connection, data):
    """Send byte by byte until all is sent or the connection ends; returns the number of bytes."""
    sent = 0
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            sent += 1
            time.sleep(HEAD_TIMEOUT_IN_TEST / 20)
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


@pytest.mark.usefixtures("frequent_ticks")
@pytest.mark.parametrize("what", DRIPS)
def test_head_that_drips_is_ended_by_the_head_timeout(short_head_timeout, origins, what):
    site = make_site(short_head_timeout, origins.web("good.example"))
    alpn, start = DRIPS[what]
    with site.connect(alpn=alpn) as connection:
        connection.sendall(start.replace(b"HOST", site.host.encode()))
        assert drip(connection, b"a" * 1000) < 1000
    assert str(short_head_timeout.wait_closed()[0].reason) == "limit_exceeded"


@pytest.mark.usefixtures("frequent_ticks")
def test_unfinished_tls_handshake_is_ended_by_the_head_timeout(short_head_timeout, origins):
    site = make_site(short_head_timeout, origins.web("good.example"))
    context = ssl.create_default_context(cadata=short_head_timeout.ca.certificate_pem.decode())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=site.name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with socket.create_connection(("127.0.0.1", site.gate_port), 5) as connection:
        connection.sendall(outgoing.read())
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
    assert str(short_head_timeout.wait_closed()[0].reason) == "limit_exceeded"


def test_head_timeout_does_not_apply_to_a_decided_request(short_head_timeout, origins):
    """A dripped upload, a long poll, an idle persistent connection, and a head in two pieces."""

    def answer(connection, head):
        if b"Content-Length: 3" in head:
            read_until(connection, b"abc")
            time.sleep(1.5 * HEAD_TIMEOUT_IN_TEST)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    site = make_site(short_head_timeout, origins.script(answer), tls=False)
    with site.connect() as connection:
        for body in (b"abc", b""):
            head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head[:20])
            time.sleep(HEAD_TIMEOUT_IN_TEST / 6)
            connection.sendall(head[20:])
            for byte in body:
                time.sleep(HEAD_TIMEOUT_IN_TEST / 2)
                connection.sendall(bytes([byte]))
            assert read_until(connection, b"ok").endswith(b"\r\n\r\nok")
            time.sleep(1.2 * HEAD_TIMEOUT_IN_TEST if body else 0)
    wait_until(lambda: len(short_head_timeout.events("request.completed")) == 2)
    assert {event["outcome"] for event in short_head_timeout.events("request.completed")} == {"passed"}


def test_time_spent_deciding_does_not_count_as_idle(gate, origins, monkeypatch):
    requested, answers, lookups = threading.Event(), threading.Event(), []

    def answer(connection, _head):
        requested.set()
        answers.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    site = make_site(gate, origins.script(answer), tls=False)
    gate.name()
    gate.loop.run(gate.lookup._cache.clear)
    monkeypatch.setattr(type(gate.dialer), "find", lambda *what: lookups.append(what[-1]))

    def decided_after_a_day():
        [one] = gate.inspection._engine._connections.values()
        one._last -= 86400
        one.tick(time.monotonic())
        lookups[0]((ip_address("127.0.0.1"),))

    def look_at_the_time():
        [one] = gate.inspection._engine._connections.values()
        one.tick(time.monotonic())

    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        wait_until(lambda: lookups)
        gate.loop.run(decided_after_a_day)
        assert requested.wait(30)
        gate.loop.run(look_at_the_time)
        answers.set()
        assert read_until(connection, b"ok").endswith(b"\r\n\r\nok")


STALLS = {
    "an upload that stops": ("POST /upload HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100\r\n\r\nabc", False),
    "chunks that stop": ("POST /upload HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nabc", False),
    "trailers that stop": (
        "POST /upload HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y", False
    ),
    "a download that nobody reads": ("GET /bytes/100000000 HTTP/1.1\r\nHost: HOST\r\n\r\n", True),
}  # fmt: skip


@pytest.mark.usefixtures("frequent_ticks")
@pytest.mark.parametrize("what", STALLS)
def test_stalled_transfer_is_reset_by_the_idle_timeout(gate, origins, what):
    """Both sides are reset, because neither has received everything."""
    sent, answered = STALLS[what]
    site = make_site(gate, origins.web("good.example", tls=False), tls=False, idle=HEAD_TIMEOUT_IN_TEST)
    with site.connect() as connection:
        connection.sendall(sent.replace("HOST", site.host).encode())
        assert str(gate.wait_closed()[0].reason) == "limit_exceeded"
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("failed", "limit_exceeded")
    assert ("status" in completed["http"]) is False or answered


def test_stalled_http2_stream_does_not_end_the_others(gate, origins):
    """The connection stays open while other streams transfer; the stalled stream buffers at most its window."""
    client = Client(make_site(gate, origins.web("good.example"), idle=2 * HEAD_TIMEOUT_IN_TEST))
    client.request("/upload", "POST", end=False)
    for _ in range(6):
        assert client.status(client.request("/ok")) == "200"
        time.sleep(HEAD_TIMEOUT_IN_TEST / 2)
    client.close()


# --- protocols that are not HTTP ---


SPLICE = "tls: splice"


@pytest.fixture
def greeting_origin(origins):
    """A server that speaks first, as IMAP's does."""
    return origins.script(lambda connection, _: connection.sendall(b"* OK ready\r\n"), "good.example", tls=True)


def blocked_event(gate):
    wait_until(lambda: gate.events("request.decided"))
    (event,) = gate.events("request.decided")
    assert len(event["detail"]) > 30  # the event says what the page says
    return event["outcome"], event["reason"]


@pytest.mark.usefixtures("frequent_ticks")
def test_silent_client_without_alpn_is_told_to_use_splice(gate, greeting_origin, monkeypatch):
    monkeypatch.setattr(inspected, "SILENCE", 0.0)
    site = make_site(gate, greeting_origin)
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    with site.connect(alpn=()) as connection:
        page = read_all(connection)
    assert page.startswith(b"HTTP/1.1 403 Blocked by Exeat: protocol_mismatch\r\n")
    body = json.loads(page.partition(b"\r\n\r\n")[2])
    assert "waits for the server to speak first" in body["detail"]
    assert SPLICE in body["remedy"]
    assert blocked_event(gate) == ("blocked", "protocol_mismatch")
    assert greeting_origin.connections == 0

    class Imap(imaplib.IMAP4_SSL):
        def _create_socket(self, timeout):
            return context.wrap_socket(
                super(imaplib.IMAP4_SSL, self)._create_socket(timeout), server_hostname="good.example"
            )

    with pytest.raises(imaplib.IMAP4.error, match="Blocked by Exeat: protocol_mismatch"):
        Imap("127.0.0.1", site.gate_port, ssl_context=context, timeout=20)


def test_client_whose_first_bytes_wait_is_not_refused_as_silent():
    """Its bytes wait for another turn when the timeout is checked."""
    refused = []
    client = ClientEnd(WebOrigin(HostName("good.example"), 443, tls=True))
    client.codec = ClientSideHttp1(tls=True)
    router = HttpRouter(
        client,
        SimpleNamespace(request_count=0, misread=lambda *what: refused.append(what)),
        MemoryQuota(list),
        None,
        None,
    )
    router.todo.extend([(router.receive, (client, b"GET / HT")), (router.refuse_silent, ())])
    assert router.work(math.inf)
    assert refused == []


@pytest.mark.usefixtures("frequent_ticks")
def test_client_with_alpn_or_an_earlier_request_may_be_silent(gate, origins, monkeypatch):
    """Browsers and pools connect ahead with ALPN; a client that has sent a request may be silent as well."""
    monkeypatch.setattr(inspected, "SILENCE", 0.0)
    site = make_site(gate, origins.web("good.example"))
    ask = f"GET /echo HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode()
    with site.connect() as ahead, site.connect(alpn=()) as used:
        used.sendall(ask)
        assert used.recv(12) == b"HTTP/1.1 200"
        time.sleep(0.5)  # several ticks of the engine
        ahead.sendall(ask)
        assert ahead.recv(12) == b"HTTP/1.1 200"
    assert [outcome for _, _, outcome, _ in gate.decided()] == ["passed", "passed"]


LDAP = bytes.fromhex("300c020101600702010304008000")
TEXT = {"EHLO": b"EHLO me\r\n", "Redis inline": b"PING\r\n"}
BINARY = {
    "LDAP": LDAP, "MQTT": bytes.fromhex("101000044d5154540402003c0004746573747a7a"), "AMQP": b"AMQP\0\0\x09\x01",
    "TLS in TLS": bytes.fromhex("16030100c8010000c40303"), "Redis": b"*1\r\n$4\r\nPING\r\n", "Postgres": b"\0\0\0\x08\x04\xd2\x16\x2f",
}  # fmt: skip


@pytest.mark.parametrize("first_bytes", [*BINARY.values(), *TEXT.values()], ids=[*BINARY, *TEXT])
def test_other_protocols_are_refused_at_once_with_a_remedy(gate, greeting_origin, first_bytes):
    site = make_site(gate, greeting_origin)
    with site.connect(alpn=()) as connection:
        connection.sendall(first_bytes)
        page = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])
    assert (page["reason"], SPLICE in page["remedy"]) == ("protocol_mismatch", True)
    assert "is not HTTP" in page["detail"]
    assert blocked_event(gate) == ("blocked", "protocol_mismatch")
    assert greeting_origin.connections == 0


UPGRADES = {
    "kubectl": ("SPDY/3.1", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS"), "docker": ("tcp", SPLICE), "two": ("foo/2, bar", SPLICE),
    "in another case": ("sPdY/3.1", "kubectl"),
}  # fmt: skip


@pytest.mark.parametrize(("offered", "helps"), UPGRADES.values(), ids=UPGRADES)
def test_upgrade_to_an_unreadable_protocol_is_refused_with_a_remedy(gate, origins, offered, helps):
    origin = origins.web("good.example")
    head = f"POST /api/v1/exec HTTP/1.1\nHost: HOST\nConnection: Upgrade\nUpgrade: {offered}\nContent-Length: 0\n\n"
    answer = make_site(gate, origin).request(head.replace("Connection: Upgrade", "Connection: Upgrade, close"))
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (page["reason"], page["remedy"]) != ("protocol_mismatch", REASONS[Reason.PROTOCOL_MISMATCH].remedy)
    assert (page["reason"], helps in page["remedy"]) == ("protocol_mismatch", True)
    assert offered.partition(",")[0] in page["detail"]
    assert blocked_event(gate) == ("blocked", "protocol_mismatch")
    assert origin.connections == 0


@pytest.mark.parametrize("offered", ["h2c", "h2c, foo", "foo, h2c", "TLS/1.3", "HTTP/2.0", "H2C"])
def test_optional_upgrade_is_dropped_and_the_request_passes(gate, origins, offered):
    head = f"GET /echo HTTP/1.1\nHost: HOST\nConnection: Upgrade, close\nUpgrade: {offered}\n\n"
    answer = make_site(gate, origins.web("good.example")).request(head)
    assert answer.startswith(b"HTTP/1.1 200")
    names = [name for name, _ in json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]]
    assert "upgrade" not in names


# --- connections that were refused before inspection ---


def denied(reason=Reason.NO_RULE):
    return Decision(Verdict.DENY, Outcome.BLOCKED, reason, revision="r")


@TLS_AND_PLAIN
def test_refused_connection_gets_a_page_and_one_decision_event(gate, web, tls):
    origin = web(tls=tls)
    site = make_site(gate, origin, tls=tls, decision=denied())
    site.gate.rules("[]")
    words = ("--http2",) if tls else ("--http1.1",)
    status, out, err = site.curl("/x", *words)
    assert (status, err) == (0, "")
    problem = json.loads(out)
    gate.wait_closed()
    events = gate.events()
    assert [event["kind"] for event in events] == ["connection.decided"]
    assert (problem["reason"], problem["event"]) == ("no_rule", events[0]["id"])
    assert origin.connections == 0


def test_page_of_a_refused_connection_has_its_detail_and_remedy(gate, web, monkeypatch):
    site = make_site(gate, web(), decision=denied(Reason.NON_PUBLIC_ADDRESS))
    adopt = gate.inspection.adopt
    texts = {"detail": "it is this host's own", "advice": "ask for another"}
    monkeypatch.setattr(
        gate.inspection,
        "adopt",
        lambda admitted: adopt(admitted._replace(gate_decision=admitted.gate_decision._replace(**texts))),
    )
    problem = json.loads(site.curl("/x")[1])
    assert (problem["detail"], problem["remedy"]) == ("it is this host's own", "ask for another")


def test_refused_connection_stays_refused_although_rules_allow_it(gate, web):
    origin = web()
    site = make_site(gate, origin, decision=denied())
    assert site.curl("/x", "-w", "%{http_code}", "-o", os.devnull)[1] == b"403"
    assert origin.connections == 0


def test_connect_on_a_refused_connection_is_refused(gate, web):
    site = make_site(gate, web(tls=False), tls=False, decision=denied())
    answer = site.request("CONNECT x:1 HTTP/1.1\n\n")
    assert answer.startswith(b"HTTP/1.1 403 Blocked by Exeat: no_rule")
    assert [event["kind"] for event in gate.events()] == ["connection.decided"]


def test_refused_client_is_shown_a_certificate_for_its_sni(gate, web):
    site = make_site(gate, web(), name="good.example", decision=denied(Reason.NAME_MISMATCH))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    with site.connect(sni="Other.Example") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n")
        assert b"name_mismatch" in read_all(connection)
        assert connection.getpeercert()["subjectAltName"] == (("DNS", "other.example"),)
    assert context.check_hostname
