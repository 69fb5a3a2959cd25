"""The buffers of all connections of a sandbox stay within one quota, whatever clients leave unread."""

import contextlib
import select
import socket
import time

import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes

from proxy.dialing.dialer import Dialer
from proxy.inspection import connection_ends
from proxy.inspection.connection_ends import MemoryQuota
from proxy.inspection.http2 import Leaving
from proxy.inspection.transport import Transport
from tests.proxy.inspection.clients import MIB, Client
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until


class FakeConnection:
    """A connection that reports this many buffered bytes."""

    def __init__(self, kept=0):
        self.kept, self.actual, self.ended = 0, kept, False

    def weigh(self):
        return self.actual

    def overflow(self):
        self.ended = True


def client_without_credit(site):
    """A client that gives no credit for bodies."""
    client = Client(site)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    return client


def test_connection_with_the_most_buffered_bytes_is_ended():
    connections = [FakeConnection(n) for n in (10, 40, 20, 30, 5)]
    quota = MemoryQuota(lambda: [one for one in connections if not one.ended], most=100)
    for one in connections[:4]:
        quota.note(one, one.actual)
    assert quota.kept == 100
    assert not any(one.ended for one in connections)
    connections[2].actual = 0  # its socket has accepted the bytes
    quota.note(connections[4], 5)
    assert [one.ended for one in connections] == [False, True, False, False, False]
    assert quota.kept == 45
    quota.leave(connections[1])
    assert quota.kept == 45


def test_buffers_of_clients_that_do_not_read_stay_within_the_quota(gate, origins):
    """Without the quota each of these connections would buffer 16 MB; a task may have thousands."""
    site = make_site(gate, origins.web("good.example", tls=True))
    clients = []
    for _ in range(6):
        clients.append(client_without_credit(site))
        for _ in range(4):
            clients[-1].request("/bytes/16000000")
    least = connection_ends.TIGHT
    wait_until(lambda: gate.inspection._engine.memory_quota.kept > least)
    settled, last = 0, -1
    while settled < 5:  # until the buffers stop growing
        time.sleep(0.1)
        buffered = gate.inspection._engine.memory_quota.kept
        settled, last = (settled + 1 if buffered == last else 0), buffered
    assert last < 2 * connection_ends.TIGHT
    # a client that reads now receives everything
    reader = clients[0]
    reader.h2.increment_flow_control_window(16000000)
    reader.h2.increment_flow_control_window(16000000, 1)
    reader.flush()
    assert len(reader.body(1)) == 16000000
    for client in clients:
        client.close()
    wait_until(lambda: gate.inspection._engine.memory_quota.kept == 0)


def test_connections_beyond_the_quota_are_ended_and_recorded(gate, origins, monkeypatch):
    monkeypatch.setattr(MemoryQuota.__init__, "__defaults__", (4 * MIB,))
    site = make_site(gate, origins.web("good.example", tls=True))
    clients = [client_without_credit(site) for _ in range(4)]
    for client in clients:
        for _ in range(100):  # each open request takes memory, although no body arrives
            client.request("/slow/1/100", more=[("x-much", "a" * 1000)])
    assert str(gate.wait_closed()[0].reason) == "limit_exceeded"
    wait_until(lambda: gate.inspection._engine.memory_quota.kept <= 4 * MIB)  # several connections may have to end
    for client in clients:
        client.close()


def test_small_http2_pieces_are_buffered_without_overhead():
    """One object per piece would take eighty times as much."""
    connection = Leaving(h2.config.H2Configuration(client_side=False), MIB, MIB)
    connection.initiate_connection()
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")])
    connection.receive_data(client.data_to_send())
    client.receive_data(connection.data_to_send())
    connection.send_headers(1, [(":status", "200")])
    connection.send_data(1, bytes(65535))  # fills the window of the client
    text = bytes(range(256)) * 100
    for byte in text:
        connection.send_data(1, bytes([byte]))
    connection.end_stream(1)
    assert (connection.kept, connection.weigh(), len(connection.stream_buffers[1])) == (len(text), len(text), 2)
    events = client.receive_data(connection.data_to_send())
    client.increment_flow_control_window(len(text), 1)
    client.increment_flow_control_window(len(text))
    connection.receive_data(client.data_to_send())
    events += client.receive_data(connection.data_to_send())
    pieces = [event.data for event in events if isinstance(event, h2.events.DataReceived)]
    assert b"".join(pieces) == bytes(65535) + text
    assert isinstance(events[-1], h2.events.StreamEnded)
    assert (connection.kept, connection.weigh()) == (0, 0)


def test_small_pieces_for_a_full_socket_are_buffered_as_one():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        transport = Transport(None, IgnoringOwner(), ours, IgnoringOwner(), None, client=True)
        transport.new.append(bytes(MIB))
        transport.flush()
        sent, before = transport.up, len(transport._unsent)
        for number in range(3000):
            transport.new.append(b"%04d" % number)
            transport.flush()
        assert transport.kept == MIB - sent + 12000
        assert len(transport._unsent) <= before + 1
        got = b""
        while len(got) < MIB + 12000:
            got += theirs.recv(1 << 20)
            transport.ready(select.EPOLLOUT)
        assert got[MIB:] == b"".join(b"%04d" % number for number in range(3000))
        assert transport.kept == 0


class IgnoringOwner:
    """Stands in for a poller and an owner."""

    def watch(self, *_):
        pass

    change = relieved = watch


class EndlessDial:
    """A dial that never ends."""

    def take(self):
        return None

    def cancel(self):
        pass


def upload_http1(site, most):
    """Upload until the connection stops accepting; returns the number of bytes."""
    sent = 0
    with site.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: {2 * most}\r\n\r\n".encode())
        connection.settimeout(1)
        while sent < most:
            sent += connection.send(bytes(65536))
    return sent


def upload_http2(site, most):
    sent, client = 0, Client(site)
    with client.socket, contextlib.suppress(OSError):
        stream = client.request("/", "POST", end=False)
        client.socket.settimeout(1)
        while sent < most:
            if size := min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size):
                client.h2.send_data(stream, bytes(size))
                client.flush()
                sent += size
            else:
                client.read()
    return sent


@pytest.mark.parametrize("upload", [upload_http1, upload_http2])
def test_upload_waits_at_its_client_while_the_server_is_dialed(gate, origins, monkeypatch, upload):
    site = make_site(gate, origins.web("good.example", tls=True))
    dialled = []
    monkeypatch.setattr(Dialer, "connect", lambda *what, **_: dialled.append(what) or EndlessDial())
    assert upload(site, 32 * MIB) < 16 * MIB  # what sockets and windows hold
    assert dialled
