"""Hostile use of placeholders: other servers, ambiguous requests, and reused signatures.

In each case no server received a value or a placeholder, and no event or answer has a value. Further cases of
misplaced placeholders: test_secret_injection, test_request_signing.
"""

import base64
import json

import h2.config
import h2.connection
import pytest

from proxy.secrets import SecretInjector, SecretValue, make_aws_keys
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from tests.lab.aws import Keys, presigned, service_of, signed
from tests.proxy.inspection.clients import curl, read_all
from tests.proxy.inspection.inspection_lab import Site, make_site
from tests.support.waiting import wait_until

REAL, FAKE = b"sk-real/Value+0123456789=abcdef", b"sk-fakePlaceholder0123456789abc"
OTHER, NOT_OTHER = b"hunter2-hunter2", b"0PlaceholderOfAnotherSecret0123456789abc"
AWS = Keys("AKIAREALREALREAL0001", "real/Secret+Key0123456789abcdefghijklmno")
SHOWN = FAKE.decode()
BEARER = f"Authorization: Bearer {SHOWN}"
VALUES = (REAL, OTHER, AWS.key.encode(), AWS.ident.encode(), base64.b64encode(b"me:" + REAL))


def secret(ident, host, port, *slots):
    return Secret(ident, Source(SourceKind.ENV, ("X",)), ident.upper(), ((HostName(host), port),), slots)


class TwoHostsLab:
    """Two allowed sites: `good.example` with most secrets, and `other.example` with another."""

    def __init__(self, gate, good, other, *, tls=True):
        self.gate, self.good, self.other = gate, good, other
        gate.name(good_example="127.0.0.1", other_example="127.0.0.1")
        kind = "tls" if tls else "http"
        gate.rules(
            f"[{{id: a, to: [good.example, other.example], resolves_to: [127.0.0.0/8],"
            f" ports: [{good.port}/{kind}, {other.port}/{kind}], http: {{websocket: true}}, action: allow}},"
            f" {{id: b, to: [good.example, other.example], resolves_to: [127.0.0.0/8],"
            f" ports: [{good.port}/{kind}, {other.port}/{kind}], action: allow}}]"
        )
        header, form = Slot(SlotKind.HEADER, "authorization"), Slot(SlotKind.FORM, "client_secret")
        held = make_aws_keys(
            secret("aws", "good.example", good.port, Slot(SlotKind.AWS)), (AWS.ident.encode(), AWS.key.encode())
        )
        broker = SecretInjector(
            [
                SecretValue(secret("key", "good.example", good.port, header, form, Slot(SlotKind.BASIC)), REAL, SHOWN),
                SecretValue(secret("other", "other.example", other.port, header), OTHER, NOT_OTHER.decode()),
                held,
            ]
        )
        gate.loop.run(lambda: gate.sandbox.set_secrets(broker))
        found = broker.placeholders
        self.keys = Keys(found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"])
        self.sites = [
            Site(gate, name, origin.port, gate.listen_for(name, origin.port, tls=tls), tls)
            for name, origin in (("good.example", good), ("other.example", other))
        ]
        self.good_site = self.sites[0]

    def nothing_left(self, *answers):
        journal = json.dumps(self.gate.events()).encode()
        sent = repr([*self.good.requests, *self.other.requests]).encode()
        for value in VALUES:
            assert all(value not in text for text in (journal, sent, *answers))
        for placeholder in (FAKE, NOT_OTHER, self.keys.ident.encode(), self.keys.key.encode()):
            assert placeholder not in sent


@pytest.fixture
def two_hosts(gate, origins):
    return TwoHostsLab(gate, origins.web("good.example"), origins.web("other.example"))


def test_placeholder_is_blocked_at_the_target_of_a_redirect(gate, origins):
    """curl sends credentials to the redirect target with `--location-trusted`."""

    def redirect(connection, _head):
        to = b"https://other.example:%d/echo" % other.port
        connection.sendall(
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % to
        )

    other = origins.web("other.example")
    good = origins.script(redirect, "good.example", tls=True, alpn=["http/1.1"])
    two_hosts = TwoHostsLab(gate, good, other)
    ways = [w for s in two_hosts.sites for w in ("--connect-to", f"{s.host}:127.0.0.1:{s.gate_port}")]
    status, out, _ = curl(
        "--cacert",
        gate.bundle,
        *ways,
        "-L",
        "--location-trusted",
        "-H",
        BEARER,
        f"https://{two_hosts.good_site.host}/a",
    )
    assert (status, json.loads(out)["reason"]) == (0, "secret_misuse")
    assert REAL in good.requests[0]  # in its slot at its own host
    assert other.connections == 0
    assert [each["destination"]["name"] for each in gate.events("tampering.detected")] == ["other.example"]


def request_text(*lines):
    return "\n".join([*lines, "Connection: close", "", ""])


# requests to `good.example`, and the reason of their denial
MISLEADING_REQUESTS = {
    "a tunnel": (request_text("CONNECT other.example:443 HTTP/1.1", "Host: other.example:443", BEARER), "protocol_mismatch"),
    "another Host": (request_text("GET / HTTP/1.1", "Host: other.example", BEARER), "name_mismatch"),
    "another port in Host": (request_text("GET / HTTP/1.1", "Host: good.example:1", BEARER), "name_mismatch"),
    "another URL": (request_text("GET https://other.example/ HTTP/1.1", "Host: other.example", BEARER), "name_mismatch"),
    "an URL unlike Host": (request_text("GET https://other.example/ HTTP/1.1", "Host: HOST", BEARER), "ambiguous_request"),
    "an URL without TLS": (request_text("GET http://HOST/ HTTP/1.1", "Host: HOST", BEARER), "ambiguous_request"),
    "two Hosts": (request_text("GET / HTTP/1.1", "Host: HOST", "Host: other.example", BEARER), "ambiguous_request"),
    "a user before the host": (request_text("GET / HTTP/1.1", f"Host: {SHOWN}@HOST", BEARER), "ambiguous_request"),
    "a user in the URL": (request_text(f"GET https://me:{SHOWN}@HOST/ HTTP/1.1", "Host: HOST"), "ambiguous_request"),
    "a folded line": (request_text("GET / HTTP/1.1", "Host: HOST", f"Authorization: Bearer\n {SHOWN}"), "ambiguous_request"),
    "folded in the middle": (
        request_text("GET / HTTP/1.1", "Host: HOST", f"Authorization: Bearer {SHOWN[:9]}\n {SHOWN[9:]}"), "ambiguous_request",
    ),
    "twice": (request_text("GET / HTTP/1.1", "Host: HOST", BEARER, BEARER), "secret_misuse"),
    "with another": (request_text("GET / HTTP/1.1", "Host: HOST", BEARER, "authorization: Bearer a"), "secret_misuse"),
    "as two values": (request_text("GET / HTTP/1.1", "Host: HOST", f"{BEARER}, Bearer a"), "secret_misuse"),
    "another secret's": (request_text("GET / HTTP/1.1", "Host: HOST", f"Authorization: Bearer {NOT_OTHER.decode()}"), "secret_misuse"),
    "where a proxy would read it": (request_text("GET / HTTP/1.1", "Host: HOST", f"Proxy-Authorization: Bearer {SHOWN}"), "secret_misuse"),
    "as a WebSocket's protocol": (
        request_text(
            "GET /echo HTTP/1.1", "Host: HOST", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Sec-WebSocket-Protocol: realtime, key.{SHOWN}",
        ).replace("Connection: close", "Connection: upgrade"),
        "secret_misuse",
    ),
    "as a referrer": (request_text("GET / HTTP/1.1", "Host: HOST", f"Referer: https://x.example/?{SHOWN}"), "secret_misuse"),
    "for a server to fetch": (
        request_text(f"GET /proxy?url=https%3A%2F%2Fother.example%2F%3Fkey%3D{SHOWN} HTTP/1.1", "Host: HOST"), "secret_misuse",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_head", "reason"), MISLEADING_REQUESTS.values(), ids=MISLEADING_REQUESTS)
def test_misleading_requests_with_a_placeholder_are_refused(two_hosts, request_head, reason):
    answer = two_hosts.good_site.request(request_head)
    assert answer.split(b" ")[1].startswith(b"4"), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == reason
    assert (two_hosts.good.requests, two_hosts.other.requests) == ([], [])
    two_hosts.nothing_left(answer)


@pytest.mark.parametrize("authority", ["other.example", "good.example:1", f"{SHOWN}.good.example"])
def test_http2_request_with_another_authority_is_blocked(two_hosts, authority):
    """HTTP/2 clients may coalesce authorities."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    usual = [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", "/echo")]
    client.send_headers(1, [*usual, ("authorization", f"Bearer {SHOWN}")], end_stream=True)
    with two_hosts.good_site.connect(["h2"]) as connection:
        connection.sendall(client.data_to_send())
        wait_until(two_hosts.gate.decided)
    assert [each[2] for each in two_hosts.gate.decided()] == ["blocked"]
    assert (two_hosts.good.connections, two_hosts.other.connections) == (0, 0)
    two_hosts.nothing_left()


def test_placeholder_in_a_websocket_to_another_host_is_blocked(two_hosts):
    ask = [
        "GET /echo HTTP/1.1", "Host: HOST", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", BEARER,
    ]  # fmt: skip
    answer = two_hosts.sites[1].request(request_text(*ask).replace("Connection: close", "Connection: upgrade"))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "secret_misuse"
    assert two_hosts.other.connections == 0


def request_per_slot(two_hosts, host, method="POST"):
    """Return a request for each slot: header, password, form, signature and signed URL."""
    form = b"client_secret=" + FAKE
    kind = "Content-Type: application/x-www-form-urlencoded"
    basic = base64.b64encode(b"me:" + FAKE).decode()
    header = signed(two_hosts.keys, host, method, "/echo", body=b"")
    lines = [f"{name}: {value}" for name, value in header.items() if name != "host"]
    return {
        "header": (request_text("GET /echo HTTP/1.1", "Host: HOST", BEARER), b""),
        "basic": (request_text("GET /echo HTTP/1.1", "Host: HOST", f"Authorization: Basic {basic}"), b""),
        "form": (request_text("POST /echo HTTP/1.1", "Host: HOST", kind, f"Content-Length: {len(form)}"), form),
        "signature": (request_text(f"{method} /echo HTTP/1.1", "Host: HOST", "Content-Length: 0", *lines), b""),
        "signed URL": (
            request_text(f"GET {presigned(two_hosts.keys, host, 'GET', '/echo')} HTTP/1.1", "Host: HOST"),
            b"",
        ),
    }


@pytest.mark.parametrize("kind", ["expired", "self-signed", "wrong-name"])
def test_untrusted_server_receives_no_value_in_any_slot(gate, origins, kind):
    two_hosts = TwoHostsLab(gate, origins.web("good.example", kind=kind), origins.web("other.example"))
    for name, (request_head, body) in request_per_slot(two_hosts, two_hosts.good_site.host).items():
        answer = two_hosts.good_site.request(request_head, body)
        assert answer.startswith(b"HTTP/1.1 502"), name
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "upstream_untrusted", name
        two_hosts.nothing_left(answer)
    assert two_hosts.good.requests == []


def test_no_value_is_sent_without_tls_in_any_slot(gate, origins):
    two_hosts = TwoHostsLab(
        gate, origins.web("good.example", tls=False), origins.web("other.example", tls=False), tls=False
    )
    for name, (request_head, body) in request_per_slot(two_hosts, two_hosts.good_site.host).items():
        answer = two_hosts.good_site.request(request_head, body)
        assert b"secret_misuse" in answer, name
        two_hosts.nothing_left(answer)


def test_no_value_is_sent_to_another_port_in_any_slot(gate, origins):
    two_hosts = TwoHostsLab(gate, origins.web("good.example"), origins.web("good.example"))
    site = Site(
        gate, "good.example", two_hosts.other.port, gate.listen_for("good.example", two_hosts.other.port), tls=True
    )
    for name, (request_head, body) in request_per_slot(two_hosts, site.host).items():
        answer = site.request(request_head, body)
        assert b"secret_misuse" in answer, name
        two_hosts.nothing_left(answer)


def test_no_value_is_sent_to_the_host_of_another_secret_in_any_slot(two_hosts):
    for name, (request_head, body) in request_per_slot(two_hosts, two_hosts.sites[1].host).items():
        answer = two_hosts.sites[1].request(request_head, body)
        assert b"secret_misuse" in answer, name
        two_hosts.nothing_left(answer)


def test_placeholder_signature_is_worthless_past_the_gate(gate, origins):
    """The task only has a signature by placeholder keys; a repeated request is decided and recorded again."""
    verdicts = []
    good = origins.script(service_of(AWS, verdicts), "good.example", tls=True, alpn=["http/1.1"])
    two_hosts = TwoHostsLab(gate, good, origins.web("other.example"))
    request_head, _ = request_per_slot(two_hosts, two_hosts.good_site.host)["signature"]
    for _ in range(2):
        assert two_hosts.good_site.request(request_head).startswith(b"HTTP/1.1 200")
    assert verdicts == ["ok", "ok"]
    assert len(gate.events("request.decided")) == 2
    stolen = request_head.replace("HOST", two_hosts.good_site.host).replace("\n", "\r\n").encode()
    with connect_directly(origins, good) as connection:
        connection.sendall(stolen)
        assert read_all(connection).startswith(b"HTTP/1.1 403")
    assert verdicts[2:] == ["InvalidAccessKeyId"]


def connect_directly(origins, origin):
    """Connect to an origin without the gate."""
    import socket
    import ssl

    context = ssl.create_default_context(cadata=origins.authority.pem().decode())
    return context.wrap_socket(socket.create_connection(("127.0.0.1", origin.port), 10), server_hostname="good.example")


def test_request_behind_a_pending_form_is_decided_by_itself(gate, origins):
    """The next request on the connection of an injected form has no injection."""
    origin = origins.web("good.example", alpn=["http/1.1"])
    site = make_site(gate, origin)
    client = SecretValue(secret("key", "good.example", origin.port, Slot(SlotKind.FORM, "client_secret")), REAL, SHOWN)
    gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([client])))
    form = b"client_secret=" + FAKE
    first = f"POST /echo HTTP/1.1\r\nHost: {site.host}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n"
    second = f"POST /echo HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {len(form)}\r\nConnection: close\r\n\r\n"
    with site.connect() as connection:
        connection.sendall(first.encode() + form + second.encode() + form)
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"secret_misuse" in answer
    wait_until(lambda: len(gate.events("request.completed")) == 2)
    assert [each["outcome"] for each in gate.events("request.completed")] == ["passed", "blocked"]
