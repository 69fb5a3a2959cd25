"""Servers that ask for a client certificate: the gate shows one that is a secret, and says so where there is none."""

import json
import ssl

import pytest

from proxy.secrets import Identity, SecretInjector
from rules.names import HostName
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from tests.lab.certificates import Authority
from tests.proxy.inspection.inspection_clients import wait_for
from tests.proxy.inspection.inspection_harness import site

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
IN_CERTIFICATE = (Slot(SlotKind.CLIENT_CERTIFICATE),)
ASK = "GET /a HTTP/1.1\nHost: HOST\nConnection: close\n\n"


def whoami(seen):
    """Answer 200 to who has shown a certificate, and 401 to others; `seen` is whose they were."""

    def answer(connection, _head):
        shown = connection.getpeercert()
        seen.append(shown["subject"][0][0][1] if shown else None)
        status = "200 OK" if shown else "401 Unauthorized"
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi".encode())

    return answer


def secret(host, port):
    return Secret("cluster", Source(SourceKind.FILE, ("/x",)), "", ((HostName(host), port),), IN_CERTIFICATE)


def served(gate, origins, seen, clients, version, *, host="", kind="good", alpn=("http/1.1",)):
    """A site that asks for certificates; the gate has one for `host`."""
    origin = origins.script(
        whoami(seen), "good.example", tls=True, alpn=list(alpn), clients=clients, version=version, kind=kind
    )
    made = site(gate, origin)
    if host:
        identity = Identity(secret(host, origin.port), origins.authority.leaf("agent.example"))
        gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([identity])))
    return made


@VERSIONS
@pytest.mark.parametrize("clients", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED], ids=["wished for", "required"])
def test_certificate_that_is_a_secret_is_shown_to_its_host(gate, origins, clients, version):
    seen = []
    answer = served(gate, origins, seen, clients, version, host="good.example").ask(ASK)
    assert (answer[:12], seen) == (b"HTTP/1.1 200", ["agent.example"])
    wait_for(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed.get("detail")) == ("passed", None)
    assert "PRIVATE KEY" not in json.dumps(gate.events())


@VERSIONS
def test_server_that_requires_a_certificate_is_told_as_that(gate, origins, version):
    seen = []
    answer = served(gate, origins, seen, ssl.CERT_REQUIRED, version).ask(ASK)
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (answer[:12], page["reason"]) == (b"HTTP/1.1 502", "client_certificate")
    assert "in: client_certificate" in page["remedy"]
    assert "the server asks for a client certificate" in page["detail"]
    wait_for(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("failed", "client_certificate")
    assert seen == []


def test_server_of_http2_that_requires_a_certificate_is_told_as_that(gate, origins):
    """It breaks off behind the handshake, as TLS 1.3 has it, with all that was asked on its connection."""
    made = served(gate, origins, [], ssl.CERT_REQUIRED, None, alpn=("h2",))
    status, out, _ = made.curl("/a", "--http2")
    assert (status, json.loads(out)["reason"]) == (0, "client_certificate")


@VERSIONS
def test_answer_for_want_of_a_certificate_is_passed_on_and_told_as_that(gate, origins, version):
    answer = served(gate, origins, [], ssl.CERT_OPTIONAL, version).ask(ASK)
    assert answer.startswith(b"HTTP/1.1 401")
    wait_for(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["http"]["status"]) == ("passed", 401)
    assert completed["detail"].startswith("the server asks for a client certificate, and the gate has none for it")


def test_answer_of_a_server_that_asks_for_none_has_no_such_words(gate, origins):
    site(gate, origins.web("good.example")).curl("/status/401")
    wait_for(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["http"]["status"], completed.get("detail")) == (401, None)


@VERSIONS
def test_certificate_is_shown_to_no_other_host(gate, origins, version):
    seen = []
    answer = served(gate, origins, seen, ssl.CERT_OPTIONAL, version, host="other.example").ask(ASK)
    assert (answer[:12], seen) == (b"HTTP/1.1 401", [None])


@VERSIONS
@pytest.mark.parametrize("kind", ["self-signed", "wrong-name", "expired"])
def test_certificate_is_not_shown_to_a_server_that_is_not_trusted(gate, origins, version, kind):
    seen = []
    answer = served(gate, origins, seen, ssl.CERT_OPTIONAL, version, host="good.example", kind=kind).ask(ASK)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "upstream_untrusted"
    assert seen == []


def test_certificate_of_one_task_is_not_shown_for_the_next(gate, origins):
    """What is kept of it is its task's: another one has a handshake without it."""
    seen = []
    made = served(gate, origins, seen, ssl.CERT_OPTIONAL, None, host="good.example")
    made.ask(ASK)
    gate.loop.run(lambda: gate.sandbox.set_secrets(None))
    made.ask(ASK)
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
    ids=["nothing", "a key of another kind", "no certificate", "no key", "another's key", "too long"],
)
def test_what_is_no_certificate_with_its_key_is_refused_and_not_shown(pem, says):
    with pytest.raises(ValueError, match=says) as error:
        Identity(secret("good.example", 443), pem)
    assert "BEGIN" not in str(error.value)
    assert error.value.__cause__ is None


def test_identity_shows_nothing_of_itself():
    identity = Identity(secret("good.example", 443), PEM)
    assert repr(identity) == "Identity(cluster, ...)"
    with pytest.raises(TypeError):
        identity.__reduce__()
