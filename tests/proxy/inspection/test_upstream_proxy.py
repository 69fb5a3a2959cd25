"""Inspected connections through an upstream proxy: same requests, decisions and answers as without one."""

import http.client
import json

import pytest

from proxy.dialing.address_check import DialError
from proxy.dialing.proxy_auth import Login
from proxy.inspection.standalone import StandaloneGate
from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from rules.verdicts import Reason
from tests.lab.proxies import Proxy
from tests.proxy.inspection.clients import read_until
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.ports import free_port

SCHEMES = pytest.mark.parametrize("scheme", ["http", "socks5"])


@pytest.fixture
def make_proxied_site(gate, origins):
    """Rules that allow good.example at a port, and a proxy that resolves it."""
    made = []

    def make(scheme, origin, *, port=None, tls=True, **more):
        proxy = Proxy({"good.example": "127.0.0.1"}, **more)
        origins.loop.run(proxy.start)
        made.append(proxy)
        site = make_site(gate, origin, tls=tls)
        gate.name()  # the gate itself cannot resolve good.example
        upstream = f"{scheme}://127.0.0.1:{port or proxy.port}"
        rule = f"{{id: a, to: good.example, ports: [{origin.port}/{'tls' if tls else 'http'}], http: {{methods: [GET, POST, HEAD], paths: ['/**']}}, action: allow}}"
        gate.rules(f"[{rule}]", f"settings: {{upstream: '{upstream}'}}")
        return proxy, site, upstream

    yield make
    for proxy in made:
        origins.loop.run(proxy.stop)


@SCHEMES
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_request_is_sent_through_the_upstream_proxy(make_proxied_site, gate, origins, scheme, tls):
    origin = origins.web("good.example", tls=tls)
    proxy, site, upstream = make_proxied_site(scheme, origin, tls=tls)
    status, out, err = site.curl("/echo", "--http1.1", "--data", "abc")
    assert (status, err) == (0, "")
    assert json.loads(out)["body"]["size"] == 3
    how = scheme if tls or scheme == "socks5" else "relayed"
    assert proxy.asked == [{"how": how, "host": "good.example", "port": origin.port}]
    gate.wait_closed()
    there = {"name": "good.example", "port": origin.port, "via": upstream}
    assert [e["destination"] for e in gate.events("request.decided")] == [there]
    assert [e["destination"] for e in gate.events("request.completed")] == [there]


@SCHEMES
def test_http2_request_is_sent_through_one_tunnel(make_proxied_site, origins, scheme):
    origin = origins.web("good.example")
    proxy, site, _ = make_proxied_site(scheme, origin)
    status, out, err = site.curl("/echo", "--http2")
    assert (status, err, json.loads(out)["version"]) == (0, "", "2")
    assert len(proxy.asked) == 1


@SCHEMES
def test_denied_request_does_not_reach_the_proxy(make_proxied_site, gate, origins, scheme):
    origin = origins.web("good.example")
    proxy, site, _ = make_proxied_site(scheme, origin)
    status, out, _ = site.curl("/echo", "-X", "DELETE")
    assert status == 0
    assert json.loads(out)["reason"] == "no_rule"
    assert proxy.asked == []
    assert gate.decided() == [("DELETE", "/echo", "blocked", "no_rule")]


CAUSES = [
    ("it refuses the name, by CONNECT", "http", {"refuses": frozenset({"good.example"})}, "it answered 403 (Forbidden)"),
    ("it refuses the name, by SOCKS", "socks5", {"refuses": frozenset({"good.example"})}, "its rules don't allow that"),
    ("it wants to know who, by CONNECT", "http", {"login": "me:geheim"}, "it requires a user and a password (407)"),
    ("it wants to know who, by SOCKS", "socks5", {"login": "me:geheim"}, "it requires a user and a password"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "how", "why"), [c[1:] for c in CAUSES], ids=[c[0] for c in CAUSES])
def test_refusal_of_the_proxy_is_answered_502_with_its_cause(  # noqa: PLR0917
    make_proxied_site, gate, origins, scheme, how, why
):
    origin = origins.web("good.example")
    _, site, upstream = make_proxied_site(scheme, origin, **how)
    status, out, _ = site.curl("/echo", "--http1.1", "-i")
    assert status == 0
    assert out.startswith(b"HTTP/1.1 502 ")
    page = json.loads(out.partition(b"\r\n\r\n")[2])
    assert page["reason"] == "upstream_failed"
    assert f"the proxy `{upstream}`: {why}" in page["detail"]
    gate.wait_closed()
    completed = gate.events("request.completed")[0]
    assert (completed["outcome"], completed["reason"]) == ("failed", "upstream_failed")
    assert completed["detail"] == f"the proxy `{upstream}`: {why}"
    assert origin.connections == 0


@SCHEMES
def test_proxy_password_is_sent_to_the_proxy_alone(make_proxied_site, gate, origins, scheme):
    origin = origins.web("good.example")
    _, site, _ = make_proxied_site(scheme, origin, login="me:geheim")
    gate.loop.run(lambda: setattr(gate.dialer, "login", Login(b"me", b"geheim")))
    status, out, _ = site.curl("/echo", "--http1.1", "-i")
    assert (status, out.split(b" ")[1]) == (0, b"200")
    gate.loop.run(lambda: setattr(gate.dialer, "login", Login(b"me", b"geheimer")))
    status, out, _ = site.curl("/echo", "--http1.1", "-i")
    assert (status, out.split(b" ")[1]) == (0, b"502")
    assert b"rejected the user and password" in out
    assert b"geheim" not in out
    assert "geheim" not in repr(origin.requests)
    gate.wait_closed(2)
    assert "geheim" not in repr(gate.events())


# --- HTTP in the clear, which each request asks the proxy for ---


def test_plain_request_is_sent_to_the_proxy_in_absolute_form(make_proxied_site, gate, origins):
    """The target is the decided one in one spelling; only the login of the gate is sent, not that of the client."""
    origin = origins.web("good.example", tls=False)
    proxy, site, _ = make_proxied_site("http", origin, tls=False, login="me:geheim", tunnels_only_to=frozenset({443}))
    gate.loop.run(lambda: setattr(gate.dialer, "login", Login(b"me", b"geheim")))
    answer = site.request(
        "GET http://GOOD.example:PORT/a?b HTTP/1.1\nHost: GOOD.example:PORT\nProxy-Authorization: Basic bWluZQ==\n"
        "Proxy-Connection: close\nproxy-authorization: x\nX: y\n\n".replace("PORT", str(origin.port))
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert proxy.heads[0] == [
        f"GET http://{site.host}/a?b HTTP/1.1", f"Host: {site.host}", "X: y",
        "Proxy-Authorization: Basic bWU6Z2VoZWlt", "", "",
    ]  # fmt: skip
    assert [name for name, _ in origin.requests[0].headers] == ["host", "x", "connection"]
    gate.wait_closed()
    assert not any(word in repr(gate.events()) for word in ("geheim", "Z2VoZWlt"))


@pytest.mark.parametrize(
    ("head", "how"),
    [
        ("GET /echo HTTP/1.1\nHost: HOST\n", "relayed"),
        ("OPTIONS /echo HTTP/1.1\nHost: HOST\n", "relayed"),
        ("TRACE /echo HTTP/1.1\nHost: HOST\n", "http"),
        ("OPTIONS /echo HTTP/1.1\nHost: HOST\nMax-Forwards: 0\n", "http"),
    ],
)
def test_trace_and_max_forwards_are_sent_through_a_tunnel(make_proxied_site, gate, origins, head, how):
    """A proxy answers TRACE with the request it received, including the password."""
    origin = origins.web("good.example", tls=False)
    proxy, site, upstream = make_proxied_site("http", origin, tls=False, login="me:geheim")
    rule = f"{{id: a, to: good.example, ports: [{origin.port}/http], action: allow}}"
    gate.rules(f"[{rule}]", f"settings: {{upstream: '{upstream}'}}")
    gate.loop.run(lambda: setattr(gate.dialer, "login", Login(b"me", b"geheim")))
    answer = site.request(f"{head}Connection: close\n\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Z2VoZWlt" not in answer
    assert [asked["how"] for asked in proxy.asked] == [how]


@pytest.mark.parametrize(("login", "status"), [(None, b"503"), (Login(b"me", b"geheim"), b"502")])
def test_error_page_of_the_proxy_is_dropped_when_a_login_was_sent(make_proxied_site, gate, origins, login, status):
    """CVE-2025-62168: an error page quotes the request with the password. Without a password the page may pass."""

    def fail(connection, _head):
        connection.sendall(b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\nContent-Length: 6\r\n\r\nquotes")

    _, site, upstream = make_proxied_site("http", origins.script(fail), tls=False)
    gate.loop.run(lambda: setattr(gate.dialer, "login", login))
    answer = site.request("GET /echo HTTP/1.1\nHost: HOST\nConnection: close\n\n")
    assert answer.split(b" ")[1] == status
    assert (b"quotes" in answer) is (login is None)
    assert (f"the proxy `{upstream}`: it answered 503 itself".encode() in answer) is (login is not None)


def test_plain_websocket_is_sent_through_a_tunnel(make_proxied_site, gate, origins):
    def agree(connection, _head):
        agreed = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{agreed}\r\n\r\n".encode())
        connection.sendall(connection.recv(100))

    origin = origins.script(agree)
    proxy, site, upstream = make_proxied_site("http", origin, tls=False)
    rule = f"{{id: a, to: good.example, ports: [{origin.port}/http], http: {{methods: [GET], websocket: true}}, action: allow}}"
    gate.rules(f"[{rule}]", f"settings: {{upstream: '{upstream}'}}")
    with site.connect() as connection:
        head = f"GET /chat HTTP/1.1\r\nHost: {site.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        connection.sendall((head + key).encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        frame = b"\x82\x85\0\0\0\0frame"
        connection.sendall(frame)
        assert read_until(connection, b"frame") == frame
    assert [asked["how"] for asked in proxy.asked] == ["http"]


@pytest.mark.parametrize("login", [None, Login(b"me", b"wrong")])
def test_407_of_the_proxy_is_not_passed_to_the_client(make_proxied_site, gate, origins, login):
    origin = origins.web("good.example", tls=False)
    proxy, site, upstream = make_proxied_site("http", origin, tls=False, login="me:geheim")
    gate.loop.run(lambda: setattr(gate.dialer, "login", login))
    status, out, _ = site.curl("/echo", "-i", "-H", "Proxy-Authorization: Basic bWU6Z2VoZWlt")
    assert (status, out.split(b" ")[1]) == (0, b"502")
    assert f"the proxy `{upstream}`: it {'requires a user' if login is None else 'rejected the user'}".encode() in out
    assert (proxy.asked, origin.connections) == ([], 0)


def test_each_plain_request_through_the_proxy_is_decided(make_proxied_site, gate, origins):
    origin = origins.web("good.example", tls=False)
    proxy, site, _ = make_proxied_site("http", origin, tls=False)
    client = http.client.HTTPConnection(site.host)
    client.sock = site.connect()
    statuses = []
    for method in ("GET", "DELETE"):
        client.request(method, "/echo")
        response = client.getresponse()
        response.read()
        statuses.append(response.status)
        client.sock = client.sock or site.connect()
    assert statuses == [200, 403]
    assert [request.method for request in origin.requests] == ["GET"]
    assert [asked["how"] for asked in proxy.asked] == ["relayed"]


def test_proxy_that_is_down_is_not_bypassed(make_proxied_site, gate, origins):
    origin = origins.web("good.example")
    _, site, _ = make_proxied_site("http", origin, port=free_port())
    gate.name(good_example="127.0.0.1")
    status, out, _ = site.curl("/echo", "--http1.1", "-i")
    assert (status, out.split(b" ")[1]) == (0, b"502")
    assert b"connection refused" in out
    assert origin.connections == 0


def test_server_certificate_is_verified_behind_the_proxy(make_proxied_site, origins):
    origin = origins.web("other.example")
    _, site, _ = make_proxied_site("http", origin)
    status, out, _ = site.curl("/echo", "--http1.1", "-i")
    assert (status, out.split(b" ")[1]) == (0, b"502")
    assert json.loads(out.partition(b"\r\n\r\n")[2])["reason"] == "upstream_untrusted"


def test_server_connection_is_not_reused_under_another_proxy(make_proxied_site, gate, origins):
    origin = origins.web("good.example")
    proxy, site, _ = make_proxied_site("http", origin)
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = site.connect()
    for _ in range(2):
        connection.request("GET", "/echo", headers={"Host": site.host})
        assert connection.getresponse().read()
    assert len(proxy.asked) == 1
    assert origin.connections == 1
    rule = f"{{id: a, to: good.example, ports: [{origin.port}/tls], http: {{methods: [GET], paths: ['/**']}}, action: allow}}"
    gate.rules(f"[{rule}]", f"settings: {{upstream: 'socks5://127.0.0.1:{proxy.port}'}}")
    connection.request("GET", "/echo", headers={"Host": site.host})
    assert connection.getresponse().read()
    assert [each["how"] for each in proxy.asked] == ["http", "socks5"]
    assert origin.connections == 2


def test_mitmproxy_addon_denies_what_needs_an_upstream_proxy(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "version: 1\nname: t\nsettings: {upstream: 'http://127.0.0.1:1', upstream_except: [past.example]}\n"
        "rules:\n  - {id: a, to: '*', action: allow}\n"
    )
    standalone_gate = StandaloneGate([rules], tmp_path / "journal")
    found = standalone_gate.addresses(Attempt(Protocol.TLS, HostName("good.example"), 443))
    assert isinstance(found, DialError)
    assert (found.reason, "through the proxy `http://127.0.0.1:1`" in found.detail) == (Reason.UPSTREAM_FAILED, True)
