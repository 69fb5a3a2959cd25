"""The gate against its own sandbox: what a task can do to it, and what the machine can (KERNEL.md)."""

import asyncio
import contextlib
import socket

import pytest

from proxy.gate import connection
from tests.proxy.gate.hostile_lab import HELLO, hostile, reasons
from tests.support.waiting import wait_until_async

# half a hello


@pytest.mark.parametrize("size", [1, 4, 5, 6, 9, 10, 100, 516])
def test_partial_hello_is_peeked_once_until_more_arrives(tmp_path, looks, size):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO[:size])
        await wait_until_async(lambda: looks)
        await asyncio.sleep(0.05)
        assert len(looks) == 1
        await task.send(HELLO[size:])
        server = await world.origin.take()
        assert await server.read_exactly(len(HELLO)) == HELLO
        assert len(looks) <= 3

    hostile(tmp_path, test)


@pytest.mark.parametrize("size", [0, 1, 10, 516])
@pytest.mark.parametrize("end", ["shutdown", "close", "reset"])
def test_client_that_ends_in_its_hello_is_denied_at_once(tmp_path, looks, size, end):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO[:size])
        await asyncio.sleep(0.01)
        getattr(task, end)()
        await wait_until_async(lambda: not world.gate.connections)
        assert reasons(world) == ["protocol_mismatch"]
        assert len(looks) <= 4
        assert world.origin.accepted == 0

    hostile(tmp_path, test)


def test_hello_in_one_byte_segments_is_peeked_rarely(tmp_path, looks):
    async def test(world):
        task = await world.connect("good.example")
        task.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(HELLO)):
            await task.send(HELLO[at : at + 1])
            await asyncio.sleep(0)
        server = await world.origin.take()
        assert await server.read_exactly(len(HELLO)) == HELLO
        assert len(looks) <= 4  # some, the record's head, the record

    hostile(tmp_path, test)


def test_endless_http_head_is_denied(tmp_path, looks):
    async def test(world):
        task = await world.connect("seen.example")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                await task.send(b"A" * 1000)
        assert await task.ended() == "reset"
        assert reasons(world) == ["protocol_mismatch"]

    hostile(tmp_path, test)


# urgent data


@pytest.mark.parametrize("at", [0, 1, 5, 100, 516])
def test_urgent_data_in_a_hello_neither_spins_nor_hides_bytes(tmp_path, looks, at):
    async def test(world):
        task = await world.connect("good.example")
        if at:
            await task.send(HELLO[:at])
        task.sock.send(b"!", socket.MSG_OOB)
        await task.send(HELLO[at:])
        assert await task.ended() == "reset"
        assert reasons(world) == ["protocol_mismatch"]
        assert len(looks) <= 5
        assert world.origin.accepted == 0

    hostile(tmp_path, test)


def test_urgent_data_alone_neither_spins_nor_is_allowed(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_BYTES_TIMEOUT", 0.1)

    async def test(world):
        task = await world.connect("good.example")
        task.sock.send(b"\x16", socket.MSG_OOB)
        assert await task.ended() == "reset"
        assert reasons(world) == ["protocol_mismatch"]
        assert len(looks) <= 3

    hostile(tmp_path, test)


def test_urgent_data_after_the_hello_is_relayed_in_order(tmp_path):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO)
        server = await world.origin.take()
        await server.read_exactly(len(HELLO))
        await task.send(b"before ")
        task.sock.send(b"!", socket.MSG_OOB)
        await task.send(b" after")
        assert await server.read_exactly(14) == b"before ! after"
        await server.send(b"one ")
        server.sock.send(b"?", socket.MSG_OOB)
        assert await task.read_exactly(5) == b"one ?"

    hostile(tmp_path, test)
