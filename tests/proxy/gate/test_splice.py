import asyncio
import contextlib
import socket
import struct

import pytest

from proxy.event_loop import poller
from proxy.gate import splice
from tests.proxy.gate.splice_lab import Passed, fill, relayed, turns
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.usefixtures("whoever")


def test_bytes_are_relayed_both_ways_and_counted():
    async def test(it):
        await it.task.send(b"said before it began")
        it.start()
        assert await it.server.read() == b"said before it began"
        await it.server.send(b"banner")
        assert await it.task.read() == b"banner"
        assert it.relay.byte_counts() == (20, 6)
        assert not it.ended

    relayed(test)


def test_client_end_is_relayed_and_the_other_direction_continues():
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
        assert (*it.relay.byte_counts(), it.relay.server_broke) == (7, 21, False)

    relayed(test)


def test_server_end_is_relayed_and_the_other_direction_continues():
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


def test_both_sides_ending_at_once_lose_no_bytes():
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
def test_reset_is_relayed_as_a_reset(cut):
    async def test(it):
        it.start()
        breaks, other = (it.task, it.server) if cut == "task" else (it.server, it.task)
        await breaks.send(b"the first half of something")
        assert await other.read() == b"the first half of something"
        breaks.reset()
        with pytest.raises(ConnectionResetError):
            await other.read()
        await it.over()
        assert it.relay.server_broke == (cut == "server")

    relayed(test)


@pytest.mark.parametrize("cut", ["task", "server"])
def test_reset_after_the_other_sides_end_is_relayed(cut):
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


def test_side_that_stopped_reading_resets_both():
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
        assert it.relay.server_broke

    relayed(test)


@pytest.mark.parametrize("cut", ["task", "server"])
def test_bytes_sent_before_a_reset_are_relayed(cut):
    """A server refuses an upload and closes at once: its answer is there to be read, by who finds that it can't go on."""

    async def test(it):
        breaks, other = (it.task, it.server) if cut == "task" else (it.server, it.task)
        await other.send(b"x" * 1000)
        await breaks.send(b"no more")
        breaks.reset()
        it.start()
        assert await other.read() == b"no more"
        with pytest.raises(ConnectionResetError):
            await other.read()
        await it.over()
        assert it.relay.byte_counts() == ((7, 0) if cut == "task" else (0, 7))

    relayed(test)


@pytest.mark.parametrize("way", ["up", "down"])
def test_urgent_data_is_relayed_in_order(way):
    async def test(it):
        it.start()
        says, hears = (it.task, it.server) if way == "up" else (it.server, it.task)
        await says.send(b"before ")
        says.sock.send(b"!", socket.MSG_OOB)
        await says.send(b" after")
        says.shutdown()
        assert await hears.read_all() == b"before ! after"

    relayed(test)


def test_urgent_data_alone_does_not_spin():
    async def test(it):
        it.start()
        with turns() as asked:
            for _ in range(5):
                it.task.sock.send(b"!", socket.MSG_OOB)
                it.server.sock.send(b"?", socket.MSG_OOB)
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
        assert len(asked) <= 40
        assert it.relay.byte_counts() == (5, 5)

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
        with turns() as asked:
            await asyncio.sleep(0.1)
        assert len(asked) <= 20  # a spin has thousands

    relayed(test, buffer=8192)


def test_exception_resets_both_sides_and_is_reported(monkeypatch, whoever):
    async def test(it):
        it.start()
        of = splice.Splice if whoever == "compiled" else splice.Half
        monkeypatch.setattr(of, "ready", lambda _self, _events: 1 / 0)
        await it.task.send(b"x")
        if whoever == "compiled":
            it.task.reset()  # what compiled code does by itself is no affair of Python's before
            with pytest.raises(ConnectionResetError):
                await it.server.read_all()
            await wait_until_async(lambda: it.ended)
        for one in (it.task, it.server) if whoever == "interpreted" else ():
            with pytest.raises(ConnectionResetError):
                await one.read()
        assert isinstance(it.ended[0], ZeroDivisionError)

    relayed(test)


def test_abort_resets_both_sides_and_reports_once():
    async def test(it):
        it.start()
        it.relay.abort()
        it.relay.abort()
        for one in (it.task, it.server):
            with pytest.raises(ConnectionResetError):
                await one.read()
        await it.over()

    relayed(test)


def test_no_byte_of_one_connection_reaches_another():
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


def test_reset_of_a_broken_socket_raises_nothing():
    sock = socket.socket()
    sock.close()
    poller.reset(sock)
    assert struct.unpack("ii", poller._RESET) == (1, 0)
