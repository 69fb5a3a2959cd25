"""The sockets opened inside: what they are, how they fail, and that nothing stays open."""

import errno
import os
import socket

import pytest

from enforcer.network import gate_sockets
from enforcer.network.gate_sockets import open_gate_sockets
from enforcer.network.install import execute
from enforcer.network.plan import GATE_PORT
from tests.enforcer.network.netns_harness import Network, outcome


def options(sock):
    return sock.getsockopt(socket.IPPROTO_IP, 19), sock.gettimeout(), os.get_inheritable(sock.fileno())


def test_sockets_are_transparent_nonblocking_and_cloexec(namespace, encoded):
    def make():
        execute(encoded)
        made = open_gate_sockets(GATE_PORT)
        every = made.named()
        told = [options(sock) for sock in (made.tcp, made.dns_udp, made.udp)]
        others = [(sock.gettimeout(), os.get_inheritable(sock.fileno())) for sock in every.values()]
        made.close()
        made.close()
        return told, set(others), {name: sock.fileno() for name, sock in every.items()}

    names = ("tcp", "dns_udp", "udp", "diag", "answers", "answers6", "refusal_log")
    assert namespace.as_owner(make) == ([(1, 0.0, False)] * 3, {(0.0, False)}, dict.fromkeys(names, -1))


@pytest.mark.parametrize(("port", "kind"), [(GATE_PORT, "STREAM"), (53, "DGRAM"), (GATE_PORT, "DGRAM")])
def test_port_in_use_is_an_error_that_leaves_nothing_open(namespace, port, kind):
    def attempt():
        with socket.socket(socket.AF_INET6, getattr(socket, f"SOCK_{kind}")) as other:
            other.bind(("::", port))
            before = os.listdir("/proc/self/fd")
            with pytest.raises(OSError, match=f"cannot open the gate's port {port}: Address already in use") as caught:
                open_gate_sockets(GATE_PORT)
            return caught.value.errno, os.listdir("/proc/self/fd") == before

    assert namespace.as_owner(attempt) == (errno.EADDRINUSE, True)


def test_without_capabilities_sockets_are_refused(namespace):
    with pytest.raises(OSError, match="cannot open the gate's port 15001: Operation not permitted"):
        namespace.run(lambda: open_gate_sockets(GATE_PORT))


def test_without_nflog_there_is_no_log(namespace, encoded, monkeypatch):
    """A subsystem that the kernel doesn't have answers EINVAL; 15 is none."""
    namespace.as_owner(lambda: execute(encoded))
    monkeypatch.setattr(
        gate_sockets, "_BIND_REQUEST", gate_sockets._BIND_REQUEST.replace(b"\x01\x04\x05\x00", b"\x01\x0f\x05\x00")
    )
    assert namespace.as_owner(lambda: open_gate_sockets(GATE_PORT).refusal_log) is None
    assert namespace.as_owner(lambda: open_gate_sockets(GATE_PORT, refusal_log=False).refusal_log) is None


def test_kernel_without_ipv6_gets_ipv4_sockets(rootless, encoded, monkeypatch):
    monkeypatch.setattr(gate_sockets, "_kernel_has_ipv6", lambda _make: False)
    network = Network(encoded, rootless=rootless)
    try:
        assert network.sockets.tcp.family == network.sockets.dns_udp.family == socket.AF_INET
        assert (network.sockets.udp.family, network.sockets.answers6) == (socket.AF_INET, None)
        network.run(lambda: socket.create_connection(("8.8.8.8", 443)).close())
        connection, peer = network.sockets.tcp.accept()
        with connection:
            assert connection.getsockname() == ("8.8.8.8", 443)
            assert peer[0] == "192.0.0.2"

        def ask():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(("9.9.9.9", 53))
                sock.send(b"question")
                return sock.recv(10)

        asking = network.start(ask)
        _, [(level, kind, asked)], _, client = network.sockets.dns_udp.recvmsg(100, 100)
        assert (level, kind, asked[4:8]) == (socket.IPPROTO_IP, 20, socket.inet_aton("9.9.9.9"))
        source = bytes(4) + asked[4:8] + bytes(4)  # struct in_pktinfo: interface, source, header destination
        network.sockets.dns_udp.sendmsg([b"answer"], [(socket.IPPROTO_IP, 8, source)], 0, client)
        assert asking.result() == b"answer"

        def connect6():
            with socket.socket(socket.AF_INET6) as sock:
                sock.connect(("2606::1", 443))

        assert network.run(lambda: outcome(connect6)) == errno.ECONNREFUSED
    finally:
        network.close()


def test_ipv6_support_is_probed(monkeypatch):
    assert gate_sockets._kernel_has_ipv6(socket.socket) is os.path.exists("/proc/net/if_inet6")

    def refuse(number):
        def make(*_):
            raise OSError(number, "refused")

        return make

    monkeypatch.setattr(socket, "socket", refuse(errno.EAFNOSUPPORT))
    assert gate_sockets._kernel_has_ipv6(socket.socket) is False
    monkeypatch.setattr(socket, "socket", refuse(errno.EMFILE))
    with pytest.raises(OSError, match="refused"):
        gate_sockets._kernel_has_ipv6(socket.socket)
