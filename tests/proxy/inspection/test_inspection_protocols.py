"""What passes as it is: HTTP/1.0, ranges, packed bodies, events that take their time, 100-continue; and gRPC-Web's refusals."""

import gzip
import http.client
import os
import time

import h2.events
import pytest

from tests.proxy.inspection.http2_client import Client
from tests.proxy.inspection.inspection_clients import rest, until, wait_for
from tests.proxy.inspection.inspection_harness import site

VERSIONS = pytest.mark.parametrize("version", ["1.1", "2"])


def scripted(gate, origins, answer, **more):
    return site(gate, origins.script(answer), tls=False, **more)


def answered(place, head, body=b""):
    with place.connect() as connection:
        connection.sendall(head.replace("HOST", place.host).replace("\n", "\r\n").encode() + body)
        return rest(connection)


# --- HTTP/1.0 ---


@pytest.mark.parametrize(
    ("answer", "gets"),
    [
        ("HTTP/1.0 200 OK\r\n\r\npage", "HTTP/1.0 200 OK\r\n\r\npage"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"),
    ],
)
def test_a_client_of_http_1_0_is_served_and_its_connection_ends(gate, origins, answer, gets):
    def reply(connection, head):
        assert head.startswith(b"GET /x HTTP/1.0\r\n")
        connection.sendall(answer.encode())

    place = scripted(gate, origins, reply)
    assert answered(place, "GET /x HTTP/1.0\nHost: HOST\n\n") == gets.encode()
    assert gate.decided() == [("GET", "/x", "passed", "rule")]


def test_a_client_of_http_1_0_keeps_its_connection_if_it_says_so(gate, origins):
    def reply(connection, _head):
        connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\npage")
        return True

    origin = origins.script(reply)
    place = site(gate, origin, tls=False, http="{paths: [/1, /3]}")
    with place.connect() as connection:
        for path, end in (("/1", b"page"), ("/2", b"}\n"), ("/3", b"page")):
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {place.host}\r\nConnection: keep-alive\r\n\r\n".encode())
            assert until(connection, end).endswith(end)
    assert [each[2] for each in gate.decided()] == ["passed", "blocked", "passed"]
    assert origin.connections == 1


def test_a_client_of_http_1_0_gets_no_100(gate, origins):
    """It would take it for the answer: RFC 9110 section 10.1.1."""

    def reply(connection, head):
        assert b"xpect" not in head
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + until(connection, b"body"))

    place = scripted(gate, origins, reply)
    head = "POST / HTTP/1.0\nHost: HOST\nContent-Length: 4\nExpect: 100-continue\n\n"
    assert answered(place, head, b"body") == b"HTTP/1.0 200 OK\r\n\r\nbody"


# --- bodies as they are ---


@VERSIONS
def test_ranges_and_packed_bodies_are_passed_on_byte_for_byte(gate, origins, version):
    whole = gzip.compress(os.urandom(100_000))
    part = whole[1000:60_000]

    def reply(connection, head):
        assert b"range: bytes=1000-59999\r\n" in head.lower()
        assert b"accept-encoding: gzip, br\r\n" in head.lower()
        connection.sendall(
            b"HTTP/1.1 206 Partial Content\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n"
            b'Content-Range: bytes 1000-59999/%d\r\nETag: W/"x"\r\n\r\n%b' % (len(part), len(whole), part)
        )  # fmt: skip
        return True

    place = site(gate, origins.script(reply, "good.example", tls=True, alpn=["http/1.1"]))
    words = ["--http2"] if version == "2" else ["--http1.1"]
    status, out, err = place.curl(
        "/x", *words, "-H", "Range: bytes=1000-59999", "-H", "Accept-Encoding: gzip, br", "-D", gate.directory / "head"
    )
    assert (status, err, out) == (0, "", part)
    head = (gate.directory / "head").read_text().lower()
    assert "206" in head.splitlines()[0]
    assert f"content-range: bytes 1000-59999/{len(whole)}" in head
    assert "content-encoding: gzip" in head


# --- what takes its time ---


def test_events_go_on_beyond_the_idle_timeout_as_long_as_they_come(gate, origins):
    def reply(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(8):
            connection.sendall(b"data: %d\n\n" % number)
            time.sleep(0.15)

    place = site(gate, origins.script(reply), tls=False, idle=0.6)
    with place.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        got = rest(connection)
    assert got.endswith(b"data: 7\n\n")
    wait_for(lambda: gate.events("request.completed"))
    assert gate.events("request.completed")[0]["outcome"] == "passed"


# --- leave to send ---


def test_100_continue_over_http2(gate, origins):
    place = site(gate, origins.web("good.example"), http="{paths: [/upload]}")
    client = Client(place)
    stream = client.request("/upload", "POST", more=(("expect", "100-continue"),), end=False)
    assert dict(client.wait(h2.events.InformationalResponseReceived, stream).headers) == {":status": "100"}
    client.h2.send_data(stream, b"body", end_stream=True)
    client.flush()
    assert b'"size": 4' in client.body(stream)
    refused = client.request("/no", "POST", more=(("expect", "100-continue"),), end=False)
    assert client.status(refused) == "403"
    assert not any(
        isinstance(event, h2.events.InformationalResponseReceived) and event.stream_id == refused for event in client.events
    )  # fmt: skip
    client.close()


# --- gRPC-Web ---


@VERSIONS
@pytest.mark.parametrize("kind", ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"])
def test_a_call_of_grpc_web_is_refused_in_its_own_terms(gate, origins, version, kind):
    origin = origins.web("good.example")
    place = site(gate, origin, http="{paths: [/ok]}")
    fields = {"content-type": kind, "x-grpc-web": "1"}
    if version == "2":
        client = Client(place)
        stream = client.request("/a.B/C", "POST", more=tuple(fields.items()))
        head = dict(client.wait(h2.events.ResponseReceived, stream).headers)
        status, body = int(head[":status"]), client.body(stream)
        client.close()
    else:
        client = http.client.HTTPSConnection(place.host)
        client.sock = place.connect()
        client.request("POST", "/a.B/C", b"\0\0\0\0\0", fields)
        response = client.getresponse()
        status, body = response.status, response.read()
        head = {name.lower(): value for name, value in response.getheaders()}
        client.close()
    assert (status, body, head["grpc-status"], head["content-type"]) == (200, b"", "7", kind)
    assert head["grpc-message"].startswith("exeat: no rule allows this: POST https://good.example")
    assert origin.requests == []


@pytest.mark.parametrize("kind", ["application/grpc-webx", "application/grpc-web+" + "x" * 30, "text/plain"])
def test_what_only_looks_like_a_call_gets_a_page(gate, origins, kind):
    place = site(gate, origins.web("good.example"), http="{paths: [/ok]}")
    _, out, _ = place.curl("/a.B/C", "--data", "x", "-H", f"Content-Type: {kind}")
    assert b'"reason": "no_rule"' in out
