"""What rules ask of a request beyond method and path, read from the wire: query, headers, body, length, WebSocket."""

import base64
import hashlib
import json
import os
import ssl

import h2.config
import h2.connection
import pytest
from inspection_clients import cut_off, rest, until, wait_for
from inspection_harness import site

from proxy.inspection.heads import Head
from proxy.inspection.websocket import Frames, agrees, is_handshake

LONG = "/echo?" + "a" * 3000


def head(line, *fields, body=""):
    size = [f"Content-Length: {len(body)}"] if body else []
    return "\n".join([line, "Host: HOST", "Connection: close", *fields, *size, "", body])


# The rule's `http`, a request, and what is decided
CASES = {
    "query": ("{query: {page: ['1*']}}", head("GET /echo?page=12 HTTP/1.1"), "passed rule"),
    "another query": ("{query: {page: ['1*']}}", head("GET /echo?page=2 HTTP/1.1"), "blocked no_rule"),
    "no query": ("{query: {page: ['1*']}}", head("GET /echo HTTP/1.1"), "blocked no_rule"),
    "a query twice": ("{query: {page: ['1*']}}", head("GET /echo?page=12&page=2 HTTP/1.1"), "blocked no_rule"),
    "an escaped name": ("{query: {token: absent}}", head("GET /echo?%74oken=x HTTP/1.1"), "blocked no_rule"),
    "header": ("{headers: {x-team: [data]}}", head("GET /echo HTTP/1.1", "X-Team: data"), "passed rule"),
    "another header": ("{headers: {x-team: [data]}}", head("GET /echo HTTP/1.1", "X-Team: other"), "blocked no_rule"),
    "a header twice": ("{headers: {x-team: [data]}}", head("GET /echo HTTP/1.1", "X-Team: data", "X-Team: other"), "blocked no_rule"),
    "no header": ("{headers: {x-team: [data]}}", head("GET /echo HTTP/1.1"), "blocked no_rule"),
    "absent": ("{headers: {authorization: absent}}", head("GET /echo HTTP/1.1"), "passed rule"),
    "not absent": ("{headers: {authorization: absent}}", head("GET /echo HTTP/1.1", "AUTHORIZATION: x"), "blocked no_rule"),
    "present": ("{headers: {x: present}}", head("GET /echo HTTP/1.1", "X:"), "passed rule"),
    "a body with GET": ("{methods: [GET]}", head("GET /echo HTTP/1.1", body="data"), "blocked body_not_allowed"),
    "a body of no length with GET": ("{methods: [GET]}", head("GET /echo HTTP/1.1", "Content-Length: 0"), "passed rule"),
    "chunks with GET": (
        "{methods: [GET]}",
        head("GET /echo HTTP/1.1", "Transfer-Encoding: chunked") + "0\n\n",
        "blocked body_not_allowed",
    ),
    "a body with HEAD": ("{methods: [HEAD]}", head("HEAD /echo HTTP/1.1", body="data"), "blocked body_not_allowed"),
    "a body with GET, allowed": ("{methods: [GET], body: true}", head("GET /echo HTTP/1.1", body="data"), "passed rule"),
    "a body with POST": ("{methods: [POST]}", head("POST /echo HTTP/1.1", body="data"), "passed rule"),
    "a body with POST, not allowed": (
        "{methods: [POST], body: false}",
        head("POST /echo HTTP/1.1", body="data"),
        "blocked body_not_allowed",
    ),
    "none with POST": ("{methods: [POST], body: false}", head("POST /echo HTTP/1.1", "Content-Length: 0"), "passed rule"),
    "a long URL": ("{max_url: 2KB}", head(f"GET {LONG} HTTP/1.1"), "blocked url_too_long"),
    "a shorter one": ("{max_url: 4KB}", head(f"GET {LONG} HTTP/1.1"), "passed rule"),
    "a WebSocket": (
        "{methods: [GET]}",
        head("GET /echo HTTP/1.1").replace("Connection: close", "Connection: upgrade")
        .replace("\n\n", "\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n\n"),
        "blocked no_rule",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("http", "request_head", "told"), CASES.values(), ids=CASES)
def test_what_is_read_is_decided_before_anything_leaves(gate, origins, http, request_head, told):
    origin = origins.web("good.example", tls=False)
    place = site(gate, origin, tls=False, http=http)
    with place.connect() as connection:
        connection.sendall(request_head.replace("HOST", place.host).replace("\n", "\r\n").encode())
        until(connection, b"\r\n\r\n")
    assert " ".join(gate.decided()[0][2:]) == told
    assert len(origin.requests) == origin.connections == (1 if told.startswith("passed") else 0)


def test_a_path_is_told_as_the_rules_want_it(gate, origins):
    place = site(gate, origins.web("good.example", tls=False), tls=False, http="{paths: ['/echo/*']}, log: pattern")
    place.ask(head("GET /echo/secret?a=b HTTP/1.1"))
    wait_for(lambda: gate.events("request.completed"))
    assert gate.decided() == [("GET", "/echo/*", "passed", "rule")]
    assert "secret" not in json.dumps(gate.events())


STATUS = {"body_not_allowed": 403, "url_too_long": 414}


@pytest.mark.parametrize(("case", "status"), [("a body with GET", 403), ("a long URL", 414)])
def test_a_refusal_says_what_it_is_about(gate, origins, case, status):
    http, request_head, told = CASES[case]
    place = site(gate, origins.web("good.example", tls=False), tls=False, http=http)
    answer = place.ask(request_head)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == told.split()[1]


@pytest.mark.parametrize(
    ("method", "fields", "body", "told"),
    [
        ("GET", [], None, "passed rule"),
        ("GET", [], b"", "blocked body_not_allowed"),  # it says that one follows; waiting to see may be for ever
        ("GET", [("content-length", "0")], b"", "passed rule"),
        ("GET", [("content-length", "4")], b"data", "blocked body_not_allowed"),
        ("GET", [], b"data", "blocked body_not_allowed"),
        ("POST", [], b"data", "passed rule"),
    ],
    ids=["none", "an empty frame", "no length", "a length", "a frame", "post"],
)
def test_a_body_in_http2(gate, origins, method, fields, body, told):  # noqa: PLR0917
    origin = origins.web("good.example")
    place = site(gate, origin, http="{methods: [GET, POST], paths: ['/echo']}")
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    usual = [(":method", method), (":scheme", "https"), (":authority", place.host), (":path", "/echo")]
    client.send_headers(1, [*usual, *fields], end_stream=body is None)
    if body is not None:
        client.send_data(1, body, end_stream=True)
    with place.connect(["h2"]) as connection:
        connection.sendall(client.data_to_send())
        wait_for(gate.decided)
    assert " ".join(gate.decided()[0][2:]) == told
    assert told == "passed rule" or origin.connections == 0


# --- WebSocket ---

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3, and what is answered to it
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HELLO = {
    "Host": "HOST", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Version": "13",
}  # fmt: skip
AGREED = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
MAY = "{methods: [GET], paths: ['/chat'], websocket: true}"


def written(first, fields):
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in fields.items() if value is not None), "", ""])


def opened(place, first="GET /chat HTTP/1.1", **fields):
    connection = place.connect()
    changed = {**HELLO, **{name.replace("_", "-"): value for name, value in fields.items()}}
    connection.sendall(written(first, changed).replace("HOST", place.host).encode())
    return connection


def finished(connection):
    if isinstance(connection, ssl.SSLSocket):
        connection = connection.unwrap()
    connection.close()


@pytest.fixture(params=[True, False], ids=["tls", "plain"])
def chat(request, gate, origins):
    """An origin that agrees and then echoes, through a gate that may let it; `end` is what it does on `bye`."""

    def make(http=MAY, agreed=AGREED, first="HTTP/1.1 101 Switching Protocols", greeting=b"", end=None):
        def answer(connection, _head):
            connection.sendall(written(first, agreed).encode() + greeting)
            while data := connection.recv(65536):
                if data == b"bye":
                    (end or finished)(connection)
                    return
                connection.sendall(data)

        origin = origins.script(answer, "good.example", tls=request.param, alpn=["http/1.1"])
        return site(gate, origin, tls=request.param, http=http), origin

    return make


def test_bytes_pass_in_both_directions(gate, chat):
    place, origin = chat(greeting=b"\r\n\x81\x02hi")
    with opened(place) as connection:
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"x")
        data = b""
        while not data.endswith(b"x"):
            data += connection.recv(100)
        assert data.lstrip(b"\r\n") == b"\x81\x02hix"
        big = os.urandom(1_000_000)
        done = b""
        for at in range(0, len(big), 100_000):
            connection.sendall(big[at : at + 100_000])
            while len(done) < at + 100_000:
                done += connection.recv(65536)
        assert done == big
        connection.sendall(b"bye")
        assert rest(connection) == b""
    assert gate.decided() == [("GET", "/chat", "passed", "rule")]
    assert b"Upgrade: websocket" in origin.requests[0]
    (completed,) = gate.events("request.completed")
    assert (completed["http"]["status"], completed["outcome"]) == (101, "passed")
    assert completed["bytes"]["up"] == 1_000_004
    gate.wait_closed()


@pytest.mark.parametrize(("end", "outcome"), [(finished, "passed"), (cut_off, "failed")], ids=["end", "cut"])
def test_a_client_s_end_is_an_end_and_its_cut_a_cut(gate, chat, end, outcome):
    place, _ = chat()
    connection = opened(place)
    until(connection, b"\r\n\r\n")
    end(connection)
    gate.wait_closed()
    assert [e["outcome"] for e in gate.events("request.completed")] == [outcome]


def test_a_server_s_cut_is_a_cut(gate, chat):
    place, _ = chat(end=cut_off)
    with opened(place) as connection:
        until(connection, b"\r\n\r\n")
        connection.sendall(b"bye")
        with pytest.raises((ConnectionResetError, OSError)):
            rest(connection)
    assert gate.events("request.completed")[0]["outcome"] == "failed"


LIMITED = MAY + ", limits: {bytes_up: 4KB}"
FRAME = b"\x82\x7e" + (300).to_bytes(2) + b"x" * 300  # the origin gives back what it is sent


@pytest.mark.parametrize(("sent", "told"), [(FRAME, True), (FRAME[:100], False), (FRAME + b"\x81", False)])
def test_a_websocket_that_ends_by_a_limit_hears_so_where_a_frame_may_begin(gate, chat, sent, told):
    """Elsewhere it is cut: what would be told would be part of the server's message."""
    place, _ = chat(http=LIMITED)
    with opened(place) as connection:
        until(connection, b"\r\n\r\n")
        connection.sendall(sent)
        heard = b""
        while len(heard) < len(sent):
            heard += connection.recv(1000)
        connection.sendall(bytes(5000))
        if told:
            words = b"exeat: a limit is used up"
            assert rest(connection) == b"\x88" + bytes([len(words) + 2]) + (1008).to_bytes(2) + words
        else:
            with pytest.raises(OSError):
                rest(connection)
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "limit_exceeded")


FRAMES = {
    "nothing": (b"", True),
    "a short one": (b"\x81\x02hi", True),
    "its first byte": (b"\x81", False),
    "a part of it": (b"\x81\x02h", False),
    "an empty one": (b"\x89\x00", True),
    "a longer one": (b"\x82\x7e\x00\x80" + bytes(128), True),
    "of that all but a byte": (b"\x82\x7e\x00\x80" + bytes(127), False),
    "a very long one": (b"\x82\x7f" + (70_000).to_bytes(8) + bytes(70_000), True),
    "half its length": (b"\x82\x7f\x00\x00", False),
    "a part of a message": (b"\x01\x01a", True),
    "one with a mask": (b"\x81\x81mask!", True),
    "two and a half": (b"\x81\x01a\x81\x01b\x81\x05c", False),
}


@pytest.mark.parametrize(("data", "between"), FRAMES.values(), ids=FRAMES)
def test_where_frames_end(data, between):
    """In one piece, and byte by byte."""
    whole, single = Frames(), Frames()
    whole.follow(data)
    for at in range(len(data)):
        single.follow(data[at : at + 1])
    assert whole.between is single.between is between


NO_HANDSHAKES = {
    "POST": {"first": "POST /chat HTTP/1.1"},
    "HTTP/1.0": {"first": "GET /chat HTTP/1.0"},
    "no key": {"Sec_WebSocket_Key": None},
    "a short key": {"Sec_WebSocket_Key": "AAAA"},
    "another version": {"Sec_WebSocket_Version": "8"},
    "another protocol besides": {"Upgrade": "websocket, h2c"},
    "a body": {"Content_Length": "4"},
    "chunks": {"Transfer_Encoding": "chunked"},
    "no Connection": {"Connection": "close"},
}


@pytest.mark.parametrize("how", NO_HANDSHAKES.values(), ids=NO_HANDSHAKES)
def test_what_is_no_handshake_is_refused(gate, chat, how):
    place, origin = chat()
    with opened(place, **how) as connection:
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert gate.decided()[0][2:] == ("blocked", "protocol_mismatch")
    assert origin.requests == []


@pytest.mark.parametrize("http", ["{methods: [GET]}", "{methods: [GET], websocket: false}"])
def test_a_rule_that_doesn_t_say_so_lets_none_out(gate, chat, http):
    place, origin = chat(http=http)
    with opened(place) as connection:
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert gate.decided()[0][2:] == ("blocked", "no_rule")
    assert origin.requests == []


DISAGREED = {
    "another key": {**AGREED, "Sec-WebSocket-Accept": ACCEPT.lower()},
    "no key": {**AGREED, "Sec-WebSocket-Accept": None},
    "another protocol": {**AGREED, "Upgrade": "h2c"},
    "no Connection": {**AGREED, "Connection": None},
}


@pytest.mark.parametrize("agreed", DISAGREED.values(), ids=DISAGREED)
def test_a_server_that_doesn_t_agree_is_cut(gate, chat, agreed):
    place, _ = chat(agreed=agreed)
    with opened(place) as connection:
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    assert gate.events("request.completed")[0]["reason"] == "upstream_failed"


def test_a_server_that_doesn_t_switch_answers_as_any(gate, chat):
    place, _ = chat(first="HTTP/1.1 403 Forbidden", agreed={"Content-Length": "2"}, greeting=b"no")
    with opened(place) as connection:
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 Forbidden")
        assert connection.recv(2) == b"no"


def test_a_request_behind_the_handshake_is_no_request(gate, chat):
    """What a client sends ahead goes where it said: to the server that agreed, as bytes of that WebSocket."""
    place, origin = chat()
    with place.connect() as connection:
        ahead = b"GET /other HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        connection.sendall(written("GET /chat HTTP/1.1", HELLO).replace("HOST", place.host).encode() + ahead)
        until(connection, b"\r\n\r\n")
        assert until(connection, b"\r\n\r\n") == ahead
    assert len(origin.requests) == len(gate.decided()) == 1


def test_a_request_behind_a_handshake_that_was_declined_is_decided(gate, chat):
    place, origin = chat(first="HTTP/1.1 200 OK", agreed={"Content-Length": "0"})
    with place.connect() as connection:
        ahead = "GET /other HTTP/1.1\r\nHost: HOST\r\n\r\n"
        connection.sendall((written("GET /chat HTTP/1.1", HELLO) + ahead).replace("HOST", place.host).encode())
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert [line[1:] for line in gate.decided()] == [("/chat", "passed", "rule"), ("/other", "blocked", "no_rule")]
    assert len(origin.requests) == 1


def test_the_rfc_s_own_example():
    def made(fields):
        return Head(b"HTTP/1.1", b"GET", b"", b"", b"/chat", tuple((n.encode(), v.encode()) for n, v in fields.items()))

    assert (
        base64.b64encode(hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        == ACCEPT
    )
    assert is_handshake(made(HELLO), body=False)
    assert agrees(made(HELLO), 101, made(AGREED))
    assert not agrees(made(HELLO), 200, made(AGREED))
