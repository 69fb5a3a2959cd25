"""What a hostile task tries against its network, and must never get (KERNEL.md, "Held"). Try again after every change."""

import array
import errno
import fcntl
import itertools
import os
import socket
import struct

import pytest

from enforcer.network.plan import GATE_PORT
from tests.enforcer.network.netns_harness import outcome, start

IP_TRANSPARENT, IPV6_TRANSPARENT, IP_FREEBIND, IP_BIND_ADDRESS_NO_PORT = 19, 75, 15, 24
IPPROTO_MPTCP = 262
PUBLIC = "93.184.216.34"
TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM}


def accepted(network):
    connection, peer = network.sockets.tcp.accept()
    with connection:
        return connection.getsockname()[:2], peer[:2]


def option(level, name, value=1):
    return lambda sock: sock.setsockopt(level, name, value)


REUSE = option(socket.SOL_SOCKET, socket.SO_REUSEADDR)
SHARE = option(socket.SOL_SOCKET, socket.SO_REUSEPORT)
FREE = option(socket.IPPROTO_IP, IP_FREEBIND)
DEVICE = option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
OPTIONS = [(), (REUSE,), (SHARE,), (REUSE, SHARE), (FREE, REUSE), (DEVICE, SHARE, REUSE)]
ADDRESSES = [
    "0.0.0.0",
    "127.0.0.1",
    "192.0.0.2",
    "8.8.8.8",
    "::",
    "::1",
    "fd65:7865:6174::2",
    "2606::1",
    "::ffff:8.8.8.8",
]


KINDS = [(GATE_PORT, socket.SOCK_STREAM), (53, socket.SOCK_STREAM), (53, socket.SOCK_DGRAM)]


@pytest.mark.parametrize(("port", "kind"), KINDS)
def test_task_cannot_bind_the_gate_ports(network_for_all, port, kind):
    def bind(address, options):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
            for set_option in options:
                set_option(sock)
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen()

    def attempts():
        ways = itertools.product(ADDRESSES, OPTIONS)
        return {outcome(lambda way=way: bind(*way)) for way in ways}

    assert network_for_all.run(attempts) <= TAKEN


def test_task_with_the_gates_uid_cannot_share_its_port(network):
    """SO_REUSEPORT would let it, had the gate set it too: also for the uid that made the gate's socket."""

    def share():
        with socket.socket(socket.AF_INET6) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::", GATE_PORT))

    assert network.as_owner(lambda: outcome(share)) == errno.EADDRINUSE
    for sock in network.sockets.tcp, network.sockets.dns_udp:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


def test_port_of_an_ended_gate_gives_no_access(network):
    """A listener that isn't transparent is not what tproxy looks for."""
    network.sockets.tcp.close()

    def listen_and_connect():
        with socket.socket(socket.AF_INET6) as server, socket.socket() as client:
            server.bind(("::", GATE_PORT))
            server.listen()
            return outcome(lambda: client.connect((PUBLIC, 443)))

    assert network.run(listen_and_connect) == errno.ECONNREFUSED


WAYS = {
    "bound to a device": ((option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"),), socket.IPPROTO_TCP),
    "not routed": ((option(socket.SOL_SOCKET, socket.SO_DONTROUTE),), socket.IPPROTO_TCP),
    "multipath": ((), IPPROTO_MPTCP),
    "from the loopback": ((lambda sock: sock.bind(("127.0.0.1", 0)),), socket.IPPROTO_TCP),
    "port chosen late": ((option(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT), lambda s: s.bind(("127.0.0.1", 0))), 6),
    "low delay, some priority": ((option(socket.IPPROTO_IP, socket.IP_TOS, 0xB8), option(socket.SOL_SOCKET, 12, 5)), 6),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_connect_leads_to_the_gate(network, way):
    options, protocol = WAYS[way]

    def connect():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as sock:
            for set_option in options:
                set_option(sock)
            sock.settimeout(10)
            sock.connect((PUBLIC, 8443))

    network.run(connect)
    assert accepted(network)[0] == (f"::ffff:{PUBLIC}", 8443)


def test_tcp_fast_open_leads_to_the_gate(network):
    def connect():
        with socket.socket() as sock:
            sock.sendto(b"early", socket.MSG_FASTOPEN, (PUBLIC, 443))

    network.run(connect)
    assert accepted(network)[0] == (f"::ffff:{PUBLIC}", 443)


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (socket.IPPROTO_IP, IP_TRANSPARENT, 1),
        (socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1),
        (socket.SOL_SOCKET, socket.SO_MARK, 1),
        (socket.SOL_SOCKET, 32, 1 << 20),  # SO_SNDBUFFORCE
        (socket.IPPROTO_IPV6, 54, b"\x3b\0\0\0\0\0\0\0"),  # IPV6_HOPOPTS
        (socket.IPPROTO_IPV6, 59, b"\x3b\0\0\0\0\0\0\0"),  # IPV6_DSTOPTS
    ],
)
def test_privileged_socket_options_are_refused(network_for_all, level, name, value):
    def set_it():
        with socket.socket(socket.AF_INET6) as sock:
            sock.setsockopt(level, name, value)

    assert network_for_all.run(lambda: outcome(set_it)) == errno.EPERM


@pytest.mark.parametrize("hops", [("10.1.1.1",), (PUBLIC, "10.1.1.1"), ("127.0.0.1", PUBLIC)])
@pytest.mark.parametrize("kind", [131, 137])  # loose and strict
def test_source_routing_leads_nowhere_else(network, hops, kind):
    route = b"".join(socket.inet_aton(hop) for hop in hops)
    options = bytes([1, kind, 3 + len(route), 4]) + route

    def connect():
        with socket.socket() as sock:
            sock.settimeout(0.3)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
            sock.connect((PUBLIC, 443))

    network.run(lambda: outcome(connect))
    network.sockets.tcp.settimeout(0)
    reached = outcome(lambda: accepted(network))
    assert reached == errno.EAGAIN or reached[0][0] in [f"::ffff:{hop}" for hop in (*hops, PUBLIC)]


def test_ipv6_routing_header_leads_nowhere_else(network):
    """IPv6 segment routing is the one extension header that takes no capability to set."""
    segments = b"".join(socket.inet_pton(socket.AF_INET6, hop) for hop in ("2606::1", "2606::2"))
    header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + segments

    def connect():
        with socket.socket(socket.AF_INET6) as sock:
            sock.settimeout(0.3)
            sock.setsockopt(socket.IPPROTO_IPV6, 57, header)
            sock.connect(("2606::2", 443))

    network.run(lambda: outcome(connect))
    network.sockets.tcp.settimeout(0)
    reached = outcome(lambda: accepted(network))
    assert reached == errno.EAGAIN or reached[0][0] in ("2606::1", "2606::2")


@pytest.mark.parametrize(
    "address", ["224.0.0.1", "239.1.1.1", "255.255.255.255", "127.255.255.255", "ff02::1", "ff0e::1"]
)
def test_tcp_to_multicast_is_unreachable(network_for_all, address):
    def connect():
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.connect((address, 443, 0, 1) if ":" in address else (address, 443))

    assert network_for_all.run(lambda: outcome(connect)) in (errno.ENETUNREACH, errno.EACCES)


def foreign(kind, bound, wanted):
    """Send from an address that isn't the sandbox's own: bind() lets a task, since every address is local."""
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((bound, 5555))
        sock.settimeout(0.2)
        sock.connect((wanted, 443))
        sock.send(b"x")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize(("bound", "wanted"), [("8.8.8.8", PUBLIC), ("2606::8", "2606::1"), (PUBLIC, "8.8.8.8")])
def test_spoofed_address_reaches_nothing(network, kind, bound, wanted):
    network.run(lambda: outcome(lambda: foreign(kind, bound, wanted)))
    network.sockets.tcp.settimeout(0)
    assert outcome(network.sockets.tcp.accept) == errno.EAGAIN
    assert set(network.counters()) == {"other"}


def test_self_connect_and_simultaneous_open_reach_nothing(network):
    def both_at_once():
        ends = ("8.8.8.8", 5001), ("9.9.9.9", 5002)
        with socket.socket() as one, socket.socket() as other, socket.socket() as alone:
            for sock, bound, wanted in (one, ends[0], ends[1]), (other, ends[1], ends[0]), (alone, ends[0], ends[0]):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((bound[0], bound[1] + (sock is alone)))
                sock.settimeout(0.3)
                if sock is not other:
                    sock.settimeout(0)
                outcome(lambda sock=sock, wanted=wanted: sock.connect(wanted))
            return [outcome(sock.getpeername) for sock in (one, other, alone)]

    assert network.run(both_at_once) == [errno.ENOTCONN] * 3


def test_task_cannot_change_the_ruleset(network):
    from enforcer.network.gate_sockets import open_counter_socket, open_refusal_log, read_counters

    def read():
        with open_counter_socket() as sock:
            return read_counters(sock)

    assert network.run(lambda: outcome(read)) == errno.EPERM
    assert network.run(lambda: outcome(open_refusal_log)) == errno.EPERM


def test_nested_user_namespace_gives_no_power(network):
    """No raw or packet socket, no mark, no nf_tables and no way back with the capabilities gained."""
    from enforcer.network.gate_sockets import open_counter_socket, read_counters

    def attempts():
        with socket.socket() as before:
            os.unshare(os.CLONE_NEWUSER)
            old = os.open("/proc/self/ns/net", os.O_RDONLY)
            with open_counter_socket() as sock:
                return (
                    outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
                    outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
                    outcome(lambda: before.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)),
                    outcome(lambda: before.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)),
                    outcome(lambda: read_counters(sock)),
                    outcome(lambda: os.setns(old, os.CLONE_NEWNET)),
                )

    assert network.run(attempts) == (errno.EPERM,) * 6


def test_new_network_namespace_is_a_dead_end(network):
    def attempt():
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
        with socket.socket() as sock:
            return outcome(lambda: sock.connect((PUBLIC, 443)))

    assert network.run(attempt) == errno.ENETUNREACH


def test_flushed_ruleset_opens_no_path(network):
    """Even whoever owns the namespace: without the rules everything ends on this host's own closed ports."""
    from pyroute2.netlink.nfnetlink import nftsocket

    from enforcer.network import encode
    from enforcer.network.install import _open_netlink, _send, make_batch
    from proxy.wire.netlink import NETLINK_NETFILTER

    delete = encode._nft(nftsocket.nft_table_msg(), 2, [("NFTA_TABLE_NAME", "exeat")], 0)
    messages = encode._batch_edge(0x10), encode._bytes(delete), encode._batch_edge(0x11)

    def flush_and_connect():
        with _open_netlink(socket.socket, NETLINK_NETFILTER) as sock:
            _send(sock, make_batch(messages, ("delete the table",)))
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect((PUBLIC, 443))
            udp.send(b"x")
            return outcome(lambda: tcp.connect((PUBLIC, 443))), outcome(lambda: udp.recv(1))

    assert network.as_owner(flush_and_connect) == (errno.ECONNREFUSED, errno.ECONNREFUSED)


def test_task_cannot_change_interfaces_or_routes(network):
    """Neither netlink nor the old ioctls change anything."""
    from pyroute2.netlink.rtnl import RTM_NEWLINK

    from proxy.wire.netlink import NLM_F_ACK, NLM_F_REQUEST, message, messages

    def attempts():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
            sock.send(message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, struct.pack("=BxHiII", 0, 0, 1, 0, 1), 7))
            (refused,) = messages(sock.recv(4096))
        with socket.socket() as sock:
            down = array.array("B", struct.pack("16sH22x", b"lo", 0))
            return refused.errno, outcome(lambda: fcntl.ioctl(sock, 0x8914, down))  # SIOCSIFFLAGS

    assert network.run(attempts) == (errno.EPERM, errno.EPERM)


def test_two_sandboxes_cannot_reach_each_other(encoded, rootless):
    from tests.enforcer.network.netns_harness import Network

    networks = [Network(encoded, rootless=rootless) for _ in range(2)]

    here, there = socket.socketpair()

    def serve():
        with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
            server.bind(("0.0.0.0", 8080))
            server.listen()
            abstract.bind("\0service")
            abstract.listen()
            there.send(b"1")
            there.recv(1)

    def reach():
        with socket.socket() as one, socket.socket(socket.AF_UNIX) as abstract:
            return outcome(lambda: one.connect(("192.0.0.2", 8080))), outcome(lambda: abstract.connect("\0service"))

    try:
        serving = networks[0].start(serve)
        here.recv(1)
        assert networks[1].run(reach) == (errno.ECONNREFUSED, errno.ECONNREFUSED)
        assert start(reach).result() != (None, None)
        assert networks[0].run(reach) == (None, None)
        serving.end()
        for network, address in zip(networks, ("1.1.1.1", "2.2.2.2"), strict=True):
            network.run(lambda address=address: socket.create_connection((address, 443)).close())
        assert [accepted(network)[0][0] for network in networks] == ["::ffff:1.1.1.1", "::ffff:2.2.2.2"]
    finally:
        here.close()
        there.close()
        for network in networks:
            network.close()


def test_flood_of_connections_leaves_the_sandbox_usable(network):
    """Nobody accepts: the backlog fills, and what doesn't fit waits; nothing else of the network is touched."""

    def flood():
        sockets = [socket.socket() for _ in range(900)]
        for number, sock in enumerate(sockets):
            sock.settimeout(0)
            outcome(lambda sock=sock, number=number: sock.connect(("93.184.216.34", 1 + number)))
        return len(sockets)

    assert network.run(flood) == 900
    assert list(itertools.islice((accepted(network)[0][1] for _ in range(3)), 3)) == [1, 2, 3]
    assert network.counters() == {}
