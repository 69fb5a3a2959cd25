"""One flow of datagrams: looked up, passed on, handed back, and how it ends."""

import asyncio
import errno
import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from proxy.dialing.dialer import LOOKUP_TIMEOUT
from proxy.udp import flow
from tests.proxy.udp.udp_lab import CLIENT, ELSEWHERE, HOST, UDP, reasons, tried
from tests.support.waiting import wait_until_async


def test_flow_is_relayed_both_ways_and_recorded_once(tmp_path):
    async def test(world, udp, server):
        for data in (b"one", b"", b"three"):
            udp.send(HOST, server.port, data)
            got, peer = await server.hear()
            assert got == data
            server.sock.sendto(b"re:" + got, peer)
            await wait_until_async(lambda: udp.answers.replies)
            asked, client, payload = udp.answers.replies.pop()
            assert (asked, client, payload) == ((ip_address("198.18.0.1"), server.port), (CLIENT, 40000), b"re:" + data)
        udp.now += 119.9
        udp.gate.periodic_tasks.go()
        assert world.closings == []
        udp.now += 0.1
        udp.gate.periodic_tasks.go()
        (decision,), (closing,) = world.decisions, world.closings
        assert (decision["verdict"], decision["rules"], decision["protocol"]) == ("allow", ["r:u"], "udp")
        assert decision["destination"] == {"name": HOST, "address": "127.0.0.1", "port": server.port}
        assert (closing["cause"], closing["bytes"]) == (decision["id"], {"up": 8, "down": 17})
        assert reasons(world.closings) == [("passed", None)]
        assert udp.answers.refused == []

    tried(test, tmp_path, UDP)


def test_each_source_port_is_its_own_flow(tmp_path):
    async def test(world, udp, server):
        peers = {}
        for client in (1, 2, 3):
            udp.send(HOST, server.port, b"%d" % client, client)
            data, peers[client] = await server.hear()
            assert data == b"%d" % client
        assert len(set(peers.values())) == len(world.decisions) == udp.gate.flows == 3
        server.sock.sendto(b"to two", peers[2])
        await wait_until_async(lambda: udp.answers.replies)
        assert [(client[1], data) for _, client, data in udp.answers.replies] == [(2, b"to two")]

    tried(test, tmp_path, UDP)


def test_only_replies_of_the_flows_peer_come_in(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        _, peer = await server.hear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"open up", peer)
        server.sock.sendto(b"answer", peer)
        await wait_until_async(lambda: udp.answers.replies)
        assert [data for _, _, data in udp.answers.replies] == [b"answer"]

    tried(test, tmp_path, UDP)


def looked_up(port):
    return f"id: l, to: slow.example, ports: {port}/udp, resolves_to: 10.0.0.0/8, action: allow"


def test_few_datagrams_are_queued_during_the_lookup(tmp_path, monkeypatch):
    sent = []
    real = flow.connect_first_reachable
    monkeypatch.setattr(
        flow, "connect_first_reachable", lambda hops, port: sent.append(hops) or real((ip_address("127.0.0.1"),), port)
    )

    async def test(world, udp, server):
        world.servers.hold = asyncio.Event()
        world.servers.known["slow.example", "A"] = ("10.0.0.7",)
        for number in range(flow.MAX_QUEUED + 4):
            udp.send("slow.example", server.port, b"%02d" % number)
        assert (world.decisions, udp.gate.queued_bytes, world.metrics.datagrams_lost) == (
            [],
            2 * flow.MAX_QUEUED,
            {"up": 4},
        )
        world.servers.hold.set()
        got = [(await server.hear())[0] for _ in range(flow.MAX_QUEUED)]
        assert got == [b"%02d" % number for number in range(flow.MAX_QUEUED)]
        assert (sent, udp.gate.queued_bytes, len(world.decisions)) == ([(ip_address("10.0.0.7"),)], 0, 1)

    async def with_port(world, udp, server):
        udp.reload(tmp_path, looked_up(server.port))
        await test(world, udp, server)

    tried(with_port, tmp_path, ELSEWHERE)


def test_queued_bytes_of_all_flows_are_bounded(tmp_path):
    async def test(world, udp, server):
        world.servers.hold = asyncio.Event()
        for client in range(100):
            udp.send("elsewhere.example", 123, bytes(60_000), client)
        assert udp.gate.queued_bytes <= 1 << 20
        assert world.metrics.datagrams_lost == {"up": 100 - (1 << 20) // 60_000}

    tried(test, tmp_path, ELSEWHERE)


def test_failed_lookup_denies_the_queued_datagrams(tmp_path):
    async def test(world, udp, server):
        udp.send("elsewhere.example", 123)
        await wait_until_async(lambda: world.decisions)
        assert reasons(world.decisions) == [("failed", "unresolved")]
        assert (len(udp.answers.refused), udp.gate.flows) == (1, 0)

    tried(test, tmp_path, ELSEWHERE)


def test_lookup_of_a_flow_times_out(tmp_path):
    async def test(world, udp, server):
        world.servers.hold = asyncio.Event()
        udp.send("elsewhere.example", 123)
        udp.now += LOOKUP_TIMEOUT
        udp.gate.periodic_tasks.go()
        assert reasons(world.decisions) == [("failed", "unresolved")]
        world.servers.hold.set()
        await asyncio.sleep(0.01)
        assert len(world.decisions) == 1

    tried(test, tmp_path, ELSEWHERE)


def test_closed_port_is_reported_to_the_task(tmp_path):
    """The ICMP error of the far side ends the flow; the next datagram begins another."""

    async def test(world, udp, server):
        server.sock.close()
        for turn in (1, 2):
            udp.send(HOST, server.port)
            await wait_until_async(lambda count=turn: len(world.closings) == count)
        assert reasons(world.closings) == [("failed", "upstream_failed")] * 2
        assert (len(udp.answers.refused), world.metrics.datagrams_refused) == (2, 0)

    tried(test, tmp_path, UDP)


NO_SOCKET = [
    (errno.ENETUNREACH, "failed", "upstream_failed"),
    (errno.EACCES, "failed", "upstream_failed"),  # a broadcast address of a network that this host is in
    (errno.EMFILE, "blocked", "limit_exceeded"),
]


@pytest.mark.parametrize(("number", "outcome", "reason"), NO_SOCKET)
def test_flow_without_a_socket_fails_before_sending(tmp_path, monkeypatch, number, outcome, reason):
    class NoSocket(socket.socket):
        def __init__(self, *how):
            if number == errno.EMFILE:
                raise OSError(number, "none left")
            super().__init__(*how)

        def connect(self, where):
            if where[1] == 123:
                raise OSError(number, "no way")
            super().connect(where)

    async def test(world, udp, server):
        with monkeypatch.context() as patched:
            patched.setattr(flow.socket, "socket", NoSocket)
            udp.send(ip_address("93.184.216.34"), 123)
        assert reasons(world.decisions) == [(outcome, reason)]
        assert len(udp.answers.refused) == 1

    tried(test, tmp_path, "id: a, to: 93.184.216.34, ports: 123/udp, action: allow")


def test_idle_timeout_of_a_flow_comes_from_its_rule(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        udp.now += 5
        udp.gate.periodic_tasks.go()
        assert len(world.closings) == 1

    tried(test, tmp_path, UDP.replace("action", "idle_timeout: 5s, action"))


def test_replies_do_not_keep_a_flow_open(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        _, peer = await server.hear()
        for turn in range(1, 13):
            udp.now += 10
            server.sock.sendto(b"still there?", peer)
            await wait_until_async(lambda count=turn: len(udp.answers.replies) == count)
        udp.gate.periodic_tasks.go()
        assert reasons(world.closings) == [("passed", None)]

    tried(test, tmp_path, UDP)


def test_reply_that_cannot_be_sent_is_counted_and_dropped(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        _, peer = await server.hear()
        udp.answers.full = True
        server.sock.sendto(b"lost", peer)
        await wait_until_async(lambda: world.metrics.datagrams_lost)
        assert world.metrics.datagrams_lost == {"down": 1}
        assert udp.gate.flows == 1

    tried(test, tmp_path, UDP)


def test_queued_datagrams_are_sent_at_the_end_of_the_task(tmp_path, monkeypatch):
    real = flow.connect_first_reachable
    monkeypatch.setattr(flow, "connect_first_reachable", lambda _hops, port: real((ip_address("127.0.0.1"),), port))

    async def test(world, udp, server):
        udp.reload(tmp_path, looked_up(server.port), UDP.replace("PORT", str(server.port)))
        world.servers.hold = asyncio.Event()
        world.servers.known["slow.example", "A"] = ("10.0.0.7",)
        udp.send("slow.example", server.port, b"last words")
        udp.send(HOST, server.port, b"x", 2)
        await server.hear()
        udp.gate.finish()
        assert udp.gate.flows == 1
        world.servers.hold.set()
        assert (await server.hear())[0] == b"last words"
        await wait_until_async(lambda: not udp.gate.flows)
        assert reasons(world.closings) == [("passed", None)] * 2

    tried(test, tmp_path, ELSEWHERE)


@pytest.mark.parametrize("kept", [True, False])
def test_flow_untrusted_after_a_reload_taints_or_ends(tmp_path, kept):
    async def test(world, udp, server):
        udp.send(HOST, server.port, b"one")
        await server.hear()
        if not kept:
            world.sandbox.taint = SimpleNamespace(record_read=lambda *_: False)
        udp.reload(tmp_path, f"{UDP.replace('PORT', str(server.port))}, trust: untrusted")
        assert (udp.gate.flows, world.sandbox.tainted) == ((1, True) if kept else (0, False))
        closed = [event for event in world.events if event["kind"] == "connection.closed"]
        assert reasons(closed) == ([] if kept else [("blocked", "approval_unavailable")])

    tried(test, tmp_path, UDP)
