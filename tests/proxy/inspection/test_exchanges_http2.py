"""The table of HTTP/2 exchanges on the wire, without a gate and through one gate: both sides receive the same."""

import contextlib
import socket
import ssl
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import pytest

from tests.proxy.inspection import exchanges
from tests.proxy.inspection.exchanges_http2 import EXCHANGES, REFUSED
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.proxy.inspection.smuggling import raw
from tests.proxy.inspection.test_exchanges import close_connection, documented


@dataclass
class Received:
    """The events that one side received on a stream."""

    informational: list = field(default_factory=list)
    head: tuple = ()
    body: bytes = b""
    trailers: tuple = ()
    end: object = None  # `end`, or the error code of a reset

    def add(self, event):
        match event:
            case h2.events.InformationalResponseReceived():
                self.informational.append(tuple(map(tuple, event.headers)))
            case h2.events.RequestReceived() | h2.events.ResponseReceived():
                self.head = tuple(map(tuple, event.headers))
            case h2.events.DataReceived():
                self.body += event.data
            case h2.events.TrailersReceived():
                self.trailers = tuple(map(tuple, event.headers))
            case h2.events.StreamEnded():
                self.end = "end"
            case h2.events.StreamReset():
                self.end = self.end or int(event.error_code)


class Peer(h2.connection.H2Connection):
    """An h2 connection without the check of Content-Length, which h2 also applies to a 304."""

    def _begin_new_stream(self, *arguments, **named):
        stream = super()._begin_new_stream(*arguments, **named)
        stream._initialize_content_length = lambda _headers: None
        return stream


def peer(*, client):
    """Return an HTTP/2 connection that validates nothing."""
    config = h2.config.H2Configuration(
        client_side=client, header_encoding="latin-1", validate_outbound_headers=False, validate_inbound_headers=False,
        normalize_outbound_headers=False, normalize_inbound_headers=False,
    )  # fmt: skip
    connection = Peer(config)
    connection.initiate_connection()
    return connection


def receive(side, data, received):
    """Yield the events of received data, and give credit for it."""
    for event in side.receive_data(data):
        if getattr(event, "stream_id", 1) in (0, 1):
            received.add(event)
        if isinstance(event, h2.events.DataReceived):
            side.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        yield event


def encoded(fields):
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]


class Sender:
    """Sends a message in pieces as credit allows."""

    def __init__(self, side, stream, body, trailers, reset=None):
        self.side, self.stream, self.body, self.trailers, self.reset = side, stream, body, trailers, reset
        self.over = False

    def go_on(self):
        while self.body and (size := min(self.side.local_flow_control_window(self.stream), 16384, len(self.body))):
            self.side.send_data(self.stream, self.body[:size])
            self.body = self.body[size:]
        if self.body or self.over:
            return
        self.over = True
        if self.reset is not None:
            self.side.reset_stream(self.stream, self.reset)
        elif self.trailers:
            self.side.send_headers(self.stream, encoded(self.trailers), end_stream=True)
        else:
            self.side.end_stream(self.stream)


class Http2ExchangeLab:
    """A server, a gate in front of it, and direct connections to the server."""

    def __init__(self, directory, origins):
        self.gate = GateLab(directory, origins)
        self.row = self.received = None
        self.origin = origins.script(self._answer, "good.example", tls=True, alpn=["h2"])
        self.site = make_site(self.gate, self.origin, http="{paths: ['/**'], body: true}")
        self._context = ssl.create_default_context(cadata=origins.authority.pem().decode())
        self._context.set_alpn_protocols(["h2"])

    def connect(self):
        """Connect to the server directly."""
        connection = socket.create_connection(("127.0.0.1", self.origin.port), 10)
        return self._context.wrap_socket(connection, server_hostname="good.example")

    def through(self):
        """Connect through the gate."""
        return self.site.connect(alpn=("h2",))

    def _answer(self, connection, data):
        side, row, received, sender = peer(client=False), self.row, self.received, None
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            while data:
                for event in receive(side, data, received):
                    if isinstance(event, h2.events.StreamEnded):
                        for fields in row.informational:
                            side.send_headers(event.stream_id, encoded(fields))
                        if row.answer:
                            side.send_headers(event.stream_id, encoded(row.answer))
                        content = row.content if row.answer else b""
                        sender = Sender(side, event.stream_id, content, row.behind, row.reset)
                if sender is not None:
                    sender.go_on()
                connection.sendall(side.data_to_send())
                data = connection.recv(65536)

    def pseudo(self, row):
        """Return the pseudo-headers of a request."""
        return (":method", row.method), (":scheme", "https"), (":authority", self.site.host), (":path", row.path)

    def run(self, connect, row):
        """Return what the client and the server receive."""
        self.row, self.received = row, Received()
        side, got = peer(client=True), Received()
        with connect() as connection:
            side.send_headers(1, encoded((*self.pseudo(row), *row.fields)))
            sender = Sender(side, 1, row.body, row.trailers)
            while got.end is None:
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    sender.go_on()
                connection.sendall(side.data_to_send())
                data = connection.recv(65536)
                assert data, got
                list(receive(side, data, got))
        return got, self.received


@pytest.fixture(scope="module")
def lab(tmp_path_factory, origins):
    lab = Http2ExchangeLab(tmp_path_factory.mktemp("wire"), origins)
    yield lab
    lab.gate.close()


@pytest.mark.parametrize("row", EXCHANGES, ids=[row.name for row in EXCHANGES])
def test_http2_exchange_is_unchanged_except_as_documented(lab, row):
    without = Received(list(row.informational), row.answer, row.content)
    if row.gets != REFUSED and row.why != "cuts":  # those the library itself doesn't take
        without, _ = lab.run(lab.connect, row)
        assert (without.head, without.body) == (row.answer, row.content if row.answer else b"")
    got, arrived = lab.run(lab.through, row)
    assert lab.gate.events("gate.error") == []
    if row.gets == REFUSED:
        assert (got.head[0], arrived.head) == ((":status", "400"), ())
        return
    arrives = row.fields if row.arrives is None else row.arrives
    assert sorted(arrived.head[:4]) == sorted(lab.pseudo(row))  # their order does not matter
    assert arrived.head[4:] == arrives
    assert (arrived.body, arrived.trailers) == (row.body, row.trailers)
    if row.gets is not None and dict(row.gets)[":status"] == "502":
        assert got.head[0] == (":status", "502")
        return
    assert got.head == (row.answer if row.gets is None else row.gets)
    if row.why not in {"leave to send", "one length"}:
        assert got.informational == without.informational
    assert (got.body, got.trailers) == (without.body, without.trailers)
    assert got.end == (without.end if row.ends is None else row.ends)


CONNECTION_FIELDS = {"connection", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"}


class Http1ServerLab(Http2ExchangeLab):
    """A gate between an HTTP/2 client and an HTTP/1.1 server."""

    def __init__(self, directory, origins):
        self.gate = GateLab(directory, origins)
        self.origin = origins.script(self._answer, "good.example", tls=True, alpn=["http/1.1"])
        self.site = make_site(self.gate, self.origin, http="{paths: ['/**'], body: true}")
        self.answer, self.ends, self.arrived = b"", "", b""

    def _answer(self, connection, data):
        self.arrived = data
        connection.sendall(self.answer)
        if self.ends:
            close_connection(connection, self.ends)
        return False

    def get(self, method):
        """Return what the client receives. Forgets known protocols first, so that the gate offers HTTP/2 again."""
        if (engine := self.gate.inspection._engine) is not None:
            engine.tls_contexts.known_protocols._only_http1.clear()
        side, got = peer(client=True), Received()
        crumbs = (("cookie", "a=1"), ("cookie", "b=2"))
        with self.through() as connection:
            fields = (
                (":method", method),
                (":scheme", "https"),
                (":authority", self.site.host),
                (":path", "/"),
                *crumbs,
            )
            side.send_headers(1, encoded(fields), end_stream=True)
            while got.end is None:
                connection.sendall(side.data_to_send())
                data = connection.recv(65536)
                assert data, got
                list(receive(side, data, got))
        return got


@pytest.fixture(scope="module")
def http1_server_lab(tmp_path_factory, origins):
    lab = Http1ServerLab(tmp_path_factory.mktemp("before"), origins)
    yield lab
    lab.gate.close()


def translate(text, method):
    """Translate an HTTP/1.1 answer to the heads, body and trailers that an HTTP/2 client must receive."""
    heads, rest = [], text
    while not heads or heads[-1][0][1][0] == "1":
        head, _, rest = rest.partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        fields = [line.partition(": ")[::2] for line in lines]
        fields = [(name.lower().rstrip(":"), value) for name, value in fields]
        heads.append(
            ((":status", status.split(" ")[1]), *(field for field in fields if field[0] not in CONNECTION_FIELDS))
        )
    trailers = ()
    if "transfer-encoding: chunked" in text.lower() and method != "HEAD":
        chunks, _, trailing = rest.partition("0\r\n")
        rest = "".join(chunks.split("\r\n")[1::2])
        trailers = tuple(tuple(line.split(": ")) for line in trailing.lower().split("\r\n") if line)
    return heads[:-1], heads[-1], rest.encode("latin-1"), trailers


WHOLE = [row for row in exchanges.ANSWERS if row.ends == exchanges.END and row.request in (exchanges.GET, exchanges.HEAD) and not isinstance(row.gets, exchanges.Page)]  # fmt: skip


@pytest.mark.parametrize("row", WHOLE, ids=[row.name for row in WHOLE])
def test_http1_response_arrives_translated_to_http2(http1_server_lab, row):
    method = row.request.split(" ")[0]
    http1_server_lab.answer, http1_server_lab.ends = raw(row.answer, http1_server_lab.site.host), row.server
    got = http1_server_lab.get(method)
    gets = raw(row.answer if row.gets is None else row.gets, http1_server_lab.site.host).decode("latin-1")
    informational, head, body, trailers = translate(gets, method)
    assert (got.informational, got.head, got.body, got.trailers) == (informational, head, body, trailers)
    assert got.end == "end"
    assert b"cookie: a=1; b=2\r\n" in http1_server_lab.arrived
    assert http1_server_lab.gate.events("gate.error") == []


def test_every_http2_difference_is_documented():
    assert {row.why for row in EXCHANGES if row.why} <= documented()
    differing = [row for row in EXCHANGES if row.gets is not None or row.arrives is not None or row.ends is not None]
    assert differing == [row for row in EXCHANGES if row.why]


def test_http2_exchanges_have_unique_names():
    assert len({row.name for row in EXCHANGES}) == len(EXCHANGES) >= 50
