"""A site whose host has two secrets, requests with their placeholders, and a check that no value is disclosed."""

import base64
import json
from urllib.parse import quote

import h2.config
import h2.connection

from proxy.secrets import SecretInjector, SecretValue
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from tests.proxy.inspection.clients import read_until
from tests.proxy.inspection.inspection_lab import make_site

REAL, FAKE = b"sk-real/Value+0123456789=abcdef", b"sk-fakePlaceholder0123456789abc"


PASSWORD, NO_PASSWORD = b"hunter2-hunter2", b"0PlaceholderForThePassword0123456789abcd"


SHOWN = FAKE.decode()


def secret(ident, host, port, *slots, variable="KEY"):
    return Secret(ident, Source(SourceKind.ENV, ("X",)), variable, ((HostName(host), port),), slots)


def make_secret_site(gate, origin, *, tls=True, name="good.example", host="good.example", rule="", more=""):
    """A site whose host has two secrets."""
    site = make_site(gate, origin, name, tls=tls, more=more)
    slots = Slot(SlotKind.HEADER, "authorization"), Slot(SlotKind.HEADER, "x-api-key"), Slot(SlotKind.QUERY, "key")
    key = SecretValue(secret("model-key", host, origin.port, *slots), REAL, SHOWN)
    login = SecretValue(secret("login", host, origin.port, Slot(SlotKind.BASIC)), PASSWORD, NO_PASSWORD.decode())
    if rule:
        port = f"{origin.port}/tls"
        known = (
            "secrets: [{id: model-key, from: {env: X}, as: K, hosts: 'good.example:%d', in: {header: authorization}}]"
        )
        gate.rules(
            f"[{{id: a, to: {name}, resolves_to: [127.0.0.0/8], ports: [{port}], action: allow, {rule}}}]",
            known % origin.port,
        )
    gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([key, login])))
    return site


def basic(text):
    return f"Authorization: Basic {base64.b64encode(text).decode()}"


def head(line, *fields):
    return "\n".join([f"{line} HTTP/1.1", "Host: HOST", "Connection: close", *fields, "", ""])


def received(origin):
    """Return all requests that an origin received, as text."""
    return repr(origin.requests)


def assert_no_secret_disclosed(gate, *answers):
    """Assert that neither the answers nor the journal have a value in them."""
    journal = json.dumps(gate.events()).encode()
    for value in (REAL, PASSWORD, base64.b64encode(b"me:" + PASSWORD), quote(REAL, safe="").encode()):
        for text in (journal, *answers):
            assert value not in text


def echo(connection, request):
    """Answer with the head of the request."""
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(request), request)
    )


def record_posted(answers):
    """Read a posted body, append it to `answers`, and echo the head."""

    def answer(connection, request):
        if b"chunked" in request:
            got = read_until(connection, b"0\r\n\r\n")
        else:
            size, got = int(request.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]), b""
            while len(got) < size:
                got += connection.recv(size - len(got))
        answers.append(got)
        echo(connection, request)

    return answer


def http2(connection, host, fields, *, path="/echo", trailers=None, end=True):
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    usual = [(":method", "POST" if trailers else "GET"), (":scheme", "https"), (":authority", host), (":path", path)]
    client.send_headers(1, [*usual, *fields], end_stream=end and not trailers)
    if trailers:
        client.send_headers(1, trailers, end_stream=True)
    connection.sendall(client.data_to_send())
    found, body = {}, b""
    while data := connection.recv(65536):
        for event in client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                found = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                return found, body
    return found, body
