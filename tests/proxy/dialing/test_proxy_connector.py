"""Connections by way of a proxy: over a real socket to one that says what a test has it say.

What holds for all of them: the proxy gets the checked name, nothing is looked up here, and nothing goes around it.
"""

import asyncio
from ipaddress import ip_address

import pytest

from proxy.dialing.address_check import DialError
from proxy.dialing.proxy_auth import Login
from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from rules.verdicts import Reason
from tests.proxy.dialing.dialer_lab import dial
from tests.proxy.gate.gate_lab import GateLab, Origin, client_hello, policy_of, run
from tests.support.ports import free_port

TLS = "id: a, to: good.example, ports: [ORIGIN/tls], tls: splice, action: allow"
TCP = "id: a, to: good.example, ports: [ORIGIN/tcp], action: allow"
OK = b"HTTP/1.1 200 OK\r\n\r\n"
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


class Through(GateLab):
    """A gate whose rules have a proxy."""

    def __init__(self, tmp_path, rules, *, scheme="http", host="127.0.0.1", hosts="", **more):
        self.proxy = Origin()
        super().__init__(
            tmp_path, rules, upstream=f"{scheme}://{host}:{self.proxy.port}", hosts=f"127.0.0.1 {host}\n{hosts}", **more
        )

    async def __aenter__(self):
        await self.proxy.start()
        return await super().__aenter__()

    async def __aexit__(self, *ended):
        await super().__aexit__(*ended)
        await self.proxy.stop()

    async def asked(self):
        """Take the proxy's next connection and what it is asked for by CONNECT."""
        connection = await self.proxy.take()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await connection.read(1)
        return connection, head

    @property
    def nothing_left(self):
        return self.servers.asked == [] and self.origin.accepted == 0


def test_spliced_connection_goes_through_the_proxy(tmp_path):
    async def test():
        async with Through(tmp_path, [TLS]) as world:
            client, hello = await world.connect("good.example"), client_hello()
            await client.send(hello)
            server, head = await world.asked()
            assert head.startswith(f"CONNECT good.example:{world.origin.port} HTTP/1.1\r\n".encode())
            await server.send(OK)
            assert await server.read_exactly(len(hello)) == hello
            await server.send(b"back")
            assert await client.read() == b"back"
            server.close()
            assert await client.ended() == "end"
            client.close()
            via = f"http://127.0.0.1:{world.proxy.port}"
            there = {"name": "good.example", "port": world.origin.port, "via": via}
            closing = await world.closing()
            assert world.decisions[0]["destination"] == closing["destination"] == there
            assert closing["outcome"] == "passed"
            assert world.nothing_left

    run(test)


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_server_bytes_after_the_proxys_answer_are_kept(scheme, piece, tmp_path):
    async def test():
        async with Through(tmp_path, [TCP], scheme=scheme) as world:
            client = await world.connect("good.example")
            proxy = await world.proxy.take()
            if scheme == "socks5":
                assert await proxy.read_exactly(3) == b"\x05\x01\x00"
                await proxy.send(b"\x05\x00")
                assert (await proxy.read())[4:17] == b"\x0cgood.example"
            else:
                assert (await proxy.read()).startswith(b"CONNECT good.example:")
            said = (GRANTED if scheme == "socks5" else OK) + b"220 at your service\r\n"
            for at in range(0, len(said), piece):
                await proxy.send(said[at : at + piece])
                await asyncio.sleep(0)
            assert await client.read_exactly(21) == b"220 at your service\r\n"
            await client.send(b"EHLO")
            assert await proxy.read() == b"EHLO"
            assert world.nothing_left

    run(test)


REFUSED = [
    ("403", b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", "it answered 403 (Forbidden)"),
    ("407", b"HTTP/1.1 407 Who\r\n\r\n", "it requires a user and a password (407)"),
    ("503", b"HTTP/1.1 503 No DNS\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\n\r\n", "it answered 503 (Service Unavailable)"),
    ("nothing", b"", "it ended the connection instead of an answer"),
    ("half an answer", b"HTTP/1.1 200 O", "it ended the connection instead of an answer"),
    ("TLS", b"\x15\x03\x03\x00\x02\x02\x46", "it doesn't speak HTTP/1"),
    ("without end", b"HTTP/1.1 200 OK\r\n" + b"X: yyyyyyyy\r\n" * 2000, "its answer is longer than 16384 bytes"),
]


@pytest.mark.parametrize(("says", "why"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_proxy_refusal_fails_the_connection(says, why, tmp_path):
    async def test():
        async with Through(tmp_path, [TCP], hosts="127.0.0.1 good.example") as world:
            client = await world.connect("good.example")
            proxy, _ = await world.asked()
            await proxy.send(says)
            proxy.close()
            assert await client.ended() == "reset"
            closing = await world.closing()
            assert (closing["outcome"], closing["reason"]) == ("failed", "upstream_failed")
            assert closing["detail"] == f"the proxy `http://127.0.0.1:{world.proxy.port}`: {why}"
            assert world.nothing_left
            assert sum(world.metrics.dial_seconds["upstream_failed"].counts) == 1

    run(test)


def test_proxy_reset_fails_the_connection(tmp_path):
    async def test():
        async with Through(tmp_path, [TCP]) as world:
            client = await world.connect("good.example")
            proxy, _ = await world.asked()
            proxy.reset()
            assert await client.ended() == "reset"
            assert "connection reset by peer" in (await world.closing())["detail"]

    run(test)


def test_unreachable_proxy_is_not_bypassed(tmp_path):
    async def test():
        world = GateLab(tmp_path, [TCP], upstream=f"http://127.0.0.1:{free_port()}", hosts="127.0.0.1 good.example")
        async with world:
            client = await world.connect("good.example")
            assert await client.ended() == "reset"
            closing = await world.closing()
            assert closing["reason"] == "upstream_failed"
            assert "connection refused" in closing["detail"]
            assert (world.servers.asked, world.origin.accepted) == ([], 0)

    run(test)


def test_unresolved_proxy_is_not_bypassed(tmp_path):
    async def test():
        world = GateLab(tmp_path, [TCP], upstream="http://gone.corp.example:3128", hosts="127.0.0.1 good.example")
        async with world:
            client = await world.connect("good.example")
            assert await client.ended() == "reset"
            closing = await world.closing()
            assert closing["reason"] == "upstream_failed"
            assert "`gone.corp.example` has no" in closing["detail"]
            assert {name for name, _ in world.servers.asked} == {"gone.corp.example"}
            assert world.origin.accepted == 0

    run(test)


def test_silent_proxy_times_out(tmp_path, monkeypatch):
    async def test():
        monkeypatch.setattr("proxy.gate.connection.CONNECT_TIMEOUT", 0.1)
        async with Through(tmp_path, [TCP]) as world:
            client = await world.connect("good.example")
            proxy, _ = await world.asked()
            assert await client.ended() == "reset"
            assert (await world.closing())["detail"].startswith("no answer within")
            assert await proxy.ended() in ("end", "reset")

    run(test)


def test_closing_the_gate_cancels_the_proxy_connection(tmp_path):
    async def test():
        async with Through(tmp_path, [TCP]) as world:
            client = await world.connect("good.example")
            proxy, _ = await world.asked()
            client.close()
            world.gate.close()
            assert await proxy.ended() in ("end", "reset")

    run(test)


def test_login_is_sent_to_the_proxy_only(tmp_path):
    async def test():
        async with Through(tmp_path, [TCP]) as world:
            world.dialer.login = Login(b"me", b"geheim")
            await world.connect("good.example")
            proxy, head = await world.asked()
            assert b"\r\nProxy-Authorization: Basic bWU6Z2VoZWlt\r\n" in head
            await proxy.send(b"HTTP/1.1 407 geheim\r\n\r\n")
            assert "rejected the user and password" in (await world.closing())["detail"]
            told = repr(world.events)
            assert "geheim" not in told
            assert "bWU6Z2VoZWlt" not in told

    run(test)


ITSELF = [
    ("its address", "127.0.0.1", ip_address("127.0.0.1")),
    ("another address of this host, where it is too", "127.0.0.1", ip_address("127.0.0.2")),
    ("its address, by a name that rules let have it", "127.0.0.1", "here.example"),
    ("its own name", "proxy.corp.example", "proxy.corp.example"),
    ("the address of its name", "proxy.corp.example", ip_address("127.0.0.1")),
    ("another name of its address", "proxy.corp.example", "here.example"),
]
OPEN = [
    "id: n, to: '*', ports: [1-65535/tcp], action: allow",
    "id: h, to: here.example, ports: [1-65535/tcp], resolves_to: [127.0.0.0/8], action: allow",
    "id: l, to: 127.0.0.0/8, ports: [1-65535/tcp], action: allow",
]


def attempt(to, port):
    target = HostName(to) if isinstance(to, str) else to
    return Attempt(Protocol.TCP, target, port)


@pytest.mark.parametrize(("host", "to"), [i[1:] for i in ITSELF], ids=[i[0] for i in ITSELF])
def test_proxy_itself_is_never_dialed_for_a_task(host, to, tmp_path):
    async def test():
        async with Through(tmp_path, OPEN, host=host, hosts="127.0.0.1 here.example\n") as world:
            for _ in range(2):  # with nothing known yet, and with everything
                with pytest.raises(DialError, match="is the proxy itself") as refused:
                    await dial(world.dialer, world.policy, attempt(to, world.proxy.port))
                assert refused.value.reason is Reason.NON_PUBLIC_ADDRESS
            if isinstance(to, str):
                client = await world.connect(to, world.proxy.port)
                assert await client.ended() == "reset"
                decision = await world.decision()
                assert (decision["outcome"], decision["reason"]) == ("blocked", "non_public_address")
            assert world.proxy.accepted == 0

    run(test)


def test_udp_through_the_proxy_is_denied(tmp_path):
    async def test():
        rule = "id: u, to: good.example, ports: [123/tcp], action: allow"
        async with Through(tmp_path, [rule]) as world:
            wanted = Attempt(Protocol.UDP, HostName("good.example"), 123)
            with pytest.raises(DialError, match=r"UDP can.t go through the proxy") as refused:
                world.dialer.known(world.policy, wanted)
            assert refused.value.reason is Reason.UDP
            assert world.nothing_left

    run(test)


def test_other_host_on_the_proxys_port_is_allowed(tmp_path):
    async def test():
        async with Through(tmp_path, OPEN, host="proxy.corp.example") as world:
            await world.connect("good.example", world.proxy.port)
            proxy, head = await world.asked()
            assert head.startswith(f"CONNECT good.example:{world.proxy.port} ".encode())
            await proxy.send(OK)
            assert world.nothing_left

    run(test)


def test_unresolved_proxy_closes_its_port(tmp_path):
    async def test():
        origin = Origin()
        hosts = "127.0.0.1 here.example\n"
        world = GateLab(tmp_path, OPEN, origin=origin, hosts=hosts, upstream=f"http://gone.corp.example:{origin.port}")
        async with world:
            client = await world.connect("here.example")
            assert await client.ended() == "reset"
            assert (await world.decision())["reason"] == "upstream_failed"
            with pytest.raises(DialError, match="whether this is the proxy") as refused:
                await dial(world.dialer, world.policy, attempt(ip_address("127.0.0.1"), origin.port))
            assert refused.value.reason is Reason.UPSTREAM_FAILED
            assert origin.accepted == 0

    run(test)


PAST = [
    "id: l, to: 127.0.0.0/8, ports: [ORIGIN/tcp], action: allow",
    "id: h, to: here.example, ports: [ORIGIN/tcp], resolves_to: [127.0.0.0/8], action: allow",
]


def test_names_and_addresses_inside_bypass_the_proxy(tmp_path):
    async def test():
        async with Through(tmp_path, PAST, hosts="127.0.0.1 here.example\n") as world:
            client = await world.connect("here.example")
            server = await world.origin.take()
            await server.send(b"direct")
            assert await client.read() == b"direct"
            there = world.decisions[0]["destination"]
            assert there["address"] == "127.0.0.1"
            assert "via" not in there
            sock, address = await dial(world.dialer, world.policy, attempt(ip_address("127.0.0.1"), world.origin.port))
            assert str(address) == "127.0.0.1"
            sock.close()
            assert world.proxy.accepted == 0

    run(test)


RELOADS = [
    ("the same proxy, and another rule", "http://127.0.0.1:{proxy}", "kept"),
    ("another proxy", "http://127.0.0.2:{proxy}", "ended"),
    ("the same spoken to otherwise", "socks5://127.0.0.1:{proxy}", "ended"),
    ("none", None, "ended"),
]


@pytest.mark.parametrize(("upstream", "fate"), [r[1:] for r in RELOADS], ids=[r[0] for r in RELOADS])
def test_reload_ends_connections_that_need_another_route(upstream, fate, tmp_path):
    async def test():
        async with Through(tmp_path, [TCP]) as world:
            client = await world.connect("good.example")
            proxy, _ = await world.asked()
            await proxy.send(OK + b"hello")
            assert await client.read() == b"hello"
            rules = [TCP.replace("ORIGIN", str(world.origin.port)), "id: b, to: b.example, action: deny"]
            settings = {"upstream": upstream.format(proxy=world.proxy.port)} if upstream else {}
            world.sandbox.policy = policy_of(tmp_path, rules, **settings)
            world.gate.review()
            if fate == "kept":
                await client.send(b"more")
                assert await proxy.read() == b"more"
            else:
                assert await client.ended() == "reset"
                assert (await world.closing())["reason"] == "address_not_listed"

    run(test)


def test_reload_with_a_proxy_ends_direct_connections(tmp_path):
    async def test():
        rules = ["id: h, to: here.example, ports: [ORIGIN/tcp], resolves_to: [127.0.0.0/8], action: allow"]
        async with GateLab(tmp_path, rules, hosts="127.0.0.1 here.example\n") as world:
            client = await world.connect("here.example")
            server = await world.origin.take()
            await server.send(b"hello")
            assert await client.read() == b"hello"
            rule = f"id: h, to: here.example, ports: [{world.origin.port}/tcp], action: allow"
            world.sandbox.policy = policy_of(tmp_path, [rule], upstream="http://127.0.0.1:1")
            world.gate.review()
            assert await client.ended() == "reset"
            assert (await world.closing())["reason"] == "address_not_listed"

    run(test)


def test_proxy_code_is_not_imported_without_a_proxy():
    import subprocess
    import sys

    code = "import sys, proxy.gate.listener, proxy.dialing.dialer; print([m for m in ('proxy.dialing.proxy_connector', 'proxy.dialing.tunnel') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
