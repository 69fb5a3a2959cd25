import asyncio
import contextlib
import random
import socket
import struct

import pytest
from gate_harness import Client, open_descriptors, run, until

from proxy import relay as relays
from proxy.poller import Poller
from proxy.relay import Backlog, Relay


def tcp_pair(listener):
    near = socket.socket()
    near.connect(listener.getsockname())
    far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return near, far


class Passed:
    """A relay between two connections: `task` talks to its near side, `server` to its far side."""

    def __init__(self, buffer=None, send_buffer=None):
        self.poller, self.backlog = Poller(), Backlog()
        self.ended = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for option, size in ((socket.SO_SNDBUF, send_buffer or buffer), (socket.SO_RCVBUF, buffer)):
                if size:
                    listener.setsockopt(socket.SOL_SOCKET, option, size)  # accepted sockets inherit it
            task, near = tcp_pair(listener)
            server, far = tcp_pair(listener)
        self.near, self.far = near, far
        self.task, self.server = Client(task), Client(server)
        self.relay = Relay(self.poller, self.backlog, near, far, self.ended.append)

    def start(self):
        self.relay.start()
        return self

    async def over(self):
        await until(lambda: self.ended)
        assert self.ended == [None]
        assert (self.near.fileno(), self.far.fileno()) == (-1, -1)
        assert self.backlog.bytes == 0
        assert not self.poller._watched


def relayed(test, **how):
    async def inside():
        it = Passed(**how)
        await test(it)
        it.relay.abort()
        it.task.close()
        it.server.close()

    before = open_descriptors()
    run(inside)
    assert open_descriptors() == before


async def fill(it):
    """Have the server say more than the task's side takes."""
    sending = asyncio.create_task(it.server.send(b"x" * (64 << 20)))
    await until(lambda: it.backlog.bytes)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


def test_bytes_go_both_ways_and_are_counted():
    async def test(it):
        await it.task.send(b"said before it began")
        it.start()
        assert await it.server.read() == b"said before it began"
        await it.server.send(b"banner")
        assert await it.task.read() == b"banner"
        assert (it.relay.up, it.relay.down) == (20, 6)
        assert not it.ended

    relayed(test)


def test_an_end_is_carried_over_and_the_other_way_goes_on():
    async def test(it):
        it.start()
        await it.task.send(b"request")
        it.task.shutdown()
        assert await it.server.read_all() == b"request"
        for _ in range(3):
            await it.server.send(b"answer ")
            await asyncio.sleep(0.005)
        it.server.shutdown()
        assert await it.task.read_all() == b"answer answer answer "
        await it.over()
        assert (it.relay.up, it.relay.down, it.relay.far_broke) == (7, 21, False)

    relayed(test)


def test_so_it_is_the_other_way_round():
    async def test(it):
        it.start()
        await it.server.send(b"goodbye")
        it.server.shutdown()
        assert await it.task.read_all() == b"goodbye"
        await it.task.send(b"one more thing")
        it.task.close()
        assert await it.server.read_all() == b"one more thing"
        await it.over()

    relayed(test)


def test_both_ending_at_once_loses_nothing():
    async def test(it):
        await it.task.send(b"a" * 50000)
        await it.server.send(b"b" * 50000)
        it.task.shutdown()
        it.server.shutdown()
        it.start()
        assert len(await it.task.read_all()) == 50000
        assert len(await it.server.read_all()) == 50000
        await it.over()

    relayed(test)


@pytest.mark.parametrize("cut", ["task", "server"])
def test_a_reset_is_a_reset_and_never_an_end(cut):
    async def test(it):
        it.start()
        breaks, other = (it.task, it.server) if cut == "task" else (it.server, it.task)
        await breaks.send(b"the first half of something")
        assert await other.read() == b"the first half of something"
        breaks.reset()
        with pytest.raises(ConnectionResetError):
            await other.read()
        await it.over()
        assert it.relay.far_broke == (cut == "server")

    relayed(test)


@pytest.mark.parametrize("cut", ["task", "server"])
def test_a_reset_after_an_end_of_the_other_side_is_carried_over_too(cut):
    async def test(it):
        it.start()
        breaks, other = (it.task, it.server) if cut == "task" else (it.server, it.task)
        other.shutdown()
        assert await breaks.read() == b""
        await breaks.send(b"the first half")
        assert await other.read() == b"the first half"
        breaks.reset()
        with pytest.raises(ConnectionResetError):
            await other.read()
        await it.over()

    relayed(test)


def test_a_side_that_stopped_listening_is_found_out():
    async def test(it):
        it.start()
        it.server.shutdown()
        assert await it.task.read() == b""
        it.server.close()  # it hasn't read all: what comes now is answered with a reset
        with contextlib.suppress(ConnectionError):
            while True:
                await it.task.send(b"x" * 1000)
                await asyncio.sleep(0.001)
        await it.over()
        assert it.relay.far_broke

    relayed(test)


def test_a_reset_while_the_other_side_is_full_is_carried_over():
    async def test(it):
        it.start()
        await fill(it)
        assert it.backlog.bytes
        it.server.reset()
        with pytest.raises(ConnectionResetError):
            await it.task.read_all()
        await it.over()

    relayed(test, buffer=8192)


def test_a_reset_from_the_full_side_itself_is_carried_over():
    async def test(it):
        it.start()
        await fill(it)
        it.task.reset()
        with pytest.raises(ConnectionResetError):
            await it.server.read()
        await it.over()

    relayed(test, buffer=8192)


@pytest.mark.parametrize("buffer", [None, 4096])
def test_what_a_slow_reader_doesnt_take_waits_and_arrives_whole(buffer):
    data = random.Random(5).randbytes(3_000_000)

    async def test(it):
        it.start()
        sending = [asyncio.create_task(one.send(data)) for one in (it.task, it.server)]
        await asyncio.sleep(0.05)
        reading = [asyncio.create_task(one.read_exactly(len(data))) for one in (it.task, it.server)]
        assert await asyncio.gather(*reading) == [data, data]
        await asyncio.gather(*sending)
        assert it.backlog.bytes == 0
        it.task.shutdown()
        it.server.shutdown()
        await it.over()
        assert (it.relay.up, it.relay.down) == (len(data), len(data))

    relayed(test, buffer=buffer)


def test_an_end_waits_for_what_is_kept():
    async def test(it):
        it.start()
        sending = asyncio.create_task(it.server.send(b"x" * 2_000_000))
        await asyncio.sleep(0.05)
        reading = asyncio.create_task(it.task.read_all())
        await sending
        it.server.shutdown()
        assert len(await reading) == 2_000_000

    relayed(test, buffer=4096)


def test_a_connection_that_is_idle_keeps_nothing():
    async def test(it):
        it.start()
        await it.task.send(b"x" * 100_000)
        await it.server.read_exactly(100_000)
        await until(lambda: it.relay.up == 100_000)
        for end in (it.relay._near, it.relay._far):
            assert end.kept.obj == b""
        assert it.backlog.bytes == 0

    relayed(test, buffer=4096)


def test_what_waits_for_all_full_sockets_together_is_bounded(monkeypatch):
    monkeypatch.setattr(relays, "MOST_KEPT", 300_000)

    async def test(first):
        many = [first, *(Passed(send_buffer=4096) for _ in range(20))]
        for it in many:
            it.backlog = many[0].backlog
            for end in (it.relay._near, it.relay._far):
                end.backlog = many[0].backlog
            it.start()
        sending = [asyncio.create_task(it.server.send(b"x" * 3_000_000)) for it in many]
        await until(lambda: first.backlog.bytes >= 300_000)
        await asyncio.sleep(0.1)
        assert first.backlog.bytes <= 300_000 + 262_144 + 20 * 4096
        for task in sending:
            task.cancel()
        for it in many[1:]:
            it.relay.abort()
            it.task.close()
            it.server.close()
        await asyncio.gather(*sending, return_exceptions=True)

    relayed(test, send_buffer=4096)


@pytest.mark.parametrize("way", ["up", "down"])
def test_urgent_data_stays_in_its_place(way):
    async def test(it):
        it.start()
        says, hears = (it.task, it.server) if way == "up" else (it.server, it.task)
        await says.send(b"before ")
        says.sock.send(b"!", socket.MSG_OOB)
        await says.send(b" after")
        says.shutdown()
        assert await hears.read_all() == b"before ! after"

    relayed(test)


def test_urgent_data_and_nothing_else_doesnt_spin():
    async def test(it):
        it.start()
        turns = 0
        ready = type(it.relay._near).ready

        def counted(self, events):
            nonlocal turns
            turns += 1
            ready(self, events)

        type(it.relay._near).ready = counted
        try:
            for _ in range(5):
                it.task.sock.send(b"!", socket.MSG_OOB)
                it.server.sock.send(b"?", socket.MSG_OOB)
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
        finally:
            type(it.relay._near).ready = ready
        assert turns <= 20
        assert (it.relay.up, it.relay.down) == (5, 5)

    relayed(test)


@pytest.mark.parametrize("state", ["paused", "one side ended", "both sides shut"])
def test_no_state_spins(state):
    async def test(it):
        it.start()
        if state == "paused":
            await fill(it)
            it.server.shutdown()
        elif state == "one side ended":
            it.server.shutdown()
            await it.task.read()
        else:  # the server ends and can't be told that the task did: the task doesn't read
            await fill(it)
            it.task.shutdown()
            await it.server.read()
            it.server.shutdown()
        await asyncio.sleep(0.05)
        turns = 0
        ready = type(it.relay._near).ready

        def counted(self, events):
            nonlocal turns
            turns += 1
            ready(self, events)

        type(it.relay._near).ready = counted
        try:
            await asyncio.sleep(0.1)
        finally:
            type(it.relay._near).ready = ready
        assert turns <= 20  # a spin has thousands

    relayed(test, buffer=8192)


def test_a_bug_ends_it_with_resets_and_is_told(monkeypatch):
    async def test(it):
        it.start()
        monkeypatch.setattr(type(it.relay._near), "read", lambda _self: 1 / 0)
        await it.task.send(b"x")
        for one in (it.task, it.server):
            with pytest.raises(ConnectionResetError):
                await one.read()
        assert isinstance(it.ended[0], ZeroDivisionError)

    relayed(test)


def test_abort_resets_both_and_tells_once():
    async def test(it):
        it.start()
        it.relay.abort()
        it.relay.abort()
        for one in (it.task, it.server):
            with pytest.raises(ConnectionResetError):
                await one.read()
        await it.over()

    relayed(test)


def test_no_byte_of_one_connection_is_found_in_another():
    async def test(first):
        many = [first.start(), *(Passed(buffer=8192).start() for _ in range(7))]

        async def talk(it, letter):
            data = bytes([letter]) * 400_000
            sending = [asyncio.create_task(one.send(data)) for one in (it.task, it.server)]
            for one in (it.server, it.task):
                assert await one.read_exactly(len(data), 7919) == data
            await asyncio.gather(*sending)

        await asyncio.gather(*(talk(it, 65 + number) for number, it in enumerate(many)))
        for it in many[1:]:
            it.relay.abort()
            it.task.close()
            it.server.close()

    relayed(test, buffer=8192)


def test_resetting_a_broken_socket_is_harmless():
    sock = socket.socket()
    sock.close()
    relays.reset(sock)
    assert struct.unpack("ii", relays._RESET) == (1, 0)
