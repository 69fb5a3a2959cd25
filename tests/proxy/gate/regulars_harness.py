"""A gate that knows connections again, and one that has passed before."""

import asyncio
import contextlib
import socket
from ipaddress import ip_address

import pytest
from gate_harness import (
    SPLICED,
    Client,
    Origin,
    World,
    client_hello,
    open_descriptors,
    policy_of,
    run,
)  # fmt: skip

from proxy import regulars
from proxy.rounds import EVERY
from rules.names import HostName
from tests import harness

HERE, THERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
DENIED = "id: good, to: good.example, action: deny"


class Known(World):
    """A gate that stands at the address which its task was told, with the origin behind it at another one."""

    def __init__(self, tmp_path, rules=(SPLICED,), *, where=THERE, origin_of=Origin, **settings):
        listener = None
        while listener is None:  # both have the same port
            origin = origin_of(where)
            with contextlib.suppress(OSError):
                listener = socket.create_server((HERE, origin.port), backlog=512)
        hosts = f"{where} good.example\n{ELSEWHERE} evil.example\n"
        super().__init__(tmp_path, list(rules), origin=origin, hosts=hosts, listener=listener, **settings)
        self.names.remember(HostName("good.example"), [ip_address(HERE)])
        self.rules = list(rules)
        self.directory = tmp_path
        self.known = []
        self.hello = client_hello()

    async def __aenter__(self):
        await super().__aenter__()
        within = self.gate._regulars
        welcome = within._welcome
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(
            regulars.Regulars, "_welcome", lambda _, news, usual: (self.known.append(news), welcome(news, usual))
        )
        return self

    async def __aexit__(self, *how):
        self._patch.undo()
        await super().__aexit__(*how)
        if not self.poller.is_alone:
            self.poller.close()

    async def connect(self, hello=b""):
        sock = socket.socket()
        self._clients.append(sock)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.listener.getsockname())
        client = Client(sock)
        if hello:
            await client.send(hello)
        return client

    async def take(self):
        """Take what has come to the origin; it is closed with the rest."""
        far = await self.origin.take()
        self._clients.append(far.sock)
        return far

    async def open_one(self, hello=None):
        """Have one connection pass, and leave it open."""
        hello = self.hello if hello is None else hello
        client = await self.connect(hello)
        far = await self.take()
        assert await far.read_exactly(len(hello)) == hello
        return client, far

    async def pass_one(self, hello=None):
        """Have one connection pass, in peace."""
        client, far = await self.open_one(hello)
        await far.send(b"answer")
        assert await client.read_exactly(6) == b"answer"
        client.shutdown()
        assert await far.ended() == "end"
        far.close()
        assert await client.ended() == "end"
        client.close()
        await self.closing(len(self.decisions))

    async def go_by(self):
        """Let a round of the gate go by."""
        await asyncio.sleep(EVERY * 1.2)

    def put(self, *rules, **settings):
        """Put other rules in force, and say nothing of it yet."""
        written = [rule.replace("ORIGIN", str(self.origin.port)) for rule in rules]
        self.tenant.policy = policy_of(self.directory, written, **settings)


def known(test, tmp_path, *rules, errors=0, **settings):
    """Run a test in a world where good.example has been greeted before."""

    if regulars.COMPILED is None:
        harness.missing("a C compiler")

    async def within():
        before = open_descriptors()
        async with Known(tmp_path, rules or (SPLICED,), **settings) as world:
            await world.pass_one()
            assert not world.known
            await test(world)
            assert len(world.errors) == errors
        assert open_descriptors() <= before

    run(within)


def alike(events):
    """What must be the same of two connections."""
    own = {"time", "id", "cause", "duration"}
    return [{key: value for key, value in event.items() if key not in own} for event in events]
