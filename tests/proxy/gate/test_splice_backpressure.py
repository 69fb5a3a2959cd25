"""Bytes that wait for who reads slowly or not at all: kept, bounded, and never lost."""

import asyncio
import random

import pytest

from proxy.event_loop.poller import COMPILED
from tests.proxy.gate.splice_lab import Passed, fill, relayed
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.usefixtures("whoever")


def test_reset_while_the_other_side_is_full_is_relayed():
    async def test(it):
        it.start()
        await fill(it)
        assert it.buffers.used
        it.server.reset()
        with pytest.raises(ConnectionResetError):
            await it.task.read_all()
        await it.over()

    relayed(test, buffer=8192)


def test_reset_by_the_full_side_is_relayed():
    async def test(it):
        it.start()
        await fill(it)
        it.task.reset()
        with pytest.raises(ConnectionResetError):
            await it.server.read()
        await it.over()

    relayed(test, buffer=8192)


@pytest.mark.parametrize("buffer", [None, 4096])
def test_bytes_for_a_slow_reader_arrive_whole(buffer):
    data = random.Random(5).randbytes(3_000_000)

    async def test(it):
        it.start()
        sending = [asyncio.create_task(one.send(data)) for one in (it.task, it.server)]
        await asyncio.sleep(0.05)
        reading = [asyncio.create_task(one.read_exactly(len(data))) for one in (it.task, it.server)]
        assert await asyncio.gather(*reading) == [data, data]
        await asyncio.gather(*sending)
        assert it.buffers.used == 0
        it.task.shutdown()
        it.server.shutdown()
        await it.over()
        assert it.relay.byte_counts() == (len(data), len(data))

    relayed(test, buffer=buffer)


def test_end_is_relayed_after_the_buffered_bytes():
    async def test(it):
        it.start()
        sending = asyncio.create_task(it.server.send(b"x" * 2_000_000))
        await asyncio.sleep(0.05)
        reading = asyncio.create_task(it.task.read_all())
        await sending
        it.server.shutdown()
        assert len(await reading) == 2_000_000

    relayed(test, buffer=4096)


def test_idle_connection_holds_no_buffer():
    async def test(it):
        it.start()
        await it.task.send(b"x" * 100_000)
        await it.server.read_exactly(100_000)
        await wait_until_async(lambda: it.relay.byte_counts()[0] == 100_000)
        for end in it.relay._halves or ():
            assert end.unsent.obj == b""
        assert it.buffers.used == 0

    relayed(test, buffer=4096)


def test_partly_read_piece_counts_in_full():
    async def test(it):
        def left():
            pair = it.relay._pair
            return len(COMPILED.side(pair, server=False).unsent if pair else it.relay._halves[0].unsent)

        it.start()
        await fill(it)
        while not 0 < left() < it.buffers.used:
            await it.task.read_exactly(1000)
            await asyncio.sleep(0)

    relayed(test, send_buffer=4096)


def test_buffers_of_all_full_sockets_are_bounded():
    async def test(first):
        first.buffers.most = 300_000
        many = [first, *(Passed(send_buffer=4096) for _ in range(20))]
        for it in many:
            it.buffers = it.relay._buffers = many[0].buffers
            it.start()
        sending = [asyncio.create_task(it.server.send(b"x" * 3_000_000)) for it in many]
        await wait_until_async(lambda: first.buffers.used >= 300_000)
        await asyncio.sleep(0.1)
        assert first.buffers.used <= 300_000 + 262_144 + 20 * 4096
        for task in sending:
            task.cancel()
        for it in many[1:]:
            it.relay.abort()
            it.task.close()
            it.server.close()
        await asyncio.gather(*sending, return_exceptions=True)

    relayed(test, send_buffer=4096)
