"""HTTP/2: malformed heads, flow control, leaving servers, and requests that wait for a free stream."""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame

from proxy.inspection import http2
from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from tests.proxy.inspection.clients import Client, resident_memory
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def connect_http2():
    clients = []

    def make(site, **settings):
        clients.append(Client(site, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_http2_streams_are_decided_one_by_one(gate, origins, connect_http2):
    origin = origins.web("good.example")
    site = make_site(gate, origin, http='{paths: ["/ok/**"]}')
    client = connect_http2(site)
    streams = [client.request(path) for path in ("/ok/1", "/no", "/ok/2")]
    assert [client.status(stream) for stream in streams] == ["200", "403", "200"]
    assert b'"reason": "no_rule"' in client.body(streams[1])
    assert sorted(request.target for request in origin.requests) == ["/ok/1", "/ok/2"]
    assert origin.connections == 1


@pytest.fixture
def small_discard_limit(monkeypatch):
    monkeypatch.setattr(http2, "TAKEN_IN", 4 * MIB)


@pytest.mark.usefixtures("small_discard_limit")
@pytest.mark.parametrize(("size", "stopped"), [(2 * MIB, False), (6 * MIB, True)])
def test_body_behind_a_denial_is_discarded_up_to_a_limit(gate, origins, connect_http2, size, stopped):
    """Some clients read the answer only after they have sent everything, so the gate gives them credit."""
    origin = origins.web("good.example")
    client = connect_http2(make_site(gate, origin, http='{methods: [GET], paths: ["/ok"]}'))
    stream = client.request("/no", "POST", end=False)
    sent = 0
    while sent < size and not any(isinstance(event, h2.events.StreamReset) for event in client.events):
        room = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size, size - sent)
        if room:
            client.h2.send_data(stream, bytes(room))
            client.flush()
            sent += room
        else:
            client.read()
    if stopped:
        assert client.wait(h2.events.StreamReset, stream).error_code == h2.errors.ErrorCodes.NO_ERROR
    else:
        client.h2.end_stream(stream)
        client.flush()
    assert client.status(stream) == "403"
    assert client.status(client.request("/ok")) == "200"
    assert [request.target for request in origin.requests] == ["/ok"]


def test_other_authority_is_answered_421_and_the_connection_stays_open(gate, origins, connect_http2):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    client = connect_http2(site)
    assert client.status(client.request(authority=f"evil.example:{site.port}")) == "421"
    assert client.status(client.request(authority="good.example")) == "421"
    assert client.status(client.request("/ok")) == "200"
    assert [request.target for request in origin.requests] == ["/ok"]


@pytest.mark.parametrize(
    "more",
    [
        {"authority": "", "more": ()},
        {"more": (("host", "evil.example"),)},
        {"more": (("transfer-encoding", "chunked"),)},
        {"more": (("connection", "host"),)},
        {"more": (("x", "a\r\nhost: evil.example"),)},
        {"more": (("x y", "a"),)},
        {"more": (("X", "a"),)},
        {"more": ((":path", "/again"),)},
        {"path": "/ HTTP/1.1\r\nhost: evil.example\r\n\r\nGET /x"},
        {"path": ""},
        {"path": "relative"},
        {"method": "GET / HTTP/1.1\r\nx:"},
        {"method": "CONNECT"},
        {"more": (("content-length", "3"), ("content-length", "4"))},
    ],
    ids=range(14),
)
def test_malformed_or_misleading_http2_heads_are_refused(gate, origins, connect_http2, more):
    origin = origins.web("good.example", alpn=["http/1.1"])
    client = connect_http2(make_site(gate, origin))
    client.request(**more)
    wait_until(lambda: gate.events("request.decided"))
    assert gate.decided()[0][2:] in (
        ("blocked", "ambiguous_request"), ("blocked", "protocol_mismatch"), ("blocked", "name_mismatch"),
    )  # fmt: skip
    assert origin.connections == 0


def test_garbage_in_place_of_the_preface_is_refused_and_recorded(gate, origins):
    site = make_site(gate, origins.web("good.example"))
    with site.connect(alpn=("h2",)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        while connection.recv(65536):
            pass
    assert gate.decided()[0][2:] == ("blocked", "ambiguous_request")


def test_hundred_event_streams_use_a_hundred_http1_connections(gate, origins, connect_http2):
    """Each stream has its own connection and none waits; mitmproxy would use five."""
    origin = origins.web("good.example", alpn=["http/1.1"])
    client = connect_http2(make_site(gate, origin))
    streams = [client.request("/slow/2/0.3") for _ in range(100)]
    assert {client.status(stream) for stream in streams} == {"200"}
    for stream in streams:
        client.body(stream)
    assert origin.connections == 100


def test_server_connections_of_one_client_stay_within_the_quota(gate, origins, connect_http2):
    """The quota is that of the sandbox: streams of one client must not use up the descriptors of others."""
    origin = origins.web("good.example", alpn=["http/1.1"])
    site = make_site(gate, origin)
    quota = gate.dialer.descriptors
    quota.has_room = lambda: quota.extra < 3
    client = connect_http2(site)
    streams = [client.request("/slow/2/0.3") for _ in range(10)]
    answers = Counter(client.status(stream) for stream in streams)
    assert (answers["200"], answers.total(), origin.connections) == (4, 10, 4)
    assert quota.extra == 3
    for stream in streams:
        client.body(stream)
    failed = [event for event in gate.events("request.completed") if event["outcome"] == "failed"]
    assert {event["reason"] for event in failed} == {"limit_exceeded"}
    assert len(failed) == 6
    assert client.status(client.request("/ok")) == "200"
    client.close()
    gate.wait_closed()
    wait_until(lambda: quota.extra == 0)


def test_finished_server_connections_are_forgotten(gate, origins, connect_http2):
    client = connect_http2(make_site(gate, origins.web("good.example", alpn=["http/1.1"])))
    for _ in range(30):
        stream = client.request("/ok")
        client.body(stream)
    conversation = next(iter(gate.inspection._engine._connections.values()))
    wait_until(lambda: len(conversation._http.servers) <= 1)
    assert len(conversation._http.streams) == 0
    assert len(conversation.transports) <= 2


@pytest.mark.parametrize("alpn", [["h2"], ["http/1.1"]], ids=str)
def test_unread_stream_buffers_its_window_and_blocks_no_other(gate, origins, connect_http2, alpn):
    site = make_site(gate, origins.web("good.example", alpn=alpn))
    client = connect_http2(site)
    before = resident_memory()
    stalled = client.request(f"/bytes/{200 * MIB}")
    assert client.status(stalled) == "200"
    read = 0
    while read < 65535:  # the initial window; h2 gives no credit by itself
        client.read()
        read = sum(len(e.data) for e in client.events if isinstance(e, h2.events.DataReceived))
    for _ in range(5):
        other = client.request("/ok")
        # the window of the connection is used up as well: give credit for the connection alone
        client.h2.increment_flow_control_window(65535)
        client.flush()
        assert client.status(other) == "200"
        client.body(other)
    time.sleep(0.3)
    assert resident_memory() - before < 40 * MIB
    assert read < MIB
    client.h2.reset_stream(stalled)
    client.flush()
    assert client.status(client.request("/ok")) == "200"


def test_stalled_download_continues_when_credit_is_given(gate, origins, connect_http2):
    client = connect_http2(make_site(gate, origins.web("good.example")))
    stream = client.request(f"/bytes/{12 * MIB}")
    client.status(stream)
    time.sleep(0.2)
    got, acknowledged = 0, 0
    while not any(isinstance(event, h2.events.StreamEnded) for event in client.events):
        client.read()
        for event in client.events:
            if isinstance(event, h2.events.DataReceived):
                got += len(event.data)
                client.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                acknowledged += 1
        client.events = [event for event in client.events if not isinstance(event, h2.events.DataReceived)]
        client.flush()
    assert got == 12 * MIB


@pytest.mark.parametrize("alpn", [["h2"], ["http/1.1"]], ids=str)
def test_upload_that_the_server_does_not_read_gets_no_more_credit(gate, origins, connect_http2, alpn):
    """A stuck upload does not use up the credit of others, over HTTP/1 and HTTP/2."""
    if alpn == ["h2"]:
        origin = origins.silent_http2("good.example")
    else:
        origin = origins.script(lambda *_: time.sleep(4), "good.example", tls=True, alpn=alpn)
    client = connect_http2(make_site(gate, origin))
    before = resident_memory()
    stream = client.request("/stuck", method="POST", end=False)
    sent = 0
    client.socket.settimeout(0.7)
    with contextlib.suppress(TimeoutError):
        while sent < 100 * MIB:
            window = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size)
            if window:
                client.h2.send_data(stream, b"x" * window)
                sent += window
                client.flush()
            else:
                client.read()
    assert sent < 15 * MIB
    assert resident_memory() - before < 50 * MIB


def test_streams_before_a_goaway_finish_and_the_next_uses_a_new_connection(gate, origins, connect_http2):
    """GOAWAY names the last stream that the server handles (RFC 9113 section 6.8); later requests use a new connection."""

    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        server.initiate_connection()
        data, streams = head, []
        while data:
            streams += [e.stream_id for e in server.receive_data(data) if isinstance(e, h2.events.RequestReceived)]
            connection.sendall(server.data_to_send())
            if len(streams) == 2:
                break
            data = connection.recv(65536)
        goaway = b"\0\0\x08\x07\0\0\0\0\0" + streams[-1].to_bytes(4) + bytes(4)
        connection.sendall(goaway)
        for stream in streams:
            server.send_headers(stream, [(":status", "200")])
            server.send_data(stream, b"done", end_stream=True)
        connection.sendall(server.data_to_send())
        connection.recv(65536)

    origin = origins.script(answer, "good.example", tls=True, alpn=["h2"])
    client = connect_http2(make_site(gate, origin))
    for _ in range(2):
        streams = [client.request(), client.request()]
        assert [client.status(stream) for stream in streams] == ["200", "200"]
        assert [client.body(stream) for stream in streams] == [b"done", b"done"]
    assert origin.connections == 2


UNFINISHED = {  # path: response head and body, left open, and the outcome recorded when the client leaves
    "/whole": ([(":status", "200"), ("content-length", "4")], b"done", ("passed", 200)),
    "/empty": ([(":status", "404"), ("content-length", "0")], b"", ("passed", 404)),
    "/bodiless": ([(":status", "204")], b"", ("passed", 204)),
    "/short": ([(":status", "200"), ("content-length", "5")], b"done", ("failed", 200)),
    "/no-length": ([(":status", "203")], b"done", ("passed", 203)),
}


def reset(client):
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


def reset_streams(client):
    for stream in list(client.h2.streams):
        client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    client.flush()


@pytest.mark.parametrize("leave", [reset, reset_streams, Client.close])
def test_client_that_leaves_is_recorded_by_the_declared_length(gate, origins, connect_http2, leave):
    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        server.initiate_connection()
        data = head
        while data:
            for event in server.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers, body, _ = UNFINISHED[dict(event.headers)[":path"]]
                    server.send_headers(event.stream_id, headers)
                    if body:
                        server.send_data(event.stream_id, body)
            connection.sendall(server.data_to_send())
            data = connection.recv(65536)

    client = connect_http2(make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["h2"])))
    for path, (_, body, _) in UNFINISHED.items():
        stream = client.request(path)
        client.status(stream)
        if body:
            client.wait(h2.events.DataReceived, stream)
    leave(client)
    wait_until(lambda: len(gate.events("request.completed")) == len(UNFINISHED))
    outcomes = {e["http"]["path"]: (e["outcome"], e["http"].get("status")) for e in gate.events("request.completed")}
    assert outcomes == {path: what for path, (_, _, what) in UNFINISHED.items()}


def reset_stream(client, stream):
    client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)


def send_behind_end(client, stream):
    """Send data behind the end, which the gate answers with a reset (RFC 9113 section 5.1)."""
    client.h2._data_to_send += DataFrame(stream, b"more").serialize()


def close_with_error(client, _stream):
    client.h2.close_connection(h2.errors.ErrorCodes.INTERNAL_ERROR)


@pytest.mark.parametrize("end", [reset_stream, send_behind_end, close_with_error])
def test_request_reset_in_one_piece_with_its_end_is_not_sent(gate, origins, connect_http2, end):
    seen, over = [], threading.Event()

    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        server.initiate_connection()
        data = head
        while data:
            for event in server.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    seen.append(dict(event.headers)[":path"])
                    if seen == ["/first"]:
                        server.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            connection.sendall(server.data_to_send())
            try:
                data = connection.recv(65536)
            except ConnectionResetError:
                break
        over.set()

    client = connect_http2(make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["h2"])))
    assert client.status(client.request("/first")) == "200"
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, client.head("/second"), end_stream=True)
    end(client, stream)
    client.flush()
    wait_until(lambda: len(gate.events("request.completed")) == 2)
    assert [(e["http"]["path"], e["outcome"]) for e in gate.events("request.completed")] == [
        ("/first", "passed"),
        ("/second", "failed"),
    ]
    client.close()
    assert over.wait(30)
    assert seen == ["/first"]


def test_response_trailers_reach_an_http2_client(gate, origins, connect_http2):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
        return True

    client = connect_http2(make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])))
    stream = client.request("/")
    client.body(stream)
    assert client.wait(h2.events.TrailersReceived, stream).headers == [("x-sum", "7")]


def test_http2_settings_limit_streams_and_windows(gate, origins, connect_http2):
    client = connect_http2(make_site(gate, origins.web("good.example")))
    changed = client.wait(h2.events.RemoteSettingsChanged).changed_settings
    assert changed[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 100
    assert changed[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE].new_value == MIB


# --- requests that wait for a free stream ---


def read_settings_ack(server, connection):
    """Read until the gate has acknowledged the limit of concurrent streams."""
    settings = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
    while data := connection.recv(65536):
        for event in server.receive_data(data):
            if isinstance(event, h2.events.SettingsAcknowledged) and settings in event.changed_settings:
                return


def deny_two(gate, client, _stream):
    port = client.site.port
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{port}/tls], http: {{paths: [/one, /three]}}, "
        "action: allow}]"
    )
    attempt = Attempt(Protocol.TLS, HostName("good.example"), port, at=gate.sandbox.calendar.today())
    for one in gate.inspection._engine._connections.values():
        gate.loop.run(one.review, gate.sandbox.policy.decide(attempt))


def cancel(gate, client, stream):
    client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    client.flush()
    wait_until(lambda: gate.events("request.completed"))


@pytest.mark.parametrize(("end", "separate"), [(deny_two, True), (cancel, True), (cancel, False)])
def test_request_ended_while_it_waits_for_a_stream_is_not_sent(gate, origins, connect_http2, end, separate):
    """The server limits concurrent streams (RFC 9113 section 5.1.2), and the waiting request ends before its turn."""
    seen, go_on = [], threading.Event()

    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        server.initiate_connection()
        server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        data = head
        while data:
            for event in server.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    connection.sendall(server.data_to_send())
                    if not seen:
                        read_settings_ack(server, connection)
                    seen.append(dict(event.headers)[":path"])
                    go_on.wait(10)
                    server.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            connection.sendall(server.data_to_send())
            data = connection.recv(65536)

    client = connect_http2(make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["h2"])))
    first = client.request("/one")
    wait_until(lambda: seen)
    second = client.request("/two", "POST", end=False)
    client.h2.send_data(second, b"secret", end_stream=True)
    if separate:  # otherwise the request and its reset arrive in one piece
        client.h2.ping(b"is it in")
        client.flush()
        client.wait(h2.events.PingAckReceived)
    wait_until(lambda: len(gate.decided()) == 2)
    end(gate, client, second)
    go_on.set()
    assert client.status(first) == "200"
    assert client.status(client.request("/three")) == "200"
    assert seen == ["/one", "/three"]


@pytest.mark.parametrize(
    "farewell", [b"", GoAwayFrame(0, last_stream_id=1, error_code=0).serialize()], ids=["cut", "GOAWAY"]
)
def test_waiting_requests_move_to_another_connection_if_repeatable(gate, origins, connect_http2, farewell):
    seen, go_on = [], threading.Event()

    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        server.initiate_connection()
        server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        data, requests = head, []
        while data and not requests:
            events = server.receive_data(data)
            requests += [event for event in events if isinstance(event, h2.events.RequestReceived)]
            connection.sendall(server.data_to_send())
            data = requests or connection.recv(65536)
        if not seen:
            read_settings_ack(server, connection)
        seen.extend(dict(event.headers)[":path"] for event in requests)
        go_on.wait(10)
        if farewell or len(seen) > 1:
            connection.sendall(farewell)
            server.send_headers(1, [(":status", "200")], end_stream=True)
            connection.sendall(server.data_to_send())
            connection.recv(65536)

    client = connect_http2(make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["h2"])))
    first = client.request("/one")
    wait_until(lambda: seen)
    others = [client.request("/two"), client.request("/two", "POST")]
    wait_until(lambda: len(gate.decided()) == 3)
    go_on.set()
    assert client.status(first) == ("200" if farewell else "502")
    assert [client.status(stream) for stream in others] == ["200", "502"]  # what may be repeated is (RFC 9110 9.2.2)
    assert seen == ["/one", "/two"]
