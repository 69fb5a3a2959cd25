"""The door for datagrams, and what is sent back through it, with a real kernel: shut, open, and without a gate."""

import errno
import os
import socket
import struct
from ipaddress import ip_address

import pytest

from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from proxy.udp.sockets import (
    ReplySocket,
    allow_datagrams,
    block_datagrams,
    blocks_datagrams,
    parse_destination,
    parse_source,
)
from tests.enforcer.network.netns_harness import outcome

PUBLIC4, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"
REFUSED = errno.ECONNREFUSED


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def place(address, port):
    return socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4]


def ask(address, port, data=b"question", own=None):
    """Send a datagram on a connected socket and return the answer, or the errno that came back."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if own is not None:
            sock.bind(own)
        sock.connect(place(address, port))
        sock.send(data)
        return outcome(lambda: sock.recv(65535))


def arrived(network):
    """Return what has come to the door: from whom, to whom, what."""
    data, ancillary, _, client = network.sockets.udp.recvmsg(65535, 256)
    return parse_destination(ancillary[0][2]), parse_source(client), data


def answers(network):
    return ReplySocket(network.sockets.answers, network.sockets.answers6, OWN_ADDRESSES)


@pytest.fixture
def opened(network):
    allow_datagrams(network.sockets.udp)
    assert not blocks_datagrams(network.sockets.udp)
    return network


@pytest.fixture(scope="module")
def opened_for_all(network_for_all):
    """One for the tests that leave nothing in it."""
    allow_datagrams(network_for_all.sockets.udp)
    return network_for_all


def test_udp_socket_starts_closed(network):
    assert blocks_datagrams(network.sockets.udp)
    assert network.run(lambda: [ask(address, 123) for address in (PUBLIC4, PUBLIC6)]) == [REFUSED] * 2
    assert network.counters() == {"udp": 2}


PLACES = [
    "1.2.3.4",
    "198.18.0.7",
    "10.0.0.1",
    "169.254.169.254",
    "0.1.2.3",
    "240.0.0.1",
    PUBLIC6,
    "64:ff9b::a9fe:a9fe",
    "::2",
]


@pytest.mark.parametrize("port", [1, 123, 853, 5353, GATE_PORT, 65535])
def test_open_socket_gets_the_destination_of_each_datagram(opened_for_all, port):
    running = opened_for_all.start(lambda: [ask(address, port) for address in PLACES])
    for number, address in enumerate(PLACES):
        asked, client, data = arrived(opened_for_all)
        assert (asked, data) == ((ip_address(address), port), b"question")
        assert client[0] in OWN_ADDRESSES
        assert answers(opened_for_all).reply(asked, client, b"answer %d" % number)
    assert running.result() == [b"answer %d" % number for number in range(len(PLACES))]
    assert opened_for_all.counters() == {}


def test_datagram_from_the_loopback_is_received(opened):
    running = opened.start(lambda: ask(PUBLIC4, 123, own=("127.0.0.1", 0)))
    asked, client, _ = arrived(opened)
    assert client[0] == ip_address("127.0.0.1")
    assert answers(opened).reply(asked, client, b"answer")
    assert running.result() == b"answer"


def test_ipv6_datagram_from_the_loopback_is_not_received(opened):
    assert opened.run(lambda: ask(PUBLIC6, 123, own=("::1", 0))) == REFUSED
    assert opened.counters() == {"udp": 1}


def test_address_keeps_its_zone(opened):
    running = opened.start(lambda: ask("fe80::1%lo", 123))
    asked, client, _ = arrived(opened)
    assert (str(asked[0]), asked[0].scope_id) == ("fe80::1%1", "1")
    answers(opened).refuse(asked, client, 8)
    assert running.result() == REFUSED


@pytest.mark.parametrize("address", [PUBLIC4, PUBLIC6])
@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9000, 65400])
def test_datagrams_of_every_size_pass_whole(opened_for_all, address, size):
    """Beyond the length of a packet it comes in fragments, which the kernel puts together."""
    payload = os.urandom(size)
    running = opened_for_all.start(lambda: ask(address, 4000, payload))
    asked, client, data = arrived(opened_for_all)
    assert data == payload
    assert answers(opened_for_all).reply(asked, client, data)
    assert running.result() == payload


def test_oversized_reply_is_dropped_alone(opened):
    running = opened.start(lambda: ask(PUBLIC4, 4000))
    asked, client, _ = arrived(opened)
    assert not answers(opened).reply(asked, client, bytes(65508))
    assert answers(opened).reply(asked, client, b"short")
    assert running.result() == b"short"


@pytest.mark.parametrize("address", [PUBLIC4, PUBLIC6, "10.0.0.1", "::2", "255.255.255.254"])
@pytest.mark.parametrize("size", [0, 8, 1400, 65000])
def test_refusal_is_reported_at_once(opened_for_all, address, size):
    running = opened_for_all.start(lambda: ask(address, 123, bytes(size)))
    asked, client, data = arrived(opened_for_all)
    answers(opened_for_all).refuse(asked, client, len(data))
    assert running.result() == REFUSED


def test_dns_and_quic_never_reach_the_socket(opened):
    assert opened.run(lambda: [ask(PUBLIC4, 443), ask(PUBLIC6, 443)]) == [REFUSED] * 2
    asking = opened.start(lambda: ask("8.8.8.8", 53))
    assert opened.sockets.dns_udp.recv(100) == b"question"
    asking.end()
    opened.sockets.udp.settimeout(0)
    assert outcome(lambda: opened.sockets.udp.recv(1)) == errno.EAGAIN
    assert opened.counters() == {"quic": 2}


def test_spoofed_datagram_does_not_reach_the_socket(opened):
    """Every address is local here, so a task can bind any; an answer to it would be taken for something leaving."""

    def spoof(own, to):
        with socket.socket(family(own), socket.SOCK_DGRAM) as sock:
            sock.bind(place(own, 5000))
            sock.sendto(b"as if I were it", place(to, 123))

    opened.run(lambda: spoof(PUBLIC4, "9.9.9.9"))
    assert opened.run(lambda: outcome(lambda: spoof(PUBLIC6, "2606::9"))) == errno.EADDRNOTAVAIL
    opened.sockets.udp.settimeout(0)
    assert outcome(lambda: opened.sockets.udp.recv(1)) == errno.EAGAIN
    assert opened.counters() == {"other": 1}


def test_local_datagrams_stay_inside(opened):
    def locally():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("0.0.0.0", 5000))
            server.settimeout(5)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                for own in ("127.0.0.1", "127.9.9.9", str(OWN_ADDRESSES[0])):
                    client.sendto(b"ping", (own, 5000))
            return [server.recv(10) for _ in range(3)]

    assert opened.run(locally) == [b"ping"] * 3
    assert opened.counters() == {}


def test_local_listener_receives_no_foreign_datagram(opened):
    def listen_and_send():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
            server.bind(("::", 5000))
            server.settimeout(0)
            for address in (PUBLIC4, PUBLIC6):
                with socket.socket(family(address), socket.SOCK_DGRAM) as client:
                    client.sendto(b"for outside", place(address, 5000))
            return outcome(lambda: server.recv(10))

    assert opened.run(listen_and_send) == errno.EAGAIN
    assert [arrived(opened)[0] for _ in range(2)] == [(ip_address(a), 5000) for a in (PUBLIC4, PUBLIC6)]


def test_connected_socket_of_the_task_gains_nothing(opened):
    """Tproxy looks for the established socket of a packet first; one that isn't transparent is refused."""

    def pretend():
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        ):
            far.bind((PUBLIC4, 5000))
            near.bind((str(OWN_ADDRESSES[0]), 6000))
            far.connect(near.getsockname())
            near.connect((PUBLIC4, 5000))
            near.settimeout(10)
            near.send(b"to myself")
            return outcome(lambda: near.recv(10))

    assert opened.run(pretend) == REFUSED


def test_task_that_binds_the_closed_port_gains_nothing(network):
    """What it sends is refused then: tproxy finds its socket, which isn't transparent. That is its own doing."""
    ours, theirs = socket.socketpair()

    def take():
        taken = []
        for bound in ("0.0.0.0", "127.0.0.1", "::1", *map(str, OWN_ADDRESSES)):
            sock = socket.socket(family(bound), socket.SOCK_DGRAM)
            if outcome(lambda s=sock, b=bound: s.bind((b, GATE_PORT))) is None:
                taken.append(sock)
        theirs.send(b"t")
        theirs.recv(1)
        asked = ask(PUBLIC4, 123)
        return asked, {outcome(lambda s=sock: (s.settimeout(0), s.recv(10))) for sock in taken}

    with ours, theirs:
        taking = network.start(take)
        ours.recv(1)
        allow_datagrams(network.sockets.udp)
        ours.send(b"g")
        asked, heard = taking.result()
    assert asked == REFUSED
    assert heard == {errno.EAGAIN}


def test_closed_again_it_refuses_again(opened):
    asking = opened.start(lambda: ask(PUBLIC4, 123))
    arrived(opened)
    block_datagrams(opened.sockets.udp, OWN_ADDRESSES)
    block_datagrams(opened.sockets.udp, OWN_ADDRESSES)
    assert opened.run(lambda: [ask(PUBLIC4, 123), ask(PUBLIC6, 123)]) == [REFUSED] * 2
    allow_datagrams(opened.sockets.udp)
    allow_datagrams(opened.sockets.udp)
    again = opened.start(lambda: ask(PUBLIC6, 124))
    assert arrived(opened)[0] == (ip_address(PUBLIC6), 124)
    for running in asking, again:
        running.end()


def test_udp_is_refused_at_once_without_a_gate(opened):
    """Also what is on its way when the gate dies."""
    opened.sockets.close()
    assert opened.run(lambda: [ask(a, 123) for a in (PUBLIC4, PUBLIC6, "10.0.0.1", "::2")]) == [REFUSED] * 4
    assert opened.counters() == {"udp": 4}


def test_replies_go_only_to_the_sandbox(opened):
    """Were the kernel to send it, it would be counted."""
    made = answers(opened)
    asked, client = (ip_address(PUBLIC4), 123), (ip_address("9.9.9.9"), 40000)
    assert not made.reply(asked, client, b"to somebody else")
    made.refuse(asked, client, 8)
    assert not made.reply((ip_address(PUBLIC6), 123), (ip_address("192.0.0.2"), 4000), b"of another family")
    assert opened.counters() == {}


def test_multicast_is_never_answered(opened):
    def listen():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("192.0.0.2", 40000))
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: an error would be heard
            told.send(b"r")
            told.recv(1)
            sock.settimeout(0)
            return outcome(lambda: sock.recv(10))

    told, tells = socket.socketpair()
    running = opened.start(listen)
    tells.recv(1)
    for many in ("224.0.0.251", "255.255.255.255"):
        answers(opened).refuse((ip_address(many), 5353), (ip_address("192.0.0.2"), 40000), 8)
    tells.send(b"g")
    assert running.result() == errno.EAGAIN
    told.close()
    tells.close()


def test_reply_socket_receives_nothing(opened):
    """A raw socket for every protocol would be given copies; one that only writes isn't (raw(7))."""
    opened.run(lambda: ask(PUBLIC4, 443))
    for sock in (opened.sockets.answers, opened.sockets.answers6):
        sock.settimeout(0)
        assert outcome(lambda s=sock: s.recv(100)) == errno.EAGAIN
        assert struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, 38, 4)) == (socket.IPPROTO_RAW,)  # SO_PROTOCOL
