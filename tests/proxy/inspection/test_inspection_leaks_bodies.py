"""Bodies with secrets in them, through a real gate: packed, in pieces, in trailers, and shared between requests."""

import base64
import gzip
import hashlib
import json
import os
import re

import pytest

from proxy.dlp.body_scan import LOOKED_AT
from tests.proxy.inspection.inspection_clients import wait_for
from tests.proxy.inspection.inspection_leaks_harness import (
    FILLER,
    VALUE,
    head,
    http2,
    never_told,
    place,
    post,
    recording,
)
from tests.proxy.leaky import KINDS, TOKEN


def chunked(*pieces):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


SECRETS = {
    "a token": (TOKEN.encode(), "github-token"),
    "a private key": (KINDS[0][1].encode(), "private-key"),
    "a value": (VALUE, "the value of the secret `key`"),
    "a value in base64": (base64.b64encode(b"ab" + VALUE), "the value of the secret `key`"),
    "a value in hexadecimal": (VALUE.hex().upper().encode(), "the value of the secret `key`"),
    "a value in percent signs": (b"".join(b"%%%02x" % byte for byte in VALUE), "the value of the secret `key`"),
}
SHAPES = {
    "alone": lambda secret: [secret],
    "at the end": lambda secret: [FILLER + secret],
    "in the middle": lambda secret: [FILLER + secret + b"\n" + FILLER],
    "over two pieces": lambda secret: [FILLER + secret[:11], secret[11:] + b"\n" + FILLER],
    "byte by byte": lambda secret: [secret[at : at + 1] for at in range(len(secret))],
}


TOGETHER = [("a token", shape) for shape in SHAPES] + [(secret, "over two pieces") for secret in SECRETS]


@pytest.mark.parametrize(("secret", "shape"), TOGETHER, ids=map(" ".join, TOGETHER))
def test_of_a_body_that_is_blocked_nothing_of_the_secret_leaves(gate, origins, secret, shape):
    got, (secret, name) = [], SECRETS[secret]
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    pieces = SHAPES[shape](secret)
    body = b"".join(pieces)
    answer = post(place(gate, origin, "block"), body, pieces=pieces)
    wait_for(lambda: gate.events("request.completed"))
    assert answer.startswith((b"HTTP/1.1 403", b""))
    (leak,), (completed,) = gate.events("secret.detected"), gate.events("request.completed")
    assert (leak["verdict"], leak["outcome"]) == ("deny", "blocked")
    assert leak["detail"].startswith(name)
    assert leak["detail"].endswith("in the body")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "leak")
    before = body.index(secret)
    assert all(body.startswith(each) and len(each) <= before for each in got)
    never_told(gate, answer)


@pytest.mark.parametrize(("secret", "shape"), TOGETHER, ids=map(" ".join, TOGETHER))
def test_a_body_that_is_told_of_passes_as_it_is(gate, origins, secret, shape):
    got, (secret, name) = [], SECRETS[secret]
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    pieces = SHAPES[shape](secret)
    answer = post(place(gate, origin), b"".join(pieces), pieces=pieces)
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [b"".join(pieces)]
    wait_for(lambda: gate.events("secret.detected"))
    details = [leak["detail"] for leak in gate.events("secret.detected")]
    assert any(detail.startswith(name) for detail in details)
    wait_for(lambda: gate.events("request.completed"))
    assert gate.events("request.completed")[0]["outcome"] == "passed"
    assert re.search(r"allowed 1 request, .*; flagged \d leaks? \(good.example\)", gate.recorder.summary().describe())
    never_told(gate, answer)


def test_a_small_body_that_is_blocked_gets_a_page(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    answer = post(place(gate, origin, "block"), b"x=" + TOKEN.encode())
    assert answer.startswith(b"HTTP/1.1 403")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "leak"
    assert "blocked 1 request (good.example)" in gate.recorder.summary().describe()
    assert "flagged" not in gate.recorder.summary().describe()


@pytest.mark.parametrize("at", [1, 4, 20, 39])
def test_chunks_may_cut_a_secret_anywhere(gate, origins, at):
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    secret = TOKEN.encode()
    body = chunked(b"note: ", secret[:at], secret[at:], b" end")
    answer = post(place(gate, origin, "block"), body, "Transfer-Encoding: chunked")
    assert b'"leak"' in answer
    assert b"".join(got) == b""


def test_a_packed_body_is_looked_into(gate, origins):
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    packed = gzip.compress(os.urandom(3000).hex().encode() + TOKEN.encode())
    made = place(gate, origin, "block")
    answer = post(made, packed, f"Content-Length: {len(packed)}", "Content-Encoding: gzip")
    assert b'"leak"' in answer
    assert got in ([], [b""])
    for packing in ("Content-Encoding: br", "Grpc-Encoding: gzip", "Connect-Content-Encoding: zstd"):
        answer = post(made, b"abcd", "Content-Length: 4", packing)
        assert b"nobody can look into the body" in answer
    answer = post(made, b"abcd", "Content-Length: 4", "Grpc-Encoding: identity")
    assert answer.startswith(b"HTTP/1.1 200")
    got.clear()
    parts = (
        b"--x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(b"note " + TOKEN.encode()) + b"\r\n--x--"
    )
    answer = post(made, parts, f"Content-Length: {len(parts)}", "Content-Type: multipart/related; boundary=x")
    assert b'"leak"' in answer
    assert all(not each for each in got)


def test_what_is_beyond_is_missed_under_flag_and_not_under_block(gate, origins):
    body = b"0123456789abcde\n" * (LOOKED_AT // 16 + 512) + TOKEN.encode()
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    assert post(place(gate, origin, secrets=False), body).startswith(b"HTTP/1.1 200")
    assert gate.events("secret.detected") == []
    post(place(gate, origin, "block", secrets=False), body)
    wait_for(lambda: gate.events("secret.detected"))
    assert got[0] == body
    assert all(TOKEN.encode()[:8] not in each for each in got[1:])


def test_a_secret_shared_between_two_requests(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin, "block")
    half = len(VALUE) // 2
    assert made.ask(head(f"GET /{VALUE[:half].decode()}")).startswith(b"HTTP/1.1 200")
    assert made.ask(head("GET /innocent")).startswith(b"HTTP/1.1 200")
    for _ in range(2):
        answer = post(made, VALUE[half:])
        assert b'"leak"' in answer
    assert {leak["detail"] for leak in gate.events("secret.detected")} == {
        "most of the value of the secret `key`, in one request or in several in the body"
    }
    assert VALUE[half:].decode() not in repr(origin.requests)
    assert [event["http"]["path"] for event in gate.events("request.decided")] == ["/***", "/innocent", "/a", "/a"]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_large_clean_upload_passes_whole_under_block(gate, origins, version):
    origin = origins.web("good.example")
    made = place(gate, origin, "block")
    body = gate.directory / "body"
    body.write_bytes(os.urandom(700_000).hex().encode())  # more than any window of HTTP/2
    status, out, err = made.curl("/upload", version, "-X", "POST", "-T", body)
    assert (status, err) == (0, "")
    assert json.loads(out)["sha256"] == hashlib.sha256(body.read_bytes()).hexdigest()
    assert gate.events("secret.detected") == []


@pytest.mark.parametrize("scan", ["flag", "block"])
def test_trailers_are_looked_at(gate, origins, scan):
    origin = origins.web("good.example")
    made = place(gate, origin, scan)
    with made.connect(["h2"]) as connection:
        status, _ = http2(connection, made.host, b"abc", trailers=[("x-note", TOKEN)])
    wait_for(lambda: gate.events("secret.detected"))
    assert status == (b"200" if scan == "flag" else b"403")
