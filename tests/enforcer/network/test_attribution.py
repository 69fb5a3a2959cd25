"""Which socket it is: asked of the kernel with real connections."""

import os
import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.supervisor_channel.channel import Owner, encode_query, look_up_owner, parse_owner
from proxy.wire.netlink import HEADER, message
from tests.enforcer.network.netns_harness import ORDINARY

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def end(address):
    """Return an endpoint in one form, as the gate does with what the kernel gives."""
    plain = ip_address(address[0].partition("%")[0])
    return getattr(plain, "ipv4_mapped", None) or plain, address[1]


def ask_about(network, connection, peer):
    return look_up_owner(network.sockets.diag, TCP, end(peer), end(connection.getsockname()))


class Held:
    """A task that opens a connection and holds it until told otherwise."""

    def __init__(self, network, address, *, family=None, before=lambda _: None, protocol=0):
        self.here, self.there = socket.socketpair()
        self.here.settimeout(20)

        def hold():
            with socket.socket(
                family or (socket.AF_INET6 if ":" in address else socket.AF_INET), socket.SOCK_STREAM, protocol
            ) as sock:
                before(sock)
                sock.connect((address, 443))
                inode = os.fstat(sock.fileno()).st_ino
                self.there.sendall(struct.pack("QQ", inode, os.getpid()))
                self.there.recv(1)

        self.running = network.start(hold)
        self.inode, self.pid = struct.unpack("QQ", self.here.recv(16))
        self.connection, self.peer = network.sockets.tcp.accept()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.running.end()
        for sock in self.here, self.there, self.connection:
            sock.close()


@pytest.mark.parametrize(
    ("address", "family"),
    [
        ("93.184.216.34", socket.AF_INET),
        ("2606::1", socket.AF_INET6),
        ("::ffff:93.184.216.34", socket.AF_INET6),
    ],
)
def test_owner_of_a_connection_has_inode_and_uid(network, address, family):
    with Held(network, address, family=family) as held:
        owner = ask_about(network, held.connection, held.peer)
        assert owner == Owner(held.inode, 0 if network.rootless else ORDINARY)


def test_connection_to_the_gate_port_has_an_owner(network):
    def connect(sock):
        sock.connect(("127.0.0.1", network.gate_port))
        return os.fstat(sock.fileno()).st_ino, sock.getsockname()

    def hold():
        with socket.socket() as sock:
            inode, name = connect(sock)
            connection, peer = network.sockets.tcp.accept()
            with connection:
                return ask_about(network, connection, peer).inode == inode and peer[1] == name[1]

    assert network.run(hold)


@pytest.mark.parametrize("way", ["bound to lo", "multipath", "from the loopback"])
def test_unusual_client_is_named_or_unknown(network, way):
    before = {
        "bound to lo": lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"),
        "from the loopback": lambda sock: sock.bind(("127.0.0.1", 0)),
    }.get(way, lambda _: None)
    with Held(network, "8.8.8.8", before=before, protocol=262 if way == "multipath" else 0) as held:
        owner = ask_about(network, held.connection, held.peer)
        if way == "multipath":
            assert owner is None or owner.inode == held.inode
        else:
            assert owner is not None
            assert owner.inode == held.inode


def test_listener_on_the_client_port_is_not_the_client(network):
    """Where no connection has the ends asked for, the kernel answers with a listener."""

    def listen_and_ask():
        with socket.socket() as server:
            server.bind(("0.0.0.0", 7777))
            server.listen()
            local, remote = (ip_address("192.0.0.2"), 7777), (ip_address("8.8.8.8"), 443)
            return look_up_owner(network.sockets.diag, TCP, local, remote)

    assert network.run(listen_and_ask) is None


def test_closed_connection_has_no_owner(network):
    with Held(network, "8.8.8.8") as held:
        held.running.end()
        assert ask_about(network, held.connection, held.peer) is None


def test_query_needs_no_capability_and_ignores_stale_replies(network):
    with Held(network, "8.8.8.8") as held, Held(network, "9.9.9.9") as other:
        ends = [(end(one.peer), end(one.connection.getsockname())) for one in (held, other)]
        network.sockets.diag.send(encode_query(TCP, *ends[1]))  # its answer is left lying
        owner = network.run(lambda: look_up_owner(network.sockets.diag, TCP, *ends[0]))
        assert owner.inode == held.inode


def test_sender_of_a_dns_query_is_named(network):
    def send_and_ask():
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loose,
        ):
            connected.connect(("8.8.8.8", 53))
            connected.send(b"x")
            loose.sendto(b"x", ("8.8.8.8", 53))
            answers = []
            for sock in connected, loose:
                local = (ip_address("192.0.0.2"), sock.getsockname()[1])
                owner = look_up_owner(network.sockets.diag, UDP, local, (ip_address("8.8.8.8"), 53))
                answers.append(owner is not None and owner.inode == os.fstat(sock.fileno()).st_ino)
            nobody = look_up_owner(network.sockets.diag, UDP, (ip_address("192.0.0.2"), 9), (ip_address("8.8.8.8"), 53))
            return answers, nobody

    assert network.run(send_and_ask) == ([True, True], None)


def test_closed_socket_is_unknown():
    with socket.socket() as sock:
        pass
    assert look_up_owner(sock, TCP, (ip_address("::1"), 1), (ip_address("::1"), 2)) is None


# Parsing

LOCAL, REMOTE = (ip_address("192.0.0.2"), 40000), (ip_address("8.8.8.8"), 443)


def answer(local=LOCAL, remote=REMOTE, inode=77, uid=1000, kind=20):
    body = struct.pack("=BBBB", socket.AF_INET if local[0].version == 4 else socket.AF_INET6, 1, 0, 0)
    body += struct.pack("!HH16s16s", local[1], remote[1], local[0].packed, remote[0].packed) + bytes(12)
    return message(kind, 0, body + struct.pack("=IIIII", 0, 0, 0, uid, inode))


def test_only_an_exact_reply_names_an_owner():
    assert parse_owner(answer(), TCP, LOCAL, REMOTE) == Owner(77, 1000)
    for other in (
        answer(local=(LOCAL[0], 40001)),
        answer(remote=(REMOTE[0], 444)),
        answer(remote=(ip_address("8.8.8.9"), 443)),
        answer(local=(ip_address("0.0.0.0"), 40000), remote=(ip_address("0.0.0.0"), 0)),
        answer(inode=0),
        answer(kind=2),
        b"",
    ):
        assert parse_owner(other, TCP, LOCAL, REMOTE) is None


def test_unconnected_udp_socket_matches_port_and_address():
    nowhere = (ip_address("0.0.0.0"), 0)
    assert parse_owner(answer((ip_address("0.0.0.0"), 40000), nowhere), UDP, LOCAL, REMOTE) == Owner(77, 1000)
    assert parse_owner(answer((ip_address("127.0.0.1"), 40000), nowhere), UDP, LOCAL, REMOTE) is None
    assert parse_owner(answer((ip_address("0.0.0.0"), 40001), nowhere), UDP, LOCAL, REMOTE) is None
    assert parse_owner(answer((ip_address("0.0.0.0"), 40000), (REMOTE[0], 1)), UDP, LOCAL, REMOTE) is None


def test_truncated_reply_names_no_owner():
    whole = answer()
    for length in range(len(whole)):
        assert outcome_of(whole[:length]) is None


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_only_the_documented_error(data):
    outcome_of(data)
    outcome_of(message(20, 0, data))


def outcome_of(data):
    return parse_owner(data, TCP, LOCAL, REMOTE)


def test_each_query_has_its_own_sequence_number():
    numbers = {HEADER.unpack_from(encode_query(TCP, LOCAL, REMOTE))[3] for _ in range(50)}
    assert len(numbers) > 45
