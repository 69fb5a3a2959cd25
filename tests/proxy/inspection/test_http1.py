"""HTTP/1: clients of HTTP/1.0, ranges, 100-continue, refusals of gRPC-Web, and fuzzed bytes."""

import contextlib
import gzip
import http.client
import os
import random
import socket
import time

import h2.events
import h11
import pytest
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.request.chunked_body import Buffer, Chunks
from proxy.request.http1_heads import parse_head, split_head
from proxy.request.messages import WebOrigin, head_to_send
from proxy.request.request_head import Head, UnclearError, authority, body_size, read, without_upgrade
from tests.proxy.inspection.clients import Client, read_all, read_until
from tests.proxy.inspection.inspection_lab import Site, make_site
from tests.support.waiting import wait_until

VERSIONS = pytest.mark.parametrize("version", ["1.1", "2"])


def make_scripted_site(gate, origins, answer, **more):
    return make_site(gate, origins.script(answer), tls=False, **more)


def request(site, head, body=b""):
    with site.connect() as connection:
        connection.sendall(head.replace("HOST", site.host).replace("\n", "\r\n").encode() + body)
        return read_all(connection)


# --- HTTP/1.0 ---


@pytest.mark.parametrize(
    ("answer", "gets"),
    [
        ("HTTP/1.0 200 OK\r\n\r\npage", "HTTP/1.0 200 OK\r\n\r\npage"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"),
    ],
)
def test_http10_client_is_served_and_its_connection_ends(gate, origins, answer, gets):
    def reply(connection, head):
        assert head.startswith(b"GET /x HTTP/1.0\r\n")
        connection.sendall(answer.encode())

    site = make_scripted_site(gate, origins, reply)
    assert request(site, "GET /x HTTP/1.0\nHost: HOST\n\n") == gets.encode()
    assert gate.decided() == [("GET", "/x", "passed", "rule")]


def test_http10_client_with_keep_alive_keeps_its_connection(gate, origins):
    def reply(connection, _head):
        connection.sendall(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\npage")
        return True

    origin = origins.script(reply)
    site = make_site(gate, origin, tls=False, http="{paths: [/1, /3]}")
    with site.connect() as connection:
        for path, end in (("/1", b"page"), ("/2", b"}\n"), ("/3", b"page")):
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {site.host}\r\nConnection: keep-alive\r\n\r\n".encode())
            assert read_until(connection, end).endswith(end)
    assert [each[2] for each in gate.decided()] == ["passed", "blocked", "passed"]
    assert origin.connections == 1


def test_http10_client_is_sent_no_100_continue(gate, origins):
    """An HTTP/1.0 client would take it for the answer (RFC 9110 section 10.1.1)."""

    def reply(connection, head):
        assert b"xpect" not in head
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + read_until(connection, b"body"))

    site = make_scripted_site(gate, origins, reply)
    head = "POST / HTTP/1.0\nHost: HOST\nContent-Length: 4\nExpect: 100-continue\n\n"
    assert request(site, head, b"body") == b"HTTP/1.0 200 OK\r\n\r\nbody"


# --- bodies as they are ---


@VERSIONS
def test_compressed_range_is_forwarded_unchanged(gate, origins, version):
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

    site = make_site(gate, origins.script(reply, "good.example", tls=True, alpn=["http/1.1"]))
    words = ["--http2"] if version == "2" else ["--http1.1"]
    status, out, err = site.curl(
        "/x", *words, "-H", "Range: bytes=1000-59999", "-H", "Accept-Encoding: gzip, br", "-D", gate.directory / "head"
    )
    assert (status, err, out) == (0, "", part)
    head = (gate.directory / "head").read_text().lower()
    assert "206" in head.splitlines()[0]
    assert f"content-range: bytes 1000-59999/{len(whole)}" in head
    assert "content-encoding: gzip" in head


# --- what takes its time ---


def test_event_stream_outlives_the_idle_timeout(gate, origins):
    def reply(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(8):
            connection.sendall(b"data: %d\n\n" % number)
            time.sleep(0.15)

    site = make_site(gate, origins.script(reply), tls=False, idle=0.6)
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        got = read_all(connection)
    assert got.endswith(b"data: 7\n\n")
    wait_until(lambda: gate.events("request.completed"))
    assert gate.events("request.completed")[0]["outcome"] == "passed"


# --- leave to send ---


def test_http2_100_continue_is_sent_only_for_an_allowed_request(gate, origins):
    site = make_site(gate, origins.web("good.example"), http="{paths: [/upload]}")
    client = Client(site)
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
def test_denied_grpc_web_call_is_answered_with_a_grpc_status(gate, origins, version, kind):
    origin = origins.web("good.example")
    site = make_site(gate, origin, http="{paths: [/ok]}")
    fields = {"content-type": kind, "x-grpc-web": "1"}
    if version == "2":
        client = Client(site)
        stream = client.request("/a.B/C", "POST", more=tuple(fields.items()))
        head = dict(client.wait(h2.events.ResponseReceived, stream).headers)
        status, body = int(head[":status"]), client.body(stream)
        client.close()
    else:
        client = http.client.HTTPSConnection(site.host)
        client.sock = site.connect()
        client.request("POST", "/a.B/C", b"\0\0\0\0\0", fields)
        response = client.getresponse()
        status, body = response.status, response.read()
        head = {name.lower(): value for name, value in response.getheaders()}
        client.close()
    assert (status, body, head["grpc-status"], head["content-type"]) == (200, b"", "7", kind)
    assert head["grpc-message"].startswith("exeat: no rule allows this: POST https://good.example")
    assert origin.requests == []


@pytest.mark.parametrize("kind", ["application/grpc-webx", "application/grpc-web+" + "x" * 30, "text/plain"])
def test_denied_request_unlike_grpc_web_is_answered_with_a_page(gate, origins, kind):
    site = make_site(gate, origins.web("good.example"), http="{paths: [/ok]}")
    _, out, _ = site.curl("/a.B/C", "--data", "x", "-H", f"Content-Type: {kind}")
    assert b'"reason": "no_rule"' in out


# --- fuzzed bytes ---


TOKENS = st.sampled_from([
    b"GET", b"POST", b"CONNECT", b" ", b"  ", b"\t", b"\r\n", b"\n", b"\r", b"\0", b"/", b"*", b"http://", b"https://",
    b"good.example", b"evil.example", b":443", b"Host:", b"host :", b"Content-Length:", b"Transfer-Encoding:", b"chunked",
    b"5", b"-1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"@", b"#", b"?", b"%00", b"\xff", b"[::1]", b"Upgrade:", b"x",
])  # fmt: skip
BYTES = st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=40).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(BYTES, st.booleans())
def test_fuzzed_head_is_refused_or_forwarded_with_the_same_meaning(data, tls):
    for raw in (data, b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n", data + b" HTTP/1.1\r\nHost: good.example\r\n\r\n"):
        try:
            head = parse_head(raw)
            body_size(head)
            target = read(head, tls=tls)
        except UnclearError:
            continue
        # an accepted head is forwarded as one line and one host, and is read the same again
        sent = head_to_send(head, target, WebOrigin(target.host, target.port, tls), extensions=True)
        again = read(sent, tls=tls)
        assert (again.host, again.path, again.method) == (target.host, target.path, target.method)
        assert not any(c in sent.path for c in b" \r\n\0")
        assert authority(target.host, target.port, tls=tls)


@settings(max_examples=200, deadline=None)
@given(BYTES, st.binary(max_size=30), st.binary(max_size=30), st.lists(st.tuples(BYTES, BYTES), max_size=4))
def test_fuzzed_http2_head_is_refused_or_read(path, method, host, fields):
    head = Head(b"HTTP/2.0", method, b"https", host, path, tuple(fields))
    with contextlib.suppress(UnclearError):
        target = read(head, tls=True)
        assert b"\n" not in head.path
        assert target.method.isascii()
    without_upgrade(head.fields)


@settings(max_examples=200, deadline=None)
@given(BYTES, st.integers(1, 7))
def test_fuzzed_head_is_split_the_same_in_any_pieces(data, step):
    def heads(pieces):
        buffer, found = Buffer(), []
        with contextlib.suppress(UnclearError):
            for piece in pieces:
                buffer += piece
                while head := split_head(buffer):
                    found.append(head)
        return found

    data = b"GET / HTTP/1.1\r\n" + data
    whole = heads([data])
    assert heads([data[at : at + step] for at in range(0, len(data), step)])[: len(whole)] == whole


def chunked(reader, pieces):
    """Return bytes and trailers that a reader finds in a body in pieces; None if it is malformed or unfinished."""
    buffer, data = Buffer() if isinstance(reader, Chunks) else ReceiveBuffer(), b""
    for piece in pieces:
        buffer += piece
        try:
            while part := reader(buffer):
                if isinstance(part, h11.EndOfMessage):
                    trailers = getattr(reader, "trailers", part.headers)
                    return data, tuple((name.lower(), value) for name, value in trailers)
                data += part.data
        except h11.ProtocolError:
            return None
    return None


CHUNKS = st.lists(
    st.one_of(
        st.sampled_from([
            b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"5;x=1\r\nhello\r\n", b"00a\r\nhellohello\r\n", b"5 \r\nhello\r\n",
            b"5\nhello\r\n", b"5\r\nhello\n", b"0\r\nX: y\r\n z\r\n\r\n", b"0\nX: y\n\n", b"\r\n", b"\n", b";", b"-", b"0x", b"ffffffffffffffffff\r\n",
        ]),
        st.binary(max_size=5),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(CHUNKS, st.integers(1, 7))
def test_fuzzed_chunked_body_is_read_as_h11_reads_it(data, step):
    """Our reader is stricter than h11 and agrees with it on every body that it accepts; the lenient one does, too."""
    whole, leniently = chunked(Chunks(), [data]), chunked(Chunks(lenient=True), [data])
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert (chunked(Chunks(), pieces), chunked(Chunks(lenient=True), pieces)) == (whole, leniently)
    if whole is not None:
        assert leniently == whole
        assert chunked(ChunkedReader(), [data]) == whole


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_corrupted_http1_requests_raise_nothing(gate, origins, tls):
    dice = random.Random(20261121)
    origin = origins.web("good.example", tls=tls)
    site = make_site(gate, origin, tls=tls)
    good = f"POST /upload HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode()
    for _ in range(60):
        noise = bytearray(good * 2)
        for _ in range(dice.randrange(1, 6)):
            noise[dice.randrange(len(noise))] = dice.randrange(256)
        with contextlib.suppress(OSError), speak(site, tls) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)
    wait_until(lambda: len(gate.closed) >= 60)
    assert gate.events("gate.error") == []


@pytest.mark.parametrize("alpn", [["h2"], ["http/1.1"]], ids=str)
def test_random_http2_frames_raise_nothing(gate, origins, alpn):
    dice = random.Random(7)
    site = make_site(gate, origins.web("good.example", alpn=alpn))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    for count in range(60):
        frames = b""
        for _ in range(dice.randrange(1, 8)):
            payload = dice.randbytes(dice.randrange(0, 40))
            kind, flags, stream = dice.randrange(0, 11), dice.randrange(256), dice.choice((0, 1, 1, 3, 2))
            frames += len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
        with contextlib.suppress(OSError), site.connect(alpn=("h2",)) as connection:
            connection.sendall(preface + frames)
            connection.settimeout(0.05 if count % 4 else 0.3)
            read_all(connection)
    wait_until(lambda: len(gate.closed) >= 60)
    assert gate.events("gate.error") == []


def speak(site: Site, tls):
    connection = site.connect() if tls else socket.create_connection(("127.0.0.1", site.gate_port), 5)
    connection.settimeout(1)
    return connection
