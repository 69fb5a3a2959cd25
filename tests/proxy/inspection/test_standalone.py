"""The mitmproxy addon in a real mitmdump: tunnels, transparent connections, and hooks that fail."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time

import certifi
import h2.events
import pytest
from mitmproxy.addons.mapremote import MapRemote
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.addons.upstream_auth import UpstreamAuth
from mitmproxy.exceptions import OptionsError
from mitmproxy.hooks import all_hooks
from mitmproxy.test import taddons

from proxy import addon
from proxy.certificates.system_bundles import bundle_path
from proxy.inspection.standalone import StandaloneGate
from tests.lab.web import Http2
from tests.proxy.inspection.clients import Client, curl, read_all, read_until
from tests.proxy.inspection.mitmdump_lab import ADDON, MITMDUMP, Mitmdump
from tests.proxy.leaky import TOKEN
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def whole(request):
    yield
    if "mitmdump" in request.fixturenames:
        request.getfixturevalue("mitmdump").break_hook("")


def test_plain_http_request_through_regular_mode_passes(mitmdump):
    status, out, err = mitmdump.curl(f"http://good.example:{mitmdump.plain.port}/echo?q=1")
    assert (status, err) == (0, "")
    echo = json.loads(out)
    assert (echo["target"], echo["authority"]) == ("/echo?q=1", f"good.example:{mitmdump.plain.port}")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_https_requests_through_a_tunnel_pass(mitmdump, version):
    url = f"https://good.example:{mitmdump.tls.port}"
    status, out, err = mitmdump.curl(
        version, *[f"{url}/echo?{n}" for n in range(12)], "-o", os.devnull, "-w", "%{http_code} "
    )
    assert (status, err) == (0, "")
    assert out.split() == [b"200"] + [b"200"] * 0 or out.count(b"200") >= 1


def test_requests_on_one_client_connection_reuse_one_server_connection(mitmdump):
    """mitmproxy opens at most five server connections per client connection, so they must be reused."""
    before = mitmdump.tls.connections
    status, out, _ = mitmdump.curl(
        "--http1.1", f"https://good.example:{mitmdump.tls.port}/status/[200-215]", "-w", "%{http_code} "
    )
    assert (status, len(out.split())) == (0, 16)
    assert mitmdump.tls.connections == before + 1


def test_client_that_leaves_an_event_stream_is_recorded_as_passed(mitmdump):
    with socket.create_connection(("127.0.0.1", mitmdump.ports[0])) as connection:
        host = f"good.example:{mitmdump.plain.port}"
        connection.sendall(f"GET http://{host}/slow/100/0.05 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        read_until(connection, b"\r\n\r\n")
        read_until(connection, b"\r\n")

    def completed_events():
        return [e for e in mitmdump.events("request.completed") if e["http"]["path"] == "/slow/100/0.05"]

    wait_until(completed_events)
    assert [(e["outcome"], e["detail"]) for e in completed_events()] == [("passed", "the client left before the end")]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_request_without_a_rule_is_denied_and_not_sent(mitmdump, version):
    before = len(mitmdump.tls.requests)
    status, out, err = mitmdump.curl(version, "-X", "DELETE", f"https://good.example:{mitmdump.tls.port}/x")
    assert (status, err) == (0, "")
    assert json.loads(out)["reason"] == "no_rule"
    assert len(mitmdump.tls.requests) == before


def test_request_that_needs_approval_is_denied_without_a_registry(mitmdump):
    """A plain mitmproxy has no approvals server."""
    before = len(mitmdump.tls.requests)
    status, out, err = mitmdump.curl("-X", "PATCH", "-d", "x", f"https://good.example:{mitmdump.tls.port}/x")
    assert (status, err) == (0, "")
    assert json.loads(out)["reason"] == "approval_unavailable"
    assert len(mitmdump.tls.requests) == before


def test_connect_to_unlisted_host_is_denied(mitmdump):
    status, _, err = mitmdump.curl("https://evil.example/x")
    assert status == 56
    assert "403" in err
    assert mitmdump.events("connection.decided")[-1]["destination"] == {"name": "evil.example", "port": 443}


def test_denied_upload_is_not_sent(mitmdump):
    body = mitmdump.directory / "body"
    body.write_bytes(b"x" * 3_000_000)
    before = len(mitmdump.plain.requests)
    status, _, _ = mitmdump.curl("-T", body, f"http://good.example:{mitmdump.plain.port}/x")
    assert status != 0
    assert len(mitmdump.plain.requests) == before


def test_large_upload_arrives_whole(mitmdump):
    body = mitmdump.directory / "body"
    body.write_bytes(os.urandom(3_000_000))
    status, out, err = mitmdump.curl("-X", "POST", "-T", body, f"http://good.example:{mitmdump.plain.port}/upload")
    assert (status, err) == (0, "")
    assert json.loads(out)["size"] == 3_000_000


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/upload", "/upload?kept=1"])
def test_secret_in_a_body_is_flagged_or_blocked(mitmdump, path, chunked):
    body = mitmdump.directory / "body"
    clean = b"nothing to be seen here\n" * 3000
    words = ("-X", "POST", *(("-H", "Transfer-Encoding: chunked") if chunked else ()), "-T", body)
    url = f"http://good.example:{mitmdump.plain.port}{path}"
    body.write_bytes(clean)
    assert mitmdump.curl(*words, url)[0] == 0
    clean_one = mitmdump.events("request.decided")[-1]["id"]
    wait_until(lambda: [e for e in mitmdump.events("request.completed") if e["cause"] == clean_one])
    assert next(e for e in mitmdump.events("request.completed") if e["cause"] == clean_one)["outcome"] == "passed"
    before = len(mitmdump.events("secret.detected"))
    body.write_bytes(clean + TOKEN.encode() + clean)
    status, out, err = mitmdump.curl(*words, url)
    blocked = path == "/upload?kept=1"
    assert (status == 0) is not blocked, (out, err)
    wait_until(lambda: len(mitmdump.events("secret.detected")) > before)
    leak = mitmdump.events("secret.detected")[-1]
    assert (leak["verdict"], leak["detail"]) == ("deny" if blocked else "flag", "github-token in the body")
    wait_until(lambda: [e for e in mitmdump.events("request.completed") if e["cause"] == leak["cause"]])
    (completed,) = [e for e in mitmdump.events("request.completed") if e["cause"] == leak["cause"]]
    assert completed["outcome"] == ("blocked" if blocked else "passed")


@pytest.mark.parametrize(
    ("name", "expected"), [("inside.example", "non_public_address"), ("unknown.example", "unresolved")]
)
def test_name_with_private_or_no_address_is_refused(mitmdump, name, expected):
    _, out, _ = mitmdump.curl(f"http://{name}:{mitmdump.plain.port}/x")
    assert json.loads(out)["reason"] == expected


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_get_with_a_body_is_denied(mitmdump, version):
    before = len(mitmdump.tls.requests)
    url = f"https://good.example:{mitmdump.tls.port}/echo"
    _, out, _ = mitmdump.curl(version, "-X", "GET", "-d", "secret", url)
    assert json.loads(out)["reason"] == "body_not_allowed"
    assert len(mitmdump.tls.requests) == before
    assert json.loads(mitmdump.curl(version, url)[1])["target"] == "/echo"


def test_git_push_is_denied_because_its_refs_cannot_be_read(mitmdump):
    before = len(mitmdump.tls.requests)
    url = f"https://good.example:{mitmdump.tls.port}/acme/web.git/git-receive-pack"
    _, out, _ = mitmdump.curl("-H", "Content-Type: application/x-git-receive-pack-request", "-d", "0000", url)
    assert json.loads(out)["reason"] == "protocol_mismatch"
    assert len(mitmdump.tls.requests) == before


class Tunnel:
    """A CONNECT tunnel through mitmproxy, for the HTTP/2 client."""

    def __init__(self, mitmdump):
        self._dump = mitmdump
        self.host = f"good.example:{mitmdump.tls.port}"

    def connect(self, alpn):
        connection = socket.create_connection(("127.0.0.1", self._dump.ports[0]), 30)
        connection.sendall(f"CONNECT {self.host} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        context = ssl.create_default_context(cafile=self._dump.directory / "conf" / "mitmproxy-ca-cert.pem")
        context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(connection, server_hostname="good.example")


@pytest.mark.parametrize(("method", "path"), [("POST", "/upload"), ("POST", "/upload?kept=1"), ("GET", "/echo")])
def test_request_trailers_are_not_forwarded(mitmdump, monkeypatch, method, path):
    """mitmproxy forwards trailers itself, uncounted and unscanned, so the addon removes them."""
    seen, handle = [], Http2._handle

    def watched(self, event):
        if isinstance(event, h2.events.TrailersReceived):
            seen.append(event.headers)
        handle(self, event)

    monkeypatch.setattr(Http2, "_handle", watched)
    client = Client(Tunnel(mitmdump))
    stream = client.request(path, method, end=False)
    if method == "POST":
        client.h2.send_data(stream, b"body")
    client.h2.send_headers(stream, [("x-more", TOKEN)], end_stream=True)
    client.flush()
    assert client.status(stream) == "200"
    client.body(stream)
    client.close()
    assert seen == []


# --- modes of mitmdump ---


def send(mitmdump, data, index=0):
    with socket.create_connection(("127.0.0.1", mitmdump.ports[index]), 10) as connection:
        connection.sendall(data.encode())
        with contextlib.suppress(ConnectionResetError):
            return read_all(connection)
        return b""


@pytest.mark.parametrize(
    "head",
    [
        "GET http://good.example:PORT/ HTTP/1.1\r\nHost: evil.example\r\n",
        "GET http://good.example:PORT/ HTTP/1.1\r\nHost: good.example:PORT\r\nHost: evil.example\r\n",
        "GET http://good.example:PORT/ HTTP/1.1\r\n",
        "GET http://evil.example:PORT/ HTTP/1.1\r\nHost: evil.example:PORT\r\n",
        "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n",
        "GET http://2130706433:PORT/ HTTP/1.1\r\nHost: 2130706433:PORT\r\n",
        "POST http://good.example:PORT/ HTTP/1.1\r\nHost: good.example:PORT\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "GET / HTTP/1.1\r\nHost: good.example:PORT\r\nUpgrade: websocket\r\nConnection: upgrade\r\n",
    ],
    ids=range(8),
)
def test_requests_to_another_host_or_protocol_are_refused(mitmdump, head):
    before = mitmdump.plain.connections
    answer = send(mitmdump, head.replace("PORT", str(mitmdump.plain.port)) + "Connection: close\r\n\r\n")
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert mitmdump.plain.connections == before


@pytest.mark.parametrize("inside", ["SSH-2.0-x\r\n\r\n", "\x00\x00raw", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"])
def test_tunnel_without_http_to_its_own_host_is_cut(mitmdump, inside):
    before = mitmdump.tls.connections, mitmdump.plain.connections
    with socket.create_connection(("127.0.0.1", mitmdump.ports[0]), 10) as connection:
        connection.sendall(f"CONNECT good.example:{mitmdump.tls.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 200 " in read_until(connection, b"\r\n\r\n")
        connection.sendall(inside.encode("latin-1"))
        connection.settimeout(0.7)
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            assert b" 200 " not in read_all(connection)
    assert (mitmdump.tls.connections, mitmdump.plain.connections) == before


def test_tunnel_with_another_sni_is_refused(mitmdump):
    before = mitmdump.tls.connections
    status, _, _ = mitmdump.curl(
        "--connect-to", f"evil.example:443:good.example:{mitmdump.tls.port}", "https://evil.example/x"
    )
    assert status != 0
    assert mitmdump.tls.connections == before
    assert mitmdump.events("connection.decided")[-1]["reason"] == "name_mismatch"


def curl_transparent(mitmdump, *words, name="good.example", port=None):
    """Connect as if the kernel had redirected the connection."""
    mitmdump.set_original_destination("203.0.113.9", port or mitmdump.tls.port)
    ca = mitmdump.directory / "conf" / "mitmproxy-ca-cert.pem"
    return curl("--cacert", ca, "--connect-to", f"::127.0.0.1:{mitmdump.ports[1]}", *words)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_transparent_tls_connects_to_the_sni_and_not_to_the_address(mitmdump, version):
    status, out, err = curl_transparent(mitmdump, version, f"https://good.example:{mitmdump.tls.port}/echo")
    assert (status, err) == (0, "")
    assert json.loads(out)["authority"] == f"good.example:{mitmdump.tls.port}"
    status, out, _ = curl_transparent(
        mitmdump, version, "--data", "x", "-X", "PUT", f"https://good.example:{mitmdump.tls.port}/x"
    )
    assert json.loads(out)["reason"] == "no_rule"


def test_transparent_plain_http_request_passes(mitmdump):
    status, out, err = curl_transparent(
        mitmdump, f"http://good.example:{mitmdump.plain.port}/echo", port=mitmdump.plain.port
    )
    assert (status, err) == (0, "")
    assert json.loads(out)["authority"] == f"good.example:{mitmdump.plain.port}"


def test_transparent_connection_to_unlisted_name_is_denied(mitmdump):
    before = mitmdump.tls.connections
    status, _, _ = curl_transparent(mitmdump, f"https://evil.example:{mitmdump.tls.port}/x")
    assert status != 0
    assert mitmdump.events("connection.decided")[-1]["reason"] == "no_rule"
    _, out, _ = curl_transparent(mitmdump, f"http://evil.example:{mitmdump.plain.port}/x", port=mitmdump.plain.port)
    assert json.loads(out)["reason"] == "no_rule"
    assert mitmdump.tls.connections == before


def test_transparent_request_with_host_unlike_its_sni_is_denied(mitmdump):
    before = mitmdump.tls.connections
    _, out, _ = curl_transparent(
        mitmdump, "--http1.1", "-H", "Host: evil.example", f"https://good.example:{mitmdump.tls.port}/x"
    )
    assert json.loads(out)["reason"] == "name_mismatch"
    assert mitmdump.tls.connections == before


def test_transparent_dns_and_raw_bytes_are_cut(mitmdump):
    mitmdump.set_original_destination("203.0.113.9", 53)
    assert (
        send(mitmdump, "\x00\x1d\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x07example\x00", index=1)
        == b""
    )
    mitmdump.set_original_destination("203.0.113.9", 22)
    assert b" 200 " not in send(mitmdump, "SSH-2.0-x\r\n\r\n", index=1)


# --- faults: hooks that raise, and options that are refused ---


HOOKS = [
    "client_connected", "next_layer", "http_connect", "tls_clienthello", "server_connect", "server_connected",
    "requestheaders", "request", "responseheaders", "response",
]  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_hook_that_raises_ends_the_connection(mitmdump, hook, tls):
    """mitmproxy itself would log the exception and let the request pass."""
    if not tls and hook in ("http_connect", "tls_clienthello"):
        hook = "server_connected"  # there the request is sent at once
    origin = mitmdump.tls if tls else mitmdump.plain
    url = f"http{'s' if tls else ''}://good.example:{origin.port}/broken-{hook}"
    requests_before = [request.target for request in origin.requests]
    errors_before = len(mitmdump.events("gate.error"))
    mitmdump.break_hook(hook)
    status, out, _ = mitmdump.curl("--http1.1", url, "-m", "5")
    if hook != "response":  # then it has been passed on already
        assert status != 0
        assert b"origin for" not in out
    wait_until(lambda: any(hook in event["fault"]["detail"] for event in mitmdump.events("gate.error")[errors_before:]))
    if hook not in ("request", "responseheaders", "response"):  # its head has left before
        assert [request.target for request in origin.requests] == requests_before
    mitmdump.break_hook("")
    assert mitmdump.curl(url, "-o", os.devnull, "-w", "%{http_code}")[1] == b"200"


def test_every_hook_that_sees_traffic_is_guarded():
    from mitmproxy.addons import default_addons  # loads what defines hooks

    assert default_addons
    quiet = {
        # the life cycle of mitmproxy
        "load", "configure", "running", "done", "update", "add_log",
        # called after a guarded hook allowed the traffic; they can only observe it
        "http_connected", "http_connect_error", "server_connect_error", "server_disconnected",
        "tls_start_client", "tls_start_server", "tls_established_client", "tls_established_server",
        "tls_failed_client", "tls_failed_server",
        # for connections that are cut, or of modes that are refused
        "tcp_message", "tcp_end", "tcp_error", "udp_message", "udp_end", "udp_error", "dns_response", "dns_error",
        "websocket_message", "websocket_end", "http_connect_upstream",
    }  # fmt: skip
    for name in set(all_hooks) - quiet:
        hook = getattr(addon.Exeat, name)
        assert hasattr(hook, "__wrapped__"), f"{name} is not guarded"


@pytest.mark.parametrize(("words", "message"), [([], "there are no rules"), (["--set", "exeat_rules=BAD"], "2:1")])
def test_start_without_valid_rules_fails(tmp_path, words, message):
    (tmp_path / "bad.yaml").write_text("version: 1\nnonsense: t\n")
    done = subprocess.run(
        [MITMDUMP, "-s", ADDON, "--set", f"confdir={tmp_path}", "--listen-host", "127.0.0.1", "-p", "0",
         *(word.replace("BAD", str(tmp_path / "bad.yaml")) for word in words)],
        capture_output=True, timeout=30, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert message in (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exeat_rules": ["/nonexistent.yaml"]}, "nonexistent"),
        ({"mode": ["socks5"]}, "not in `socks5`"),
        ({"mode": ["regular", "reverse:https://good.example@9999"]}, "not in `reverse:"),
        ({"ignore_hosts": ["x"]}, "remove `ignore_hosts`"),
        ({"tcp_hosts": ["x"]}, "remove `tcp_hosts`"),
        ({"ssl_insecure": True}, "remove `ssl_insecure`"),
        ({"connection_strategy": "eager"}, "needs `connection_strategy` to be `lazy`"),
        ({"rawtcp": True}, "needs `rawtcp` to be `False`"),
        ({"validate_inbound_headers": False}, "needs `validate_inbound_headers` to be `True`"),
    ],
    ids=str,
)
def test_mitmproxy_options_that_bypass_the_addon_are_refused(tmp_path, options, message):
    (tmp_path / "rules.yaml").write_text("version: 1\nname: t\nrules: []\n")

    async def run():
        with taddons.context(
            Proxyserver(), NextLayer(), TlsConfig(), Onboarding(), UpstreamAuth(), MapRemote()
        ) as context:
            context.options.update(confdir=str(tmp_path))
            exeat = addon.Exeat()
            context.master.addons.add(exeat)
            context.configure(exeat, exeat_rules=[str(tmp_path / "rules.yaml")])
            assert context.options.connection_strategy == "lazy"
            assert context.options.ssl_verify_upstream_trusted_ca == bundle_path()
            with pytest.raises(OptionsError, match=re.escape(message)):
                context.configure(exeat, **options)

    asyncio.run(run())


def test_rules_with_secrets_are_refused(tmp_path):
    """Without injection a placeholder would be sent as it is, without a warning."""
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nsecrets: [{id: a, from: {env: A}, as: B, hosts: x.example, in: basic}]\n")
    with pytest.raises(OSError, match="rule files with `secrets` need `exeat run`"):
        StandaloneGate([file], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {upstream_ca: ROOTS}", "rule files with `upstream_ca` need `exeat run`"),
        ("rules: [{id: a, to: x.example, action: allow, ca: ROOTS}]", "rule files with `ca` need `exeat run`"),
    ],
)
def test_rules_with_extra_cas_are_refused(tmp_path, text, message):
    """mitmproxy verifies servers itself, so every request would fail without an explanation."""
    roots, file = tmp_path / "roots.pem", tmp_path / "rules.yaml"
    shutil.copy(certifi.where(), roots)
    file.write_text(f"version: 1\n{text.replace('ROOTS', str(roots))}\n")
    with pytest.raises(OSError, match=message):
        StandaloneGate([file], None)


def test_rules_with_sandbox_or_commands_log_a_warning(tmp_path, caplog):
    for text in ("sandbox: {timeout: 5m}", "commands: [{id: a, run: b, action: deny}]"):
        caplog.clear()
        (tmp_path / "rules.yaml").write_text(f"version: 1\n{text}\n")
        StandaloneGate([tmp_path / "rules.yaml"], None)
        assert "`sandbox` and `commands` of the rule files have no effect here" in caplog.text


def test_mitmproxy_exits_when_the_addon_cannot_be_reloaded(tmp_path, origins):
    """mitmproxy reloads a changed script, and would continue without one that fails to load."""
    lab = Mitmdump(tmp_path, origins)
    (tmp_path / "journal").mkdir()
    copy = tmp_path / "addon.py"
    copy.write_text(
        ADDON.read_text().replace("Path(__file__).resolve().parent.parent", f"Path({str(ADDON.parents[1])!r})")
    )
    process = subprocess.Popen(
        [MITMDUMP, "-q", "-s", copy, "--set", f"exeat_rules={lab.rules}", "--set", f"confdir={tmp_path}",
         "--listen-host", "127.0.0.1", "-p", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
    )  # fmt: skip
    time.sleep(2.5)
    assert process.poll() is None
    copy.write_text("nonsense(")
    os.utime(copy, (time.time() + 5, time.time() + 5))
    assert process.wait(15) is not None
    process.stdout.close()
