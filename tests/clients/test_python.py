"""HTTP clients of Python: what they fetch is whole, in whatever version of HTTP, and a refusal says why."""

import hashlib
import json

import pytest

from .clients_lab import WEBSOCKET

CONTENT = bytes(range(253)) * 20_000
SUM = hashlib.sha256(CONTENT).hexdigest()
URLS = [
    "https://www.open.example/files/python.bin",
    "http://www.open.example/files/python.bin",
    "https://read.example/other",
]
UPLOADED = {"size": 64 * 65536, "sha256": hashlib.sha256(b"x" * 64 * 65536).hexdigest()}


@pytest.fixture(scope="module")
def tried(world):
    """Every client, in one sandbox."""
    (world.files / "python.bin").write_bytes(CONTENT)
    https = [f"https://www.open.example/files/python.bin?{number}" for number in range(20)]
    sockets = [f"wss://ws.example:{WEBSOCKET}/{path}" for path in ("echo", "closed")]
    return world.python(
        ("urllib_", *URLS), ("requests_", *URLS), ("httpx_", *https, URLS[2]), ("aiohttp_", *sockets, *URLS),
        ("raw_http", "www.open.example"),
    )  # fmt: skip


def lines(said):
    assert said.ok, said.err
    return [json.loads(line) for line in said.out.splitlines()]


def check(got):
    https, http, (status, phrase, told, reason) = got
    assert https == http == [200, SUM]
    assert (status, phrase, reason) == (403, "Blocked by Exeat: no_rule", "no_rule")
    assert told.startswith('deny;reason=no_rule;event="')


def test_urllib(tried):
    check(lines(tried.said[0]))


def test_requests(tried):
    *got, upload = lines(tried.said[1])
    check(got)
    assert upload == UPLOADED


def test_httpx_over_http2(tried):
    *got, (status, told, reason, version) = lines(tried.said[2])
    assert got == [[200, SUM, "HTTP/2"]] * 20
    assert (status, reason, version) == (403, "no_rule", "HTTP/2")
    assert told.startswith("deny;reason=no_rule")


def test_aiohttp(tried):
    *got, echoed, (status, phrase, told) = lines(tried.said[3])
    check(got)
    assert echoed == 300_000
    assert (status, phrase) == (403, "Invalid response status")
    assert told.startswith("deny;reason=no_rule")


def test_upload_refused_while_sending_gets_the_reason(world):
    """24 MB to where nothing may be sent: the answer is there when the client comes to read it."""
    tried = world.python(("refused_uploads", "https://read.example/up"))
    shown = tried.said[0].json
    assert shown == dict.fromkeys(shown, 403)
    assert tried.decided() == ["blocked no_rule"] * len(shown)


def test_hand_written_requests_are_answered(tried):
    """By the server, whatever that is: the gate lets each through, and passes on what comes back."""
    (found,) = lines(tried.said[4])
    assert found["half-closed"] == found["behind an empty line"] == "HTTP/1.1 200 "
    assert found["of the server"].startswith("HTTP/1.1 ")
    assert "Exeat" not in found["of the server"]
    assert tried.decided(http__path="*") == ["passed rule"]
