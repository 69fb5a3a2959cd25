"""Malformed HTTP/2 messages end only their own stream; others of the connection continue (RFC 9113 8.1.1)."""

import contextlib
import json

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest

from proxy.inspection import http2
from tests.proxy.inspection.clients import Client
from tests.proxy.inspection.inspection_lab import GateLab, make_site

OTHER = "a response that was under way"
REQUESTS = {
    "a space in a name": [("x ", "a")],
    "upper case in a name": [("X", "a")],
    "a field of the connection": [("connection", "close")],
    "a length of letters": [("content-length", "x")],
    "a pseudo-header behind a field": [("x", "y"), (":odd", "z")],
    "a break in a value": [("x", "a\r\nb: c")],
    "no path": [(":path", "")],
    "a user in the authority": [(":authority", "user@good.example")],
    "two authorities": [("host", "evil.example")],
}
RESPONSES = {
    "a field of the connection": [(":status", "200"), ("connection", "close")],
    "upper case in a name": [(":status", "200"), ("X", "a")],
    "no status": [("x", "y")],
    "a status of letters": [(":status", "abc")],
    "a length of letters": [(":status", "200"), ("content-length", "x")],
    "a break in a value": [(":status", "200"), ("x", "a\r\nb: c")],
}


class Server:
    """An HTTP/2 server that answers with the given fields, and answers `/other` when another request arrives."""

    def __init__(self, directory, origins):
        self.gate = GateLab(directory, origins)
        self.fields, self.body, self.refuses = [(":status", "200")], b"page", False
        self.origin = origins.script(self._answer, "good.example", tls=True, alpn=["h2"])
        self.site = make_site(self.gate, self.origin)

    def _answer(self, connection, preface):
        config = h2.config.H2Configuration(
            client_side=False, header_encoding="latin-1", validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )  # fmt: skip
        server = h2.connection.H2Connection(config)
        server.initiate_connection()
        others, data = [], preface
        with contextlib.suppress(OSError):
            while data:
                for event in server.receive_data(data):
                    if not isinstance(event, h2.events.RequestReceived):
                        continue
                    if dict(event.headers)[":path"] == "/other":
                        others.append(event.stream_id)
                        continue
                    if self.refuses:
                        self.refuses = False
                        server.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
                        continue
                    server.send_headers(event.stream_id, self.fields)
                    server.send_data(event.stream_id, self.body, end_stream=True)
                    for stream in others:
                        server.send_headers(stream, [(":status", "200")])
                        server.send_data(stream, OTHER.encode(), end_stream=True)
                    others.clear()
                connection.sendall(server.data_to_send())
                data = connection.recv(65536)


@pytest.fixture(scope="module")
def server(tmp_path_factory, origins):
    lab = Server(tmp_path_factory.mktemp("server"), origins)
    yield lab
    lab.gate.close()


@pytest.fixture
def client(server):
    server.fields, server.body = [(":status", "200")], b"page"
    connection = Client(server.site)
    yield connection
    connection.close()
    assert server.gate.events("gate.error") == []


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
def test_malformed_request_is_answered_400_and_others_continue(server, client, fields):
    other = client.request("/other")
    pseudo = dict(fields)
    stream = client.h2.get_next_available_stream_id()
    head = [(name, pseudo.pop(name, value)) for name, value in client.head("/")]
    client.h2.send_headers(stream, head + list(pseudo.items()), end_stream=True)
    client.flush()
    assert client.status(stream) == "400"
    assert json.loads(client.body(stream))["reason"] == "ambiguous_request"
    assert client.body(client.request("/")) == b"page"
    assert client.body(other) == OTHER.encode()


@pytest.mark.parametrize("fields", RESPONSES.values(), ids=RESPONSES)
def test_malformed_response_is_answered_502_and_others_continue(server, client, fields):
    server.fields = fields
    other = client.request("/other")
    stream = client.request("/")
    assert client.status(stream) == "502"
    problem = json.loads(client.body(stream))
    assert problem["reason"] == "upstream_failed"
    assert "`tls: splice`" in problem["remedy"]
    assert client.body(other) == OTHER.encode()


def test_body_shorter_than_its_length_is_delivered_and_then_reset(server, client):
    server.fields, server.body = [(":status", "200"), ("content-length", "1000")], b"page"
    other = client.request("/other")
    stream = client.request("/")
    client.wait(h2.events.StreamReset, stream)
    data = [e.data for e in client.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream]
    assert b"".join(data) == b"page"
    assert client.body(other) == OTHER.encode()


def test_whitespace_around_field_values_is_stripped(server, client):
    server.fields = [(":status", "200"), ("x", " a\t"), ("content-length", " 4 ")]
    stream = client.request("/", more=[("y", "\tb ")])
    fields = dict(client.wait(h2.events.ResponseReceived, stream).headers)
    assert (fields["x"], fields["content-length"], client.body(stream)) == ("a", "4", b"page")


def test_stream_refused_by_the_server_is_retried(server, client):
    assert client.body(client.request("/")) == b"page"
    server.refuses = True
    assert client.body(client.request("/")) == b"page"
    assert not server.refuses


def test_many_malformed_requests_end_their_connection(server, client, monkeypatch):
    """Each counts against the client like a reset stream."""
    monkeypatch.setattr(http2, "RESETS", 4)
    for _ in range(20):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, [*client.head("/"), ("X", "a")], end_stream=True)
    client.flush()
    ended = client.wait(h2.events.ConnectionTerminated)
    assert ended.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert sum(isinstance(event, h2.events.ResponseReceived) for event in client.events) < 10
