"""Corpus of malformed HTTP/2 responses. Only HTTP/2 clients receive any of them."""

import contextlib
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
import pytest

from tests.proxy.inspection.clients import Client
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.support.waiting import wait_until

OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
PASSED, FAILED, CUT = "passed", "failed", "cut"  # whole, as it was meant; a page with 502; not to be taken for whole


class Case(NamedTuple):
    name: str
    outcome: str
    head: list  # of (name, value); empty: the server sends no head
    body: tuple = ()  # pieces; None: a reset
    trailers: list | None = None
    method: str = "GET"


def ok(*fields, status="200"):
    return [(":status", status), *fields]


CASES = [
    Case("a body without a length", PASSED, ok(), (b"page",)),
    Case("a body with a length", PASSED, ok(("content-length", "4")), (b"page",)),
    Case("a body longer than it says", CUT, ok(("content-length", "4")), (b"page", OTHER)),
    Case("a body shorter than it says", CUT, ok(("content-length", "40")), (b"page",)),
    Case("two lengths", FAILED, ok(("content-length", "4"), ("content-length", "5")), (b"page",)),
    Case("a length with a plus", FAILED, ok(("content-length", "+4")), (b"page",)),
    Case("204", PASSED, ok(status="204")),
    Case("204 with a response for a body", CUT, ok(status="204"), (OTHER,)),
    Case("304 with a response for a body", CUT, ok(status="304"), (OTHER,)),
    Case("HEAD", PASSED, ok(("content-length", "40")), method="HEAD"),
    Case("HEAD with a response for a body", CUT, ok(), (OTHER,), method="HEAD"),
    Case("a break in a value", FAILED, ok(("x", "a\r\nset-cookie: b")), (b"page",)),
    Case("a break in a value, and no more", FAILED, ok(("x", "a\r\n\r\nHTTP/1.1 200 OK"))),
    Case("a bare CR in a value", FAILED, ok(("x", "a\rb")), (b"page",)),
    Case("a NUL in a value", FAILED, ok(("x", "a\0b")), (b"page",)),
    Case("a break in a name", FAILED, ok(("x: y\r\nset-cookie", "b")), (b"page",)),
    Case("upper case in a name", FAILED, ok(("X", "a")), (b"page",)),
    Case("a name that is no token", FAILED, ok(("x(y)", "a")), (b"page",)),
    Case("transfer-encoding", FAILED, ok(("transfer-encoding", "chunked")), (b"page",)),
    Case("connection", FAILED, ok(("connection", "close")), (b"page",)),
    Case("no status", FAILED, [("x", "y")], (b"page",)),
    Case("two statuses", FAILED, ok((":status", "200")), (b"page",)),
    Case("a status of letters", FAILED, ok(status="abc"), (b"page",)),
    Case("a status of two digits", FAILED, ok(status="42"), (b"page",)),
    Case("a status of four digits", FAILED, ok(status="2000"), (b"page",)),
    Case("a status with a sign", FAILED, ok(status="-200"), (b"page",)),
    Case("101", FAILED, ok(status="101"), (b"page",)),
    Case("a path in a response", FAILED, ok((":path", "/")), (b"page",)),
    Case("a body without a head", FAILED, [], (b"page",)),
    Case("a body that breaks off", CUT, ok(), (b"page", None)),
    Case("a body with a length that breaks off", CUT, ok(("content-length", "4")), (b"page", None)),
    Case("a trailer that frames", PASSED, ok(), (b"page",), [("content-length", "9")]),
    Case("a break in a trailer", CUT, ok(), (b"page",), [("x", "a\r\nb: c")]),
    Case("a status for a trailer", CUT, ok(), (b"page",), [(":status", "200")]),
]  # fmt: skip


class Http2ResponseSmugglingLab:
    """A gate, and an HTTP/2 server that answers as the current case says."""

    def __init__(self, directory, origins):
        self.gate = GateLab(directory, origins)
        self.case = None
        self.origin = origins.script(self._answer, "good.example", tls=True, alpn=["h2"])
        self.site = make_site(self.gate, self.origin)

    def _answer(self, connection, data):
        if data.startswith(b"GET "):
            return
        config = h2.config.H2Configuration(
            client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        server = h2.connection.H2Connection(config)
        server.initiate_connection()
        streams = []
        while data and not streams:
            streams += [e.stream_id for e in server.receive_data(data) if isinstance(e, h2.events.RequestReceived)]
            connection.sendall(server.data_to_send())
            data = b"" if streams else connection.recv(65536)
        if streams:
            for piece in self._pieces(server, streams[0]):
                connection.sendall(piece)
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    def _pieces(self, server, stream):
        case = self.case
        if case.head:
            server.send_headers(stream, case.head, end_stream=not case.body)
        for number, piece in enumerate(case.body, 1):
            yield server.data_to_send()
            end = number == len(case.body) and case.trailers is None
            if piece is None:
                server.reset_stream(stream, 2)
            elif case.head:
                server.send_data(stream, piece, end_stream=end)
            else:
                yield len(piece).to_bytes(3) + b"\0\1" + stream.to_bytes(4) + piece
        if case.trailers is not None:
            yield server.data_to_send()
            server.send_headers(stream, case.trailers, end_stream=True)
        yield server.data_to_send()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, origins):
    lab = Http2ResponseSmugglingLab(tmp_path_factory.mktemp("wire"), origins)
    yield lab
    lab.gate.close()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_smuggled_http2_response_arrives_as_meant_or_is_cut(lab, case):
    lab.case = case
    completed = len(lab.gate.events("request.completed"))
    client = Client(lab.site)
    stream = client.request("/", case.method)
    while not any(isinstance(e, h2.events.StreamEnded | h2.events.StreamReset) for e in client.events):
        client.read()
    status = dict(client.wait(h2.events.ResponseReceived, stream).headers)[":status"]
    whole = any(isinstance(event, h2.events.StreamEnded) for event in client.events)
    if case.outcome == PASSED:
        assert (status, whole) == (dict(case.head)[":status"], True)
        assert client.body(stream) == b"".join(case.body)
    elif case.outcome == FAILED:
        assert status == "502"
    else:
        assert status == "502" or not whole
    client.close()
    wait_until(lambda: len(lab.gate.events("request.completed")) > completed)
    assert lab.gate.events("gate.error") == []


def test_http1_client_is_served_over_http1(lab):
    """So that no HTTP/2 frame is ever written to an HTTP/1 client."""
    before = len(lab.origin.requests)
    with lab.site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {lab.site.host}\r\nConnection: close\r\n\r\n".encode())
        wait_until(lambda: len(lab.origin.requests) > before)
    assert lab.origin.requests[-1].startswith(b"GET / HTTP/1.1\r\n")
