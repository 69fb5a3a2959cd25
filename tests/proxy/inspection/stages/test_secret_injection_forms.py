"""Secrets in forms: injected only in the form field of the slot."""

import hashlib
from urllib.parse import quote

import h2.config
import h2.connection
import pytest

from proxy.inspection.stream import Stream
from proxy.secrets import SecretInjector, SecretValue
from rules.secrets import Slot, SlotKind
from tests.proxy.inspection.stages.secret_injection_lab import (
    FAKE,
    PASSWORD,
    REAL,
    SHOWN,
    assert_no_secret_disclosed,
    head,
    make_secret_site,
    record_posted,
    secret,
)
from tests.support.waiting import wait_until

FORM_TYPE = "Content-Type: application/x-www-form-urlencoded"


FORM_SECRET = b"0PlaceholderForTheClient0123456789abcdef"


def make_form_site(gate, origin, rule=""):
    """A site with a secret in a form field, like the token endpoint of OAuth."""
    site = make_secret_site(gate, origin)
    client = SecretValue(
        secret("client", "good.example", origin.port, Slot(SlotKind.FORM, "client_secret")), REAL, FORM_SECRET.decode()
    )
    key = SecretValue(secret("key", "good.example", origin.port, Slot(SlotKind.HEADER, "x-api-key")), PASSWORD, SHOWN)
    gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([client, key])))
    if rule:
        known = "secrets: [{id: client, from: {env: X}, as: K, hosts: 'good.example:%d', in: {form: client_secret}}]"
        gate.rules(
            f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/tls], action: allow, {rule}}}]",
            known % origin.port,
        )
    return site


def post(site, body, *fields, pieces=None):
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces or ()) + b"0\r\n\r\n"
    length = "Transfer-Encoding: chunked" if pieces else f"Content-Length: {len(body)}"
    return site.request(head("POST /echo", length, *(fields or (FORM_TYPE,))), chunked if pieces else body)


GRANT = b"grant_type=client_credentials&client_id=us&client_secret=%b&scope=a+b"


def test_placeholder_in_its_form_field_is_replaced(gate, origins):
    got = []
    origin = origins.script(record_posted(got), "good.example", tls=True, alpn=["http/1.1"])
    site = make_form_site(gate, origin)
    form, sent = GRANT % FORM_SECRET, GRANT % quote(REAL, safe="").encode()
    for pieces in (None, [form[:60], form[60:]]):
        assert post(site, form, pieces=pieces).startswith(b"HTTP/1.1 200")
    assert got == [sent, b"%x\r\n%s\r\n0\r\n\r\n" % (len(sent), sent)]
    assert post(site, b"a=b").startswith(b"HTTP/1.1 200")
    assert post(site, b"a" * 5_000_000).startswith(b"HTTP/1.1 200")  # more than is ever held
    assert got[2:] == [b"a=b", b"a" * 5_000_000]
    assert gate.events("tampering.detected") == []
    assert_no_secret_disclosed(gate)


FORMS = {
    "another field": (b"secret=" + FORM_SECRET, (FORM_TYPE,)),
    "twice": (b"client_secret=%b&client_secret=%b" % (FORM_SECRET, FORM_SECRET), (FORM_TYPE,)),
    "twice, once in another spelling": (b"client_secret=%b&client%%5fsecret=a" % FORM_SECRET, (FORM_TYPE,)),
    "also in another field": (b"client_secret=%b&a=%b" % (FORM_SECRET, FORM_SECRET), (FORM_TYPE,)),
    "with more": (b"client_secret=%bx" % FORM_SECRET, (FORM_TYPE,)),
    "another secret's": (b"client_secret=" + FAKE, (FORM_TYPE,)),
    "JSON": (b'{"client_secret": "%b"}' % FORM_SECRET, ("Content-Type: application/json",)),
    "of no type": (b"client_secret=" + FORM_SECRET, ("X-A: b",)),
    "in a coding": (b"client_secret=" + FORM_SECRET, (FORM_TYPE, "Content-Encoding: identity")),
    "the query": (b"a=b", (FORM_TYPE, f"X-A: {FORM_SECRET.decode()}")),
    "longer than is read": (GRANT % FORM_SECRET + b"&a=" + b"a" * 70_000, (FORM_TYPE,)),
}


@pytest.mark.parametrize(("body", "fields"), FORMS.values(), ids=FORMS)
def test_placeholder_outside_its_form_field_is_blocked(gate, origins, body, fields):
    got = []
    origin = origins.script(record_posted(got), "good.example", tls=True, alpn=["http/1.1"])
    answer = post(make_form_site(gate, origin), body, *fields)
    assert answer.startswith(b"HTTP/1.1 403"), answer
    assert b"secret_misuse" in answer
    wait_until(lambda: gate.events("tampering.detected"))
    assert all(FORM_SECRET not in each for each in got)
    assert_no_secret_disclosed(gate, answer)


@pytest.mark.parametrize(
    ("body", "fields", "passes"),
    [
        (GRANT % FORM_SECRET, (), True),
        (GRANT % b"the-attackers", (), False),
        (GRANT % FORM_SECRET, ("Authorization: Bearer theirs",), False),
        (GRANT % FORM_SECRET, (f"X-Api-Key: {SHOWN}",), False),
    ],
)
def test_credential_rule_accepts_the_placeholder_in_a_form(gate, origins, body, fields, passes):
    got = []
    origin = origins.script(record_posted(got), "good.example", tls=True, alpn=["http/1.1"])
    answer = post(make_form_site(gate, origin, "credential: client"), body, FORM_TYPE, *fields)
    assert answer.startswith(b"HTTP/1.1 200" if passes else b"HTTP/1.1 403"), answer
    assert len(gate.events("request.decided")) == 1
    assert len(got) == passes


def test_placeholder_in_an_http2_form_is_replaced(gate, origins):
    origin = origins.web("good.example")
    site = make_form_site(gate, origin)
    form = GRANT % FORM_SECRET
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    usual = [(":method", "POST"), (":scheme", "https"), (":authority", site.host), (":path", "/echo")]
    kind = ("content-type", "application/x-www-form-urlencoded")
    client.send_headers(1, [*usual, kind, ("content-length", str(len(form)))])
    client.send_data(1, form, end_stream=True)
    answer = b""
    with site.connect(["h2"]) as connection:
        connection.sendall(client.data_to_send())
        while b'"sha256"' not in answer:
            answer += b"".join(
                event.data for event in client.receive_data(connection.recv(65536))
                if isinstance(event, h2.events.DataReceived)
            )  # fmt: skip
    sent = GRANT % quote(REAL, safe="").encode()
    assert hashlib.sha256(sent).hexdigest().encode() in answer


def test_pending_form_counts_against_the_quota_until_it_is_sent(gate, origins, monkeypatch):
    """Otherwise a client could have one body buffered per stream while the server is being dialed."""
    origin = origins.web("good.example")
    site = make_form_site(gate, origin)
    form = GRANT % FORM_SECRET
    seen = []
    whole = Stream._send_head

    def begin(stream):
        seen.append(stream.session.pending_body_bytes)
        yield from whole(stream)
        seen.append((stream.session.pending_body_bytes, stream.request.pending_body.content))

    monkeypatch.setattr(Stream, "_send_head", begin)
    assert post(site, form).startswith(b"HTTP/1.1 200")
    assert seen == [len(form), (len(form), None)]
