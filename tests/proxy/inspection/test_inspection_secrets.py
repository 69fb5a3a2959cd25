"""The broker on the wire: a value leaves where its secret belongs and nowhere else, and never comes back.

The task has placeholders only; what the origins got, what the task got and what the journal says are looked at.
"""

import base64
import json
from urllib.parse import quote

import pytest

from tests.proxy.inspection.inspection_clients import curl, rest, until, wait_for
from tests.proxy.inspection.secrets_harness import (
    FAKE,
    NO_PASSWORD,
    PASSWORD,
    REAL,
    SHOWN,
    basic,
    echo,
    head,
    http2,
    never_told,
    place,
    received,
)

IN_PLACE = {
    "bearer": (head("GET /echo", f"Authorization: Bearer {SHOWN}"), f"Bearer {REAL.decode()}"),
    "another word": (head("GET /echo", f"authorization: token {SHOWN}"), f"token {REAL.decode()}"),
    "no word": (head("GET /echo", f"X-API-Key: {SHOWN}"), REAL.decode()),
    "basic": (head("GET /echo", basic(b"me:" + NO_PASSWORD)), base64.b64encode(b"me:" + PASSWORD).decode()),
    "basic, as a user": (head("GET /echo", basic(NO_PASSWORD + b":")), base64.b64encode(PASSWORD + b":").decode()),
    "query": (head(f"GET /echo?a=b&key={SHOWN}&c=d"), f"/echo?a=b&key={quote(REAL, safe='')}&c=d"),
}


@pytest.mark.parametrize(("request_head", "sent"), IN_PLACE.values(), ids=IN_PLACE)
def test_the_value_goes_out_in_place_of_the_placeholder(gate, origins, request_head, sent):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    answer = place(gate, origin).ask(request_head)
    assert answer.startswith(b"HTTP/1.1 200")
    assert sent.encode() in origin.requests[0]
    assert FAKE not in origin.requests[0]
    assert NO_PASSWORD not in origin.requests[0]
    wait_for(lambda: gate.events("request.completed"))
    assert gate.events("tampering.detected") == []
    never_told(gate, answer)


B64 = base64.b64encode(b"x" + FAKE).decode()


PERCENT = "".join(f"%{byte:02x}" for byte in FAKE)


# what a task tries at the host that the secret belongs to, and where the event says it is
MISUSED = {
    "another header": (head("GET /echo", f"X-Other: {SHOWN}"), "the header `X-Other`"),
    "a cookie": (head("GET /echo", f"Cookie: a={SHOWN}"), "the header `Cookie`"),
    "the path": (head(f"GET /echo/{SHOWN}"), "the URL"),
    "the path, escaped": (head(f"GET /echo/{PERCENT}"), "the URL"),
    "the path, escaped twice": (head(f"GET /echo/{PERCENT.replace('%', '%25')}"), "the URL"),
    "another parameter": (head(f"GET /echo?token={SHOWN}"), "the URL"),
    "the parameter, escaped": (head(f"GET /echo?key={PERCENT}"), "the URL"),
    "the parameter twice": (head(f"GET /echo?key={SHOWN}&key={SHOWN}"), "the URL"),
    "the parameter in another case": (head(f"GET /echo?KEY={SHOWN}"), "the URL"),
    "the parameter with more": (head(f"GET /echo?key={SHOWN}x"), "the URL"),
    "the header twice": (head("GET /echo", f"X-API-Key: {SHOWN}", "X-API-Key: a"), "the header `X-API-Key`"),
    "the header with more": (head("GET /echo", f"Authorization: Bearer {SHOWN}, a"), "the header `Authorization`"),
    "words before it": (head("GET /echo", f"Authorization: Bearer a {SHOWN}"), "the header `Authorization`"),
    "in another case": (head("GET /echo", f"X-API-Key: {SHOWN.upper()}"), "the header `X-API-Key`"),
    "base64": (head("GET /echo", f"X-Other: {B64}"), "the header `X-Other`"),
    "hexadecimal": (head("GET /echo", f"X-Other: {FAKE.hex()}"), "the header `X-Other`"),
    "basic with a key's": (head("GET /echo", basic(b"me:" + FAKE)), "the header `Authorization`"),
    "bearer with a password's": (head("GET /echo", f"Authorization: Bearer {NO_PASSWORD.decode()}"), "the header `Authorization`"),
    "basic with more": (head("GET /echo", basic(b"me:" + NO_PASSWORD + b":x")), "the header `Authorization`"),
    "a header's name": (head("GET /echo", f"X-{SHOWN}: a"), "the name of a header"),
    "in its place and elsewhere": (head("GET /echo", f"X-API-Key: {SHOWN}", f"X-Other: {SHOWN}"), "the header `X-Other`"),
    "as a user and in its place": (head("GET /echo", basic(NO_PASSWORD + b":" + NO_PASSWORD)), "the header `Authorization`"),
}  # fmt: skip


@pytest.mark.parametrize(("request_head", "where"), MISUSED.values(), ids=MISUSED)
def test_a_placeholder_anywhere_else_goes_nowhere(gate, origins, request_head, where):
    origin = origins.web("good.example")
    answer = place(gate, origin).ask(request_head)
    assert answer.startswith(b"HTTP/1.1 403")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "secret_misuse"
    assert (origin.requests, origin.connections) == ([], 0)
    (tamper,), (decided,) = gate.events("tampering.detected"), gate.events("request.decided")
    assert (tamper["cause"], tamper["reason"], tamper["destination"]["name"]) == (
        decided["id"], "secret_misuse", "good.example",
    )  # fmt: skip
    assert f"is in {where}, " in tamper["detail"]
    its_own = where.lower() in ("the header `authorization`", "the header `x-api-key`")
    assert ("but not whole, plainly and once" if its_own else "where it doesn't belong; it belongs in") in tamper[
        "detail"
    ]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == tamper["detail"]
    assert (decided["verdict"], decided["outcome"], decided["reason"]) == ("deny", "blocked", "secret_misuse")
    never_told(gate, answer)


ELSEWHERE = {  # and what the page and the event say of it
    "another host": ({"host": "other.example"}, "was sent to `good.example:%d`, in", "belongs to `other.example:%d` over TLS"),
    "a host that looks like it": (
        {"name": "good.example.evil.example"}, "was sent to `good.example.evil.example:%d`, in", "belongs to `good.example:%d` over TLS",
    ),
    "a host below it": ({"name": "api.good.example"}, "was sent to `api.good.example:%d`, in", "belongs to `good.example:%d` over TLS"),
    "plain HTTP": (
        {"tls": False}, "was sent to `good.example:%d` without TLS", "TLS is what is missing: it belongs to `good.example:%d` over TLS",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("where", "sent", "belongs"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_placeholder_goes_to_no_other_place(gate, origins, where, sent, belongs):
    origin = origins.web(where.get("name", "good.example"), tls=where.get("tls", True))
    answer = place(gate, origin, **where).ask(head("GET /echo", f"Authorization: Bearer {SHOWN}"))
    assert answer.startswith(b"HTTP/1.1 403")
    assert gate.decided() == [("GET", "/echo", "blocked", "secret_misuse")]
    (tamper,) = gate.events("tampering.detected")
    assert tamper["detail"].startswith("the placeholder of `model-key` was sent to ")
    assert sent % origin.port in tamper["detail"]
    assert belongs % origin.port + ", in the header `authorization` or" in tamper["detail"]
    assert "doesn't belong" not in tamper["detail"]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == tamper["detail"]
    assert origin.connections == 0


def test_another_port_is_another_place(gate, origins):
    origin, other = origins.web("good.example"), origins.web("good.example")
    place(gate, origin)
    gate.rules(f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{other.port}/tls], action: allow}}]")
    door = gate.door("good.example", other.port)
    status, said, _ = curl(
        "--cacert", gate.bundle, "--connect-to", f"good.example:{other.port}:127.0.0.1:{door}", "-H", f"X-API-Key: {SHOWN}",
        f"https://good.example:{other.port}/echo",
    )  # fmt: skip
    assert (status, json.loads(said)["reason"]) == (0, "secret_misuse")
    assert other.connections == 0


def test_a_server_that_proves_nothing_gets_nothing(gate, origins):
    origin = origins.web("good.example", kind="expired")
    answer = place(gate, origin).ask(head("GET /echo", f"Authorization: Bearer {SHOWN}"))
    assert answer.startswith(b"HTTP/1.1 502")
    assert origin.requests == []
    never_told(gate, answer)


def test_audit_mode_lets_no_placeholder_out(gate, origins):
    origin = origins.web("good.example")
    made = place(gate, origin)
    gate.rules("[]", "settings: {mode: audit}")
    made.ask(head("GET /echo", f"X-Other: {SHOWN}"))
    assert gate.decided() == [("GET", "/echo", "blocked", "secret_misuse")]


BODIES = {
    "whole": [b"key=" + FAKE],
    "in two pieces": [b"key=" + FAKE[:9], FAKE[9:]],
    "byte by byte": [bytes([byte]) for byte in FAKE],
    "base64": [base64.b64encode(b"a" + FAKE + b"b")],
}


@pytest.mark.parametrize("pieces", BODIES.values(), ids=BODIES)
def test_a_placeholder_in_a_body_ends_the_request(gate, origins, pieces):
    origin = origins.web("good.example")
    made = place(gate, origin)
    size = sum(map(len, pieces)) + 10
    with made.connect() as connection:
        ask = f"POST /echo HTTP/1.1\nHost: {made.host}\nContent-Length: {size}\n\n"
        connection.sendall(ask.replace("\n", "\r\n").encode())
        for piece in pieces:
            connection.sendall(piece)
        answer = rest(connection)
    assert b"secret_misuse" in answer
    wait_for(lambda: gate.events("tampering.detected"))
    wait_for(lambda: gate.events("request.completed"))
    (decided,), (completed,), (tamper,) = map(
        gate.events, ("request.decided", "request.completed", "tampering.detected")
    )
    assert (decided["outcome"], completed["outcome"], completed["reason"]) == ("passed", "blocked", "secret_misuse")
    assert tamper["cause"] == decided["id"]
    assert "is in the body" in tamper["detail"]
    assert FAKE not in received(origin).encode()
    said = gate.recorder.summary().describe()
    assert "blocked 1 request (good.example)" in said
    assert said.endswith("; 1 misused placeholder")


def test_http2_is_read_the_same(gate, origins):
    origin = origins.web("good.example")
    made = place(gate, origin)
    with made.connect(["h2"]) as connection:
        found, body = http2(connection, made.host, [("authorization", f"Bearer {SHOWN}")])
    assert found[b":status"] == b"200"
    assert f"Bearer {REAL.decode()}" in received(origin)
    assert SHOWN not in received(origin)
    never_told(gate, body)


def test_a_header_that_takes_several_frames_is_one_header(gate, origins):
    origin = origins.web("good.example")
    made = place(gate, origin)
    long = [(f"x-{number}", "a" * 3000) for number in range(10)]  # a frame has 16 KB (RFC 9113 section 4.2)
    with made.connect(["h2"]) as connection:
        found, body = http2(connection, made.host, [*long, ("x-other", SHOWN)])
    assert (found[b":status"], json.loads(body)["reason"]) == (b"403", "secret_misuse")
    assert origin.connections == 0


def test_a_placeholder_in_trailers_ends_the_request(gate, origins):
    origin = origins.web("good.example")
    made = place(gate, origin)
    with made.connect(["h2"]) as connection:
        http2(connection, made.host, [("te", "trailers")], trailers=[("x-late", SHOWN)])
    wait_for(lambda: gate.events("tampering.detected"))
    assert "is in the trailers" in gate.events("tampering.detected")[0]["detail"]
    assert SHOWN not in received(origin)


def test_other_requests_go_out_as_they_came(gate, origins):
    origin = origins.script(echo, "good.example", tls=True, alpn=["http/1.1"])
    place(gate, origin).ask(head("GET /echo", "Accept-Encoding: gzip"))
    assert b"Accept-Encoding: gzip" in origin.requests[0]


def test_a_placeholder_that_comes_after_the_answer_has_begun_ends_both(gate, origins):
    """Nobody can be told any more, but by the end."""

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        rest(connection)

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin)
    with made.connect() as connection:
        ask = f"POST /echo HTTP/1.1\nHost: {made.host}\nContent-Length: 100\n\n"
        connection.sendall(ask.replace("\n", "\r\n").encode())
        assert until(connection, b"begun").endswith(b"begun")
        connection.sendall(FAKE)
        with pytest.raises(ConnectionResetError):
            rest(connection)
    wait_for(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "secret_misuse")
    assert len(gate.events("tampering.detected")) == 1


@pytest.mark.parametrize(
    ("field", "tampered", "reason"), [(f"X-API-Key: {SHOWN}", 1, "secret_misuse"), ("X-API-Key: a", 0, "no_rule")]
)
def test_a_placeholder_to_a_place_that_is_denied_is_told_too(gate, origins, field, tampered, reason):
    origin = origins.web("other.example")
    made = place(gate, origin, name="other.example")
    gate.rules("[]")
    answer = made.ask(head("GET /echo", field))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == reason
    assert [e["cause"] for e in gate.events("tampering.detected")] == [
        gate.events("connection.decided")[0]["id"]
    ] * tampered
    assert origin.connections == 0
