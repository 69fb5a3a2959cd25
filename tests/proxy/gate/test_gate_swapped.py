"""What a program has sent and changes before it is read: of a file, sendfile(2) sends the pages and no copy of them."""

import ctypes
import os
import select
import socket

import pytest
from gate_harness import HOSTS, SPLICED, World, client_hello, run, until
from regulars_harness import known
from relay_harness import relayed

from proxy import regulars
from proxy.compiled.digest import SHA256, Digest
from proxy.recall import Recall
from tests import harness

_UPDATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


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
def test_what_was_judged_is_what_arrives(tmp_path, monkeypatch, swapped, compiled):
    if compiled and regulars.COMPILED is None:
        harness.missing("a C compiler")
    judge = Recall.judge

    def judge_and_swap(*words):
        swapped.swap()
        return judge(*words)

    monkeypatch.setattr(Recall, "judge", judge_and_swap)
    rule = SPLICED if compiled else f"{SPLICED}, limits: {{bytes_up: 1MiB}}"

    async def inside():
        async with World(tmp_path, [rule], hosts=HOSTS) as world:
            client = await world.connect("good.example")
            swapped.send(client.sock)
            await arrives(world, client, swapped)

    run(inside)


def test_of_one_that_is_known_again_too(tmp_path, monkeypatch, swapped):
    welcome = regulars.Regulars._welcome

    def swap_and_welcome(*words):
        swapped.swap()
        welcome(*words)

    async def test(world):
        monkeypatch.setattr(regulars.Regulars, "_welcome", swap_and_welcome)
        client = await world.connect()
        swapped.send(client.sock)
        await arrives(world, client, swapped)

    known(test, tmp_path, ways=(False,))


def test_of_one_that_is_let_out_unasked_too(tmp_path, monkeypatch, swapped):
    """While it is told, which is between the look at it and the dial."""
    if SHA256 is None:
        harness.missing("SHA-256 of OpenSSL's in this interpreter")
    update = _UPDATE(SHA256.update)

    @_UPDATE
    def swap_and_update(*words):
        swapped.swap()
        return update(*words)

    place = ctypes.cast(swap_and_update, ctypes.c_void_p).value
    monkeypatch.setattr("proxy.unasked.SHA256", Digest(SHA256.context, SHA256.begin, place, SHA256.finish))

    async def test(world):
        client = await world.connect()
        swapped.send(client.sock)
        await arrives(world, client, swapped)
        assert world.asked == 0

    known(test, tmp_path, ways=(True,))


@pytest.mark.usefixtures("whoever")
def test_where_less_is_read_than_was_judged_nothing_arrives():
    """That can't be, and what would go on then is what nobody has judged."""

    async def test(it):
        await it.task.send(b"another")
        await until(lambda: select.select([it.near], [], [], 0)[0])
        it.relay.start(b"what was judged")
        assert it.ended == [None]
        assert [await each.ended() for each in (it.task, it.server)] == ["reset", "reset"]
        assert (it.relay.up, it.relay.down) == (0, 0)
        assert not it.relay.far_broke

    relayed(test)
