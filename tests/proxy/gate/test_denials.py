"""What is refused: a reset, one event, and nothing that leaves; and what fails beyond the gate."""

from ipaddress import ip_address

import pytest

from tests.proxy.gate.connection_lab import HELLO, RULES, decided, gate
from tests.proxy.gate.gate_lab import (
    HOSTS,
    LOOPBACK,
    OWN,
    GateLab,
    client_hello,
    ech_hello,
    made_hello,
    run,
    server_name,
)

# refused


REFUSED = {
    "another name": ("good.example", client_hello("evil.example"), "name_mismatch"),
    "a name that is allowed elsewhere": ("good.example", client_hello("seen.example"), "name_mismatch"),
    "no name": ("good.example", client_hello(None), "sni_missing"),
    "a hidden name": ("good.example", ech_hello(), "ech"),
    "bytes that are not tls": ("good.example", b"SSH-2.0-OpenSSH_9.9\r\n", "protocol_mismatch"),
    "half a hello that is damaged": ("good.example", b"\x16\x03\x01\x00\x05\x02", "protocol_mismatch"),
    "http": ("good.example", b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "protocol_mismatch"),
    "a name nobody allowed": ("evil.example", client_hello("evil.example"), "no_rule"),
    "an address as a name": ("good.example", made_hello(server_name(b"127.0.0.1")), "invalid_name"),
    "a zero in a name": ("good.example", made_hello(server_name(b"good.example\0.evil.example")), "invalid_name"),
    "a literal address": (ip_address("93.184.216.34"), client_hello(None), "no_rule"),
    "the metadata service": (ip_address("169.254.169.254"), b"GET / HTTP/1.1\r\n\r\n", "non_public_address"),
    "a denied name's address with an allowed name": ("evil.example", HELLO, "name_mismatch"),
}


@pytest.mark.parametrize(("to", "data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_denial_is_a_reset_and_one_event_and_dials_nothing(tmp_path, to, data, reason):
    async def test(world):
        task = await world.connect(to)
        await task.send(data)
        assert await task.ended() == "reset"
        assert decided(await world.decision()) == ("deny", "blocked", reason)
        assert len(world.events) == 1
        assert world.origin.accepted == 0
        assert not world.servers.asked

    gate(tmp_path, test, on_block="reset")


@pytest.mark.parametrize(
    ("address", "port", "reason"),
    [
        (OWN, 443, "non_public_address"),
        (OWN, 15001, "non_public_address"),
        (LOOPBACK, 15001, "non_public_address"),
        (ip_address("127.5.5.5"), 80, "non_public_address"),
        (ip_address("::1"), 443, "non_public_address"),
        (ip_address("0.0.0.0"), 443, "non_public_address"),
        (ip_address("0.1.2.3"), 443, "non_public_address"),
        (ip_address("224.0.0.1"), 443, "non_public_address"),
        (ip_address("fe80::1%lo"), 443, "non_public_address"),
        (ip_address("93.184.216.34"), 0, "non_public_address"),
        (ip_address("198.18.77.77"), 443, "unresolved"),
        (ip_address("198.19.255.255"), 443, "unresolved"),
    ],
)
def test_unroutable_destination_is_denied_unread(tmp_path, address, port, reason):
    async def test(world):
        task = await world.connect(address, port)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", reason)
        assert world.decisions[0]["destination"]["port"] == port

    gate(tmp_path, test, ["id: all, to: ['*', 0.0.0.0/0], ports: [1-65535/tcp], action: allow"])


def test_expired_synthetic_address_is_denied(tmp_path, monkeypatch):
    async def test(world):
        address = world.synthetic("raw.example")
        monkeypatch.setattr("proxy.dns.names.KEPT", -1.0)
        world.synthetic("raw.example")
        task = await world.connect(address)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", "unresolved")

    gate(tmp_path, test)


def test_silent_client_without_a_rule_is_denied_quickly(tmp_path):
    async def test(world):
        task = await world.connect("evil.example", 22)  # it waits for a banner
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", "no_rule")

    gate(tmp_path, test)


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe"])
@pytest.mark.parametrize("known", [True, False])
def test_allowed_name_with_a_private_address_is_denied(tmp_path, address, known):
    async def test(world):
        world.servers.known["good.example", "AAAA"] = [address]
        task = await world.connect("good.example")
        await task.send(HELLO)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", "non_public_address")
        assert world.decisions[0]["rules"] == ["r:good"]
        assert len(world.events) == 1

    public = "id: good, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow"
    hosts = f"{address} good.example\n" if known else ""
    gate(tmp_path, test, [public], inspect=False, hosts=hosts)


def test_unknown_name_is_a_failure_not_a_denial(tmp_path):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("allow", "failed", "unresolved")
        assert not world.closings

    gate(tmp_path, test, hosts="")


def test_server_that_refuses_is_recorded_at_the_end(tmp_path):
    async def test(world):
        world.origin.listener.close()
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("allow", "passed", "rule")
        closed = await world.closing()
        assert (closed["outcome"], closed["reason"], closed["bytes"]) == (
            "failed", "upstream_failed", {"up": 0, "down": 0},
        )  # fmt: skip

    async def inside():
        world = GateLab(tmp_path, RULES, hosts=HOSTS)
        world.gate.start()
        await test(world)
        world.gate.close()
        world.listener.close()

    run(inside)


def test_server_reset_is_relayed_and_recorded(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        await server.send(b"the first half")
        assert await task.read() == b"the first half"
        server.reset()
        assert await task.ended() == "reset"
        closed = await world.closing()
        assert (closed["outcome"], closed["reason"], closed["bytes"]["down"]) == ("failed", "upstream_failed", 14)

    gate(tmp_path, test)


def test_client_reset_is_relayed_to_the_server(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        task.reset()
        assert await server.ended() == "reset"
        closed = await world.closing()
        assert closed["outcome"] == "passed"
        assert "reason" not in closed

    gate(tmp_path, test)
