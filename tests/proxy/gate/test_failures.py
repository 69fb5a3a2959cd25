"""What goes wrong with the machine or with us: descriptors, the journal, bugs; and the end."""

import asyncio
import contextlib
import errno
import os
import socket
from types import SimpleNamespace

import pytest

from proxy.event_loop import poller
from proxy.event_loop.poller import Loop
from proxy.gate import connection, listener
from proxy.telemetry.events import Component
from tests.proxy.gate.gate_lab import (
    HOSTS,
    RAW,
    SPLICED,
    GateLab,
    client_hello,
    open_descriptors,
    run,
)
from tests.proxy.gate.hostile_lab import HELLO, RULES, hostile, reasons
from tests.support.waiting import wait_until_async

# the machine


class Failing:
    """A listener whose accept fails so many times."""

    def __init__(self, sock, error, times):
        self.sock, self.error, self.times, self.tried = sock, error, times, 0

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def _accept(self):
        self.tried += 1
        if self.times:
            self.times -= 1
            raise self.error
        return self.sock._accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_gate_without_descriptors_pauses_and_then_accepts_again(tmp_path, number):
    async def test(world):
        failing = world.gate._listener = Failing(world.listener, OSError(number, os.strerror(number)), 2)
        await world.connect("raw.example")
        await world.origin.take()
        assert failing.tried <= 6
        assert [e["fault"]["where"] for e in world.errors] == ["accept"] * 2
        assert world.gate._pause == listener._SHORTEST_PAUSE

    hostile(tmp_path, test, errors=2)


def test_connection_gone_before_accept_is_ignored(tmp_path):
    async def test(world):
        world.gate._listener = Failing(world.listener, ConnectionAbortedError(errno.ECONNABORTED, "gone"), 3)
        await world.connect("raw.example")
        await world.origin.take()

    hostile(tmp_path, test)


def test_connection_without_a_server_descriptor_fails_and_is_recorded(tmp_path, monkeypatch):
    def no_socket(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("proxy.dialing.connect_race.socket", SimpleNamespace(**{**vars(socket), "socket": no_socket}))

    async def test(world):
        task = await world.connect("raw.example")
        closed = await world.closing()
        assert (closed["outcome"], closed["reason"]) == ("failed", "upstream_failed")
        assert await task.ended() == "reset"

    hostile(tmp_path, test)


def test_full_journal_blocks_new_connections_and_keeps_open_ones(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        server = await world.origin.take()
        world.journal.full = True
        for name, data in (
            ("raw.example", b""),
            ("good.example", HELLO),
            ("seen.example", client_hello("seen.example")),
        ):
            refused = await world.connect(name)
            with contextlib.suppress(ConnectionError):
                await refused.send(data)
            assert await refused.ended() == "reset"
        await server.send(b"still here")
        assert await task.read() == b"still here"
        assert world.origin.accepted == 1
        assert not world.adopted
        assert len(world.gate.connections) == 1

    hostile(tmp_path, test)


# bugs


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("proxy.gate.connection.recognise", Component.PEEK),
        ("proxy.gate.decide.decide", Component.PEEK),
        ("proxy.gate.decide.peek_wait", Component.PEEK),
        ("proxy.gate.listener.is_unroutable", Component.PEEK),
        ("proxy.dialing.dialer.Dialer.known", Component.DECIDE),
        ("proxy.dialing.dialer.Dialer.connect", Component.DIAL),
        ("proxy.gate.connection.Splice", Component.DIAL),
        ("proxy.gate.splice.Splice.start", Component.RELAY),
        ("proxy.gate.splice.Half.begin", Component.RELAY),
    ],
)
def test_exception_closes_the_connection_and_is_recorded(tmp_path, monkeypatch, what, where):
    def broken(*_, **__):
        raise RuntimeError("on purpose")

    async def inside():
        async with GateLab(tmp_path, RULES, hosts=HOSTS) as world:
            with monkeypatch.context() as patch:
                patch.setattr(what, broken)
                if "Half" in what:  # which compiled code stands in for
                    patch.setattr("proxy.gate.splice.COMPILED", None)
                task = await world.connect("good.example")
                with contextlib.suppress(ConnectionError):
                    await task.send(HELLO)
                assert await task.ended() == "reset"
                await wait_until_async(lambda: not world.gate.connections)
            assert [(e["fault"]["where"], e["fault"]["detail"]) for e in world.errors] == [
                (where.value, "RuntimeError: on purpose")
            ]
            assert len(world.decisions) == 1
            passed = world.decisions[0]["outcome"] == "passed"
            assert passed == (where in (Component.DIAL, Component.RELAY))
            assert [e["reason"] for e in world.closings] == ["gate_error"] * passed
            assert passed or world.decisions[0]["reason"] == "gate_error"
            serving = asyncio.create_task(serve(world.origin))
            fine = await world.connect("raw.example")  # the others have nothing to do with it
            assert await fine.read() == b"fine"
            serving.cancel()

    async def serve(origin):
        while server := await origin.take():
            with contextlib.suppress(ConnectionError):
                await server.send(b"fine")
            server.close()

    before = open_descriptors()
    run(inside)
    assert open_descriptors() == before


def test_exception_in_a_timer_or_lookup_closes_the_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "EVERY", 0.02)
    monkeypatch.setattr(connection, "FIRST_BYTES_TIMEOUT", 0.05)

    def broken(*_, **__):
        raise RuntimeError("on purpose")

    async def test(world):
        with monkeypatch.context() as patch:
            patch.setattr("proxy.gate.decide.decide", broken)
            task = await world.connect("good.example")
            assert await task.ended() == "reset"
        world.servers.hold = asyncio.Event()
        task = await world.connect("raw.example")
        await wait_until_async(lambda: world.servers.asked)
        with monkeypatch.context() as patch:
            patch.setattr("proxy.dialing.dialer.Dialer.connect", broken)
            world.servers.known["raw.example", "A"] = ["127.0.0.1"]
            world.servers.hold.set()
            assert await task.ended() == "reset"
        assert reasons(world) == ["gate_error", "rule"]
        assert [e["reason"] for e in world.closings] == ["gate_error"]

    hostile(tmp_path, test, errors=2, hosts="")


def test_exception_in_reading_the_destination_resets_the_connection(tmp_path):
    async def test(world):
        world.gate._destination_of = lambda _sock: 1 / 0
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert world.origin.accepted == 0

    hostile(tmp_path, test, errors=1)


# the end


@pytest.mark.parametrize(
    ("task_is_over", "ends"), [(False, ("failed", "gate_error")), (True, ("passed", None))], ids=["alone", "its task"]
)
def test_closing_the_gate_ends_and_records_every_connection(tmp_path, task_is_over, ends):
    """Where its task is over, what is still open has lost its client: the server hasn't ended its side."""

    async def test(world):
        silent = await world.connect("good.example")
        dns = await world.connect(world.synthetic("good.example"), 53)
        task = await world.connect("raw.example")
        server = await world.origin.take()
        await server.send(b"half of")
        assert await task.read() == b"half of"
        world.servers.hold = asyncio.Event()
        looking = await world.connect("missing.raw.example")
        await wait_until_async(lambda: len(world.gate.connections) == 4)
        if task_is_over:
            world.gate.finish()
        world.gate.close()
        world.gate.close()
        assert [await one.ended() for one in (silent, dns, task, looking, server)] == ["reset"] * 5
        assert len(world.decisions) == 4
        assert [(e["bytes"]["down"], e["outcome"], e.get("reason")) for e in world.closings] == [(7, *ends)]
        assert not world.gate.connections
        late = await world.connect("raw.example")
        await late.send(b"x")
        await asyncio.sleep(0.02)
        assert world.origin.accepted == 1

    hostile(tmp_path, test, [SPLICED, RAW, RAW.replace("id: raw, to: raw.example", "id: more, to: '*.raw.example'")])


def test_idle_gate_does_not_wake_the_loop(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        await world.origin.take()
        task.reset()
        await wait_until_async(lambda: not world.gate.connections)
        await wait_until_async(lambda: not world.gate._periodic_tasks.waiting)
        assert isinstance(asyncio.get_running_loop(), Loop)

    hostile(tmp_path, test)
