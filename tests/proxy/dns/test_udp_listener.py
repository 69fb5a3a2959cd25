import asyncio
import contextlib
import socket
import struct

import dns.message
import pytest

from proxy.dns.udp_listener import DnsUdpListener
from proxy.gate import served_connection
from tests.proxy.gate.gate_lab import TIMEOUT, GateLab, run
from tests.support.waiting import wait_until_async

RULES = ("id: good, to: '**.good.example', ports: [443], action: allow",)
_IP_RECVORIGDSTADDR, _IPV6_RECVORIGDSTADDR = 20, 74


def question(name="good.example", kind="A"):
    return dns.message.make_query(name, kind).to_wire()


def framed(wire):
    return len(wire).to_bytes(2) + wire


def first(answer):
    return dns.message.from_wire(answer).answer[0][0].to_text()


def served(family):
    """A socket as the enforcer opens it, on any port."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
    return sock


@contextlib.asynccontextmanager
async def datagrams(tmp_path, family=socket.AF_INET6):
    async with GateLab(tmp_path, RULES) as world:
        with served(family) as sock:
            made = DnsUdpListener(sock, world.resolver, world.recorder, world.poller)
            made.start()
            yield world, sock.getsockname()[1]
            made.close()


async def ask(server, port, wire):
    """Ask over a connected socket: it takes no answer from any other address."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((server, port))
        await loop.sock_sendall(sock, wire)
        return await asyncio.wait_for(loop.sock_recv(sock, 4096), TIMEOUT)


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "127.8.8.8", "::1"])
def test_answer_comes_from_the_queried_address(tmp_path, server):
    async def test():
        async with datagrams(tmp_path) as (world, port):
            assert first(await ask(server, port, question())) == "198.18.0.1"
            assert world.events[0]["destination"]["address"] == server
            assert world.events[0]["protocol"] == "udp"

    run(test)


def test_answer_comes_from_the_queried_address_without_ipv6(tmp_path):
    async def test():
        async with datagrams(tmp_path, socket.AF_INET) as (_world, port):
            assert first(await ask("127.0.0.53", port, question())) == "198.18.0.1"

    run(test)


class Trouble:
    """A socket that can't send."""

    def __init__(self, sock, error):
        self.sock, self.error, self.sent = sock, error, 0

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def sendmsg(self, *_):
        self.sent += 1
        raise self.error


@pytest.mark.parametrize("error", [OSError(22, "EINVAL"), BlockingIOError(11, "EAGAIN"), OSError(101, "ENETUNREACH")])
def test_unsendable_answer_stops_nothing(tmp_path, error):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            with served(socket.AF_INET6) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                trouble = Trouble(sock, error)
                made = DnsUdpListener(trouble, world.resolver, world.recorder, world.poller)
                made.start()
                for _ in range(3):
                    client.sendto(question(), ("127.0.0.1", sock.getsockname()[1]))
                await wait_until_async(lambda: trouble.sent == 3)
                assert not world.errors
                made.close()

    run(test)


def test_exception_in_one_answer_is_recorded_and_stops_nothing(tmp_path, monkeypatch):
    async def test():
        async with datagrams(tmp_path) as (world, port):
            asked = world.resolver.ask

            def broken(data, *more):
                if b"broken" in data:
                    raise RuntimeError("on purpose")
                return asked(data, *more)

            monkeypatch.setattr(type(world.resolver), "ask", lambda _self, *more: broken(*more))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(question("broken.good.example"), ("127.0.0.1", port))
                client.sendto(b"", ("127.0.0.1", port))
                client.sendto(b"\0" * 12, ("127.0.0.1", port))
            assert first(await ask("127.0.0.1", port, question())) == "198.18.0.1"
            assert [(e["fault"]["where"], e["fault"]["detail"]) for e in world.errors] == [
                ("resolver", "RuntimeError: on purpose")
            ]

    run(test)


def test_many_concurrent_queries_are_all_answered(tmp_path):
    async def test():
        async with datagrams(tmp_path) as (world, port):
            wires = [question(f"n{number}.good.example") for number in range(200)]
            answers = await asyncio.gather(*(ask("127.0.0.1", port, wire) for wire in wires))
            assert len({first(answer) for answer in answers}) == 200
            assert len(world.events) == 200

    run(test)


# TCP


async def stream(world):
    from ipaddress import ip_address

    return await world.connect(ip_address("8.8.8.8"), 53)


async def read_answer(client):
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        data += await client.read(1)
    return data[2:]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_split_and_pipelined_queries_are_answered(tmp_path, size):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            client = await stream(world)
            data = framed(question()) + framed(question("a.good.example")) + framed(question("evil.example"))
            for at in range(0, len(data), size):
                await client.send(data[at : at + size])
            assert [first(await read_answer(client)) for _ in range(3)] == ["198.18.0.1", "198.18.0.2", "198.19.252.0"]
            client.close()
            await wait_until_async(lambda: not world.gate.connections)
            assert [e["kind"] for e in world.events] == ["dns.decided"] * 3
            assert world.events[0]["protocol"] == "tcp"
            assert world.events[0]["destination"]["address"] == "8.8.8.8"

    run(test)


NOT_DNS = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "ssh": b"SSH-2.0-x\r\n" + b"x" * 20000,
    "a length of nothing": b"\0\0",
    "a length too great": b"\xff\xff",
    "what is not a question": framed(b"\0" * 12),
    "an answer": framed(question()[:2] + b"\x81\x80" + question()[4:]),
}


@pytest.mark.parametrize("data", NOT_DNS.values(), ids=NOT_DNS.keys())
def test_other_protocol_on_port_53_is_one_denied_attempt(tmp_path, data):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            client = await stream(world)
            with contextlib.suppress(OSError):
                await client.send(data)
            client.sock.shutdown(socket.SHUT_WR) if len(data) < 1000 else None
            with contextlib.suppress(ConnectionResetError):
                while await client.read():
                    pass
            await wait_until_async(lambda: not world.gate.connections)
            assert [(e["verdict"], e["reason"], e["destination"]["port"]) for e in world.decisions] == [
                ("deny", "protocol_mismatch", 53)
            ]
            assert world.origin.accepted == 0

    run(test)


def test_port_53_of_an_allowed_name_reaches_the_resolver(tmp_path):
    async def test():
        async with GateLab(tmp_path, ("id: any, to: good.example, ports: [1-65535/tcp], action: allow",)) as world:
            client = await world.connect("good.example", 53)
            await client.send(framed(question()))
            assert first(await read_answer(client)) == "198.18.0.1"
            assert not world.servers.asked

    run(test)


def test_silent_or_partial_dns_client_is_reset_after_a_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(served_connection, "PATIENCE", 0.0)

    async def test():
        async with GateLab(tmp_path, RULES) as world:
            silent, half = await stream(world), await stream(world)
            await half.send(framed(question())[:-1])
            assert (await silent.ended(), await half.ended()) == ("reset", "reset")
            assert [e["reason"] for e in world.decisions] == ["protocol_mismatch"] * 2

    run(test)


def test_client_that_reads_no_answers_is_reset(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            world.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # inherited
            client = await stream(world)
            data = framed(question()) * 100
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send(data)
            await wait_until_async(lambda: not world.gate.connections)
            assert not world.errors

    run(test)


def test_reset_between_queries_breaks_nothing(tmp_path):
    async def test():
        async with GateLab(tmp_path, RULES) as world:
            client = await stream(world)
            await client.send(framed(question()))
            await read_answer(client)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await wait_until_async(lambda: not world.gate.connections)
            assert not world.decisions
            assert not world.errors

    run(test)
