"""The most costly inputs of clients and servers: no step of the worker's loop takes long (invariant 11).

Each payload is sent through a gate, and every step of its loop is measured in processor time. Inputs that cost the
scanner most are built from its patterns in `tests/proxy/dlp/test_scan_slices.py`.
"""

import base64
import contextlib
import gzip
import hashlib

import pytest

from proxy.secrets import SecretInjector, SecretValue
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from tests.proxy.inspection.clients import Client, read_all, read_until
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.proxy.inspection.stages.secret_scan_lab import PLACEHOLDER, VALUE
from tests.proxy.inspection.step_timer import time_steps
from tests.proxy.inspection.test_frames import DATA, HEADERS, PING, frame
from tests.support import processor_time
from tests.support.processor_time import measured_again
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def scan_lab(tmp_path_factory, origins):
    """A gate, and an origin under a rule with `scan: block`."""
    gate = GateLab(tmp_path_factory.mktemp("turns"), origins)
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False, more=", {id: s, to: good.example, action: flag, scan: block}")
    site.request("GET /ok HTTP/1.1\nHost: HOST\nConnection: close\n\n")  # what is imported for the first one is there
    yield gate, site
    gate.close()


def _head(*fields, request=b"POST /upload"):
    return b"\r\n".join((request + b" HTTP/1.1", b"Host: HOST", b"Connection: close", *fields, b"", b""))


def _packed(text, size):
    body = gzip.compress(text * (size // len(text)))
    return _head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(body)) + body


def _chunked(body):
    return _head(b"Transfer-Encoding: chunked") + body


PAYLOADS = {
    "chunks of one byte": _chunked(b"1\r\nx\r\n" * 40000 + b"0\r\n\r\n"),
    "a chunk's extension": _chunked(b"1;" + b"a" * 60000 + b"\r\nx\r\n0\r\n\r\n"),
    "trailers": _chunked(b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 10000 + b"\r\n"),
    "a trailer that matches a pattern everywhere": _chunked(b"1\r\nx\r\n0\r\na: " + b"xoxb-" * 12000 + b"\r\n\r\n"),
    "30,000 fields": _head(*[b"a:"] * 30000),
    "the maximum number of fields": _head(*[b"x-a: " + b"b" * 180] * 490),
    "a field of prefixes": _head(b"x-a: " + b"hf_ " * 15000),
    "a field that matches a pattern everywhere": _head(b"x-a: " + b"xoxb-" * 12000),
    "fields that match a pattern everywhere": _head(*[b"x-a: " + b"xoxb-" * 24] * 490),
    "a path of percent signs": _head(request=b"GET /" + b"%25" * 5400),
    "a path of segments": _head(request=b"GET " + b"/a%2e" * 3200),
    "a path of accents": _head(request=b"GET /a" + ("\u0345" * 900 + "\u0301" * 900 + "\u0316" * 900).encode()),
    "a path of ligatures": _head(request=b"GET /" + "\ufdfa".encode() * 1800),
    "a path above ASCII": _head(request=b"GET /" + "\u1100\u1161\u11a8".encode() * 600),
    "a path above ASCII that is too long": _head(request=b"GET /" + "\u1100\u1161\u11a8".encode() * 1800),
    "a path of segments above ASCII": _head(request=b"GET /ok" + "/\u00e9.;".encode() * 990),
    "a path of escapes behind escapes": _head(request=b"GET /" + b"%253F/" * 950),
    "options of the connection": _head(b"Connection: " + b", ".join(b"x-original-%d" % n for n in range(5000))),
    "names that are nearly overrides": _head(*[b"x-" + b"forward-" * 6 + b"%d: a" % n for n in range(490)]),
    "a query of percent signs": _head(request=b"GET /?method&" + b"%" * 7900),
    "a query of parameters": _head(request=b"GET /?" + b"a=method&" * 1800),
    "a query that matches a pattern everywhere": _head(request=b"GET /?a=" + b"xoxb-" * 3200),
    "a target that is too long": _head(request=b"GET /" + b"%25" * 20000),
    "pipelined requests": b"GET /ok HTTP/1.1\r\nHost: HOST\r\n\r\n" * 300 + _head(request=b"GET /ok"),
    "gzip of prefixes": _packed(b"hf_ ", 4 << 20),
    "gzip that matches a pattern everywhere": _packed(b"xoxb-", 1 << 19),
    "gzip with parts of a token": _packed(b"eyJ" + b"a" * 500 + b".eyJ" + b"a" * 4000, 4 << 20),
    "many gzip members": _head(b"Content-Encoding: gzip", b"Content-Length: 220000") + gzip.compress(b"")[:20] * 11000,
}


# It is decided in one step, which takes 10 to 17 ms on a slow machine: the bound of the others would fail there.
ONE_STEP = {"a path above ASCII": 0.02}  # seconds


@pytest.mark.parametrize("payload", PAYLOADS)
@measured_again
def test_most_costly_requests_take_no_long_step(scan_lab, monkeypatch, payload):
    _, site = scan_lab
    with time_steps(monkeypatch) as timer, site.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(PAYLOADS[payload].replace(b"HOST", site.host.encode()))
        read_all(client)
    timer.check(ONE_STEP.get(payload, processor_time.MOST))


@pytest.mark.parametrize(
    "value",
    [b"%25" * 16, b"%25" * 40, PLACEHOLDER.encode()[:-1], b"a" * 120],
    ids=["escapes", "too many", "nearly", "plain"],
)
@measured_again
def test_heads_scanned_for_a_secret_take_no_long_step(scan_lab, monkeypatch, value):
    gate, site = scan_lab
    slot = Slot(SlotKind.HEADER, "x-api-key")
    secret = Secret("key", Source(SourceKind.ENV, ("X",)), "KEY", ((HostName("api.example"), 443),), (slot,))
    gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([SecretValue(secret, VALUE, PLACEHOLDER)])))
    body = gzip.compress(b"%25" * 100_000)
    head = _head(*[b"x-a: " + value] * 480, b"Content-Encoding: gzip", b"Content-Length: %d" % len(body))
    with time_steps(monkeypatch) as timer, site.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall((head + body).replace(b"HOST", site.host.encode()))
        read_all(client)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None))
    timer.check()


@pytest.fixture(scope="module")
def tls_lab(tmp_path_factory, origins):
    """A gate, and an origin over TLS."""
    gate = GateLab(tmp_path_factory.mktemp("busy"), origins)
    site = make_site(gate, origins.web("good.example"))
    client = Client(site)
    assert client.status(client.request("/ok")) == "200"
    client.close()
    yield gate, site
    gate.close()


def _heads(host, fields, count):
    """Return short requests that reference fields of the dynamic table (RFC 7541 section 2.3.2)."""
    begin = b"\x82\x87\x84\x01" + bytes([len(host)]) + host
    return b"".join(frame(HEADERS, begin + block, stream=1 + 2 * at, flags=5) for at, block in enumerate(fields(count)))


def _named_again(count):
    yield b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 13
    for _ in range(count - 1):
        yield b"\xbe" * 13


HTTP2 = {
    "heads that become 64 KB": (_named_again, 60),
    "heads with the maximum number of fields": (lambda count: [b"\x00\x81\x07\x81\x07" * 490] * count, 20),
    "heads with too many fields": (lambda count: [b"\x90" * 1500] * count, 2),  # ends the connection
}


@pytest.mark.parametrize(("fields", "count"), HTTP2.values(), ids=HTTP2)
@measured_again
def test_http2_heads_take_no_long_step(tls_lab, monkeypatch, fields, count):
    gate, site = tls_lab
    before = len(gate.decided())
    with time_steps(monkeypatch) as timer:
        client = Client(site)
        client.socket.sendall(_heads(site.host.encode(), fields, count))
        wait_until(lambda: len(gate.decided()) >= before + (1 if count == 2 else 20))
        client.close()
    timer.check()


@pytest.mark.parametrize("flood", ["DATA", "PING"])
@measured_again
def test_small_http2_frames_take_no_long_step(tls_lab, monkeypatch, flood):
    gate, site = tls_lab
    with time_steps(monkeypatch) as timer:
        client = Client(site)
        before = len(gate.decided())
        client.request("/upload", "POST", end=False)
        wait_until(lambda: len(gate.decided()) > before)
        frames = {"DATA": frame(DATA, b"x", stream=1), "PING": frame(PING, bytes(8))}[flood]
        client.socket.sendall(frames * 900 + frame(DATA, b"", stream=1, flags=1))
        assert client.status(1)
        client.close()
    timer.check()


ANSWERS = {
    "chunks of one byte": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 60000 + b"0\r\n\r\n",
    "30,000 fields": b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 30000 + b"\r\n",
    "a field of 30,000 lines": b"HTTP/1.1 200 OK\r\na: b\r\n" + b" c\r\n" * 30000 + b"\r\n",
    "announcements": b"HTTP/1.1 103 Early Hints\r\n" + b"a: b\r\n" * 400 + b"\r\n",
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
@measured_again
def test_most_costly_responses_take_no_long_step(scan_lab, origins, monkeypatch, answer):
    gate, _ = scan_lab
    count = 50 if answer == "announcements" else 1
    origin = origins.script(
        lambda connection, _: connection.sendall(ANSWERS[answer] * count), "good.example", tls=False
    )
    site = make_site(gate, origin, tls=False)
    with time_steps(monkeypatch) as timer, site.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(_head(request=b"GET /ok").replace(b"HOST", site.host.encode()))
        read_all(client)
    timer.check()


def _line(data):
    return b"%04x%b" % (len(data) + 4, data)


def _ref(number):
    return b"0" * 40 + b" " + b"a" * 40 + b" refs/heads/b%d" % number


_FIRST = _line(_ref(0) + b"\0report-status\n")
PUSHES = {
    "the maximum number of refs": _FIRST + b"".join(_line(_ref(number)) for number in range(1, 1000)) + b"0000",
    "shallow lines": _FIRST + _line(b"shallow " + b"a" * 40) * 17000 + b"0000",
    "a certificate of short lines": _line(b"push-cert\0report-status\n") + _line(b"x") * 190000 + b"0000",
    "a certificate of one long text": _line(b"push-cert\0report-status\n") + _line(b"\n" * 60000) * 16 + _line(b"push-cert-end\n"),
}  # fmt: skip


EMPTY_PUSH = """POST /a/b.git/git-receive-pack HTTP/1.1
Host: HOST
Connection: close
Content-Type: application/x-git-receive-pack-request
Content-Length: 4

0000"""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("push", PUSHES)
@measured_again
def test_git_pushes_take_no_long_step(scan_lab, monkeypatch, push, packed):
    gate, site = scan_lab
    rules = "".join(
        f"{{id: r{number}, to: good.example, resolves_to: [127.0.0.0/8], ports: [{site.port}/http], "
        f"git: {{repos: 'a/*', push: ['refs/heads/b{number}*']}}, action: allow}}, "
        for number in range(6)
    )
    gate.rules(f"[{rules}]")
    body = gzip.compress(PUSHES[push]) if packed else PUSHES[push]
    coding = [b"Content-Encoding: gzip"] if packed else []
    kind = b"Content-Type: application/x-git-receive-pack-request"
    head = _head(kind, b"Content-Length: %d" % len(body), *coding, request=b"POST /a/b.git/git-receive-pack")
    site.request("GET /ok HTTP/1.1\nHost: HOST\nConnection: close\n\n")  # the rules have been looked up once
    site.request(EMPTY_PUSH)
    before = len(gate.decided())
    with time_steps(monkeypatch) as timer, site.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall((head + body).replace(b"HOST", site.host.encode()))
        read_all(client)
    assert len(gate.decided()) > before
    timer.check()


@pytest.mark.parametrize("answer", [b"\x82\x00" * 60000, b"\x82\x7e\x00\x01a" * 30000])
@measured_again
def test_small_websocket_frames_take_no_long_step(scan_lab, origins, monkeypatch, answer):
    gate, _ = scan_lab
    key = base64.b64encode(bytes(16))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    agreed = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "

    def serve(connection, _):
        connection.sendall(agreed + accept + b"\r\n\r\n" + answer)
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    site = make_site(gate, origins.script(serve, "good.example", tls=False), tls=False, http="{websocket: true}")
    head = [b"GET /a HTTP/1.1", b"Host: " + site.host.encode(), b"Upgrade: websocket", b"Connection: Upgrade"]
    head += [b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + key, b"", b""]
    with time_steps(monkeypatch) as timer, site.connect() as client:
        client.sendall(b"\r\n".join(head))
        read_until(client, b"\r\n\r\n")
        client.sendall(b"\x82\x80\0\0\0\0" * 20000)
        left = len(answer)
        while left > 0:
            left -= len(client.recv(65536))
    timer.check()
