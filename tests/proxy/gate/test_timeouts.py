"""Silence: what nobody does anything on is ended in its time, and costs nothing until then."""

import asyncio
import contextlib
import socket

import pytest

from proxy.event_loop import poller
from proxy.gate import connection, listener, managed_connection
from tests.proxy.gate.gate_lab import (
    RAW,
)
from tests.proxy.gate.hostile_lab import HELLO, hostile, reasons
from tests.support.waiting import wait_until_async

# silence


def test_hundreds_of_silent_clients_cost_nothing_and_are_ended(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_BYTES_TIMEOUT", 1.0)

    async def test(world):
        tasks = [await world.connect("good.example") for _ in range(300)]
        await wait_until_async(lambda: len(world.gate.connections) == 300)
        other = await world.connect("raw.example")
        server = await world.origin.take()
        await server.send(b"still here")
        assert await other.read() == b"still here"
        assert {await task.ended() for task in tasks} == {"reset"}
        assert reasons(world).count("protocol_mismatch") == 300
        assert len(world.gate.connections) == 1
        assert not looks

    hostile(tmp_path, test, most=1000)


def test_connections_beyond_the_maximum_are_denied_until_one_ends(tmp_path):
    async def test(world):
        tasks = [await world.connect("good.example") for _ in range(5)]
        await wait_until_async(lambda: len(world.gate.connections) == 5)
        sixth = await world.connect("good.example")
        assert await sixth.ended() == "reset"
        assert reasons(world) == ["limit_exceeded"]
        tasks[0].reset()
        await wait_until_async(lambda: len(world.gate.connections) == 4)
        seventh = await world.connect("good.example")
        await seventh.send(HELLO)
        await world.origin.take()

    hostile(tmp_path, test, most=5)


def test_maximum_connections_is_below_the_descriptor_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(listener.resource, "getrlimit", lambda _: (264, 4096))

    async def test(world):
        assert world.gate.most == 100

    hostile(tmp_path, test, most=4096)


def test_idle_connection_is_reset_after_its_rules_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "EVERY", 0.02)

    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        for _ in range(30):
            await server.send(b".")
            await task.read()
            await asyncio.sleep(0.05)
        assert not world.closings
        assert await task.ended() == "reset"
        closed = await world.closing()
        assert (closed["reason"], closed["bytes"]["down"]) == ("limit_exceeded", 30)

    hostile(tmp_path, test, [f"{RAW}, idle_timeout: 1s"])


def test_connection_ends_at_its_maximum_lifetime(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "EVERY", 0.02)
    monkeypatch.setattr(connection, "LIFETIME", 0.1)

    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        with contextlib.suppress(ConnectionError):
            while await asyncio.sleep(0.01, result=True):
                await server.send(b".")
        with pytest.raises(ConnectionError):
            await task.read_all()
        assert (await world.closing())["reason"] == "limit_exceeded"

    hostile(tmp_path, test)


def test_endless_lookup_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "EVERY", 0.02)
    monkeypatch.setattr(managed_connection, "LOOKUP_TIMEOUT", 0.05)

    async def test(world):
        world.servers.hold = asyncio.Event()
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert [(e["outcome"], e["reason"]) for e in world.decisions] == [("failed", "unresolved")]
        world.servers.known["raw.example", "A"] = ["127.0.0.1"]
        world.servers.hold.set()
        await asyncio.sleep(0.02)
        assert world.origin.accepted == 0

    hostile(tmp_path, test, hosts="")


def test_endless_dial_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "EVERY", 0.02)
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.05)

    async def test(world):
        world.origin.listener.listen(0)
        world.origin._task.cancel()
        full = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", world.origin.port))
            full.append(sock)
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        closed = await world.closing()
        assert (closed["outcome"], closed["reason"]) == ("failed", "upstream_failed")
        for sock in full:
            sock.close()

    hostile(tmp_path, test)
