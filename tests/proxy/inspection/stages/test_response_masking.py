"""Response masking: values of secrets are masked in responses, which are never delayed for long."""

import base64
import hashlib
import json
from urllib.parse import quote

import pytest

from proxy.secrets import SecretInjector, SecretValue
from rules.secrets import Slot, SlotKind
from tests.proxy.inspection.clients import read_until
from tests.proxy.inspection.inspection_lab import make_site
from tests.proxy.inspection.stages.secret_injection_lab import (
    FAKE,
    PASSWORD,
    REAL,
    SHOWN,
    assert_no_secret_disclosed,
    echo,
    head,
    http2,
    make_secret_site,
    secret,
)
from tests.support.waiting import wait_until

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


def answer_with(*pieces, fields=b"", length=True, pause=0.0):
    def answer(connection, _head):
        import time

        size = b"Content-Length: %d\r\n" % sum(map(len, pieces)) if length else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n%s%s\r\n" % (size, fields))
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


B64_REAL = base64.b64encode(b"me:" + PASSWORD)


# pieces of the response, and what the task receives
ECHOES = {
    "whole": ([b"your key is " + REAL + b"!"], b"your key is " + FAKE + b"!"),
    "in two pieces": ([b"your key is " + REAL[:8], REAL[8:] + b"!"], b"your key is " + FAKE + b"!"),
    "in two pieces, too short to hold": ([REAL[:7], REAL[7:] + b"!"], REAL[:7] + FAKE[7:] + b"!"),
    "byte by byte": ([bytes([byte]) for byte in b"<" + REAL + b">"], b"<" + REAL[:7] + FAKE[7:] + b">"),
    "a beginning alone": ([b"sk-real", b"/no"], b"sk-real/no"),
    "a beginning at the end": ([b"it begins with sk-real/"], b"it begins with sk-real/"),
    "twice": ([REAL, REAL], FAKE + FAKE),
    "escaped for a URL": ([b"?key=" + quote(REAL, safe="").encode()], b"?key=" + b"*" * len(quote(REAL, safe=""))),
    "escaped for JSON": ([b'"sk-real\\/Value+0123456789=abcdef"'], b'"' + b"*" * 32 + b'"'),
    "a password": ([b"password: " + PASSWORD], b"password: " + b"*" * len(PASSWORD)),
}


@pytest.mark.parametrize(("pieces", "got"), ECHOES.values(), ids=ECHOES)
def test_value_in_a_response_body_is_masked(gate, origins, pieces, got):
    origin = origins.script(answer_with(*pieces, pause=0.003), "good.example", tls=True, alpn=["http/1.1"])
    answer = make_secret_site(gate, origin).request(head("GET /echo", f"Authorization: Bearer {SHOWN}"))
    whole = b"".join(pieces).replace(REAL, FAKE)  # pieces may come together; `test_injection` cuts them for certain
    assert answer.partition(b"\r\n\r\n")[2] in {got, whole}
    assert REAL not in answer


@pytest.mark.parametrize("pieces", [[REAL], [REAL[:9], REAL[9:]], [bytes([byte]) for byte in REAL]])
def test_value_in_an_http2_response_is_masked(gate, origins, pieces):
    origin = origins.script(answer_with(*pieces, pause=0.003), "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin)
    with site.connect(["h2"]) as connection:
        _, body = http2(connection, site.host, [("authorization", f"Bearer {SHOWN}")])
    assert len(body) == len(REAL)
    assert body[7:] == FAKE[7:]


def test_value_in_base64_is_masked(gate, origins):
    origin = origins.script(answer_with(b"Basic " + B64_REAL), "good.example", tls=True, alpn=["http/1.1"])
    answer = make_secret_site(gate, origin).request(head("GET /echo"))
    body = answer.partition(b"\r\n\r\n")[2]
    assert len(body) == len(b"Basic " + B64_REAL)
    assert B64_REAL not in body
    assert B64_REAL[5:-4] not in body


def test_value_in_response_headers_is_masked(gate, origins):
    fields = b"Location: /a?key=" + REAL + b"\r\nSet-Cookie: k=" + REAL + b"\r\n"
    origin = origins.script(answer_with(b"", fields=fields), "good.example", tls=True, alpn=["http/1.1"])
    answer = make_secret_site(gate, origin).request(head("GET /me"))
    assert b"/a?key=" + FAKE in answer
    assert b"k=" + FAKE in answer
    assert_no_secret_disclosed(gate, answer)


def test_page_about_an_invalid_response_header_has_no_value(gate, origins):
    """An invalid field name would be quoted in the page and in the event."""
    fields = b"bad " + REAL + b": x\r\n"
    origin = origins.script(answer_with(b"", fields=fields), "good.example", tls=True, alpn=["http/1.1"])
    answer = make_secret_site(gate, origin).request(head("GET /me", f"Authorization: Bearer {SHOWN}"))
    wait_until(lambda: gate.events("request.completed"))
    assert answer.startswith(b"HTTP/1.1 502")
    assert_no_secret_disclosed(gate, answer)


def test_page_about_a_failed_request_has_no_value(gate, origins):
    origin = origins.script(lambda *_: None, "good.example", tls=True, alpn=["http/1.1"])
    answer = make_secret_site(gate, origin).request(head(f"GET /echo?key={SHOWN}"))
    assert answer.startswith(b"HTTP/1.1 502")
    assert REAL in origin.requests[0] or quote(REAL, safe="").encode() in origin.requests[0]
    wait_until(lambda: gate.events("request.completed"))
    assert_no_secret_disclosed(gate, answer)


def test_event_without_a_value_is_delivered_at_once(gate, origins):
    """A piece that cannot start a value is delivered before the next one is sent."""

    def answer(connection, _head):
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: 1\n\n"
        )
        connection.recv(1)  # waits until the client has it

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin)
    with site.connect() as connection:
        connection.sendall(head("GET /stream").replace("HOST", site.host).replace("\n", "\r\n").encode())
        assert read_until(connection, b"data: 1\n\n").endswith(b"data: 1\n\n")


@pytest.mark.parametrize("end", [b"ends with s", b"sk-real", b"ends with h"])
def test_message_that_ends_like_a_value_is_delivered_at_once(gate, origins, end):
    """The client may have to answer the message before the server sends more."""

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + end)
        connection.recv(1)  # waits until the client has it

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin)
    with site.connect() as connection:
        connection.sendall(head("GET /stream").replace("HOST", site.host).replace("\n", "\r\n").encode())
        assert read_until(connection, end).endswith(end)


def test_accept_encoding_is_identity_when_a_value_is_sent(gate, origins):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    make_secret_site(gate, origin).request(
        head("GET /echo", f"X-API-Key: {SHOWN}", "Accept-Encoding: gzip", "accept-encoding: br")
    )
    request = origin.requests[0].lower()
    assert request.count(b"accept-encoding:") == 1
    assert b"accept-encoding: identity" in request


ASKS = [
    "Accept_Encoding: gzip",
    "ACCEPT.ENCODING: gzip",
    "TE: gzip",
    "TE: trailers, gzip",
    "A-IM: gzip",
    "Accept-Charset: utf-16",
]


@pytest.mark.parametrize("ask", ASKS)
def test_other_requests_for_compression_are_removed_when_a_value_is_sent(gate, origins, ask):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    make_secret_site(gate, origin).request(head("GET /echo", f"X-API-Key: {SHOWN}", ask, "TE: trailers"))
    request = origin.requests[0]
    assert REAL in request
    assert ask.encode() not in request
    assert b"\r\nTE: trailers\r\n" in request  # calls of gRPC need it


def test_websocket_extensions_are_removed_when_a_value_is_sent(gate, origins):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin)
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], http: {{websocket: true}}, action: allow}}]"
    )
    ask = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    request = head("GET /echo", f"X-API-Key: {SHOWN}", *ask, "Sec-WebSocket-Extensions: permessage-deflate")
    site.request(request.replace("Connection: close", "Connection: upgrade, close"))
    assert REAL in origin.requests[0]
    assert b"permessage-deflate" not in origin.requests[0]


def test_value_in_a_websocket_message_is_masked_without_delay(gate, origins):
    def answer(connection, request):
        key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key.split(b": ")[1] + GUID).digest())
        upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        connection.sendall(upgrade + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        connection.sendall(b"\x81\x7e\x00\x1f" + REAL + REAL[:12])
        connection.recv(1)

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    site = make_secret_site(gate, origin)
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], http: {{websocket: true}}, action: allow}}]"
    )
    ask = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    request = head("GET /echo", f"X-API-Key: {SHOWN}", *ask).replace("Connection: close", "Connection: upgrade")
    with site.connect() as connection:
        connection.sendall(request.replace("HOST", site.host).replace("\n", "\r\n").encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101")
        assert read_until(connection, REAL[:12]) == b"\x81\x7e\x00\x1f" + FAKE + REAL[:12]


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nX-Echo: %s\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n%s{}: a\r\n\r\n",
    ],
    ids=["cut", "coding", "name"],
)
def test_unreadable_response_is_not_quoted_in_page_or_event(gate, origins, response):
    """Page and event describe the error without the bytes of the server, which may contain the value."""
    value, placeholder = b"pa\\ss'wo\"rd-0123456789", "aPlaceholderForThePassword"

    def answer(connection, request):
        assert value in request
        connection.sendall(response % value)

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    site = make_site(gate, origin)
    password = secret("login", "good.example", origin.port, Slot(SlotKind.HEADER, "authorization"))
    injector = SecretInjector([SecretValue(password, value, placeholder)])
    gate.loop.run(lambda: gate.sandbox.set_secrets(injector))
    page = site.request(head("GET /", f"Authorization: Bearer {placeholder}"))
    assert page.startswith(b"HTTP/1.1 502 ")
    wait_until(lambda: gate.events("request.completed"))
    assert not [text for text in (page, json.dumps(gate.events()).encode()) if b"0123456789" in text]
