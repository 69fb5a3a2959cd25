"""What is handed over to inspection, and what is explained there."""

import socket
from ipaddress import ip_address

import pytest

from rules.verdicts import Reason
from tests.proxy.gate.connection_lab import HELLO, RULES, decided, gate
from tests.proxy.gate.gate_lab import (
    HOSTS,
    LOOPBACK,
    GateLab,
    client_hello,
    run,
)
from tests.support.waiting import wait_until_async

# handed over


@pytest.mark.parametrize(
    ("to", "data", "says"),
    [
        ("seen.example", client_hello("seen.example"), "seen.example tls rule"),
        ("seen.example", b"GET / HTTP/1.1\r\n", "seen.example http rule"),
        ("evil.example", client_hello("evil.example"), "evil.example tls no_rule"),
        ("evil.example", b"POST /x HTTP/1.1\r\n", "evil.example http no_rule"),
        ("good.example", client_hello("evil.example"), "good.example tls name_mismatch"),
        (ip_address("93.184.216.34"), client_hello("seen.example"), "seen.example tls rule"),
        (ip_address("93.184.216.34"), b"GET / HTTP/1.1\r\nHost: seen.example\r\n\r\n", "seen.example http rule"),
        (ip_address("93.184.216.34"), b"GET / HTTP/1.0\r\n\r\n", "93.184.216.34 http no_rule"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # a hello is another in each process
)
def test_inspection_gets_the_connection_with_its_decision(tmp_path, to, data, says):
    target, protocol, reason = says.split()

    async def test(world):
        task = await world.connect(to)
        for at in range(0, len(data), 7):
            await task.send(data[at : at + 7])
        decision = await world.decision()
        await wait_until_async(lambda: world.adopted)
        (admitted,) = world.adopted
        assert (
            str(admitted.gate_decision.attempt.target),
            admitted.gate_decision.attempt.protocol.value,
            admitted.decision.reason.value,
        ) == (
            target,
            protocol,
            reason,
        )
        assert admitted.event == decision["id"]
        assert (admitted.sandbox, admitted.gate_decision.attempt.port) == (world.sandbox, world.origin.port)
        assert admitted.record.peer == (LOOPBACK, task.sock.getsockname()[1])
        assert (admitted.gate_decision.hello is not None) == (protocol == "tls")
        assert admitted.client.gettimeout() == 0
        assert admitted.client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        assert admitted.client.recv(65536) == data  # not a byte was consumed
        assert admitted.client.fileno() not in world.poller._watched
        assert world.origin.accepted == 0
        assert len(world.gate.connections) == 1
        admitted.client.close()
        admitted.record.set_hop(ip_address("192.0.2.7"))
        admitted.closed(3, 4, None)
        admitted.closed(5, 6, Reason.GATE_ERROR)
        assert len(world.gate.connections) == 0
        ends = [(e["bytes"], e["outcome"]) for e in world.closings]
        assert ends == ([({"up": 3, "down": 4}, "passed")] if reason == "rule" else [])
        assert {e["destination"]["address"] for e in world.closings} <= {"192.0.2.7"}

    gate(tmp_path, test)


def test_denied_address_of_a_spliced_name_gets_a_block_page(tmp_path):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        await wait_until_async(lambda: world.adopted)
        assert world.adopted[0].decision.reason is Reason.NON_PUBLIC_ADDRESS
        assert decided(world.decisions[0]) == ("deny", "blocked", "non_public_address")
        assert world.decisions[0]["detail"] == world.adopted[0].gate_decision.detail == "`good.example` is 127.0.0.1"
        assert not world.adopted[0].gate_decision.advice
        world.adopted[0].client.close()
        world.adopted[0].closed(0, 0, None)

    gate(tmp_path, test, ["id: good, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow"])


def test_block_page_names_the_hosts_own_public_address(tmp_path, monkeypatch):
    own = "93.184.216.34"
    monkeypatch.setattr("proxy.dns.lookup.source_for", lambda _address: ip_address(own))

    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        await wait_until_async(lambda: world.adopted)
        assert decided(world.decisions[0]) == ("deny", "blocked", "non_public_address")
        said = f"`good.example` is {own}, which is this host's own"
        assert world.decisions[0]["detail"] == world.adopted[0].gate_decision.detail == said
        assert world.adopted[0].gate_decision.advice.startswith("no `resolves_to` opens this host's own public address")
        world.adopted[0].client.close()
        world.adopted[0].closed(0, 0, None)

    public = "id: good, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow"
    gate(tmp_path, test, [public], hosts=f"{own} good.example\n")


def test_connection_that_inspection_cannot_take_is_reset(tmp_path):
    async def inside():
        async with GateLab(tmp_path, RULES, hosts=HOSTS) as world:
            world.inspection.broken = True
            task = await world.connect("seen.example")
            await task.send(client_hello("seen.example"))
            assert await task.ended() == "reset"
            closed = await world.closing()
            assert (closed["outcome"], closed["reason"]) == ("failed", "gate_error")
            assert [e["fault"]["where"] for e in world.errors] == ["inspection"]
            assert not world.gate.connections

    run(inside)


def test_gate_without_inspection_denies_what_needs_it(tmp_path):
    async def test(world):
        for data in (client_hello("seen.example"), b"GET / HTTP/1.1\r\n"):
            task = await world.connect("seen.example")
            await task.send(data)
            assert await task.ended() == "reset"
        assert [decided(e) for e in world.decisions] == [("deny", "blocked", "gate_error")] * 2

    gate(tmp_path, test, inspect=False)
