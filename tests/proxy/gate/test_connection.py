"""What becomes of connections, end to end through the gate: the tables of `test_decide` with sockets under them."""

import asyncio
import gc
import socket
from ipaddress import ip_address

import pytest

from proxy.gate.client_hello import parse_hello
from proxy.supervisor_channel.channel import Attribution
from proxy.telemetry.events import Process
from tests.proxy.gate.connection_lab import HELLO, decided, gate
from tests.proxy.gate.gate_lab import (
    LOOPBACK,
    RAW,
    Origin,
)
from tests.support.waiting import wait_until_async

# passed through


def test_spliced_tls_is_relayed_unchanged_and_recorded(tmp_path):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        server = await world.origin.take()
        assert await server.read_exactly(len(HELLO)) == HELLO
        await server.send(b"answer")
        assert await task.read() == b"answer"
        task.shutdown()
        assert await server.read_all() == b""
        server.close()
        assert await task.read_all() == b""
        closed = await world.closing()
        (decision,) = world.decisions
        assert decided(decision) == ("allow", "passed", "rule")
        assert decision["rules"] == ["r:good"]
        assert decision["destination"] == {"name": "good.example", "address": "127.0.0.1", "port": world.origin.port}
        assert decision["protocol"] == "tls"
        greeted = {"sni": "good.example", "alpn": ["h2", "http/1.1"], "version": "TLSv1.3"}
        assert decision["tls"] == greeted | {"ja4": parse_hello(HELLO).ja4}
        assert closed["cause"] == decision["id"]
        assert closed["outcome"] == "passed"
        assert "reason" not in closed
        assert closed["bytes"] == {"up": len(HELLO), "down": 6}
        assert 0 <= closed["duration"] < 30
        assert closed["destination"] == decision["destination"]
        assert not world.gate.connections
        for counted in (world.metrics.peek_seconds, world.metrics.decision_seconds, world.metrics.connection_seconds):
            assert sum(counted.counts) == 1
        assert world.metrics.connections_open == 0

    gate(tmp_path, test)


@pytest.mark.parametrize("how", ["peace", "reset", "cut", "refused"])
def test_ended_connection_is_freed_without_garbage_collection(tmp_path, how):
    of_one = {"Splice", "Half", "ConnectRace", "_ConnectAttempt", "Connection", "ConnectionRecord"}

    async def test(world):
        if how == "refused":
            await world.origin.stop()
        task = await world.connect("good.example")
        await task.send(HELLO)
        if how != "refused":
            server = await world.origin.take()
            assert await server.read_exactly(len(HELLO)) == HELLO
            if how == "peace":
                task.shutdown()
                assert await server.read_all() == b""
                server.close()
            else:
                (server if how == "reset" else task).reset()
        await world.closing()
        await wait_until_async(lambda: not world.gate.connections)
        gc.collect()
        assert {type(one).__name__ for one in gc.garbage} & of_one == set()

    try:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gate(tmp_path, test)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_one_connection_is_one_accept_call(tmp_path):
    class Counted:
        asked = 0

        def __init__(self, listener):
            self.fileno, self.listener = listener.fileno, listener

        def _accept(self):
            Counted.asked += 1
            return self.listener._accept()

    async def test(world):
        world.gate._listener = Counted(world.listener)
        for count in range(1, 11):
            await world.connect("good.example")
            await wait_until_async(lambda count=count: len(world.gate.connections) == count)
            assert Counted.asked == count
        await asyncio.gather(*(world.connect("good.example") for _ in range(40)))
        await wait_until_async(lambda: len(world.gate.connections) == 50)

    gate(tmp_path, test)


@pytest.mark.parametrize("size", [1, 5, 64, 516])
def test_client_hello_in_small_segments_arrives_whole(tmp_path, size):
    async def test(world):
        task = await world.connect("good.example")
        task.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(HELLO), size):
            await task.send(HELLO[at : at + size])
            if at < 50 * size:
                await asyncio.sleep(0)
        server = await world.origin.take()
        assert await server.read_exactly(len(HELLO)) == HELLO

    gate(tmp_path, test)


def test_bytes_right_after_the_client_hello_are_relayed(tmp_path):
    data = HELLO + b"\x17\x03\x03\x4e\x20" + bytes(20000)

    async def test(world):
        task = await world.connect("good.example")
        await task.send(data)
        server = await world.origin.take()
        assert await server.read_exactly(len(data)) == data

    gate(tmp_path, test)


def test_protocol_with_server_first_is_dialed_at_once(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        await server.send(b"220 welcome\r\n")
        assert await task.read() == b"220 welcome\r\n"
        await task.send(b"EHLO\r\n")
        assert await server.read() == b"EHLO\r\n"
        assert world.decisions[0]["protocol"] == "tcp"
        assert world.decisions[0]["destination"]["name"] == "raw.example"

    gate(tmp_path, test)


def test_client_that_may_send_first_gets_a_brief_wait(tmp_path):
    both = "id: both, to: mixed.example, ports: [ORIGIN/tcp, ORIGIN/http], action: allow, resolves_to: [127.0.0.0/8]"

    async def test(world):
        silent, web = await world.connect("mixed.example"), await world.connect("mixed.example")
        await web.send(b"GET / HTTP/1.1\r\nHost: mixed.example\r\n\r\n")
        server = await world.origin.take()
        await server.send(b"banner")
        assert await silent.read() == b"banner"
        assert sorted(e["protocol"] for e in world.decisions) == ["http", "tcp"]
        assert len(world.adopted) == 1

    gate(tmp_path, test, [both])


def test_client_that_sends_nothing_may_end_first(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        task.shutdown()
        server = await world.origin.take()
        assert await server.read() == b""
        await server.send(b"here you are")
        server.close()
        assert await task.read_all() == b"here you are"

    gate(tmp_path, test)


def test_literal_address_with_sni_dials_the_address_of_the_name(tmp_path):
    async def test(world):
        task = await world.connect(ip_address("93.184.216.34"))
        await task.send(HELLO)
        server = await world.origin.take()
        assert server.sock.getsockname()[0] == "127.0.0.1"
        assert world.decisions[0]["destination"]["name"] == "good.example"
        assert world.decisions[0]["destination"]["address"] == "127.0.0.1"

    gate(tmp_path, test)


def test_address_of_an_address_rule_is_dialed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "proxy.gate.listener.is_unroutable", lambda *_: False
    )  # the loopback is all the outside there is here

    async def test(world):
        task = await world.connect(ip_address("127.0.0.3"))
        server = await world.origin.take()
        assert server.sock.getsockname()[0] == "127.0.0.3"
        await server.send(b"hello")
        assert await task.read() == b"hello"
        assert world.decisions[0]["destination"] == {"address": "127.0.0.3", "port": world.origin.port}
        other = await world.connect(ip_address("127.0.0.4"))
        assert await other.ended() == "reset"

    rule = "id: literal, to: 127.0.0.3, ports: [ORIGIN/tcp], action: allow"
    gate(tmp_path, test, [rule], origin=Origin("127.0.0.3"))


def test_address_of_a_rule_that_is_the_sandboxs_own_is_not_dialed(tmp_path):
    async def test(world):
        task = await world.connect(ip_address("127.0.0.3"))
        assert await task.ended() == "reset"
        assert world.decisions[0]["reason"] == "non_public_address"

    gate(tmp_path, test, ["id: literal, to: 127.0.0.0/8, ports: [ORIGIN/tcp], action: allow"])


def test_process_of_a_connection_is_looked_up_and_recorded(tmp_path):
    async def test(world):
        asked = []

        def attribute(peer, destination):
            asked.append((peer, destination))
            assert not world.decisions
            assert world.origin.accepted == 0
            attribution = Attribution()
            attribution.set_process(Process(pid=7, exe="/usr/bin/ssh", argv=("ssh", "raw.example"), uid=1000))
            return attribution

        world.gate._attribute = attribute
        task = await world.connect("raw.example")
        await world.origin.take()
        assert asked == [((LOOPBACK, task.sock.getsockname()[1]), (world.synthetic("raw.example"), world.origin.port))]
        assert world.decisions[0]["process"]["exe"] == "/usr/bin/ssh"

    gate(tmp_path, test)


def test_real_address_of_a_name_is_decided_as_the_name(tmp_path):
    async def test(world):
        from rules.values.names import HostName

        address = ip_address("93.184.216.34")
        world.names.remember(HostName("raw.example"), [address])
        await world.connect(address)
        await world.origin.take()
        assert world.decisions[0]["destination"] == {
            "name": "raw.example", "address": "127.0.0.1", "port": world.origin.port,
        }  # fmt: skip

    gate(tmp_path, test)


def test_dial_races_both_address_families(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        assert server.sock.getsockname()[0] == "::1"
        task.reset()
        assert (await world.closing())["destination"]["address"] == "::1"

    rule = RAW.replace("127.0.0.0/8", "127.0.0.0/8, '::1'")
    gate(tmp_path, test, [rule], origin=Origin("::1"), hosts="127.0.0.1 raw.example\n::1 raw.example\n")
