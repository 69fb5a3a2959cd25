"""What becomes of connections, end to end through the gate: the tables of `test_gate_deciding` with sockets under them."""

import asyncio
import socket
from ipaddress import ip_address

import pytest
from gate_harness import (
    HOSTS,
    INSPECTED,
    LOOPBACK,
    OWN,
    RAW,
    SPLICED,
    Origin,
    World,
    client_hello,
    ech_hello,
    made_hello,
    run,
    server_name,
)

from proxy.hello import parse_hello
from proxy.telemetry.events import Process
from rules.verdicts import Reason

RULES = (SPLICED, INSPECTED, RAW)
HELLO = client_hello("good.example")


def gate(tmp_path, test, rules=RULES, **how):
    async def inside():
        async with World(tmp_path, rules, **{"hosts": HOSTS, **how}) as world:
            await test(world)
            await asyncio.sleep(0.01)
            assert not world.errors

    run(inside)


def decided(event):
    return event["verdict"], event["outcome"], event["reason"]


# passed through


def test_tls_that_is_spliced_is_passed_on_byte_for_byte_and_told(tmp_path):
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


def test_one_connection_is_one_question_to_the_listener(tmp_path):
    class Counted:
        asked = 0

        def __init__(self, listener):
            self.fileno, self._accept = listener.fileno, listener.accept

        def accept(self):
            Counted.asked += 1
            return self._accept()

    async def test(world):
        world.gate._listener = Counted(world.listener)
        for count in range(1, 11):
            await world.connect("good.example")
            await world.until(lambda count=count: world.gate.connections == count)
            assert Counted.asked == count
        await asyncio.gather(*(world.connect("good.example") for _ in range(40)))
        await world.until(lambda: world.gate.connections == 50)

    gate(tmp_path, test)


@pytest.mark.parametrize("size", [1, 5, 64, 516])
def test_a_hello_in_small_segments_arrives_whole(tmp_path, size):
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


def test_what_follows_the_hello_at_once_is_passed_on_too(tmp_path):
    data = HELLO + b"\x17\x03\x03\x4e\x20" + bytes(20000)

    async def test(world):
        task = await world.connect("good.example")
        await task.send(data)
        server = await world.origin.take()
        assert await server.read_exactly(len(data)) == data

    gate(tmp_path, test)


def test_where_the_server_speaks_first_nobody_waits(tmp_path):
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


def test_where_the_client_may_speak_first_it_is_waited_for_briefly(tmp_path):
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


def test_a_client_that_only_listens_may_end_first(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        task.shutdown()
        server = await world.origin.take()
        assert await server.read() == b""
        await server.send(b"here you are")
        server.close()
        assert await task.read_all() == b"here you are"

    gate(tmp_path, test)


def test_a_literal_address_with_a_name_leads_to_where_the_name_is_here(tmp_path):
    async def test(world):
        task = await world.connect(ip_address("93.184.216.34"))
        await task.send(HELLO)
        server = await world.origin.take()
        assert server.sock.getsockname()[0] == "127.0.0.1"
        assert world.decisions[0]["destination"]["name"] == "good.example"
        assert world.decisions[0]["destination"]["address"] == "127.0.0.1"

    gate(tmp_path, test)


def test_an_address_rules_address_is_dialled_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.gate.nowhere", lambda *_: False)  # the loopback is all the outside there is here

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


def test_an_address_rules_address_that_is_the_sandboxs_own_is_not(tmp_path):
    async def test(world):
        task = await world.connect(ip_address("127.0.0.3"))
        assert await task.ended() == "reset"
        assert world.decisions[0]["reason"] == "non_public_address"

    gate(tmp_path, test, ["id: literal, to: 127.0.0.0/8, ports: [ORIGIN/tcp], action: allow"])


def test_who_it_is_is_asked_while_the_connection_waits_and_told(tmp_path):
    async def test(world):
        asked = []

        def attribute(peer, destination):
            asked.append((peer, destination))
            assert not world.decisions
            assert world.origin.accepted == 0
            return Process(pid=7, exe="/usr/bin/ssh", argv=("ssh", "raw.example"), uid=1000)

        world.gate._attribute = attribute
        task = await world.connect("raw.example")
        await world.origin.take()
        assert asked == [((LOOPBACK, task.sock.getsockname()[1]), (world.synthetic("raw.example"), world.origin.port))]
        assert world.decisions[0]["process"]["exe"] == "/usr/bin/ssh"

    gate(tmp_path, test)


def test_a_true_address_stands_for_its_name(tmp_path):
    async def test(world):
        from rules.names import HostName

        address = ip_address("93.184.216.34")
        world.names.remember(HostName("raw.example"), [address])
        await world.connect(address)
        await world.origin.take()
        assert world.decisions[0]["destination"] == {
            "name": "raw.example", "address": "127.0.0.1", "port": world.origin.port,
        }  # fmt: skip

    gate(tmp_path, test)


def test_happy_eyeballs_over_both_families(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        assert server.sock.getsockname()[0] == "::1"
        task.reset()
        assert (await world.closing())["destination"]["address"] == "::1"

    rule = RAW.replace("127.0.0.0/8", "127.0.0.0/8, '::1'")
    gate(tmp_path, test, [rule], origin=Origin("::1"), hosts="127.0.0.1 raw.example\n::1 raw.example\n")


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
def test_a_refusal_is_a_reset_and_one_told_decision_and_nothing_leaves(tmp_path, to, data, reason):
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
def test_what_is_nowhere_is_refused_unread(tmp_path, address, port, reason):
    async def test(world):
        task = await world.connect(address, port)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", reason)
        assert world.decisions[0]["destination"]["port"] == port

    gate(tmp_path, test, ["id: all, to: ['*', 0.0.0.0/0], ports: [1-65535/tcp], action: allow"])


def test_an_address_whose_time_is_up_means_nothing(tmp_path, monkeypatch):
    async def test(world):
        address = world.synthetic("raw.example")
        monkeypatch.setattr("proxy.dns.names.KEPT", -1.0)
        world.synthetic("raw.example")
        task = await world.connect(address)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", "unresolved")

    gate(tmp_path, test)


def test_a_refusal_of_a_silent_client_takes_no_longer_than_a_moment(tmp_path):
    async def test(world):
        task = await world.connect("evil.example", 22)  # it waits for a banner
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("deny", "blocked", "no_rule")

    gate(tmp_path, test)


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe"])
@pytest.mark.parametrize("known", [True, False])
def test_an_allowed_name_that_leads_inside_is_denied(tmp_path, address, known):
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


def test_a_name_that_is_not_found_fails_and_that_is_nobodys_refusal(tmp_path):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        assert await task.ended() == "reset"
        assert decided(world.decisions[0]) == ("allow", "failed", "unresolved")
        assert not world.closings

    gate(tmp_path, test, hosts="")


def test_a_server_that_refuses_is_told_at_the_end(tmp_path):
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
        world = World(tmp_path, RULES, hosts=HOSTS)
        world.gate.start()
        await test(world)
        world.gate.close()
        world.listener.close()

    run(inside)


def test_a_server_that_resets_is_a_reset_and_told_so(tmp_path):
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


def test_a_client_that_resets_is_one_for_the_server(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        task.reset()
        assert await server.ended() == "reset"
        closed = await world.closing()
        assert closed["outcome"] == "passed"
        assert "reason" not in closed

    gate(tmp_path, test)


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
def test_what_inspection_is_handed(tmp_path, to, data, says):
    target, protocol, reason = says.split()

    async def test(world):
        task = await world.connect(to)
        for at in range(0, len(data), 7):
            await task.send(data[at : at + 7])
        decision = await world.decision()
        await world.until(lambda: world.adopted)
        (admitted,) = world.adopted
        assert (str(admitted.target), admitted.protocol.value, admitted.decision.reason.value) == (
            target,
            protocol,
            reason,
        )
        assert admitted.event == decision["id"]
        assert (admitted.tenant, admitted.port) == (world.tenant, world.origin.port)
        assert admitted.peer == (LOOPBACK, task.sock.getsockname()[1])
        assert (admitted.hello is not None) == (protocol == "tls")
        assert admitted.client.gettimeout() == 0
        assert admitted.client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        assert admitted.client.recv(65536) == data  # not a byte was consumed
        assert admitted.client.fileno() not in world.poller._watched
        assert world.origin.accepted == 0
        assert world.gate.connections == 1
        admitted.client.close()
        admitted.closed(3, 4, None)
        admitted.closed(5, 6, Reason.GATE_ERROR)
        assert world.gate.connections == 0
        ends = [(e["bytes"], e["outcome"]) for e in world.closings]
        assert ends == ([({"up": 3, "down": 4}, "passed")] if reason == "rule" else [])

    gate(tmp_path, test)


def test_a_denied_address_of_a_spliced_name_is_explained(tmp_path):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        await world.until(lambda: world.adopted)
        assert world.adopted[0].decision.reason is Reason.NON_PUBLIC_ADDRESS
        assert decided(world.decisions[0]) == ("deny", "blocked", "non_public_address")
        assert world.decisions[0]["detail"] == world.adopted[0].detail == "`good.example` is 127.0.0.1"
        assert not world.adopted[0].advice
        world.adopted[0].client.close()
        world.adopted[0].closed(0, 0, None)

    gate(tmp_path, test, ["id: good, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow"])


def test_a_name_of_this_host_s_own_public_address_is_explained_as_that(tmp_path, monkeypatch):
    own = "93.184.216.34"
    monkeypatch.setattr("proxy.dialling.reach.source_for", lambda _address: ip_address(own))

    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        await world.until(lambda: world.adopted)
        assert decided(world.decisions[0]) == ("deny", "blocked", "non_public_address")
        said = f"`good.example` is {own}, which is this host's own"
        assert world.decisions[0]["detail"] == world.adopted[0].detail == said
        assert world.adopted[0].advice.startswith("no `resolves_to` opens this host's own public address")
        world.adopted[0].client.close()
        world.adopted[0].closed(0, 0, None)

    public = "id: good, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow"
    gate(tmp_path, test, [public], hosts=f"{own} good.example\n")


def test_what_inspection_can_not_take_is_reset_and_told(tmp_path):
    async def inside():
        async with World(tmp_path, RULES, hosts=HOSTS) as world:
            world.inspection.broken = True
            task = await world.connect("seen.example")
            await task.send(client_hello("seen.example"))
            assert await task.ended() == "reset"
            closed = await world.closing()
            assert (closed["outcome"], closed["reason"]) == ("failed", "gate_error")
            assert [e["fault"]["where"] for e in world.errors] == ["inspection"]
            assert not world.gate.connections

    run(inside)


def test_without_inspection_what_needs_it_is_refused(tmp_path):
    async def test(world):
        for data in (client_hello("seen.example"), b"GET / HTTP/1.1\r\n"):
            task = await world.connect("seen.example")
            await task.send(data)
            assert await task.ended() == "reset"
        assert [decided(e) for e in world.decisions] == [("deny", "blocked", "gate_error")] * 2

    gate(tmp_path, test, inspect=False)
