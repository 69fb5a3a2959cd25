"""What a program has sent and changes before it is read: of a file, sendfile(2) sends the pages and no copy of them."""

import os
import select
import socket

import pytest

from proxy.event_loop.poller import COMPILED
from proxy.gate.decide import DecisionCache
from proxy.gate.splice import Splice
from tests.proxy.gate.gate_lab import HOSTS, SPLICED, GateLab, client_hello, run
from tests.proxy.gate.splice_lab import relayed
from tests.support import harness
from tests.support.waiting import wait_until_async


class Swapped:
    """A file with a greeting, which is sent from there; and another one that takes its place."""

    def __init__(self, path):
        self.judged, self._other = client_hello("good.example"), client_hello("evil.example")
        assert len(self.judged) == len(self._other)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(self._file, self.judged)
        self.is_sent = self.is_swapped = False

    def send(self, sock):
        self.is_sent = True
        assert os.sendfile(sock.fileno(), self._file, 0, len(self.judged)) == len(self.judged)

    def swap(self):
        if self.is_sent and not self.is_swapped:
            self.is_swapped = True
            os.pwrite(self._file, self._other, 0)

    def close(self):
        os.close(self._file)


@pytest.fixture
def swapped(tmp_path):
    made = [Swapped(tmp_path / each) for each in ("tried", "greeting")]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        made[0].send(client)
        taken, _ = server.accept()
        taken.recv(4096, socket.MSG_PEEK)
        made[0].swap()
        if taken.recv(4096) == made[0].judged:
            harness.missing("a file system of which sendfile(2) sends pages")
        taken.close()
    yield made[1]
    for each in made:
        each.close()


async def arrives(world, client, swapped):
    """See that what was judged arrives, and what is said after it."""
    far = await world.origin.take()
    await client.send(b"more")
    assert await far.read_exactly(len(swapped.judged) + 4) == swapped.judged + b"more"
    assert swapped.is_swapped
    assert world.decisions[-1]["tls"]["sni"] == "good.example"
    client.close()
    far.close()


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "interpreted"])
def test_bytes_changed_after_the_decision_arrive_as_decided(tmp_path, monkeypatch, swapped, compiled):
    if compiled and COMPILED is None:
        harness.missing("a C compiler")
    judge = DecisionCache.decide

    def judge_and_swap(*words):
        swapped.swap()
        return judge(*words)

    monkeypatch.setattr(DecisionCache, "decide", judge_and_swap)
    rule = SPLICED if compiled else f"{SPLICED}, limits: {{bytes_up: 1MiB}}"

    async def inside():
        async with GateLab(tmp_path, [rule], hosts=HOSTS) as world:
            client = await world.connect("good.example")
            swapped.send(client.sock)
            await arrives(world, client, swapped)

    run(inside)


@pytest.mark.usefixtures("whoever")
def test_fewer_bytes_than_decided_on_relay_nothing():
    """That can't happen; if it did, bytes that no decision was made on would be relayed."""

    async def test(it):
        await it.task.send(b"another")
        await wait_until_async(lambda: select.select([it.near], [], [], 0)[0])
        it.relay.start(b"what was judged")
        assert [type(error) for error in it.ended] == [RuntimeError]
        assert [await each.ended() for each in (it.task, it.server)] == ["reset", "reset"]
        assert it.relay.byte_counts() == (0, 0)
        assert not it.relay.server_broke

    relayed(test)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "interpreted"])
def test_unreadable_first_bytes_end_a_connection_as_a_gate_error(tmp_path, monkeypatch, compiled):
    if compiled and COMPILED is None:
        harness.missing("a C compiler")
    start = Splice.start

    def read_and_start(splice, first_bytes):
        splice._client.recv(len(first_bytes))  # nobody else reads this socket; if somebody did, this is the result
        start(splice, first_bytes)

    monkeypatch.setattr(Splice, "start", read_and_start)
    rule = SPLICED if compiled else f"{SPLICED}, limits: {{bytes_up: 1MiB}}"

    async def inside():
        async with GateLab(tmp_path, [rule], hosts=HOSTS) as world:
            client = await world.connect("good.example")
            await client.send(client_hello("good.example"))
            assert await client.ended() == "reset"
            await wait_until_async(lambda: world.closings)
            closed = world.closings[0]
            assert (closed["outcome"], closed["reason"]) == ("failed", "gate_error")
            server = await world.origin.take()
            assert await server.ended() == "reset"  # it received no byte
            assert [each["fault"]["where"] for each in world.errors] == ["relay"]

    run(inside)
