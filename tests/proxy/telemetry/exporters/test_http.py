"""OTLP and webhook exporters against scripted servers: requests, receipts, credentials."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from proxy.telemetry.exporters.exporter import FORMATS, Item, RefusedError, TlsTrust, UnavailableError
from proxy.telemetry.exporters.http import Endpoint, HttpPoster, OtlpExporter, WebhookExporter
from proxy.telemetry.formats.decoded_event import read
from proxy.telemetry.journal.bookmark import Bookmark, Reader
from tests.lab.certificates import Authority
from tests.proxy.telemetry.exporters.export_lab import free_port, ids, write


class Receiver(ThreadingHTTPServer):
    """Keeps the requests it got, and answers with what `answer` returns: status, headers, body."""

    def __init__(self, tls=None):
        self.requests, self.answer = [], lambda: (200, {}, b"")
        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        status, headers, answer = self.server.answer()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(answer)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(tls=None):
    server = Receiver(tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def receiver():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _fresh(receiver):
    receiver.requests.clear()
    receiver.answer = lambda: (200, {}, b"")


@pytest.fixture
def items(tmp_path):
    write(tmp_path / "journal", ids(3))
    lines = Reader(tmp_path / "journal", Bookmark(tmp_path / "position.json")).read()
    return [Item(line.line, read(line.line)) for line in lines]


def poster(server, token=None, tls=None, host="127.0.0.1"):
    return HttpPoster(Endpoint(host, server.server_port, "/v1/logs", tls), token)


def secret(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_otlp_request_follows_the_protocol(receiver, items):
    OtlpExporter(poster(receiver)).send(items)
    ((path, headers, body),) = receiver.requests
    assert (path, headers["Content-Type"]) == ("/v1/logs", "application/x-protobuf")
    made = ExportLogsServiceRequest.FromString(body)
    assert sum(len(scope.log_records) for resource in made.resource_logs for scope in resource.scope_logs) == 4


def test_otlp_partial_success_is_a_refusal(receiver, items):
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 1
    receiver.answer = lambda: (200, {}, answer.SerializeToString())
    with pytest.raises(RefusedError, match="rejected 1 of 4 records"):
        OtlpExporter(poster(receiver)).send(items)


ANSWERS = [
    (200, {}, None), (202, {}, None), (204, {}, None),
    (400, {}, RefusedError), (413, {}, RefusedError), (422, {}, RefusedError),
    (401, {}, UnavailableError), (403, {}, UnavailableError), (404, {}, UnavailableError), (429, {"Retry-After": "7"}, UnavailableError),
    (500, {}, UnavailableError), (503, {"Retry-After": "tomorrow"}, UnavailableError), (301, {"Location": "/else"}, UnavailableError),
]  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "error"), ANSWERS)
def test_only_2xx_responses_count_as_delivered(receiver, items, status, headers, error):
    receiver.answer = lambda: (status, headers, b"")
    sink = WebhookExporter(poster(receiver), FORMATS["event"])
    if error is None:
        sink.send(items)
    else:
        with pytest.raises(error, match=str(status)) as raised:
            sink.send(items)
        if error is UnavailableError:
            assert raised.value.wait == (7.0 if headers.get("Retry-After") == "7" else None)
    assert len(receiver.requests) == 1  # no redirect is followed


def test_refused_connection_and_malformed_response_are_retried(receiver, items):
    with pytest.raises(UnavailableError, match="refused"):
        WebhookExporter(HttpPoster(Endpoint("127.0.0.1", free_port(), "/", None)), FORMATS["event"]).send(items)
    receiver.answer = lambda: (999999, {"X": "\x1b[2J"}, b"\x1b[2J")
    with pytest.raises(UnavailableError) as raised:
        WebhookExporter(poster(receiver), FORMATS["event"]).send(items)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("shape", ["event", "ocsf", "ecs"])
def test_webhook_gets_one_json_line_per_event_in_order(receiver, items, shape):
    WebhookExporter(poster(receiver), FORMATS[shape]).send(items)
    ((_, headers, body),) = receiver.requests
    assert headers["Content-Type"] == "application/x-ndjson"
    assert len([json.loads(line) for line in body.splitlines()]) == len(items)
    if shape == "event":
        assert body == b"".join(item.line for item in items)


def test_webhook_is_signed_and_a_retry_has_the_same_id(receiver, items, tmp_path):
    """Verified as Standard Webhooks requires: over `id.timestamp.body`."""
    raw = os.urandom(32)
    sink = WebhookExporter(
        poster(receiver), FORMATS["event"], secret(tmp_path / "key", f"whsec_{base64.b64encode(raw).decode()}\n")
    )
    sink.send(items)
    sink.send(items)
    (_, first, body), (_, second, _) = receiver.requests
    first, second = ({name.lower(): value for name, value in each.items()} for each in (first, second))
    what = f"{first['webhook-id']}.{first['webhook-timestamp']}.".encode() + body
    assert first["webhook-signature"] == "v1," + base64.b64encode(hmac.new(raw, what, hashlib.sha256).digest()).decode()
    assert first["webhook-id"] == second["webhook-id"]
    assert "." not in first["webhook-id"]


TOKENS = [("abc123\n", "Bearer abc123"), ("Splunk abc-123", "Splunk abc-123")]


@pytest.mark.parametrize(("text", "sent"), TOKENS)
def test_token_file_is_read_for_each_request(receiver, items, tmp_path, text, sent):
    path = secret(tmp_path / "token", "old")
    sink = WebhookExporter(poster(receiver, path), FORMATS["event"])
    sink.send(items)
    secret(path, text)
    sink.send(items)
    assert [headers["Authorization"] for _, headers, _ in receiver.requests] == ["Bearer old", sent]


BAD = {
    "open to others": ("hunter2", 0o644), "open to the group": ("hunter2", 0o640), "two lines": ("hunter2\r\nX: y", 0o600),
    "not ASCII": ("hunter2é", 0o600), "empty": ("\n", 0o600), "endless": ("hunter2" * 2000, 0o600),
}  # fmt: skip


@pytest.mark.parametrize(("text", "mode"), BAD.values(), ids=BAD)
def test_unsafe_or_malformed_token_is_never_sent_or_shown(receiver, items, tmp_path, text, mode):
    sink = WebhookExporter(poster(receiver, secret(tmp_path / "token", text, mode)), FORMATS["event"])
    with pytest.raises(UnavailableError) as raised:
        sink.send(items)
    assert "hunter2" not in str(raised.value)
    assert receiver.requests == []


@pytest.mark.parametrize("key", ["", "whsec_", "whsec_short", "no base64 at all, hunter2", "whsec_" + "A" * 8])
def test_malformed_webhook_key_is_refused(receiver, items, tmp_path, key):
    sink = WebhookExporter(poster(receiver), FORMATS["event"], secret(tmp_path / "key", key))
    with pytest.raises(UnavailableError) as raised:
        sink.send(items)
    assert "hunter2" not in str(raised.value)
    assert receiver.requests == []


def test_receiver_with_an_untrusted_certificate_is_refused(items, tmp_path):
    authority = Authority.make()
    (tmp_path / "ca.pem").write_bytes(authority.pem())
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    for kind, trust, passes in (
        ("good", trusting, True),
        ("good", ssl.create_default_context(), False),
        ("wrong-name", trusting, False),
        ("expired", trusting, False),
    ):
        (tmp_path / "leaf.pem").write_bytes(authority.leaf("127.0.0.1", kind=kind))
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(tmp_path / "leaf.pem")
        with serving(own) as server:
            sink = OtlpExporter(poster(server, secret(tmp_path / "token", "hunter2"), trust))
            if passes:
                sink.send(items)
            else:
                with pytest.raises(UnavailableError, match="certificate"):
                    sink.send(items)
            assert len(server.requests) == passes


def _webhook(server):
    from enforcer.approvals.notifications import DeliveryError, webhook

    send = webhook(f"https://127.0.0.1:{server.server_port}/", lambda _: {}, 30.0)
    return lambda _items: send(b"{}"), DeliveryError


def _exported(server):
    return OtlpExporter(poster(server, tls=TlsTrust())).send, UnavailableError


@pytest.mark.parametrize("made", [_webhook, _exported])
def test_changed_trust_of_the_host_applies_to_new_connections(items, tmp_path, monkeypatch, made):
    """Regression: the registry and the exporters kept the roots of their start, so a removed root stayed trusted."""
    theirs, other, bundle = Authority.make("Theirs"), Authority.make("Other"), tmp_path / "bundle.pem"
    (tmp_path / "leaf.pem").write_bytes(theirs.leaf("127.0.0.1"))
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "leaf.pem")
    bundle.write_bytes(other.pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    with serving(own) as server:
        send, refused = made(server)
        for pem, passes in ((other.pem(), False), (other.pem() + theirs.pem(), True), (other.pem(), False)):
            fresh = tmp_path / "fresh.pem"
            fresh.write_bytes(pem)
            os.replace(fresh, bundle)
            if passes:
                send(items)
            else:
                with pytest.raises(refused, match="certificate"):
                    send(items)
        assert len(server.requests) == 1


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_endless_response_times_out(begins, secure, tmp_path):
    authority = Authority.make("Theirs")
    (tmp_path / "leaf.pem").write_bytes(authority.leaf("127.0.0.1"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "leaf.pem")
    server, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip():
        sock, _ = server.accept()
        with contextlib.suppress(OSError), tls.wrap_socket(sock, server_side=True) if secure else sock as client:
            client.recv(65536)
            client.sendall(begins)
            while not over.wait(0.02):
                client.sendall(b"1")

    thread = threading.Thread(target=drip)
    thread.start()
    trusting = ssl.create_default_context(cadata=authority.pem().decode()) if secure else None
    place = Endpoint("127.0.0.1", server.getsockname()[1], "/", trusting)
    began = time.monotonic()
    try:
        with pytest.raises(UnavailableError, match="timed out"):
            HttpPoster(place, timeout=0.5).post(b"{}", {})
        assert time.monotonic() - began < 10
    finally:
        over.set()
        thread.join()
        server.close()
