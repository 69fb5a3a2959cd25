"""Whatever bytes come: a request is read in one way or refused, and nothing of ours raises."""

import contextlib
import random
import socket

import h11
import pytest
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.request.chunked_body import Buffer, Chunks
from proxy.request.http1_heads import parse_head, split_head
from proxy.request.messages import WebOrigin, settle
from proxy.request.request_head import Head, UnclearError, authority, body_size, read, without_upgrade
from tests.proxy.inspection.inspection_clients import rest, wait_for
from tests.proxy.inspection.inspection_harness import Site, site

TOKENS = st.sampled_from([
    b"GET", b"POST", b"CONNECT", b" ", b"  ", b"\t", b"\r\n", b"\n", b"\r", b"\0", b"/", b"*", b"http://", b"https://",
    b"good.example", b"evil.example", b":443", b"Host:", b"host :", b"Content-Length:", b"Transfer-Encoding:", b"chunked",
    b"5", b"-1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"@", b"#", b"?", b"%00", b"\xff", b"[::1]", b"Upgrade:", b"x",
])  # fmt: skip
BYTES = st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=40).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(BYTES, st.booleans())
def test_a_head_is_read_or_refused(data, tls):
    for raw in (data, b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n", data + b" HTTP/1.1\r\nHost: good.example\r\n\r\n"):
        try:
            head = parse_head(raw)
            body_size(head)
            asked = read(head, tls=tls)
        except UnclearError:
            continue
        # what passes is forwarded as one line and one host, and reads the same again
        sent = settle(head, asked, WebOrigin(asked.host, asked.port, tls), extensions=True)
        again = read(sent, tls=tls)
        assert (again.host, again.path, again.method) == (asked.host, asked.path, asked.method)
        assert not any(c in sent.path for c in b" \r\n\0")
        assert authority(asked.host, asked.port, tls=tls)


@settings(max_examples=200, deadline=None)
@given(BYTES, st.binary(max_size=30), st.binary(max_size=30), st.lists(st.tuples(BYTES, BYTES), max_size=4))
def test_an_http2_head_is_read_or_refused(path, method, host, fields):
    head = Head(b"HTTP/2.0", method, b"https", host, path, tuple(fields))
    with contextlib.suppress(UnclearError):
        asked = read(head, tls=True)
        assert b"\n" not in head.path
        assert asked.method.isascii()
    without_upgrade(head.fields)


@settings(max_examples=200, deadline=None)
@given(BYTES, st.integers(1, 7))
def test_a_head_is_the_same_in_any_pieces(data, step):
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
    """What a reader makes of a body in these pieces: its bytes and trailers; None if it can't be read or has no end."""
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
def test_a_chunked_body_is_the_same_in_any_pieces_and_what_others_read(data, step):
    """Stricter than h11, and where it reads a body that is the one h11 reads; a lenient reader reads that as well."""
    whole, leniently = chunked(Chunks(), [data]), chunked(Chunks(lenient=True), [data])
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert (chunked(Chunks(), pieces), chunked(Chunks(lenient=True), pieces)) == (whole, leniently)
    if whole is not None:
        assert leniently == whole
        assert chunked(ChunkedReader(), [data]) == whole


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_noise_on_the_wire_raises_nothing(gate, origins, tls):
    dice = random.Random(20261121)
    origin = origins.web("good.example", tls=tls)
    place = site(gate, origin, tls=tls)
    good = f"POST /upload HTTP/1.1\r\nHost: {place.host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode()
    for _ in range(60):
        noise = bytearray(good * 2)
        for _ in range(dice.randrange(1, 6)):
            noise[dice.randrange(len(noise))] = dice.randrange(256)
        with contextlib.suppress(OSError), speak(place, tls) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            rest(connection)
    wait_for(lambda: len(gate.closed) >= 60)
    assert gate.events("gate.error") == []


@pytest.mark.parametrize("alpn", [["h2"], ["http/1.1"]], ids=str)
def test_http2_noise_raises_nothing(gate, origins, alpn):
    dice = random.Random(7)
    place = site(gate, origins.web("good.example", alpn=alpn))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    for count in range(60):
        frames = b""
        for _ in range(dice.randrange(1, 8)):
            payload = dice.randbytes(dice.randrange(0, 40))
            kind, flags, stream = dice.randrange(0, 11), dice.randrange(256), dice.choice((0, 1, 1, 3, 2))
            frames += len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
        with contextlib.suppress(OSError), place.connect(alpn=("h2",)) as connection:
            connection.sendall(preface + frames)
            connection.settimeout(0.05 if count % 4 else 0.3)
            rest(connection)
    wait_for(lambda: len(gate.closed) >= 60)
    assert gate.events("gate.error") == []


def speak(place: Site, tls):
    connection = place.connect() if tls else socket.create_connection(("127.0.0.1", place.door), 5)
    connection.settimeout(1)
    return connection
