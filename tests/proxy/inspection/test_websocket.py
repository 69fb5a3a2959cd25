"""WebSocket through the gate: handshakes, relayed bytes, and ends."""

import base64
import contextlib
import hashlib
import os
import ssl
import time

import pytest

from proxy.request.messages import ResponseHead
from proxy.request.request_head import Head
from proxy.request.websocket_frames import Frames, agrees, is_handshake
from tests.proxy.inspection.clients import close_abruptly, read_all, read_until
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3, and what is answered to it
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = {
    "Host": "HOST", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Version": "13",
}  # fmt: skip
HANDSHAKE_ANSWER = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
WEBSOCKET_ALLOWED = "{methods: [GET], paths: ['/chat'], websocket: true}"


def client_frame(payload, first=0x82):
    """Return a client frame (RFC 6455 section 5.2) with a zero mask."""
    size = len(payload)
    length = (
        bytes([0x80 | size])
        if size < 126
        else b"\xfe" + size.to_bytes(2)
        if size < 1 << 16
        else b"\xff" + size.to_bytes(8)
    )
    return bytes([first]) + length + bytes(4) + payload


BYE, CLOSE = client_frame(b"bye"), client_frame(b"\x03\xe8", first=0x88)


def format_head(first, fields):
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in fields.items() if value is not None), "", ""])


def open_websocket(site, first="GET /chat HTTP/1.1", **fields):
    connection = site.connect()
    changed = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in fields.items()}}
    connection.sendall(format_head(first, changed).replace("HOST", site.host).encode())
    return connection


def close_in_order(connection):
    if isinstance(connection, ssl.SSLSocket):
        connection = connection.unwrap()
    connection.close()


@pytest.fixture(params=[True, False], ids=["tls", "plain"])
def make_websocket_site(request, gate, origins):
    """Return a function that makes a site with a WebSocket echo server; `end` is called on `bye`."""

    def make(
        http=WEBSOCKET_ALLOWED,
        agreed=HANDSHAKE_ANSWER,
        first="HTTP/1.1 101 Switching Protocols",
        greeting_origin=b"",
        end=None,
    ):
        def answer(connection, _head):
            connection.sendall(format_head(first, agreed).encode() + greeting_origin)
            while data := connection.recv(65536):
                if data == BYE:
                    (end or close_in_order)(connection)
                    return
                connection.sendall(data)

        origin = origins.script(answer, "good.example", tls=request.param, alpn=["http/1.1"])
        return make_site(gate, origin, tls=request.param, http=http), origin

    return make


def test_websocket_relays_bytes_both_ways(gate, make_websocket_site):
    site, origin = make_websocket_site(greeting_origin=b"\r\n\x81\x02hi")
    with open_websocket(site) as connection:
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        connection.sendall(client_frame(b"x"))
        data = b""
        while not data.endswith(b"x"):
            data += connection.recv(100)
        assert data.lstrip(b"\r\n") == b"\x81\x02hi" + client_frame(b"x")
        big = client_frame(os.urandom(1_000_000 - 14))
        done = b""
        for at in range(0, len(big), 100_000):
            connection.sendall(big[at : at + 100_000])
            while len(done) < at + 100_000:
                done += connection.recv(65536)
        assert done == big
        connection.sendall(BYE)
        assert read_all(connection) == b""
    assert gate.decided() == [("GET", "/chat", "passed", "rule")]
    assert b"Upgrade: websocket" in origin.requests[0]
    gate.wait_closed()
    (completed,) = gate.events("request.completed")
    assert (completed["http"]["status"], completed["outcome"]) == (101, "passed")
    assert completed["bytes"]["up"] == 1_000_000 + len(client_frame(b"x") + BYE)
    gate.wait_closed()


@pytest.mark.parametrize("end", [close_in_order, close_abruptly], ids=["end", "cut"])
@pytest.mark.parametrize("close_frame_sent", [True, False], ids=["after a Close frame", "without one"])
def test_client_that_ends_a_websocket_is_recorded_as_passed(gate, make_websocket_site, end, close_frame_sent):
    site, _ = make_websocket_site()
    connection = open_websocket(site)
    read_until(connection, b"\r\n\r\n")
    if close_frame_sent:
        connection.sendall(CLOSE)
        read_until(connection, CLOSE)
    end(connection)
    gate.wait_closed()
    (completed,) = gate.events("request.completed")
    left = "the client left before the end" if end is close_abruptly and not close_frame_sent else None
    assert (completed["outcome"], completed.get("detail")) == ("passed", left)
    assert "failed" not in gate.recorder.summary().describe()


@pytest.mark.parametrize("closing", ["client", "server"])
def test_server_cut_after_a_close_frame_is_recorded_as_passed(gate, make_websocket_site, closing):
    """Most servers close TCP without a close_notify once both sides have sent Close frames (RFC 6455 section 7.1.1)."""

    def end(connection):
        connection.sendall(b"\x88\x02\x03\xe8" if closing == "server" else b"\x81\x02hi")
        close_abruptly(connection)

    site, _ = make_websocket_site(end=end)
    with open_websocket(site) as connection:
        read_until(connection, b"\r\n\r\n")
        if closing == "client":
            connection.sendall(CLOSE)
            read_until(connection, CLOSE)
        connection.sendall(BYE)
        with pytest.raises(OSError):
            read_until(connection, b"never")
    wait_until(lambda: gate.events("request.completed"))
    assert gate.events("request.completed")[0]["outcome"] == "passed"


def test_server_cut_resets_the_client(gate, make_websocket_site):
    site, _ = make_websocket_site(end=close_abruptly)
    with open_websocket(site) as connection:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(BYE)
        with pytest.raises((ConnectionResetError, OSError)):
            read_all(connection)
    assert gate.events("request.completed")[0]["outcome"] == "failed"


LIMITED = WEBSOCKET_ALLOWED + ", limits: {bytes_up: 4KB}"
FRAME = client_frame(b"x" * 300)  # the origin gives back what it is sent


@pytest.mark.parametrize(("sent", "closes"), [(FRAME, True), (FRAME[:100], False), (FRAME + b"\x81", False)])
def test_limit_sends_a_close_frame_only_between_frames(gate, make_websocket_site, sent, closes):
    """Within a frame the connection is reset, because a Close frame would become part of the message."""
    site, _ = make_websocket_site(http=LIMITED)
    with open_websocket(site) as connection:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(sent)
        heard = b""
        while len(heard) < len(sent):
            heard += connection.recv(1000)
        connection.sendall(b"\x80" * 5000)  # empty frames, or the rest of one
        if closes:
            words = b"exeat: a limit is used up"
            assert read_all(connection) == b"\x88" + bytes([len(words) + 2]) + (1008).to_bytes(2) + words
        else:
            with pytest.raises(OSError):
                read_all(connection)
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
def test_frame_boundaries_are_found(data, between):
    """Checks each input in one piece and byte by byte."""
    whole, single = Frames(), Frames()
    whole.follow(data)
    for at in range(len(data)):
        single.follow(data[at : at + 1])
    assert whole.between is single.between is between


INVALID_HANDSHAKES = {
    "POST": {"first": "POST /chat HTTP/1.1"},
    "HTTP/1.0": {"first": "GET /chat HTTP/1.0"},
    "no key": {"Sec_WebSocket_Key": None},
    "a short key": {"Sec_WebSocket_Key": "AAAA"},
    "another version": {"Sec_WebSocket_Version": "8"},
    "a second protocol": {"Upgrade": "websocket, h2c"},
    "a body": {"Content_Length": "4"},
    "chunks": {"Transfer_Encoding": "chunked"},
    "no Connection": {"Connection": "close"},
}


@pytest.mark.parametrize("how", INVALID_HANDSHAKES.values(), ids=INVALID_HANDSHAKES)
def test_malformed_handshakes_are_refused(gate, make_websocket_site, how):
    site, origin = make_websocket_site()
    with open_websocket(site, **how) as connection:
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert gate.decided()[0][2:] == ("blocked", "protocol_mismatch")
    assert origin.requests == []


@pytest.mark.parametrize("http", ["{methods: [GET]}", "{methods: [GET], websocket: false}"])
def test_handshake_is_denied_unless_a_rule_allows_websocket(gate, make_websocket_site, http):
    site, origin = make_websocket_site(http=http)
    with open_websocket(site) as connection:
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert gate.decided()[0][2:] == ("blocked", "no_rule")
    assert origin.requests == []


INVALID_ANSWERS = {
    "another key": {**HANDSHAKE_ANSWER, "Sec-WebSocket-Accept": ACCEPT.lower()},
    "no key": {**HANDSHAKE_ANSWER, "Sec-WebSocket-Accept": None},
    "another protocol": {**HANDSHAKE_ANSWER, "Upgrade": "h2c"},
    "no Connection": {**HANDSHAKE_ANSWER, "Connection": None},
    "extensions that weren't offered": {**HANDSHAKE_ANSWER, "Sec-WebSocket-Extensions": "permessage-deflate"},
}


@pytest.mark.parametrize("agreed", INVALID_ANSWERS.values(), ids=INVALID_ANSWERS)
def test_invalid_handshake_of_the_server_is_answered_502(gate, make_websocket_site, agreed):
    site, _ = make_websocket_site(agreed=agreed)
    with open_websocket(site) as connection:
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    assert gate.events("request.completed")[0]["reason"] == "upstream_failed"


def test_response_of_a_server_that_does_not_switch_is_forwarded(gate, make_websocket_site):
    site, _ = make_websocket_site(first="HTTP/1.1 403 Forbidden", agreed={"Content-Length": "2"}, greeting_origin=b"no")
    with open_websocket(site) as connection:
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 Forbidden")
        assert connection.recv(2) == b"no"


REQUEST = b"GET /other HTTP/1.1\r\nHost: evil.example\r\n\r\n"
INVALID_FRAMES = {
    "a request": (REQUEST, "opcode"),
    "a request behind a message": (client_frame(b"hello") + REQUEST, "opcode"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "opcode"),
    "TLS": (b"\x16\x03\x01\x02\x00", "opcode"),
    "a reserved opcode": (client_frame(b"x", 0x83), "opcode"),
    "a compressed message without an extension": (client_frame(b"x", 0xC2), "opcode"),
    "a message without a mask": (b"\x81\x02hi", "masked"),
    "a control frame that is too long": (b"\x89\xfe\x00\x7e" + bytes(130), "control frame"),
}


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(("data", "why"), INVALID_FRAMES.values(), ids=INVALID_FRAMES)
def test_invalid_client_frames_end_the_websocket(gate, make_websocket_site, data, why, bytewise):
    """A proxy in front of the server might read them as requests, which were never decided."""
    site, origin = make_websocket_site()
    with open_websocket(site) as connection:
        read_until(connection, b"\r\n\r\n")
        with contextlib.suppress(OSError):
            for at in range(0, len(data), 1 if bytewise else len(data)):
                connection.sendall(data[at : at + (1 if bytewise else len(data))])
                time.sleep(0.002 if bytewise else 0)
            heard = read_all(connection)
            assert b"GET" not in heard
            assert why.encode() in heard or bytewise
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "protocol_mismatch")
    assert why in completed["detail"]
    assert len(origin.requests) == len(gate.decided()) == 1


def test_request_sent_behind_the_handshake_is_not_forwarded(gate, make_websocket_site):
    """Bytes behind the handshake belong to the WebSocket, and are no valid frame."""
    site, origin = make_websocket_site()
    with site.connect() as connection:
        connection.sendall(format_head("GET /chat HTTP/1.1", HANDSHAKE).replace("HOST", site.host).encode() + REQUEST)
        with contextlib.suppress(OSError):
            assert b"GET" not in read_all(connection)
    assert len(origin.requests) == len(gate.decided()) == 1


def test_agreed_extension_may_set_its_reserved_bit(gate, make_websocket_site):
    site, _ = make_websocket_site(agreed={**HANDSHAKE_ANSWER, "Sec-WebSocket-Extensions": "permessage-deflate"})
    with open_websocket(site, Sec_WebSocket_Extensions="permessage-deflate") as connection:
        read_until(connection, b"\r\n\r\n")
        packed = client_frame(b"x", 0xC2)
        connection.sendall(packed)
        assert read_until(connection, packed) == packed
        connection.sendall(REQUEST)
        with contextlib.suppress(OSError):
            assert b"GE" not in read_all(connection)


def test_request_behind_a_declined_handshake_is_decided(gate, make_websocket_site):
    site, origin = make_websocket_site(first="HTTP/1.1 200 OK", agreed={"Content-Length": "0"})
    with site.connect() as connection:
        ahead = "GET /other HTTP/1.1\r\nHost: HOST\r\n\r\n"
        connection.sendall((format_head("GET /chat HTTP/1.1", HANDSHAKE) + ahead).replace("HOST", site.host).encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert [line[1:] for line in gate.decided()] == [("/chat", "passed", "rule"), ("/other", "blocked", "no_rule")]
    assert len(origin.requests) == 1


def test_handshake_of_the_rfc_example_is_accepted():
    def handshake_head(fields):
        return Head(b"HTTP/1.1", b"GET", b"", b"", b"/chat", tuple((n.encode(), v.encode()) for n, v in fields.items()))

    assert (
        base64.b64encode(hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        == ACCEPT
    )
    assert is_handshake(handshake_head(HANDSHAKE), body=False)
    assert agrees(
        handshake_head(HANDSHAKE), ResponseHead(b"HTTP/1.1", 101, b"", handshake_head(HANDSHAKE_ANSWER).fields)
    )
    assert not agrees(
        handshake_head(HANDSHAKE), ResponseHead(b"HTTP/1.1", 200, b"", handshake_head(HANDSHAKE_ANSWER).fields)
    )
