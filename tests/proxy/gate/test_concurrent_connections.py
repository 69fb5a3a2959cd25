"""Many connections at once that do whatever comes to their minds, while rules, names and lookups change."""

import asyncio
import contextlib
import random
from ipaddress import ip_address

from rules.values.names import HostName
from tests.proxy.gate.gate_lab import HOSTS, SPLICED, GateLab, Origin, client_hello, open_descriptors, policy_of, run
from tests.support.waiting import wait_until_async

AT_ONCE, ALL = 40, 200
DENIED = "id: good, to: good.example, action: deny"
HELLOS = [client_hello(), client_hello("good.example", ("http/1.1",)), client_hello("evil.example")]
RULES = [(SPLICED,), (SPLICED, "id: more, to: more.example, action: allow"), (DENIED,)]


class Echo(Origin):
    """Says back what it hears, or does whatever comes to its mind."""

    def __init__(self, host, chance):
        super().__init__(host)
        self.chance = chance
        self.echoing = set()

    async def _accept(self):
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.listener)
            sock.setblocking(False)
            self.accepted += 1
            task = loop.create_task(self._echo(sock))
            self.echoing.add(task)
            task.add_done_callback(self.echoing.discard)

    async def _echo(self, sock):
        loop = asyncio.get_running_loop()
        with sock, contextlib.suppress(OSError):
            while data := await loop.sock_recv(sock, 65536):
                if self.chance.random() < 0.05:
                    return
                await loop.sock_sendall(sock, data)


async def hear(client, heard):
    """Take what comes. Nobody stops it while it has something: that would be lost."""
    with contextlib.suppress(OSError):
        while data := await asyncio.get_running_loop().sock_recv(client.sock, 65536):
            heard += data


async def live(world, chance):
    """Be one client. Returns whether all that it heard was what it had said."""
    client = await world.connect("good.example")
    loop = asyncio.get_running_loop()
    hello = chance.choice(HELLOS)
    said, heard = bytearray(), bytearray()
    if chance.random() < 0.3:
        await asyncio.sleep(chance.random() * 0.02)
    if chance.random() < 0.2:
        hello = hello[: chance.randrange(1, len(hello))] if chance.random() < 0.5 else hello + b"early"
    hearing = loop.create_task(hear(client, heard))
    with contextlib.suppress(OSError, TimeoutError):
        for piece in [hello, *(chance.randbytes(chance.choice([1, 500, 70_000])) for _ in range(chance.randrange(3)))]:
            said += piece
            await asyncio.wait_for(loop.sock_sendall(client.sock, piece), 1)
            await asyncio.sleep(chance.random() * 0.05)
        if chance.random() < 0.5:
            client.shutdown()
        await asyncio.wait({hearing}, timeout=chance.random() * 0.1)
    hearing.cancel()
    await asyncio.wait({hearing})  # or the loop would let go of a descriptor that is another's by then
    client.reset() if chance.random() < 0.2 else client.close()
    return said.startswith(heard)


def put(world, tmp_path, *rules):
    """Put other rules in force, and say nothing of it yet."""
    world.sandbox.policy = policy_of(tmp_path, [rule.replace("ORIGIN", str(world.origin.port)) for rule in rules])


async def change(world, tmp_path, chance):
    """Change what a decision hangs on, again and again."""
    while True:
        await asyncio.sleep(chance.random() * 0.05)
        match chance.randrange(4):
            case 0:
                put(world, tmp_path, *chance.choice(RULES))
                if chance.random() < 0.7:
                    world.lookup.forget_checks()
                    world.gate.review()
            case 1:
                world.names.remember(HostName("good.example"), [ip_address("127.0.0.1")])
            case 2:
                world.sandbox.tainted = not world.sandbox.tainted
                world.gate.review()
            case 3:
                world.journal.full = True
                await asyncio.sleep(0.002)
                world.journal.full = False


async def storm(tmp_path, seed, count):
    """Have so many live while things change."""
    chance = random.Random(seed)
    before = open_descriptors()
    async with GateLab(
        tmp_path, [SPLICED], origin=Echo("127.0.0.1", chance), hosts=HOSTS, most=100, inspect=False
    ) as world:
        # All go to one place; one that was reset before it is accepted has no peer's name any more.
        there = world.synthetic("good.example"), world.origin.port
        world.gate._destination_of = lambda _sock: there
        changing = asyncio.create_task(change(world, tmp_path, chance))
        lived = 0
        while lived < count or not world.closings:
            assert all(await asyncio.gather(*(live(world, chance) for _ in range(AT_ONCE))))
            lived += AT_ONCE
        changing.cancel()
        await asyncio.wait({changing})
        world.journal.full = False  # that may have been the last change
        put(world, tmp_path, SPLICED)
        world.gate.review()
        await wait_until_async(lambda: not world.gate.connections)
        await wait_until_async(lambda: not world.origin.echoing)
        # Each that was let out was told of twice, each other one once; no end was told without a beginning.
        let_out = {each["id"] for each in world.decisions if each["outcome"] == "passed"}
        assert {each["cause"] for each in world.closings} <= let_out
        assert len({each["cause"] for each in world.closings}) == len(world.closings)
        assert world.metrics.connections_open == 0
        assert not world.recorder._open
        assert sum(world.metrics.decisions.values()) == lived
        assert world.gate.buffers.used == 0
        assert not world.errors
    assert open_descriptors() <= before


def test_many_random_connections_during_changes_lose_no_bytes(tmp_path):
    run(storm, tmp_path, 1, ALL)
