"""Where packets go, with real ones: TCP to the gate, DNS to the resolver, what is local stays, the rest is refused."""

import errno
import socket
import struct
from pathlib import Path

import pytest

from enforcer.network.plan import GATE_PORT
from proxy.wire.netlink import NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, message, messages
from tests.enforcer.network.netns_harness import outcome

RTM_GETNEIGH = 30  # linux/rtnetlink.h
IPPROTO_UDPLITE, IPPROTO_DCCP, IPV6_MTU = 136, 33, 24
PUBLIC4, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def endpoint(address, port):
    return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4]


def connect(address, port, kind=socket.SOCK_STREAM, protocol=0, options=()):
    """Open a connection and return (its own address and port, its peer's)."""
    with socket.socket(family(address), kind, protocol) as sock:
        sock.settimeout(10)
        for option in options:
            sock.setsockopt(*option)
        sock.connect(endpoint(address, port))
        return sock.getsockname()[:2], sock.getpeername()[:2]


def accepted(network):
    """Return where the next connection at the gate wanted to go, and who opened it."""
    connection, peer = network.sockets.tcp.accept()
    with connection:
        return (*connection.getsockname()[:2],), peer[:2]


def nothing_accepted(network):
    network.sockets.tcp.settimeout(0)
    return outcome(network.sockets.tcp.accept) == errno.EAGAIN


PLACES = [
    "93.184.216.34", "1.2.3.4", "198.18.0.7", "198.19.255.254", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.1.2.3",
    "240.0.0.1", "223.255.255.255", "192.0.0.1", "2606:2800:220:1::1", "64:ff9b::a9fe:a9fe", "2002:a00:1::1", "fec0::1",
    "::2", "::8.8.8.8", "fd65:7865:6174::1", "fe80::1%lo",
]  # fmt: skip


@pytest.mark.parametrize("port", [22, 53, 443, 15001])
def test_every_tcp_connection_reaches_the_gate_with_its_destination(network_for_all, port):
    network = network_for_all
    for address, (own, peer) in zip(PLACES, network.run(lambda: [connect(to, port) for to in PLACES]), strict=True):
        wanted, client = accepted(network)
        plain = address.partition("%")[0]
        mapped = plain if ":" in plain else f"::ffff:{plain}"
        assert wanted == (mapped, port)
        assert peer[1] == port
        assert own[0] == ("fd65:7865:6174::2" if ":" in plain else "192.0.0.2")
        assert client[0].removeprefix("::ffff:") == own[0]
    assert network.counters() == {}


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("0.0.0.0", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("192.0.0.2", "::ffff:192.0.0.2"),
        ("fd65:7865:6174::2", "fd65:7865:6174::2"),
    ],
)
def test_connection_to_the_gate_port_is_recognised(network_for_all, address, reached):
    """A local connection to it isn't captured: getsockname() shows it, and the gate refuses it."""
    network_for_all.run(lambda: connect(address, network_for_all.gate_port))
    assert accepted(network_for_all)[0] == (reached, network_for_all.gate_port)


def local_service(kind):
    """A task's own server and its client, over every address that is its own."""
    answers = []
    pairs = (
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.1.2.3"),
        ("0.0.0.0", "192.0.0.2"),
        ("::", "::1"),
        ("::", "fd65:7865:6174::2"),
    )
    for port, (bound, reached) in enumerate(pairs, 8080):
        with socket.socket(family(bound), kind) as server, socket.socket(family(bound), kind) as client:
            for sock in server, client:
                sock.settimeout(5)
            server.bind((bound, port))
            if kind == socket.SOCK_STREAM:
                server.listen()
                client.connect((reached, port))
                with server.accept()[0] as connection:
                    connection.sendall(b"tcp")
                    answers.append(client.recv(10))
            else:
                client.sendto(b"ping", (reached, port))
                server.sendto(*server.recvfrom(10))
                answers.append(client.recv(10))
    return answers


@pytest.mark.parametrize(("kind", "answer"), [(socket.SOCK_STREAM, b"tcp"), (socket.SOCK_DGRAM, b"ping")])
def test_local_services_keep_working(network, kind, answer):
    assert network.run(lambda: local_service(kind)) == [answer] * 5
    assert nothing_accepted(network)
    assert network.counters() == {}


OWN = ["127.0.0.1", "127.0.0.53", "127.255.255.254", "0.0.0.0", "::1", "::", "192.0.0.2", "fd65:7865:6174::2"]


def test_dns_over_tcp_to_an_own_address_reaches_the_gate(network_for_all):
    network_for_all.run(lambda: [connect(address, 53) for address in OWN])
    assert {accepted(network_for_all)[0][1] for _ in OWN} == {53}
    assert network_for_all.counters() == {}


def test_dns_over_tcp_is_refused_without_a_gate(network):
    network.sockets.tcp.close()
    found = network.run(lambda: {address: outcome(lambda: connect(address, 53)) for address in OWN})  # noqa: B023
    assert found == dict.fromkeys(OWN, errno.ECONNREFUSED)


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_local_listener_receives_no_foreign_traffic(network, bound):
    def listen_and_connect():
        with socket.socket(family(bound)) as server:
            server.bind((bound, 8443))
            server.listen()
            server.settimeout(0)
            connect(PUBLIC4 if bound == "0.0.0.0" else PUBLIC6, 8443)
            return outcome(server.accept)

    assert network.run(listen_and_connect) == errno.EAGAIN
    assert accepted(network)[0][1] == 8443


@pytest.mark.parametrize("address", [PUBLIC4, PUBLIC6])
@pytest.mark.parametrize("port", [22, 53, 443, 15001])
def test_tcp_is_refused_at_once_without_a_gate(network, address, port):
    network.sockets.tcp.close()
    assert network.run(lambda: outcome(lambda: connect(address, port))) == errno.ECONNREFUSED
    assert network.counters() == {"tcp": 1}


def test_connection_is_reset_when_the_gate_ends(network):
    def talk():
        with socket.socket() as sock:
            sock.settimeout(10)
            sock.connect((PUBLIC4, 443))
            sock.sendall(b"hello")
            return outcome(lambda: sock.recv(1))

    running = network.start(talk)
    connection, _ = network.sockets.tcp.accept()
    assert connection.recv(5) == b"hello"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    network.sockets.tcp.close()
    connection.close()
    assert running.result() == errno.ECONNRESET
    assert network.run(lambda: outcome(lambda: connect(PUBLIC4, 443))) == errno.ECONNREFUSED


def ask(address, port, kind=socket.SOCK_DGRAM, protocol=0):
    """Send a datagram on a connected socket and return the answer, or the errno that came back."""
    with socket.socket(family(address), kind, protocol) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.connect(endpoint(address, port))
        sock.send(b"question")
        return outcome(lambda: sock.recv(100))


def answer(network):
    """Answer the next query from the address that was asked, as the resolver does; return that address."""
    sock = network.sockets.dns_udp
    data, ancillary, _, client = sock.recvmsg(100, 256)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, 74):
            asked = value[8:24]
        elif (level, kind) == (socket.IPPROTO_IP, 20):
            asked = bytes(10) + b"\xff\xff" + value[4:8]
    control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked + bytes(4))]
    sock.sendmsg([b"answer to " + data], control, 0, client)
    return socket.inet_ntop(socket.AF_INET6, asked)


@pytest.mark.parametrize(
    ("address", "asked"),
    [("8.8.8.8", "::ffff:8.8.8.8"), ("127.0.0.1", "::ffff:127.0.0.1"), ("127.0.0.53", "::ffff:127.0.0.53"), ("0.0.0.0", "::ffff:127.0.0.1"), ("10.0.0.1", "::ffff:10.0.0.1"), ("169.254.169.254", "::ffff:169.254.169.254"), ("192.0.0.2", "::ffff:192.0.0.2"), ("2001:4860:4860::8888", "2001:4860:4860::8888"), ("::1", "::1"), ("::", "::1"), ("fd65:7865:6174::2", "fd65:7865:6174::2"), ("::2", "::2")],
)  # fmt: skip
def test_dns_reply_comes_from_the_queried_server(network_for_all, address, asked):
    running = network_for_all.start(lambda: ask(address, 53))
    assert answer(network_for_all) == asked
    assert running.result() == b"answer to question"
    assert network_for_all.counters() == {}


@pytest.mark.parametrize(
    "address",
    ["255.255.255.255", "127.255.255.255", "224.0.0.251", "239.1.2.3", "240.0.0.1", "0.1.2.3", "ff02::1%lo", "ff02::fb%lo", "ff0e::1", "fe80::1%lo", "febf::1%lo"],
)  # fmt: skip
def test_dns_to_an_impossible_server_is_dropped(network, address):
    def send():
        with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"question", endpoint(address, 53))

    network.run(send)
    network.sockets.dns_udp.settimeout(0)
    assert outcome(lambda: network.sockets.dns_udp.recv(1)) == errno.EAGAIN
    assert network.counters() == {"dns_destination": 1}


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "127.0.0.1"])
def test_dns_is_refused_at_once_without_a_resolver(network, address):
    network.sockets.dns_udp.close()
    assert network.run(lambda: ask(address, 53)) == errno.ECONNREFUSED


@pytest.mark.parametrize("address", [PUBLIC4, PUBLIC6, "10.0.0.1", "::2", "fe80::1%lo", "0.1.2.3"])
def test_udp_is_refused_at_once(network, address):
    ports = (80, 123, 443, 853, 5353, GATE_PORT)
    assert network.run(lambda: [ask(address, port) for port in ports]) == [errno.ECONNREFUSED] * len(ports)
    assert network.counters() == {"quic": 1, "udp": 5}


def neighbours():
    """How many IPv6 neighbours there are in this namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as sock:
        wanted = struct.pack("=BxxxiHBB", socket.AF_INET6, 0, 0, 0, 0)  # struct ndmsg
        sock.send(message(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, wanted))
        kinds = []
        while NLMSG_DONE not in kinds:
            kinds += [each.kind for each in messages(sock.recv(1 << 20))]
    return len(kinds) - 1


def test_ipv6_neighbour_entries_are_bounded(network):
    """The kernel has one for each address that anything was sent to, and counts them as nobody's memory."""

    def send():
        before = neighbours()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            for number in range(5000):
                outcome(lambda at=number: sock.sendto(b"x", (f"2001:db8::{at:x}", 9)))
        kept = neighbours() - before
        tried = ("::1", PUBLIC4, "2001:db8::5", PUBLIC6)
        return (
            kept,
            [outcome(lambda at=address: ask(at, 80)) for address in tried],
            outcome(lambda: connect(PUBLIC6, 443)),
            connect(PUBLIC4, 443)[1],
        )

    kept, asked, six, four = network.run(send)
    assert 4000 < kept <= 4096 + 2  # and those of the sandbox's own addresses
    assert asked == [errno.ECONNREFUSED] * 3 + [errno.EPERM], (
        "what stays, IPv4, what has its place, and what has none: told at once"
    )
    assert (six, four) == (errno.ECONNREFUSED, (PUBLIC4, 443))
    assert network.counters().keys() == {"udp", "tcp"}


def test_fragmented_datagram_is_one_datagram(network):
    """The ports are looked at after the parts are put together."""

    def send(address):
        with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect((address, 443))
            if ":" in address:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU, 1280)
            sock.send(bytes(65000 if ":" in address else 65507))
            return outcome(lambda: sock.recv(1))

    assert network.run(lambda: [send(PUBLIC4), send(PUBLIC6)]) == [errno.ECONNREFUSED] * 2
    assert network.counters() == {"quic": 2}


def strict():
    """Have packets' sources looked up when they arrive, where the kernel offers it; return what holds then."""
    paths = [Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter") for device in ("all", "lo")]
    for path in paths:
        path.write_text("1")
    return [path.read_text().strip() for path in paths]


def test_strict_reverse_path_filter_changes_nothing(network):
    """Distributions set it: it is for hosts with several devices, and here every address is reached by the same one."""
    assert network.as_owner(strict) == ["1", "1"]
    for address in (PUBLIC4, "198.18.0.7", "10.0.0.1"):
        network.run(lambda address=address: connect(address, 443))
        assert accepted(network)[0] == (f"::ffff:{address}", 443)
        running = network.start(lambda address=address: ask(address, 53))
        assert answer(network) == f"::ffff:{address}"
        assert running.result() == b"answer to question"
    assert network.counters() == {}
    assert network.run(lambda: [ask(PUBLIC4, port) for port in (80, 443)]) == [errno.ECONNREFUSED] * 2
    network.sockets.tcp.close()
    assert network.run(lambda: outcome(lambda: connect(PUBLIC4, 443))) == errno.ECONNREFUSED
    assert network.counters() == {"quic": 1, "udp": 1, "tcp": 1}


def unprivileged(kind, number):
    return lambda: outcome(lambda: socket.socket(socket.AF_INET, kind, number).close() or "open")


@pytest.mark.parametrize(
    "number", [socket.IPPROTO_RAW, socket.IPPROTO_ICMP, socket.IPPROTO_TCP, socket.IPPROTO_UDP, 132, 47]
)
def test_raw_sockets_are_refused(network_for_all, number):
    assert network_for_all.run(unprivileged(socket.SOCK_RAW, number)) == errno.EPERM


def test_ping_sockets_are_refused(network_for_all):
    """net.ipv4.ping_group_range is empty in a new namespace."""
    assert network_for_all.run(unprivileged(socket.SOCK_DGRAM, socket.IPPROTO_ICMP)) == errno.EACCES


@pytest.mark.parametrize("kind", [socket.SOCK_RAW, socket.SOCK_DGRAM])
def test_packet_sockets_are_refused(network_for_all, kind):
    assert network_for_all.run(lambda: outcome(lambda: socket.socket(socket.AF_PACKET, kind))) == errno.EPERM


RAW = [
    (socket.AF_INET, PUBLIC4, socket.IPPROTO_ICMP, b"\x08\0\xf7\xff\0\0\0\0", "icmp"),
    (socket.AF_INET6, PUBLIC6, socket.IPPROTO_ICMPV6, b"\x80\0\0\0\0\0\0\0", "icmp"),
    (socket.AF_INET, PUBLIC4, 132, bytes(32), "other"),  # SCTP
    (socket.AF_INET6, PUBLIC6, 132, bytes(32), "other"),
    (socket.AF_INET, PUBLIC4, 47, bytes(32), "other"),  # GRE
    (socket.AF_INET, PUBLIC4, 4, bytes(32), "other"),  # IP in IP
    (socket.AF_INET, PUBLIC4, IPPROTO_DCCP, bytes(32), "other"),
    (socket.AF_INET, PUBLIC4, IPPROTO_UDPLITE, bytes(32), "other"),
    (socket.AF_INET, PUBLIC4, 253, bytes(32), "other"),
    (socket.AF_INET6, PUBLIC6, 59, b"", "other"),  # no next header
]


@pytest.mark.parametrize("case", RAW)
def test_other_protocols_are_dropped_even_with_cap_net_raw(network, case):
    """A task can't make these; whoever had the capability would get no further."""
    domain, address, number, payload, kind = case

    def send():
        with socket.socket(domain, socket.SOCK_RAW, number) as sock:
            sock.sendto(payload, (address, 0))

    network.as_owner(send)
    assert network.counters() == {kind: 1}


def test_udp_lite_is_dropped(network):
    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as sock:
            sock.sendto(b"x", (PUBLIC4, 53))

    assert network.run(lambda: outcome(send)) in (None, errno.EPROTONOSUPPORT)
    assert network.counters() in ({"other": 1}, {})


def test_icmp_errors_of_the_kernel_are_no_attempts(network):
    """An answer to a resolver's client that is gone makes the kernel send ICMP to the server's address."""

    def ask_and_go():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"question", ("8.8.8.8", 53))

    network.run(ask_and_go)
    answer(network)
    assert network.counters() == {}


def test_counters_of_a_new_sandbox_are_zero(network):
    """No chatter of the kernel's own (neighbours, routers, groups) is counted."""
    assert network.counters() == {}
