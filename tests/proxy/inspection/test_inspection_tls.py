"""TLS on both sides: who is trusted, who is not, and that the true cause of a failure is told."""

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
from rules.names import HostName
from rules.verdicts import Reason
from tests.proxy.inspection.inspection_clients import curl, cut_off, needs, rest, wait_for
from tests.proxy.inspection.inspection_harness import site
from tests.proxy.inspection.inspection_origins import Origin
from tests.support.ports import free_port


@pytest.mark.parametrize("kind", ["self-signed", "expired", "wrong-name"])
def test_an_untrusted_server_is_not_asked(gate, origins, kind):
    origin = origins.web("good.example", kind=kind)
    place = site(gate, origin)
    status, out, err = place.curl("/x")
    problem = json.loads(out)
    assert (status, err) == (0, "")
    assert (problem["status"], problem["reason"]) == (502, "upstream_untrusted")
    said = {"self-signed": "unable to get local issuer", "expired": "has expired", "wrong-name": "hostname mismatch"}
    assert said[kind] in problem["detail"]
    assert origin.requests == []
    completed = gate.events("request.completed")[0]
    assert (completed["outcome"], completed["reason"]) == ("failed", "upstream_untrusted")
    assert gate.recorder.summary().describe() == "allowed 1 connection; failed 1 request (good.example)"


def test_an_untrusted_server_s_cause_reaches_every_request(gate, origins):
    place = site(gate, origins.web("good.example", kind="expired"))
    _, out, _ = place.curl("/[1-3]", "--http2", "-o", os.devnull, "-w", "%{http_code} ")
    assert out == b"502 502 502 "


def test_a_server_that_speaks_no_tls(gate, origins):
    place = site(gate, origins.web("good.example", tls=False))
    _, out, _ = place.curl("/x")
    assert json.loads(out)["reason"] == "upstream_failed"


def test_a_server_that_isn_t_there(gate, origins):
    place = site(gate, Origin(free_port()))
    _, out, _ = place.curl("/x")
    problem = json.loads(out)
    assert (problem["status"], problem["reason"]) == (502, "upstream_failed")
    assert "refused" in problem["detail"]


def test_a_client_that_distrusts_us_is_told_of(gate, origins):
    origin = origins.web("good.example")
    place = site(gate, origin)
    status, _, _ = curl("--connect-to", f"{place.host}:127.0.0.1:{place.door}", f"https://{place.host}/")
    assert status == 60
    assert gate.wait_closed()[0].reason is Reason.TLS_CLIENT_DISTRUST
    assert gate.events("connection.closed")[0]["reason"] == "tls_client_distrust"
    assert origin.connections == 0


def hello(place):
    """Return a ClientHello as a client would send it."""
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), out := ssl.MemoryBIO(), server_hostname=place.name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


@pytest.mark.parametrize("goodbye", [b"", b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x01\x00\x05nonsense"])
def test_only_a_certificate_alert_is_distrust(gate, origins, goodbye):
    place = site(gate, origins.web("good.example"))
    with socket.create_connection(("127.0.0.1", place.door)) as connection:
        connection.sendall(hello(place))
        connection.recv(1)
        connection.sendall(goodbye)
    assert gate.wait_closed()[0].reason is None


def test_a_client_s_certificate_complaint_after_the_handshake_counts(gate, origins):
    """Some clients look at the certificate only then."""
    needs("openssl")
    place = site(gate, origins.web("good.example"))
    done = subprocess.run(
        ["openssl", "s_client", "-verify_return_error", "-tls1_2", "-connect", f"127.0.0.1:{place.door}",
         "-servername", place.name], input=b"", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert b"verify error" in done.stderr
    assert gate.wait_closed()[0].reason is Reason.TLS_CLIENT_DISTRUST


def test_the_sni_is_the_one_that_the_gate_saw(gate, origins):
    """A hello that two programs read differently is no way in."""
    origin = origins.web("good.example")
    place = site(gate, origin, sni="other.example")
    assert place.ask("GET / HTTP/1.1\nHost: HOST\n\n") == b""
    assert gate.events("request.decided") == []
    assert origin.connections == 0


def test_tls_in_tls_is_only_bytes(gate, origins):
    origin = origins.web("good.example")
    place = site(gate, origin)
    with place.connect() as connection:
        connection.sendall(hello(place))
        assert b"403" in connection.recv(100)
    assert gate.decided()[0][2:] == ("blocked", "protocol_mismatch")
    assert origin.connections == 0


def test_what_is_not_http_inside_is_refused(gate, origins):
    origin = origins.web("good.example")
    place = site(gate, origin)
    with place.connect(alpn=()) as connection:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 403 ")
    assert origin.connections == 0


@pytest.mark.parametrize("alpn", [("http/1.1",), ("http/1.0", "http/1.1"), (), ("imap",)], ids=str)
def test_alpn(gate, origins, alpn):
    place = site(gate, origins.web("good.example"))
    with place.connect(alpn=alpn) as connection:
        assert connection.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in alpn else None)
        connection.sendall(f"GET /status/204 HTTP/1.1\r\nHost: {place.host}\r\nConnection: close\r\n\r\n".encode())
        assert rest(connection).startswith(b"HTTP/1.1 204")


def test_a_clean_end_is_a_clean_end(gate, origins):
    """close_notify comes before the end, so that a body without a length is known to be whole."""

    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        connection.unwrap()

    place = site(gate, origins.script(answer, "good.example", tls=True))
    with place.connect() as connection:
        connection.suppress_ragged_eofs = False
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        assert rest(connection).endswith(b"\r\n\r\nwhole")


@pytest.mark.parametrize("end", ["reset", "no close_notify"])
def test_a_cut_is_not_an_end(gate, origins, end):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\npart")
        cut_off(connection, reset=end == "reset")

    place = site(gate, origins.script(answer, "good.example", tls=True))
    with place.connect() as connection:
        connection.suppress_ragged_eofs = False
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):  # the latter before Python 3.13
            rest(connection)
    wait_for(lambda: gate.events("request.completed"))
    completed = gate.events("request.completed")[0]
    assert (completed["outcome"], completed["reason"]) == ("failed", "upstream_failed")


def test_handshakes_in_pieces(gate, origins):
    """A client that sends byte by byte, over a kernel buffer that was only looked into."""
    place = site(gate, origins.web("good.example"))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=place.name)
    with socket.create_connection(("127.0.0.1", place.door), 10) as connection:
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
        tls.write(f"GET /status/200 HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode())
        assert go(lambda: tls.read(12)) == b"HTTP/1.1 200"


def test_old_tls_is_refused(gate, origins):
    needs("openssl")
    place = site(gate, origins.web("good.example"))
    done = subprocess.run(
        ["openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{place.door}"],
        input=b"", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert b"alert protocol version" in done.stderr


def test_no_session_is_resumed(gate, origins):
    place = site(gate, origins.web("good.example"))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    session = None
    for _ in range(2):
        raw = socket.create_connection(("127.0.0.1", place.door), 10)
        with context.wrap_socket(raw, server_hostname=place.name, session=session) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {place.host}\r\nConnection: close\r\n\r\n".encode())
            rest(connection)
            session = connection.session
            assert not connection.session_reused


def test_a_python_client_with_strict_checks(gate, origins):
    place = site(gate, origins.web("good.example"))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    client = http.client.HTTPSConnection(place.host, context=context)
    client._create_connection = lambda *_, **__: socket.create_connection(("127.0.0.1", place.door), 10)
    client.request("GET", "/status/200")
    assert client.getresponse().status == 200
    client.close()


class SignedAtOnce(dict):
    """Leaves that nobody waits for."""

    def __init__(self, ca):
        self.ca, self.key = ca, ec.generate_private_key(ec.SECP256R1())

    def __missing__(self, host):
        certificate = self.ca.sign(host, self.key.public_key())
        ends = certificate.not_valid_after_utc
        self[host] = leaf = Leaf(certificate, self.key, ends, ends)
        return leaf

    usable = dict.__getitem__


def test_contexts_are_kept_and_bounded(gate, monkeypatch):
    monkeypatch.setattr("proxy.inspection.tls.CONTEXTS", 5)
    contexts = ClientContexts(SignedAtOnce(gate.ca))
    first = contexts.connection("kept.example", (b"h2",)).get_context()
    for number in range(20):
        contexts.connection(f"n{number}.example", (b"h2",))
        assert contexts.connection("kept.example", (b"h2",)).get_context() is first
    assert len(contexts._kept) == 5
    spoken = KnownProtocols()
    for number in range(20):
        spoken.note(WebOrigin(HostName(f"n{number}.example"), 443, tls=True), b"http/1.1")
    assert len(spoken._only_http1) == 5
    place = WebOrigin(HostName("n19.example"), 443, tls=True)
    assert spoken.offer(place) == (b"http/1.1",)
    spoken.note(place, b"h2")
    assert spoken.offer(place) == (b"h2", b"http/1.1")


def _shares(hello):
    """The groups that a ClientHello in one record offers, and those for which it brings a key."""
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
def test_a_server_is_brought_the_key_that_it_took_last_and_offered_the_quantum_safe_one_first(group, shared):
    offered, brought = _hello(group)
    assert brought == shared
    assert offered[0] == HYBRID
    assert {X25519, P256, P384} <= set(offered)


def test_what_a_server_took_is_remembered_for_an_hour():
    now = [0.0]
    spoken, place = KnownProtocols(lambda: now[0]), WebOrigin(HostName("good.example"), 443, tls=True)
    assert spoken.group(place) == ""
    spoken.note_group(place, "X25519")
    assert spoken.group(place) == "x25519"
    now[0] = 1800.0
    spoken.note_group(place, "X25519")  # as it was asked to, which says nothing about what it would like
    now[0] = 3599.0
    assert spoken.group(place) == "x25519"
    now[0] = 3601.0
    assert spoken.group(place) == ""
    spoken.note_group(place, None)
    assert spoken.group(place) == ""


def test_a_server_with_a_taste_of_its_own_is_understood(gate, origins):
    origin = origins.web("good.example", curve="prime256v1")
    place = site(gate, origin)
    assert [place.curl("/x")[0] for _ in range(2)] == [0, 0]
    assert len(origin.requests) == 2


@pytest.mark.parametrize("roots", [b"", b"\n"])
def test_without_roots_nobody_is_trusted(roots):
    ServerContexts(roots)


def test_unreadable_roots_are_refused():
    with pytest.raises(TrustError, match="can't be read"):
        ServerContexts(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


def test_a_long_task_is_shown_a_new_leaf_before_the_old_one_ends(gate, origins, monkeypatch):
    origin = origins.web("good.example")
    place = site(gate, origin)

    def serial():
        with place.connect() as connection:
            return connection.getpeercert()["serialNumber"]

    first = serial()
    assert serial() == first
    kept = gate.leaves.usable("good.example")
    monkeypatch.setitem(gate.leaves._kept, "good.example", kept._replace(stale=datetime.now(UTC)))
    second = serial()
    assert second != first
    assert serial() == second
