"""Requests that wait for their turn at an HTTP/2 server, which says how many streams it takes at a time."""

import threading

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hyperframe.frame import GoAwayFrame

from rules.attempt import Attempt, Protocol
from rules.names import HostName
from tests.proxy.inspection.http2_client import Client
from tests.proxy.inspection.inspection_clients import wait_for
from tests.proxy.inspection.inspection_harness import site


@pytest.fixture
def talk():
    clients = []

    def make(place):
        clients.append(Client(place))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def agree(server, connection):
    """Read until the other side has taken over how many streams there may be at a time."""
    settings = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
    while data := connection.recv(65536):
        for event in server.receive_data(data):
            if isinstance(event, h2.events.SettingsAcknowledged) and settings in event.changed_settings:
                return


def deny_two(gate, client, _stream):
    port = client.place.port
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{port}/tls], http: {{paths: [/one, /three]}}, "
        "action: allow}]"
    )
    attempt = Attempt(Protocol.TLS, HostName("good.example"), port, at=gate.sandbox.calendar.today())
    for one in gate.inspection._engine._connections.values():
        gate.loop.run(one.review, gate.sandbox.policy.decide(attempt))


def call_off(gate, client, stream):
    client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    client.flush()
    wait_for(lambda: gate.events("request.completed"))


@pytest.mark.parametrize(("end", "apart"), [(deny_two, True), (call_off, True), (call_off, False)])
def test_what_ends_while_it_waits_for_its_turn_never_gets_to_its_server(gate, origins, talk, end, apart):
    """A server says how many streams it takes at a time (RFC 9113 section 5.1.2); what was to follow is over by then."""
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
                        agree(server, connection)
                    seen.append(dict(event.headers)[":path"])
                    go_on.wait(10)
                    server.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            connection.sendall(server.data_to_send())
            data = connection.recv(65536)

    client = talk(site(gate, origins.script(answer, "good.example", tls=True, alpn=["h2"])))
    first = client.request("/one")
    wait_for(lambda: seen)
    second = client.request("/two", "POST", end=False)
    client.h2.send_data(second, b"secret", end_stream=True)
    if apart:  # else a request ends, and is called off, in one piece
        client.h2.ping(b"is it in")
        client.flush()
        client.wait(h2.events.PingAckReceived)
    wait_for(lambda: len(gate.decided()) == 2)
    end(gate, client, second)
    go_on.set()
    assert client.status(first) == "200"
    assert client.status(client.request("/three")) == "200"
    assert seen == ["/one", "/three"]


@pytest.mark.parametrize(
    "farewell", [b"", GoAwayFrame(0, last_stream_id=1, error_code=0).serialize()], ids=["cut", "GOAWAY"]
)
def test_what_waits_for_its_turn_at_a_server_that_leaves_goes_to_another(gate, origins, talk, farewell):
    seen, go_on = [], threading.Event()

    def answer(connection, head):
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        server.initiate_connection()
        server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        data, taken = head, []
        while data and not taken:
            events = server.receive_data(data)
            taken += [event for event in events if isinstance(event, h2.events.RequestReceived)]
            connection.sendall(server.data_to_send())
            data = taken or connection.recv(65536)
        if not seen:
            agree(server, connection)
        seen.extend(dict(event.headers)[":path"] for event in taken)
        go_on.wait(10)
        if farewell or len(seen) > 1:
            connection.sendall(farewell)
            server.send_headers(1, [(":status", "200")], end_stream=True)
            connection.sendall(server.data_to_send())
            connection.recv(65536)

    client = talk(site(gate, origins.script(answer, "good.example", tls=True, alpn=["h2"])))
    first = client.request("/one")
    wait_for(lambda: seen)
    others = [client.request("/two"), client.request("/two", "POST")]
    wait_for(lambda: len(gate.decided()) == 3)
    go_on.set()
    assert client.status(first) == ("200" if farewell else "502")
    assert [client.status(stream) for stream in others] == ["200", "502"]  # what may be repeated is (RFC 9110 9.2.2)
    assert seen == ["/one", "/two"]
