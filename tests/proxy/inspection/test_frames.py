"""Floods of HTTP/2 frames without progress, from clients and servers, end their own connection and no other."""

import contextlib
import ssl
from types import SimpleNamespace

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import pytest
from mitmproxy.proxy import events

from proxy.inspection import frames, http2
from proxy.inspection.connection_ends import ClientEnd
from proxy.inspection.frames import PATIENCE, REGAINED, BoundedH2Connection, FrameBudget
from proxy.request.messages import WebOrigin
from rules.values.names import HostName
from tests.proxy.inspection.clients import Client
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.support.waiting import wait_until

FLOOD_SIZE = 1500


def frame(kind, payload=b"", stream=0, flags=0):
    """Return a frame in the format of RFC 9113 section 4.1."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ONE = (1).to_bytes(4)

FLOODS = {  # sent while stream 1 is open or half-closed
    "SETTINGS, CVE-2019-9515": frame(SETTINGS) * FLOOD_SIZE,
    "SETTINGS that change every window": b"".join(
        frame(SETTINGS, b"\0\x04" + (60000 + n).to_bytes(4)) for n in range(FLOOD_SIZE)
    ),
    "unknown SETTINGS": b"".join(frame(SETTINGS, (n + 100).to_bytes(2) + ONE) for n in range(FLOOD_SIZE)),
    "PING, CVE-2019-9512": frame(PING, bytes(8)) * FLOOD_SIZE,
    "PING that answers": frame(PING, bytes(8), flags=1) * FLOOD_SIZE,
    "PRIORITY, CVE-2019-9513": frame(PRIORITY, bytes(4) + b"\x10", stream=3) * FLOOD_SIZE,
    "WINDOW_UPDATE of the connection": frame(WINDOW_UPDATE, ONE) * FLOOD_SIZE,
    "WINDOW_UPDATE of a stream": frame(WINDOW_UPDATE, ONE, stream=1) * FLOOD_SIZE,
    "frames of no known type": frame(0x42, b"x") * FLOOD_SIZE,
    "frames of no known type, of the connection": frame(0xFA) * FLOOD_SIZE,
}
FROM_CLIENTS = {
    **FLOODS,
    "empty DATA, CVE-2019-9518": frame(DATA, stream=1) * FLOOD_SIZE,
    "padded DATA with nothing in it": frame(DATA, b"\x04" + bytes(4), stream=1, flags=8) * FLOOD_SIZE,
}
HUGE = frame(HEADERS, b"\x82" * 100_000, stream=3) + frame(CONTINUATION, b"\x82" * 100_000, stream=3)
BOMB = frame(HEADERS, b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 30, stream=3, flags=4)
MALFORMED_HEADS = {  # incomplete or oversized heads
    "CONTINUATION, VU#421644": frame(HEADERS, b"\x82", stream=3) + frame(CONTINUATION, b"\x82", stream=3) * FLOOD_SIZE,
    "empty CONTINUATION": frame(HEADERS, stream=3) + frame(CONTINUATION, stream=3) * FLOOD_SIZE,
    "CONTINUATION of any size": HUGE,
    "HPACK that becomes 120 KB": BOMB,
    "a frame that will have 16 MB": frame(HEADERS, stream=3)[3:].rjust(9, b"\xff"),
}
BY_H2 = {
    "CONTINUATION, VU#421644": "ambiguous_request",
    "empty CONTINUATION": "ambiguous_request",
    "a frame that will have 16 MB": "ambiguous_request",
}


@pytest.fixture(scope="module")
def busy_gate(tmp_path_factory, origins):
    """A gate, an origin, and a second client whose connection must stay open."""
    gate = GateLab(tmp_path_factory.mktemp("busy"), origins)
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    other = Client(site)
    yield gate, origin, site, other
    other.close()
    gate.close()


@pytest.fixture(scope="module")
def server_gate(tmp_path_factory, origins):
    """A gate that tests use with one server after another."""
    gate = GateLab(tmp_path_factory.mktemp("lonely"), origins)
    yield gate
    gate.close()


def goaway_code(client):
    """Return the error code of the GOAWAY that ends the connection."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while not any(isinstance(event, h2.events.ConnectionTerminated) for event in client.events):
            client.read()
            if client.events and client.events[-1] is None:
                break
    found = [event for event in client.events if isinstance(event, h2.events.ConnectionTerminated)]
    client.close()
    return found[0].error_code if found else None


@pytest.mark.parametrize("flood", [*FROM_CLIENTS, *MALFORMED_HEADS])
def test_client_frame_flood_ends_only_its_own_connection(busy_gate, flood):
    gate, _, site, other = busy_gate
    decided, closed = len(gate.events("request.decided")), len(gate.closed)
    client = Client(site)
    client.request("/upload", "POST", end=False)
    wait_until(lambda: len(gate.events("request.decided")) == decided + 1)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        client.socket.sendall((FROM_CLIENTS | MALFORMED_HEADS)[flood])
    codes = h2.errors.ErrorCodes
    assert goaway_code(client) in (codes.ENHANCE_YOUR_CALM, codes.PROTOCOL_ERROR, codes.FRAME_SIZE_ERROR)
    wait_until(lambda: len(gate.closed) > closed)
    last = gate.events("request.decided")[-1]
    assert (last["outcome"], last["reason"]) == ("blocked", BY_H2.get(flood, "limit_exceeded"))
    assert gate.events("gate.error") == []
    assert other.status(other.request("/ok")) == "200"


def test_withheld_credit_is_dropped_when_the_connection_is_over():
    """Data received before the flood waits for its server; h2 refuses credit on a closed connection."""
    origin = WebOrigin(HostName("good.example"), 443, tls=True)
    session = SimpleNamespace(misread=lambda *_: None)
    front = http2.ClientSideHttp2(session, ClientEnd(origin), lambda _stream: True)
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    for command in front.handle_event(events.Start()):
        client.receive_data(command.data)
    client.send_headers(1, [(":method", "POST"), (":scheme", "https"), (":authority", "good.example"), (":path", "/")])
    sent = 0
    while room := min(client.local_flow_control_window(1), client.max_outbound_frame_size):
        client.send_data(1, b"x" * room)
        sent += room
    list(front.handle_event(events.DataReceived(front.conn, client.data_to_send())))
    assert front.withheld == {1: sent}
    list(front.handle_event(events.DataReceived(front.conn, frame(PING, b"of a wrong size"))))
    assert front.is_done
    front.stuck = lambda _stream: False
    assert list(front.return_credit()) == []
    assert front.withheld == {}


RESETS_BY = {  # client resets (CVE-2023-44487), and frames that make the gate reset (CVE-2025-8671)
    "rapid reset": lambda stream: frame(RST_STREAM, (8).to_bytes(4), stream),
    "a window that overflows": lambda stream: frame(WINDOW_UPDATE, (2**31 - 1).to_bytes(4), stream),
    "DATA behind the end": lambda stream: frame(DATA, b"x", stream),
    "HEADERS behind the end": lambda stream: frame(HEADERS, b"\x82", stream, 5),
    "a window increment of 0": lambda stream: frame(WINDOW_UPDATE, bytes(4), stream),
    "PRIORITY on itself": lambda stream: frame(PRIORITY, stream.to_bytes(4) + b"\x10", stream),
    "RST_STREAM of a wrong size": lambda stream: frame(RST_STREAM, b"x", stream),
}


@pytest.mark.parametrize("how", RESETS_BY)
def test_rapid_resets_end_the_connection(busy_gate, monkeypatch, how):
    monkeypatch.setattr(http2, "RESETS", 20)
    gate, origin, site, other = busy_gate
    requests, closed = len(origin.requests), len(gate.closed)
    client = Client(site)
    sent = client.h2.data_to_send()
    for _ in range(150):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, client.head("/slow/10/1"), end_stream=True)
        sent += client.h2.data_to_send() + RESETS_BY[how](stream)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        client.socket.sendall(sent)
    assert goaway_code(client) is not None
    wait_until(lambda: len(gate.closed) > closed)
    assert len(origin.requests) - requests < 100
    assert gate.events("request.decided")[-1]["outcome"] == "blocked"
    assert gate.events("gate.error") == []
    assert other.status(other.request("/ok")) == "200"


def test_frames_of_a_well_behaved_client_are_accepted(busy_gate):
    """Requests with priorities, credit for every byte read, and pings."""
    _, _, site, _ = busy_gate
    client = Client(site)
    for _ in range(60):
        stream = client.request("/bytes/2000")
        client.socket.sendall(frame(PRIORITY, bytes(4) + b"\x10", stream) * 10 + frame(PING, bytes(8)) * 10)
        while not any(isinstance(e, h2.events.StreamEnded) and e.stream_id == stream for e in client.events):
            client.read()
            for event in client.events:
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    client.h2.increment_flow_control_window(event.flow_controlled_length)
                    with contextlib.suppress(h2.exceptions.StreamClosedError):
                        client.h2.increment_flow_control_window(event.flow_controlled_length, event.stream_id)
            client.events = [event for event in client.events if not isinstance(event, h2.events.DataReceived)]
            client.flush()
    client.close()


def flooding_server(flood):
    """Return an answer function of an HTTP/2 server that floods before it answers."""

    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        server.initiate_connection()
        data, streams = head, []
        while not streams:
            streams += [e.stream_id for e in server.receive_data(data) if isinstance(e, h2.events.RequestReceived)]
            connection.sendall(server.data_to_send())
            data = b"" if streams else connection.recv(65536)
        connection.sendall(flood)
        server.send_headers(streams[0], [(":status", "200")], end_stream=True)
        connection.sendall(server.data_to_send())
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    return answer


EARLY_HINTS = frame(HEADERS, b"\x48\x03103", stream=1, flags=4)
FROM_SERVERS = {
    **FLOODS,
    "103 without end": EARLY_HINTS * FLOOD_SIZE,
    "103 and an end": frame(HEADERS, b"\x48\x03103", stream=1, flags=5),
    "CONTINUATION, VU#421644": frame(HEADERS, b"\x88", stream=1) + frame(CONTINUATION, b"\x88", stream=1) * FLOOD_SIZE,
    "CONTINUATION of any size": HUGE.replace(b"\0\0\0\x03", ONE),
    "PUSH_PROMISE that we forbade": frame(PUSH, (2).to_bytes(4) + b"\x82", stream=1, flags=4),
    "a window that overflows": frame(WINDOW_UPDATE, (2**31 - 1).to_bytes(4)),
    "a frame of 200 KB": frame(DATA, bytes(200_000), stream=1),
    "a response on an unknown stream": frame(HEADERS, b"\x88", stream=99, flags=4),
    "a request": frame(HEADERS, b"\x82\x84\x86", stream=2, flags=5),
    "HTTP/1 in the middle": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("flood", FROM_SERVERS)
def test_server_frame_flood_is_answered_502(server_gate, origins, flood):
    gate = server_gate
    completed = len(gate.events("request.completed"))
    site = make_site(gate, origins.script(flooding_server(FROM_SERVERS[flood]), "good.example", tls=True, alpn=["h2"]))
    client = Client(site)
    assert client.status(client.request("/")) == "502"
    client.close()
    wait_until(lambda: len(gate.events("request.completed")) > completed)
    assert gate.events("request.completed")[-1]["reason"] == "upstream_failed"
    assert gate.events("gate.error") == []


def test_frame_budget_refills_up_to_its_initial_size(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(frames.time, "monotonic", lambda: now[0])
    patience = FrameBudget()

    def borne():
        count = 0
        while patience.spend():
            count += 1
        return count

    patience.earn(5 * PATIENCE)
    assert borne() == PATIENCE
    now[0] += 10.0
    assert borne() == 10 * REGAINED
    now[0] += 1e9
    assert borne() == PATIENCE


def test_window_updates_for_sent_data_do_not_spend_the_budget():
    """Real servers give credit for every half kilobyte, on the stream and on the connection."""
    client = h2.connection.H2Connection(h2.config.H2Configuration())
    server = BoundedH2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    client.send_headers(
        1, [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/")], end_stream=True
    )
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200")])
    server.send_data(1, bytes(60_000))
    both = frame(WINDOW_UPDATE, (64).to_bytes(4)) + frame(WINDOW_UPDATE, (64).to_bytes(4), 1)
    server.receive_data(both * 937)  # 59,968 bytes
    server.receive_data(both * (int(PATIENCE) // 2))
    with pytest.raises(h2.exceptions.DenialOfServiceError):
        server.receive_data(both * 20)


def test_unknown_settings_are_not_stored():
    server = BoundedH2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    unknown = b"".join(n.to_bytes(2) + ONE for n in range(1000, 11000))
    server.receive_data(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, unknown))
    assert len(server.remote_settings) < 10


@pytest.mark.parametrize(("allowed", "size"), [(1 << 31, 4096), (4096, 4096), (100, 100), (0, 0)])
def test_header_table_size_is_bounded(allowed, size):
    """A peer may allow 4 GB, which would be stored outside the quota and searched for each field."""
    client = h2.connection.H2Connection(h2.config.H2Configuration())
    server = BoundedH2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: allowed})
    server.initiate_connection()
    for stream in range(1, 101, 2):
        request_head = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/")]
        client.send_headers(stream, request_head, end_stream=True)
        server.receive_data(client.data_to_send())
        fields = [(f"x-{stream}-{number}", "v" * 200) for number in range(20)]
        server.send_headers(stream, [(":status", "200"), *fields], end_stream=True)
        (answer,) = (
            event
            for event in client.receive_data(server.data_to_send())
            if isinstance(event, h2.events.ResponseReceived)
        )
        assert [(name.decode(), value.decode()) for name, value in answer.headers[1:]] == fields
    assert server.encoder.header_table_size == size
    assert sum(len(n) + len(v) + 32 for n, v in server.encoder.header_table.dynamic_entries) <= size


def test_finished_streams_to_a_server_are_forgotten(monkeypatch, busy_gate):
    """A task may send a million requests on one connection."""
    gate, _, site, _ = busy_gate
    monkeypatch.setattr(http2, "REMEMBERED", 20)
    client = Client(site)
    before = set(gate.inspection._engine._connections.values())
    for _ in range(60):
        client.body(client.request("/ok"))
    (connection,) = [
        c for c in gate.inspection._engine._connections.values()
        if any(len(back.our_stream_id) and back.h2_conn.highest_outbound_stream_id > 100 for back in [server.codec for server in c._http.servers])
    ]  # fmt: skip
    assert connection in before | {connection}
    (back,) = [server.codec for server in connection._http.servers]
    assert len(back.our_stream_id) <= 21
    assert len(back.their_stream_id) <= 21
    client.close()
