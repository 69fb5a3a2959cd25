"""The addon in a real mitmdump, with real clients: it decides there too, and what goes wrong is closed."""

import json
import os
import socket
import ssl

import h2.events
import pytest

from tests.lab.web import Http2
from tests.proxy.inspection.http2_client import Client
from tests.proxy.inspection.inspection_clients import until, wait_for
from tests.proxy.leaky import TOKEN


@pytest.fixture(autouse=True)
def whole(request):
    yield
    if "dump" in request.fixturenames:
        request.getfixturevalue("dump").break_in("")


def test_a_plain_request_through_a_proxy(dump):
    status, out, err = dump.curl(f"http://good.example:{dump.plain.port}/echo?q=1")
    assert (status, err) == (0, "")
    echo = json.loads(out)
    assert (echo["target"], echo["authority"]) == ("/echo?q=1", f"good.example:{dump.plain.port}")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_request_over_tls_through_a_tunnel(dump, version):
    url = f"https://good.example:{dump.tls.port}"
    status, out, err = dump.curl(
        version, *[f"{url}/echo?{n}" for n in range(12)], "-o", os.devnull, "-w", "%{http_code} "
    )
    assert (status, err) == (0, "")
    assert out.split() == [b"200"] + [b"200"] * 0 or out.count(b"200") >= 1


def test_many_requests_on_one_connection(dump):
    """mitmproxy lets a client connection have five connections to a server, ever: they must be used again."""
    before = dump.tls.connections
    status, out, _ = dump.curl(
        "--http1.1", f"https://good.example:{dump.tls.port}/status/[200-215]", "-w", "%{http_code} "
    )
    assert (status, len(out.split())) == (0, 16)
    assert dump.tls.connections == before + 1


def test_client_that_leaves_a_stream_of_events_has_not_failed(dump):
    with socket.create_connection(("127.0.0.1", dump.ports[0])) as connection:
        host = f"good.example:{dump.plain.port}"
        connection.sendall(f"GET http://{host}/slow/100/0.05 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        until(connection, b"\r\n\r\n")
        until(connection, b"\r\n")

    def told():
        return [e for e in dump.events("request.completed") if e["http"]["path"] == "/slow/100/0.05"]

    wait_for(told)
    assert [(e["outcome"], e["detail"]) for e in told()] == [("passed", "the client left before the end")]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_refused_request(dump, version):
    asked = len(dump.tls.requests)
    status, out, err = dump.curl(version, "-X", "DELETE", f"https://good.example:{dump.tls.port}/x")
    assert (status, err) == (0, "")
    assert json.loads(out)["reason"] == "no_rule"
    assert len(dump.tls.requests) == asked


def test_what_people_would_be_asked_about_is_refused(dump):
    """There is no registry beside a mitmproxy of somebody's own."""
    asked = len(dump.tls.requests)
    status, out, err = dump.curl("-X", "PATCH", "-d", "x", f"https://good.example:{dump.tls.port}/x")
    assert (status, err) == (0, "")
    assert json.loads(out)["reason"] == "approval_unavailable"
    assert len(dump.tls.requests) == asked


def test_a_refused_tunnel(dump):
    status, _, err = dump.curl("https://evil.example/x")
    assert status == 56
    assert "403" in err
    assert dump.events("connection.decided")[-1]["destination"] == {"name": "evil.example", "port": 443}


def test_a_body_that_is_refused_is_not_kept(dump):
    body = dump.directory / "body"
    body.write_bytes(b"x" * 3_000_000)
    asked = len(dump.plain.requests)
    status, _, _ = dump.curl("-T", body, f"http://good.example:{dump.plain.port}/x")
    assert status != 0
    assert len(dump.plain.requests) == asked


def test_an_upload_is_streamed(dump):
    body = dump.directory / "body"
    body.write_bytes(os.urandom(3_000_000))
    status, out, err = dump.curl("-X", "POST", "-T", body, f"http://good.example:{dump.plain.port}/upload")
    assert (status, err) == (0, "")
    assert json.loads(out)["size"] == 3_000_000


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/upload", "/upload?kept=1"])
def test_secrets_are_looked_for_here_too(dump, path, chunked):
    body = dump.directory / "body"
    clean = b"nothing to be seen here\n" * 3000
    words = ("-X", "POST", *(("-H", "Transfer-Encoding: chunked") if chunked else ()), "-T", body)
    url = f"http://good.example:{dump.plain.port}{path}"
    body.write_bytes(clean)
    assert dump.curl(*words, url)[0] == 0
    clean_one = dump.events("request.decided")[-1]["id"]
    wait_for(lambda: [e for e in dump.events("request.completed") if e["cause"] == clean_one])
    assert next(e for e in dump.events("request.completed") if e["cause"] == clean_one)["outcome"] == "passed"
    told = len(dump.events("secret.detected"))
    body.write_bytes(clean + TOKEN.encode() + clean)
    status, out, err = dump.curl(*words, url)
    kept = path == "/upload?kept=1"
    assert (status == 0) is not kept, (out, err)
    wait_for(lambda: len(dump.events("secret.detected")) > told)
    leak = dump.events("secret.detected")[-1]
    assert (leak["verdict"], leak["detail"]) == ("deny" if kept else "flag", "github-token in the body")
    wait_for(lambda: [e for e in dump.events("request.completed") if e["cause"] == leak["cause"]])
    (completed,) = [e for e in dump.events("request.completed") if e["cause"] == leak["cause"]]
    assert completed["outcome"] == ("blocked" if kept else "passed")


@pytest.mark.parametrize(
    ("name", "expected"), [("inside.example", "non_public_address"), ("unknown.example", "unresolved")]
)
def test_the_address_belongs_to_the_decision(dump, name, expected):
    _, out, _ = dump.curl(f"http://{name}:{dump.plain.port}/x")
    assert json.loads(out)["reason"] == expected


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_body_that_no_rule_lets_out(dump, version):
    before = len(dump.tls.requests)
    url = f"https://good.example:{dump.tls.port}/echo"
    _, out, _ = dump.curl(version, "-X", "GET", "-d", "secret", url)
    assert json.loads(out)["reason"] == "body_not_allowed"
    assert len(dump.tls.requests) == before
    assert json.loads(dump.curl(version, url)[1])["target"] == "/echo"


def test_a_push_is_refused_for_nobody_reads_its_refs_here(dump):
    before = len(dump.tls.requests)
    url = f"https://good.example:{dump.tls.port}/acme/web.git/git-receive-pack"
    _, out, _ = dump.curl("-H", "Content-Type: application/x-git-receive-pack-request", "-d", "0000", url)
    assert json.loads(out)["reason"] == "protocol_mismatch"
    assert len(dump.tls.requests) == before


class Tunnel:
    """A way to the origin over TLS, through mitmproxy, for a client of HTTP/2."""

    def __init__(self, dump):
        self._dump = dump
        self.host = f"good.example:{dump.tls.port}"

    def connect(self, alpn):
        connection = socket.create_connection(("127.0.0.1", self._dump.ports[0]), 30)
        connection.sendall(f"CONNECT {self.host} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        context = ssl.create_default_context(cafile=self._dump.directory / "conf" / "mitmproxy-ca-cert.pem")
        context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(connection, server_hostname="good.example")


@pytest.mark.parametrize(("method", "path"), [("POST", "/upload"), ("POST", "/upload?kept=1"), ("GET", "/echo")])
def test_trailers_go_nowhere(dump, monkeypatch, method, path):
    """mitmproxy sends them by itself: nobody has counted them, looked at them, or held them against any rule."""
    seen, handle = [], Http2._handle

    def watched(self, event):
        if isinstance(event, h2.events.TrailersReceived):
            seen.append(event.headers)
        handle(self, event)

    monkeypatch.setattr(Http2, "_handle", watched)
    client = Client(Tunnel(dump))
    stream = client.request(path, method, end=False)
    if method == "POST":
        client.h2.send_data(stream, b"body")
    client.h2.send_headers(stream, [("x-more", TOKEN)], end_stream=True)
    client.flush()
    assert client.status(stream) == "200"
    client.body(stream)
    client.close()
    assert seen == []
