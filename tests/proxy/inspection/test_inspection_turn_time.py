"""What costs most of what a client can send: no step of the worker's loop takes long (invariant 11).

Each payload is sent for real, and every step of the gate's loop is measured in processor time. What costs the
scanner most is made of its own patterns in `tests/proxy/test_leak_slices.py`.
"""

import contextlib
import gzip

import pytest
from inspection_clients import rest
from inspection_harness import Gate, site
from turns_watch import MOST, watchdog


@pytest.fixture(scope="module")
def lab(tmp_path_factory, origins):
    """A gate, and an origin where bodies are looked through under `block`."""
    gate = Gate(tmp_path_factory.mktemp("turns"), origins)
    origin = origins.web("good.example", tls=False)
    place = site(gate, origin, tls=False, more=", {id: s, to: good.example, action: flag, scan: block}")
    place.ask("GET /ok HTTP/1.1\nHost: HOST\nConnection: close\n\n")  # what is imported for the first one is there
    yield gate, place
    gate.close()


def _head(*fields, request=b"POST /upload"):
    return b"\r\n".join((request + b" HTTP/1.1", b"Host: HOST", b"Connection: close", *fields, b"", b""))


def _packed(text, size):
    body = gzip.compress(text * (size // len(text)))
    return _head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(body)) + body


PAYLOADS = {
    "packed text of prefixes": _packed(b"hf_ ", 4 << 20),
    "packed text that fits a pattern everywhere": _packed(b"xoxb-", 1 << 19),
    "packed text with parts of a token": _packed(b"eyJ" + b"a" * 500 + b".eyJ" + b"a" * 4000, 4 << 20),
    "many packed streams": _head(b"Content-Encoding: gzip", b"Content-Length: 220000")
    + gzip.compress(b"")[:20] * 11000,
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_step_takes_long_for_what_costs_most(lab, monkeypatch, payload):
    _, place = lab
    with watchdog(monkeypatch) as dog, place.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(PAYLOADS[payload].replace(b"HOST", place.host.encode()))
        assert rest(client).startswith(b"HTTP/1.1 ")
    assert dog.measured > 1
    assert dog.longest[0] < MOST, dog.longest
