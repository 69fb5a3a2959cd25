"""A gate that knows connections again, and one that has passed before."""

import asyncio
import contextlib
import json
import os
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
from proxy.compiled.digest import SHA256
from proxy.rounds import EVERY
from proxy.telemetry.journal.writing import Journal
from rules.names import HostName
from tests import harness

HERE, THERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
DENIED = "id: good, to: good.example, action: deny"


class FileJournal(Journal):
    """A journal in files, which compiled code writes too; its disk can be full."""

    def __init__(self, directory):
        super().__init__(directory)
        self._path = directory
        self._read, self._offsets = [], {}
        self._disk = -1

    @property
    def events(self):
        """All that is told, but for what is told of segments."""
        for path in sorted(self._path.rglob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                for line in file:
                    event = json.loads(line)
                    if event["kind"] != "journal.opened":
                        self._read.append(event)
                self._offsets[path] = file.tell()
        return self._read

    @property
    def full(self):
        return self._disk >= 0

    @full.setter
    def full(self, full):
        if full == self.full:
            return
        if full:
            self._disk = os.dup(self.tail.segment)
            other = harness.full_disk(self._path.parent)
            os.dup2(other, self.tail.segment, inheritable=False)
            os.close(other)
        else:
            os.dup2(self._disk, self.tail.segment, inheritable=False)
            os.close(self._disk)
            self._disk = -1

    def append(self, line, now):
        if self.full:
            os.write(self.tail.segment, line)  # no space left
        return super().append(line, now)


class Known(World):
    """A gate that stands at the address which its task was told, with the origin behind it at another one."""

    def __init__(self, tmp_path, rules=(SPLICED,), *, where=THERE, origin_of=Origin, calendar_of=None, **settings):
        listener = None
        while listener is None:  # both have the same port
            origin = origin_of(where)
            with contextlib.suppress(OSError):
                listener = socket.create_server((HERE, origin.port), backlog=512)
        hosts = f"{where} good.example\n{ELSEWHERE} evil.example\n"
        journal = FileJournal(tmp_path / "journal")
        super().__init__(
            tmp_path,
            list(rules),
            origin=origin,
            hosts=hosts,
            listener=listener,
            journal=journal,
            calendar=calendar_of and calendar_of(),
            **settings,
        )
        self.before = 0  # events that nobody asks for
        self.passed = 1  # connections before the test
        self.names.remember(HostName("good.example"), [ip_address(HERE)])
        self.rules = list(rules)
        self.directory = tmp_path
        self._welcomed, self._unasked = [], 0
        self.hello = client_hello()

    async def __aenter__(self):
        await super().__aenter__()
        self._patch = pytest.MonkeyPatch()
        welcome, take_over = regulars.Regulars._welcome, type(self.recorder).take_over

        def count_asked(within, news, usual):
            if within is self.gate._regulars:
                self._welcomed.append(news)
            welcome(within, news, usual)

        def count(recorder, counted, forms):
            if recorder is self.recorder:
                self._unasked += counted.decided
            take_over(recorder, counted, forms)

        self._patch.setattr(regulars.Regulars, "_welcome", count_asked)
        self._patch.setattr(type(self.recorder), "take_over", count)
        return self

    @property
    def known(self):
        """How many were known again."""
        return len(self._welcomed) + self._unasked

    @property
    def asked(self):
        """For how many of them the gate was asked."""
        return len(self._welcomed)

    @property
    def events(self):
        return super().events[self.before :]

    async def pass_unseen(self):
        """Have one pass that is counted nowhere; those that are like it are let out unasked then."""
        before, self.origin.accepted = self.origin.accepted, 0
        events = len(self.events)
        await self.pass_one(at_once=True)
        assert self.known == 1
        self._welcomed, self._unasked = [], 0
        self.before += len(self.events) - events
        self.origin.accepted = before
        self.passed += 1

    async def __aexit__(self, *how):
        self._patch.undo()
        await super().__aexit__(*how)
        self.journal.close()
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

    def connect_at_once(self):
        """Connect and greet, before the gate has its turn."""
        sock = socket.create_connection(self.listener.getsockname())
        sock.sendall(self.hello)
        sock.setblocking(False)
        self._clients.append(sock)
        return Client(sock)

    async def open_one(self, hello=None, *, at_once=False):
        """Have one connection pass, and leave it open."""
        hello = self.hello if hello is None else hello
        client = self.connect_at_once() if at_once else await self.connect(hello)
        far = await self.take()
        assert await far.read_exactly(len(hello)) == hello
        return client, far

    async def pass_one(self, hello=None, *, at_once=False):
        """Have one connection pass, in peace."""
        client, far = await self.open_one(hello, at_once=at_once)
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


def known(test, tmp_path, *rules, errors=0, ways=(False, True), **settings):
    """Run a test in a world where good.example has been greeted before.

    In one way, the gate is asked for each of those that follow; in another, one has been let out and the gate vouches
    for them.
    """

    if regulars.COMPILED is None:
        harness.missing("a C compiler")
    if True in ways and SHA256 is None:
        harness.missing("SHA-256 of OpenSSL's in this interpreter")

    async def within(directory, *, unasked):
        before = open_descriptors()
        async with Known(directory, rules or (SPLICED,), **settings) as world:
            await world.pass_one()
            assert not world.known
            if unasked:
                await world.pass_unseen()
            await test(world)
            assert len(world.errors) == errors
        assert open_descriptors() <= before

    for unasked in ways:
        with pytest.MonkeyPatch.context() as patch:
            if unasked:
                patch.setattr("proxy.regulars._GOOD_FOR", 60.0)
            else:
                patch.setattr("proxy.unasked.SHA256", None)
            directory = tmp_path / ("unasked" if unasked else "asked")
            directory.mkdir()
            run(lambda directory=directory, unasked=unasked: within(directory, unasked=unasked))


def alike(events):
    """What must be the same of two connections."""
    own = {"time", "id", "cause", "duration", "prev", "hash"}
    return [{key: value for key, value in event.items() if key not in own} for event in events]
