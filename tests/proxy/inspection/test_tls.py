"""TLS on both sides: trusted and untrusted servers, extra CAs of rules, and client certificates."""

import http.client
import json
import os
import socket
import ssl
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from proxy.certificates.leaf_certificates import Leaf
from proxy.inspection.tls import ClientContexts, KnownProtocols, ServerContexts, TrustError
from proxy.request.messages import WebOrigin
from proxy.secrets import Identity, SecretInjector
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from rules.verdicts import Reason
from tests.lab import certificates
from tests.lab.certificates import Authority
from tests.proxy.inspection.clients import close_abruptly, curl, read_all, read_until, require_tool
from tests.proxy.inspection.inspection_lab import make_site
from tests.proxy.inspection.origins import Origin
from tests.support.ports import free_port
from tests.support.waiting import wait_until


@pytest.mark.parametrize("kind", ["self-signed", "expired", "wrong-name"])
def test_request_is_not_sent_to_an_untrusted_server(gate, origins, kind):
    origin = origins.web("good.example", kind=kind)
    site = make_site(gate, origin)
    status, out, err = site.curl("/x")
    problem = json.loads(out)
    assert (status, err) == (0, "")
    assert (problem["status"], problem["reason"]) == (502, "upstream_untrusted")
    messages = {
        "self-signed": "unable to get local issuer",
        "expired": "has expired",
        "wrong-name": "hostname mismatch",
    }
    assert messages[kind] in problem["detail"]
    assert origin.requests == []
    completed = gate.events("request.completed")[0]
    assert (completed["outcome"], completed["reason"]) == ("failed", "upstream_untrusted")
    assert gate.recorder.summary().describe() == "allowed 1 connection; failed 1 request (good.example)"


def test_every_request_to_an_untrusted_server_is_answered_502(gate, origins):
    site = make_site(gate, origins.web("good.example", kind="expired"))
    _, out, _ = site.curl("/[1-3]", "--http2", "-o", os.devnull, "-w", "%{http_code} ")
    assert out == b"502 502 502 "


def test_server_without_tls_fails_as_upstream_failed(gate, origins):
    site = make_site(gate, origins.web("good.example", tls=False))
    _, out, _ = site.curl("/x")
    assert json.loads(out)["reason"] == "upstream_failed"


def test_refused_dial_fails_as_upstream_failed(gate, origins):
    site = make_site(gate, Origin(free_port()))
    _, out, _ = site.curl("/x")
    problem = json.loads(out)
    assert (problem["status"], problem["reason"]) == (502, "upstream_failed")
    assert "refused" in problem["detail"]


def test_client_that_distrusts_our_ca_is_recorded(gate, origins):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    status, _, _ = curl("--connect-to", f"{site.host}:127.0.0.1:{site.gate_port}", f"https://{site.host}/")
    assert status == 60
    assert gate.wait_closed()[0].reason is Reason.TLS_CLIENT_DISTRUST
    assert gate.events("connection.closed")[0]["reason"] == "tls_client_distrust"
    assert origin.connections == 0


def hello(site):
    """Return a ClientHello as a client would send it."""
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), out := ssl.MemoryBIO(), server_hostname=site.name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


@pytest.mark.parametrize("goodbye", [b"", b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x01\x00\x05nonsense"])
def test_only_a_certificate_alert_counts_as_distrust(gate, origins, goodbye):
    site = make_site(gate, origins.web("good.example"))
    with socket.create_connection(("127.0.0.1", site.gate_port)) as connection:
        connection.sendall(hello(site))
        connection.recv(1)
        connection.sendall(goodbye)
    assert gate.wait_closed()[0].reason is None


def test_certificate_alert_after_the_handshake_counts_as_distrust(gate, origins):
    """Some clients verify the certificate only after the handshake."""
    require_tool("openssl")
    site = make_site(gate, origins.web("good.example"))
    done = subprocess.run(
        ["openssl", "s_client", "-verify_return_error", "-tls1_2", "-connect", f"127.0.0.1:{site.gate_port}",
         "-servername", site.name], input=b"", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert b"verify error" in done.stderr
    assert gate.wait_closed()[0].reason is Reason.TLS_CLIENT_DISTRUST


def test_sni_unlike_the_one_the_gate_saw_ends_the_connection(gate, origins):
    """A ClientHello that gate and OpenSSL read differently ends the connection."""
    origin = origins.web("good.example")
    site = make_site(gate, origin, sni="other.example")
    assert site.request("GET / HTTP/1.1\nHost: HOST\n\n") == b""
    assert gate.events("request.decided") == []
    assert origin.connections == 0


def test_tls_within_tls_is_refused(gate, origins):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    with site.connect() as connection:
        connection.sendall(hello(site))
        assert b"403" in connection.recv(100)
    assert gate.decided()[0][2:] == ("blocked", "protocol_mismatch")
    assert origin.connections == 0


def test_ssh_within_tls_is_refused(gate, origins):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    with site.connect(alpn=()) as connection:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 403 ")
    assert origin.connections == 0


@pytest.mark.parametrize("alpn", [("http/1.1",), ("http/1.0", "http/1.1"), (), ("imap",)], ids=str)
def test_alpn_selects_http11_or_nothing(gate, origins, alpn):
    site = make_site(gate, origins.web("good.example"))
    with site.connect(alpn=alpn) as connection:
        assert connection.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in alpn else None)
        connection.sendall(f"GET /status/204 HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 204")


def test_close_notify_of_the_server_reaches_the_client(gate, origins):
    """A close_notify before the end shows that a body without a length is complete."""

    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        connection.unwrap()

    site = make_site(gate, origins.script(answer, "good.example", tls=True))
    with site.connect() as connection:
        connection.suppress_ragged_eofs = False
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        assert read_all(connection).endswith(b"\r\n\r\nwhole")


@pytest.mark.parametrize("end", ["reset", "no close_notify"])
def test_server_cut_without_close_notify_is_no_clean_end(gate, origins, end):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\npart")
        close_abruptly(connection, reset=end == "reset")

    site = make_site(gate, origins.script(answer, "good.example", tls=True))
    with site.connect() as connection:
        connection.suppress_ragged_eofs = False
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):  # the latter before Python 3.13
            read_all(connection)
    wait_until(lambda: gate.events("request.completed"))
    completed = gate.events("request.completed")[0]
    assert (completed["outcome"], completed["reason"]) == ("failed", "upstream_failed")


def test_handshake_sent_byte_by_byte_succeeds(gate, origins):
    """The client sends byte by byte, and the gate has only peeked at the first bytes."""
    site = make_site(gate, origins.web("good.example"))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=site.name)
    with socket.create_connection(("127.0.0.1", site.gate_port), 10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def go(step):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    for byte in outgoing.read():
                        connection.sendall(bytes([byte]))
                    incoming.write(connection.recv(65536))

        go(tls.do_handshake)
        tls.write(f"GET /status/200 HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        assert go(lambda: tls.read(12)) == b"HTTP/1.1 200"


def test_tls_1_1_is_refused(gate, origins):
    require_tool("openssl")
    site = make_site(gate, origins.web("good.example"))
    done = subprocess.run(
        ["openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{site.gate_port}"],
        input=b"", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert b"alert protocol version" in done.stderr


def test_tls_session_is_not_resumed(gate, origins):
    site = make_site(gate, origins.web("good.example"))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    session = None
    for _ in range(2):
        raw = socket.create_connection(("127.0.0.1", site.gate_port), 10)
        with context.wrap_socket(raw, server_hostname=site.name, session=session) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())
            read_all(connection)
            session = connection.session
            assert not connection.session_reused


def test_strict_x509_checks_accept_our_certificate(gate, origins):
    site = make_site(gate, origins.web("good.example"))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    client = http.client.HTTPSConnection(site.host, context=context)
    client._create_connection = lambda *_, **__: socket.create_connection(("127.0.0.1", site.gate_port), 10)
    client.request("GET", "/status/200")
    assert client.getresponse().status == 200
    client.close()


class SynchronousLeaves(dict):
    """Leaf certificates signed synchronously."""

    def __init__(self, ca):
        self.ca, self.key = ca, ec.generate_private_key(ec.SECP256R1())

    def __missing__(self, host):
        certificate = self.ca.sign(host, self.key.public_key())
        ends = certificate.not_valid_after_utc
        self[host] = leaf = Leaf(certificate, self.key, ends, ends)
        return leaf

    usable = dict.__getitem__


def test_client_contexts_and_known_protocols_are_cached_up_to_a_limit(gate, monkeypatch):
    monkeypatch.setattr("proxy.inspection.tls.CONTEXTS", 5)
    contexts = ClientContexts(SynchronousLeaves(gate.ca))
    first = contexts.connection("kept.example", (b"h2",)).get_context()
    for number in range(20):
        contexts.connection(f"n{number}.example", (b"h2",))
        assert contexts.connection("kept.example", (b"h2",)).get_context() is first
    assert len(contexts._contexts) == 5
    known = KnownProtocols()
    for number in range(20):
        known.note(WebOrigin(HostName(f"n{number}.example"), 443, tls=True), b"http/1.1")
    assert len(known._only_http1) == 5
    origin = WebOrigin(HostName("n19.example"), 443, tls=True)
    assert known.offer(origin) == (b"http/1.1",)
    known.note(origin, b"h2")
    assert known.offer(origin) == (b"h2", b"http/1.1")


def _shares(hello):
    """Return the groups that a ClientHello offers, and those with a key share."""
    at = 43 + 1 + hello[43]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at] + 2
    found = {}
    while at < len(hello):
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        found[kind] = hello[at + 4 : at + 4 + size]
        at += 4 + size
    groups, keys, shared = found[10], found[51][2:], []
    while keys:
        shared.append(int.from_bytes(keys[:2]))
        keys = keys[4 + int.from_bytes(keys[2:4]) :]
    return [int.from_bytes(groups[at : at + 2]) for at in range(2, len(groups), 2)], shared


def _hello(group):
    connection = ServerContexts(b"").connection(HostName("good.example"), (), group=group)
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return _shares(connection.bio_read(65536))


X25519, P256, P384, HYBRID = 0x1D, 0x17, 0x18, 0x11EC  # RFC 8446 section 4.2.7; draft-ietf-tls-ecdhe-mlkem


@pytest.mark.parametrize(
    ("group", "shared"),
    [
        ("", [HYBRID, X25519]),
        ("x25519", [X25519]),
        ("x25519mlkem768", [HYBRID]),
        ("secp256r1", [P256]),
        ("secp384r1", [P384]),
        ("ffdhe2048", [HYBRID, X25519]),
    ],
)
def test_key_share_follows_the_group_that_the_server_took_last(group, shared):
    offered, brought = _hello(group)
    assert brought == shared
    assert offered[0] == HYBRID
    assert {X25519, P256, P384} <= set(offered)


def test_group_of_a_server_is_remembered_for_an_hour():
    now = [0.0]
    known, origin = KnownProtocols(lambda: now[0]), WebOrigin(HostName("good.example"), 443, tls=True)
    assert known.group(origin) == ""
    known.note_group(origin, "X25519")
    assert known.group(origin) == "x25519"
    now[0] = 1800.0
    known.note_group(origin, "X25519")  # as it was asked to, which says nothing about what it would like
    now[0] = 3599.0
    assert known.group(origin) == "x25519"
    now[0] = 3601.0
    assert known.group(origin) == ""
    known.note_group(origin, None)
    assert known.group(origin) == ""


def test_server_with_another_curve_is_reached(gate, origins):
    origin = origins.web("good.example", curve="prime256v1")
    site = make_site(gate, origin)
    assert [site.curl("/x")[0] for _ in range(2)] == [0, 0]
    assert len(origin.requests) == 2


@pytest.mark.parametrize("roots", [b"", b"\n"])
def test_server_contexts_can_be_made_without_roots(roots):
    ServerContexts(roots)


def test_unreadable_roots_raise_trust_error():
    with pytest.raises(TrustError, match="can't be read"):
        ServerContexts(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


def test_stale_leaf_certificate_is_replaced(gate, origins, monkeypatch):
    origin = origins.web("good.example")
    site = make_site(gate, origin)

    def serial():
        with site.connect() as connection:
            return connection.getpeercert()["serialNumber"]

    first = serial()
    assert serial() == first
    leaf = gate.leaves.usable("good.example")
    monkeypatch.setitem(gate.leaves._leaves, "good.example", leaf._replace(stale=datetime.now(UTC)))
    second = serial()
    assert second != first
    assert serial() == second


# --- extra CAs of rules and settings ---


@pytest.fixture
def company_ca(gate, origins, monkeypatch):
    """An origin with a certificate of a CA that the host does not trust, and a file with that CA."""
    own = certificates.Authority.make()
    (gate.directory / "company.pem").write_bytes(own.pem())
    (gate.directory / "other.pem").write_bytes(certificates.Authority.make().pem())
    monkeypatch.setattr(origins, "authority", own)
    origin = origins.web("good.example")
    site = make_site(gate, origin)

    def rules(*more):
        rule_list = ", ".join(
            f"{{id: r{at}, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow{one}}}"
            for at, one in enumerate(more)
        )
        gate.rules(f"[{rule_list}]")
        return site, origin

    return rules


def request_statuses(site, *paths, alpn=("http/1.1",)):
    """Request the paths on one connection, and return the status of each answer."""
    found = []
    with site.connect(alpn) as connection:
        for path in paths:
            connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
            found.append(int(read_until(connection, b"\r\n\r\n").split()[1]))
    return found


CASES = {
    "none": ([""], 502),
    "the company's": ([", ca: company.pem"], 200),
    "another": ([", ca: other.pem"], 502),
    "on one of two rules": ([", ca: company.pem", ""], 200),
    "two": ([", ca: company.pem", ", ca: other.pem"], 200),
}


@pytest.mark.parametrize(("rules", "status"), CASES.values(), ids=CASES)
def test_rule_ca_decides_which_servers_are_trusted(gate, company_ca, rules, status):
    site, origin = company_ca(*rules)
    assert request_statuses(site, "/echo") == [status]
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert completed.get("reason") == (None if status == 200 else "upstream_untrusted")
    assert len(origin.requests) == (status == 200)


def test_rule_ca_keeps_the_roots_of_the_host_trusted(gate, origins):
    (gate.directory / "other.pem").write_bytes(certificates.Authority.make().pem())
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow, ca: other.pem}}]"
    )
    assert request_statuses(site, "/echo") == [200]


def test_connection_trusted_by_a_rule_ca_is_not_used_for_other_rules(gate, company_ca):
    site, origin = company_ca(", ca: company.pem, http: {paths: [/a]}", ", http: {paths: [/b]}")
    assert request_statuses(site, "/a", "/b") == [200, 502]
    assert [(line[1], line[2]) for line in gate.decided()] == [("/a", "passed"), ("/b", "passed")]
    assert [request.target for request in origin.requests] == ["/a"]
    assert [e.get("reason") for e in gate.events("request.completed")] == [None, "upstream_untrusted"]


def test_rule_ca_ends_with_its_rule(gate, company_ca):
    site, _ = company_ca(", ca: company.pem")
    assert request_statuses(site, "/echo") == [200]
    company_ca("")
    assert request_statuses(site, "/echo") == [502]


@pytest.mark.parametrize(("file", "status"), [("company.pem", 200), ("other.pem", 502)])
def test_upstream_ca_setting_applies_to_every_rule(gate, company_ca, file, status):
    site, origin = company_ca("")
    rule = f"{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow}}"
    gate.rules(f"[{rule}]", f"settings: {{upstream_ca: {gate.directory / file}}}")
    assert request_statuses(site, "/echo") == [status]


def test_certificate_of_a_rule_ca_must_have_the_host_name(gate, origins, monkeypatch):
    own = certificates.Authority.make()
    (gate.directory / "company.pem").write_bytes(own.pem())
    monkeypatch.setattr(origins, "authority", own)
    origin = origins.web("other.example")
    site = make_site(gate, origin)
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow, ca: company.pem}}]"
    )
    assert request_statuses(site, "/echo") == [502]
    assert gate.events("request.completed")[0]["reason"] == "upstream_untrusted"


# --- client certificates ---


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
IN_CERTIFICATE = (Slot(SlotKind.CLIENT_CERTIFICATE),)
REQUEST = "GET /a HTTP/1.1\nHost: HOST\nConnection: close\n\n"


def require_certificate_answer(seen):
    """Answer 200 to clients with a certificate, 401 to others; appends each common name to `seen`."""

    def answer(connection, _head):
        shown = connection.getpeercert()
        seen.append(shown["subject"][0][0][1] if shown else None)
        status = "200 OK" if shown else "401 Unauthorized"
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi".encode())

    return answer


def secret(host, port):
    return Secret("cluster", Source(SourceKind.FILE, ("/x",)), "", ((HostName(host), port),), IN_CERTIFICATE)


def make_certificate_site(gate, origins, seen, clients, version, *, host="", kind="good", alpn=("http/1.1",)):
    """A site that requests client certificates; the gate has one for `host`."""
    origin = origins.script(
        require_certificate_answer(seen),
        "good.example",
        tls=True,
        alpn=list(alpn),
        clients=clients,
        version=version,
        kind=kind,
    )
    site = make_site(gate, origin)
    if host:
        identity = Identity(secret(host, origin.port), origins.authority.leaf("agent.example"))
        gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([identity])))
    return site


@VERSIONS
@pytest.mark.parametrize("clients", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED], ids=["optional", "required"])
def test_client_certificate_secret_is_presented_to_its_host(gate, origins, clients, version):
    seen = []
    answer = make_certificate_site(gate, origins, seen, clients, version, host="good.example").request(REQUEST)
    assert (answer[:12], seen) == (b"HTTP/1.1 200", ["agent.example"])
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed.get("detail")) == ("passed", None)
    assert "PRIVATE KEY" not in json.dumps(gate.events())


@VERSIONS
def test_server_that_requires_a_certificate_fails_with_that_reason(gate, origins, version):
    seen = []
    answer = make_certificate_site(gate, origins, seen, ssl.CERT_REQUIRED, version).request(REQUEST)
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (answer[:12], page["reason"]) == (b"HTTP/1.1 502", "client_certificate")
    assert "in: client_certificate" in page["remedy"]
    assert "the server asks for a client certificate" in page["detail"]
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("failed", "client_certificate")
    assert seen == []


def test_http2_server_that_requires_a_certificate_fails_with_that_reason(gate, origins):
    """With TLS 1.3 the server breaks off after the handshake, with all requests on its connection."""
    site = make_certificate_site(gate, origins, [], ssl.CERT_REQUIRED, None, alpn=("h2",))
    status, out, _ = site.curl("/a", "--http2")
    assert (status, json.loads(out)["reason"]) == (0, "client_certificate")


@VERSIONS
def test_401_of_a_server_that_requests_a_certificate_is_explained(gate, origins, version):
    answer = make_certificate_site(gate, origins, [], ssl.CERT_OPTIONAL, version).request(REQUEST)
    assert answer.startswith(b"HTTP/1.1 401")
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["http"]["status"]) == ("passed", 401)
    assert completed["detail"].startswith("the server asks for a client certificate, and the gate has none for it")


def test_401_of_a_server_that_requests_no_certificate_has_no_detail(gate, origins):
    make_site(gate, origins.web("good.example")).curl("/status/401")
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["http"]["status"], completed.get("detail")) == (401, None)


@VERSIONS
def test_client_certificate_is_not_presented_to_another_host(gate, origins, version):
    seen = []
    answer = make_certificate_site(gate, origins, seen, ssl.CERT_OPTIONAL, version, host="other.example").request(
        REQUEST
    )
    assert (answer[:12], seen) == (b"HTTP/1.1 401", [None])


@VERSIONS
@pytest.mark.parametrize("kind", ["self-signed", "wrong-name", "expired"])
def test_client_certificate_is_not_presented_to_an_untrusted_server(gate, origins, version, kind):
    seen = []
    answer = make_certificate_site(
        gate, origins, seen, ssl.CERT_OPTIONAL, version, host="good.example", kind=kind
    ).request(REQUEST)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "upstream_untrusted"
    assert seen == []


def test_client_certificate_is_not_presented_for_the_next_task(gate, origins):
    """A cached context with the certificate belongs to one task; the next task has a handshake without it."""
    seen = []
    site = make_certificate_site(gate, origins, seen, ssl.CERT_OPTIONAL, None, host="good.example")
    site.request(REQUEST)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None))
    site.request(REQUEST)
    assert seen == ["agent.example", None]


PEM = Authority.make().leaf("agent.example")
CERTIFICATE = PEM[PEM.index(b"-----BEGIN CERTIFICATE") :]
KEY = PEM[: PEM.index(b"-----BEGIN CERTIFICATE")]
OTHER = Authority.make().leaf("agent.example")


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        (b"", "has no certificate"),
        (b"sk-1234567890", "has no certificate"),
        (KEY, "has no certificate"),
        (CERTIFICATE, "no private key"),
        (CERTIFICATE + OTHER[: OTHER.index(b"-----BEGIN CERTIFICATE")], "isn't that of its first certificate"),
        (PEM + b"x" * 70_000, "at most 64 KB"),
    ],
    ids=["nothing", "an API key", "no certificate", "no key", "key of another certificate", "too long"],
)
def test_invalid_certificate_secrets_raise_an_error_without_their_text(pem, says):
    with pytest.raises(ValueError, match=says) as error:
        Identity(secret("good.example", 443), pem)
    assert "BEGIN" not in str(error.value)
    assert error.value.__cause__ is None


def test_identity_has_no_secret_in_its_repr_and_cannot_be_pickled():
    identity = Identity(secret("good.example", 443), PEM)
    assert repr(identity) == "Identity(cluster, ...)"
    with pytest.raises(TypeError):
        identity.__reduce__()
