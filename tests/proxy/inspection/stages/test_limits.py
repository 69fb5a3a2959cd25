"""Limits of rules: requests are denied with a page, transfers are cut, and no byte beyond a limit passes."""

import contextlib
import json
import threading

import pytest

from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from tests.proxy.inspection.clients import read_all, read_until
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until

KB = 1024


def make_limited_site(gate, origins, limits):
    return make_site(gate, origins.web("good.example"), http=f"{{paths: ['/**']}}, limits: {{{limits}}}")


def denial(answer):
    """Return status and reason of a denial page."""
    status, out, err = answer
    assert (status, err) == (0, "")
    page = json.loads(out)
    return page["status"], page["reason"]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_request_beyond_the_request_limit_is_denied_with_429(gate, origins, version):
    site = make_limited_site(gate, origins, "requests: 2")
    for _ in range(2):
        assert site.curl("/echo", version, "-o", "/dev/null", "-w", "%{http_code}")[1] == b"200"
    assert denial(site.curl("/echo", version, "-H", "Accept: application/json")) == (429, "limit_exceeded")
    assert [outcome for _, _, outcome, _ in gate.decided()] == ["passed", "passed", "blocked"]
    last = gate.events("request.decided")[-1]
    assert (last["verdict"], last["reason"], last["rules"]) == ("deny", "limit_exceeded", ["t:a"])


def test_requests_on_one_connection_count_one_by_one(gate, origins):
    site = make_limited_site(gate, origins, "requests: 3, connections: 1")
    more = [word for _ in range(4) for word in ("-o", "/dev/null", f"https://{site.host}/echo")]
    _, out, _ = site.curl("/echo", "--http1.1", "-o", "/dev/null", "-w", "%{http_code} ", *more)
    assert out.split() == [b"200", b"200", b"200", b"429", b"429"]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_upload_is_cut_before_it_exceeds_its_limit(gate, origins, tmp_path, version):
    origin = origins.web("good.example")
    site = make_site(gate, origin, http=f"{{paths: ['/**']}}, limits: {{bytes_up: {200}KB}}")
    body = tmp_path / "body"
    body.write_bytes(b"x" * 1000 * KB)
    status, out, _ = site.curl("/upload", version, "-T", body, "-X", "POST", "-H", "Expect:")
    assert (status != 0, out) == (True, b"")
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "limit_exceeded")
    assert completed["bytes"]["up"] <= 200 * KB
    again = site.curl("/upload", "-H", "Accept: application/json", "-T", body, "-X", "POST")
    assert (again[0] != 0) or denial(again)[1] == "limit_exceeded"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_download_is_cut_before_it_exceeds_its_limit(gate, origins, tmp_path, version):
    site = make_limited_site(gate, origins, "bytes_down: 200KB")
    got = tmp_path / "got"
    status, _, _ = site.curl(f"/bytes/{1000 * KB}", version, "-o", got)
    assert status in {18, 56, 92}  # partial file, receive error, HTTP/2 stream error: never a whole one
    assert got.stat().st_size <= 200 * KB
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"], completed["http"]["status"]) == (
        "blocked",
        "limit_exceeded",
        200,
    )
    assert completed["bytes"]["down"] <= 200 * KB


def test_request_head_counts_as_uploaded_bytes(gate, origins):
    site = make_limited_site(gate, origins, "bytes_up: 4KB")
    assert denial(site.curl(f"/echo?{'x' * 5000}", "-H", "Accept: application/json")) == (429, "limit_exceeded")
    assert site.curl("/echo", "-o", "/dev/null", "-w", "%{http_code}")[1] == b"200"


def test_request_trailers_count_as_uploaded_bytes(gate, origins):
    """A request may have 64 KB of trailers; they count before they are sent."""
    arrived, ended = [], threading.Event()

    def answer(connection, head):
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                arrived.append(data)
        ended.set()

    site = make_site(gate, origins.script(answer), tls=False, http="{paths: ['/**']}, limits: {bytes_up: 4KB}")
    with site.connect() as connection:
        head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(f"{head}3\r\nabc\r\n".encode())
        wait_until(lambda: b"abc" in b"".join(arrived))
        connection.sendall(b"0\r\nX-Mine: %b\r\n\r\n" % (b"x" * 5000))
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in read_all(connection)
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"], completed["bytes"]["up"]) == ("blocked", "limit_exceeded", 3)
    assert ended.wait(8)
    assert b"x-mine" not in b"".join(arrived).lower()


def test_response_trailers_count_as_downloaded_bytes(gate, origins):
    def answer(connection, head):
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: %b\r\n\r\n" % (b"x" * 5000)
        )
        return True

    site = make_site(gate, origins.script(answer), tls=False, http="{paths: ['/**']}, limits: {bytes_down: 4KB}")
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"], completed["bytes"]["down"]) == ("blocked", "limit_exceeded", 2)


def test_limit_of_one_rule_does_not_end_streams_of_another(gate, origins):
    """A limit of one rule ends only requests under that rule."""
    origin = origins.web("good.example")
    port = f"ports: [{origin.port}/tls], resolves_to: [127.0.0.0/8], to: good.example, action: allow"
    more = f", {{id: free, {port}, http: {{paths: [/free/**, /echo]}}}}"
    site = make_site(gate, origin, http="{paths: ['/bytes/**']}, limits: {bytes_down: 10KB}", more=more)
    urls = [f"https://{site.host}/echo"]
    _, out, _ = site.curl(
        "/bytes/100000", "--http2", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} ", *urls
    )
    assert out.split()[-1] == b"200"
    assert [(outcome, reason) for _, _, outcome, reason in gate.decided()] == [("passed", "rule")] * 2


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [("", "bytes_up: 20KB", True), ("bytes_up: 100KB", "bytes_up: 20KB", True), ("", "bytes_up: 100KB", False)],
)
def test_new_limits_apply_to_an_upload_under_way(gate, origins, before, after, ends):
    """An upload may take a day, so new limits apply to open ones."""

    def rules(limits):
        port = f"ports: [{origin.port}/http], resolves_to: [127.0.0.0/8]"
        clause = f", limits: {{{limits}}}" if limits else ""
        gate.rules(f"[{{id: a, to: good.example, {port}, action: allow, http: {{methods: [POST]}}{clause}}}]")

    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False)
    rules(before)
    with site.connect() as connection:
        head = f"POST /upload HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {40 * KB}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + b"x" * (10 * KB))
        wait_until(lambda: any(exchange.up == 10 * KB for exchange in open_requests(gate)))
        rules(after)
        gate.loop.run(
            lambda: [one.review(gate.sandbox.policy.decide(attempt_to(origin.port))) for one in open_connections(gate)]
        )
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * (30 * KB))
        answered = b""
        with contextlib.suppress(ConnectionResetError):
            answered = read_all(connection)
    assert answered.startswith(b"HTTP/1.1 200") is not ends
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert completed.get("reason") == ("limit_exceeded" if ends else None)
    assert completed["bytes"]["up"] <= 30 * KB if ends else completed["bytes"]["up"] == 40 * KB


def attempt_to(port):
    return Attempt(Protocol.HTTP, HostName("good.example"), port)


def open_connections(gate):
    engine = gate.inspection._engine
    return [] if engine is None else list(engine._connections.values())


def open_requests(gate):
    return [request for one in open_connections(gate) for request in one.session.open.values()]


def test_upload_beyond_a_new_limit_ends_at_once(gate, origins):
    def rules(limits):
        port = f"ports: [{origin.port}/http], resolves_to: [127.0.0.0/8]"
        gate.rules(
            f"[{{id: a, to: good.example, {port}, action: allow, http: {{methods: [POST]}}, limits: {{{limits}}}}}]"
        )

    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False)
    rules("bytes_up: 1MB")
    with site.connect() as connection:
        head = f"POST /upload HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {40 * KB}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * (10 * KB))
        wait_until(lambda: any(exchange.up == 10 * KB for exchange in open_requests(gate)))
        rules("bytes_up: 1KB")
        gate.loop.run(
            lambda: [one.review(gate.sandbox.policy.decide(attempt_to(origin.port))) for one in open_connections(gate)]
        )
        assert read_all(connection) == b""
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"], completed["rules"]) == ("blocked", "limit_exceeded", ["t:a"])


def test_head_of_a_retried_request_counts_again(gate, origins):
    """Otherwise a server that ends every persistent connection would receive everything twice."""

    def answer(connection, head):
        if len(origin.requests) == 2:
            return False  # the connection ends as the request arrives
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    origin = origins.script(answer)
    site = make_site(gate, origin, tls=False, http="{paths: ['/**']}, limits: {bytes_up: 10KB}")
    with site.connect() as connection:
        for path in ("/", "/?" + "x" * 6 * KB):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
            if path == "/":
                read_until(connection, b"ok")
        assert read_all(connection) == b""
    wait_until(lambda: len(gate.events("request.completed")) == 2)
    assert gate.events("request.completed")[1]["reason"] == "limit_exceeded"
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    ("more", "path", "reason"),
    [
        ("limits: {bytes_up: 4KB}", f"/echo?{'x' * 5000}", "limit_exceeded"),
        ("scan: block", "/echo?at=ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8", "leak"),
    ],
    ids=["limit", "secret"],
)
def test_request_denied_by_a_stage_does_not_taint_the_task(gate, origins, more, path, reason):
    """The request was never sent, so the task has read nothing from the untrusted source."""
    site = make_site(gate, origins.web("good.example"), http=f"{{paths: ['/**']}}, trust: untrusted, {more}")
    answer = site.curl(path, "-H", "Accept: application/json")
    assert json.loads(answer[1])["reason"] == reason
    assert not gate.sandbox.tainted
    assert site.curl("/echo", "-o", "/dev/null", "-w", "%{http_code}")[1] == b"200"
    assert gate.sandbox.tainted
