"""The gate in a real sandbox's network: real destinations by tproxy, real questions to any server, as root and as a user."""

import asyncio
import contextlib
import socket

import dns.message
import pytest

from enforcer.network.constants import GATE_PORT, OWN_ADDRESSES
from enforcer.network.encode import encode
from enforcer.network.plan import network_plan
from proxy.dns.records import Records
from proxy.dns.udp_listener import DnsUdpListener
from proxy.gate.decide import DecisionCache
from tests.enforcer.network.netns_harness import Network
from tests.proxy.gate.gate_lab import RAW, SPLICED, GateLab, client_hello, run
from tests.proxy.gate.test_changed_first_bytes import Swapped
from tests.support import harness
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.kernel
HELLO = client_hello("good.example")
SERVERS = ("8.8.8.8", "127.0.0.53", "198.18.3.4", "::1", "2001:4860:4860::8888", str(OWN_ADDRESSES[0]))


@pytest.fixture(scope="module")
def encoded():
    return encode(network_plan())


@pytest.fixture(params=["root", "user"])
def sandbox(request, encoded, tmp_path):
    """Run a test with a gate and its resolver in a sandbox's network; `inside` runs a function there as a task."""
    if request.param == "root":
        harness.needs_root()
    network = Network(encoded, rootless=request.param == "user")

    def go(test, rules=(SPLICED, RAW)):
        async def around():
            hosts = "127.0.0.1 good.example raw.example\n"
            async with GateLab(tmp_path, rules, hosts=hosts, listener=network.sockets.tcp) as world:
                world.sandbox.own_addresses = frozenset(OWN_ADDRESSES)
                datagrams = DnsUdpListener(network.sockets.dns_udp, world.resolver, world.recorder, world.poller)
                datagrams.start()
                await test(world, lambda function: asyncio.to_thread(network.run, function))
                datagrams.close()
                assert not world.errors

        run(around)

    yield go
    network.close()


def ask(server, name, kind="A"):
    """Ask a server over UDP, taking an answer from nobody else; returns the first address, or an errno."""
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect((server, 53))
            sock.send(dns.message.make_query(name, kind).to_wire())
            answer = dns.message.from_wire(sock.recv(4096))
        except OSError as error:
            return error.errno or type(error).__name__
        return answer.answer[0][0].to_text() if answer.answer else answer.rcode()


def ask_over_tcp(server, name, kind="A"):
    """Ask a server over TCP (RFC 7766); returns the first answer, or how that failed."""
    try:
        with connect(server, 53) as sock:
            query = dns.message.make_query(name, kind).to_wire()
            sock.sendall(len(query).to_bytes(2) + query)
            with sock.makefile("rb") as stream:
                answer = dns.message.from_wire(stream.read(int.from_bytes(stream.read(2))))
    except OSError as error:
        return error.errno or type(error).__name__
    return answer.answer[0][0].to_text() if answer.answer else answer.rcode()


def connect(address, port):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(10)
    sock.connect((address, port))
    return sock


def ended(address, port, data=b""):
    """Connect and say something; returns how that ended."""
    try:
        with connect(address, port) as sock:
            sock.sendall(data)
            return sock.recv(100) or "end"
    except ConnectionError as error:
        return type(error).__name__


def test_name_is_looked_up_at_any_server_and_its_connection_arrives(sandbox):
    async def test(world, inside):
        def task():
            address = ask("9.9.9.9", "good.example")
            with connect(address, world.origin.port) as sock:
                sock.sendall(HELLO)
                return address, sock.recv(100), sock.getpeername()

        running = asyncio.create_task(inside(task))
        server = await world.origin.take()
        assert await server.read_exactly(len(HELLO)) == HELLO
        await server.send(b"from outside")
        assert await running == ("198.18.0.1", b"from outside", ("198.18.0.1", world.origin.port))
        server.close()
        assert [e["kind"] for e in world.events[:2]] == ["dns.decided", "connection.decided"]
        assert world.decisions[0]["destination"]["address"] == "127.0.0.1"
        assert (await world.closing())["bytes"] == {"up": len(HELLO), "down": 12}

    sandbox(test)


def test_every_server_answers_from_its_own_address(sandbox):
    async def test(world, inside):
        assert await inside(lambda: [ask(server, "good.example") for server in SERVERS]) == ["198.18.0.1"] * len(
            SERVERS
        )
        assert [e["destination"]["address"] for e in world.events] == list(SERVERS)

    sandbox(test)


def test_lookup_over_tcp_is_answered_at_every_server_address(sandbox):
    """What `resolv.conf` names is the sandbox's own address: `dig +tcp`, `use-vc` and truncated answers ask there."""
    servers = (*SERVERS, "127.0.0.1", "0.0.0.0", "::", str(OWN_ADDRESSES[1]))

    async def test(world, inside):
        found = await inside(lambda: [ask_over_tcp(server, "good.example") for server in servers])
        assert dict(zip(servers, found, strict=True)) == dict.fromkeys(servers, "198.18.0.1")
        told = [(e["kind"], e["protocol"], e["destination"]["port"]) for e in world.events]
        assert told == [("dns.decided", "tcp", 53)] * len(servers)

    sandbox(test)


def test_answer_too_long_for_udp_is_read_over_tcp_at_the_same_server(sandbox):
    texts = [bytes([200]) + b"x" * 200 for _ in range(10)]

    async def test(world, inside):
        world.servers.known["good.example", "TXT"] = Records(tuple(texts), ("x",) * 10, 60.0)

        def task():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.connect((str(OWN_ADDRESSES[0]), 53))
                sock.send(dns.message.make_query("good.example", "TXT").to_wire())
                flags = dns.message.from_wire(sock.recv(4096)).flags
            return bool(flags & dns.flags.TC), ask_over_tcp(str(OWN_ADDRESSES[0]), "good.example", "TXT")

        assert await inside(task) == (True, '"' + "x" * 200 + '"')

    sandbox(test, rules=("id: good, to: good.example, ports: [443], dns_types: [TXT], action: allow",))


def test_task_cannot_take_over_dns_over_tcp_at_its_own_address(sandbox):
    """The gate answers, whoever else listens there; nothing that isn't DNS gets further than the gate."""

    async def test(world, inside):
        def task():
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with contextlib.suppress(PermissionError):  # most tasks have no low ports
                    server.bind(("127.0.0.1", 53))
                    server.listen()
                return ask_over_tcp("127.0.0.1", "good.example"), ended("127.0.0.1", 53, b"GET / HTTP/1.1\r\n\r\n")

        assert await inside(task) == ("198.18.0.1", "ConnectionResetError")
        assert [e["reason"] for e in world.decisions] == ["protocol_mismatch"]

    sandbox(test)


def test_bytes_changed_after_the_decision_do_not_arrive(sandbox, monkeypatch, tmp_path):
    """Here, too, what it sends is its own file until that is read."""
    swapped = Swapped(tmp_path / "greeting")
    swapped.is_sent = True  # by a process of its own
    judge = DecisionCache.decide

    def judge_and_swap(*words):
        swapped.swap()
        return judge(*words)

    monkeypatch.setattr(DecisionCache, "decide", judge_and_swap)

    async def test(world, inside):
        def task():
            with connect(ask("9.9.9.9", "good.example"), world.origin.port) as sock:
                swapped.send(sock)
                return sock.recv(100)

        running = asyncio.create_task(inside(task))
        server = await world.origin.take()
        assert await server.read_exactly(len(swapped.judged)) == swapped.judged
        await server.send(b"heard")
        assert await running == b"heard"
        assert swapped.is_swapped
        server.close()
        await world.closing()

    sandbox(test)
    swapped.close()


def test_query_to_an_address_that_cannot_answer_breaks_nothing(sandbox):
    async def test(world, inside):
        def task():
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                for server in ("ff02::1", "fe80::1"):
                    try:
                        sock.sendto(dns.message.make_query("good.example", "A").to_wire(), (server, 53, 0, 1))
                    except OSError:
                        continue
            return ask("8.8.8.8", "good.example")

        assert await inside(task) == "198.18.0.1"

    sandbox(test)


def test_dns_over_tcp_to_any_server_reaches_the_resolver(sandbox):
    async def test(world, inside):
        def task():
            found = []
            for server in ("8.8.8.8", "2001:4860:4860::8888"):
                wire = dns.message.make_query("good.example", "A").to_wire()
                with connect(server, 53) as sock:
                    sock.sendall(len(wire).to_bytes(2) + wire)
                    found.append(dns.message.from_wire(sock.recv(4096)[2:]).answer[0][0].to_text())
            return found

        assert await inside(task) == ["198.18.0.1"] * 2
        assert [e["destination"]["address"] for e in world.events] == ["8.8.8.8", "2001:4860:4860::8888"]

    sandbox(test)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("93.184.216.34", "no_rule"),
        ("2606:2800:220:1::1", "no_rule"),
        ("169.254.169.254", "non_public_address"),
        ("198.18.200.200", "unresolved"),
        ("0.1.2.3", "non_public_address"),
    ],
)
def test_literal_address_is_recorded_as_written_and_denied(sandbox, address, reason):
    async def test(world, inside):
        assert await inside(lambda: ended(address, 8443, b"hello\r\n")) == "ConnectionResetError"
        decision = await world.decision()
        assert (decision["reason"], decision["destination"].get("port")) == (reason, 8443)
        assert decision["destination"].get("address", address) == address
        assert world.origin.accepted == 0

    sandbox(test)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", *map(str, OWN_ADDRESSES), "::ffff:127.0.0.1", "0.0.0.0"])
def test_port_of_the_gate_is_unroutable(sandbox, address):
    async def test(world, inside):
        assert await inside(lambda: ended(address, GATE_PORT, HELLO)) == "ConnectionResetError"
        assert (await world.decision())["reason"] == "non_public_address"

    sandbox(test)


def test_reset_by_the_server_reaches_the_task(sandbox):
    async def test(world, inside):
        def task():
            with connect(ask("8.8.8.8", "raw.example"), world.origin.port) as sock:
                got = sock.recv(100)
                try:
                    while more := sock.recv(100):
                        got += more
                except ConnectionResetError:
                    return got, "reset"
                return got, "end"

        running = asyncio.create_task(inside(task))
        server = await world.origin.take()
        await server.send(b"half of it")
        await wait_until_async(
            lambda: (
                world.gate.connections
                and any(getattr(g, "_splice", None) and g._splice.byte_counts()[1] for g in world.gate.connections)
            )
        )
        await asyncio.sleep(0.05)
        server.reset()
        assert await running == (b"half of it", "reset")

    sandbox(test)
