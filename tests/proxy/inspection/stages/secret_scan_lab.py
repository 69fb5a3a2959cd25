"""An origin behind a gate that scans for secrets, and secrets to send to it."""

import json

import h2.config
import h2.connection

from proxy.secrets import SecretInjector, SecretValue
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.values.names import HostName
from tests.proxy.inspection.clients import read_all
from tests.proxy.inspection.inspection_lab import make_site
from tests.proxy.leaky import KINDS, TOKEN, some

VALUE = ("sk-" + some(45)).encode()
PLACEHOLDER = "sk-" + some(45)
JWT = next(row[1] for row in KINDS if row[0] == "jwt")
AWS = next(row[1] for row in KINDS if row[0] == "aws-access-key-id")
FILLER = b"nothing to be seen here\n" * 2000  # 48 KB


def make_scan_site(gate, origin, scan="", *, secrets=True, http="", tls=True):
    """A site whose rule has `scan`; the task has one secret, which belongs to another host."""
    site = make_site(gate, origin, tls=tls)
    kind = "tls" if tls else "http"
    more = (f", scan: {scan}" if scan else "") + (f", http: {http}" if http else "")
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/{kind}], action: allow{more}}}]"
    )
    if secrets:
        slot = Slot(SlotKind.HEADER, "x-api-key")
        secret = Secret("key", Source(SourceKind.ENV, ("X",)), "KEY", ((HostName("api.example"), 443),), (slot,))
        gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([SecretValue(secret, VALUE, PLACEHOLDER)])))
    return site


def head(line, *fields):
    return "\n".join([f"{line} HTTP/1.1", "Host: HOST", "Connection: close", *fields, "", ""])


def record_bodies(got, status=b"200 OK"):
    """Answer function that reads a whole body, by length or chunks, and appends it to `got`."""

    def answer(connection, request):
        lower = request.lower()
        data = b""
        got.append(data)
        if b"content-length:" in lower:
            size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
            while len(data) < size and (piece := connection.recv(65536)):
                data += piece
                got[-1] = data
        elif b"chunked" in lower:
            while not data.endswith(b"0\r\n\r\n") and (piece := connection.recv(65536)):
                data += piece
                got[-1] = data
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    return answer


def assert_no_secret_disclosed(gate, *answers):
    """Assert that no secret, nor a usable part of one, is in the journal or in an answer."""
    journal = json.dumps(gate.events())
    for secret in (TOKEN, VALUE.decode(), JWT, AWS):
        for form in (secret, secret[-12:], secret.encode().hex()[-24:], secret.encode().hex()[:24]):
            for text in (journal, *(answer.decode("latin-1") for answer in answers)):
                assert form.lower() not in text.lower()


def post(site, body, *fields, pieces=None):
    """Post a body in pieces; returns the answer, or nothing after a reset."""
    with site.connect() as connection:
        ask = head("POST /a", *fields) if fields else head("POST /a", f"Content-Length: {len(body)}")
        connection.sendall(ask.replace("HOST", site.host).replace("\n", "\r\n").encode())
        try:
            for piece in pieces or [body]:
                connection.sendall(piece)
            return read_all(connection)
        except ConnectionError:
            return b""


# --- HTTP/2, trailers, WebSocket ---


def http2(connection, host, *pieces, trailers=None):
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    usual = [(":method", "POST"), (":scheme", "https"), (":authority", host), (":path", "/echo")]
    client.send_headers(1, usual)
    for piece in pieces:
        client.send_data(1, piece)
    if trailers:
        client.send_headers(1, trailers, end_stream=True)
    else:
        client.end_stream(1)
    connection.sendall(client.data_to_send())
    status, body = None, b""
    while data := connection.recv(65536):
        for event in client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                status = dict(event.headers)[b":status"]
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                return status, body
    return status, body
