"""The gate against its own tenant: what a task can do to it, and what the machine can (KERNEL.md)."""

import asyncio
import contextlib
import errno
import os
import socket
from types import SimpleNamespace

import pytest
from gate_harness import (
    HOSTS,
    INSPECTED,
    RAW,
    SPLICED,
    World,
    client_hello,
    open_descriptors,
    run,
)

from proxy import connection, gate, passing, rounds
from proxy.connection import Connection
from proxy.poller import Loop
from proxy.telemetry.events import Where

RULES = (SPLICED, INSPECTED, RAW)
HELLO = client_hello("good.example")


def hostile(tmp_path, test, rules=RULES, *, errors=0, **how):
    async def inside():
        async with World(tmp_path, rules, **{"hosts": HOSTS, **how}) as world:
            await test(world)
            await asyncio.sleep(0.01)
            assert len(world.errors) == errors

    before = open_descriptors()
    run(inside)
    assert open_descriptors() == before


@pytest.fixture
def looks(monkeypatch):
    """How often the gate looked at what a client has said."""
    count = []
    ready = Connection.ready

    def counted(self, events):
        count.append(events)
        ready(self, events)

    monkeypatch.setattr(Connection, "ready", counted)
    return count


def reasons(world):
    return [event["reason"] for event in world.decisions]


# half a hello


@pytest.mark.parametrize("size", [1, 4, 5, 6, 9, 10, 100, 516])
def test_half_a_hello_is_looked_at_once_and_then_waited_for_asleep(tmp_path, looks, size):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO[:size])
        await world.until(lambda: looks)
        await asyncio.sleep(0.05)
        assert len(looks) == 1
        await task.send(HELLO[size:])
        server = await world.origin.take()
        assert await server.read_exactly(len(HELLO)) == HELLO
        assert len(looks) <= 3

    hostile(tmp_path, test)


@pytest.mark.parametrize("size", [0, 1, 10, 516])
@pytest.mark.parametrize("end", ["shutdown", "close", "reset"])
def test_a_client_that_goes_away_in_its_hello_is_refused_at_once(tmp_path, looks, size, end):
    async def test(world):
        task = await world.connect("good.example")
        await task.send(HELLO[:size])
        await asyncio.sleep(0.01)
        getattr(task, end)()
        await world.until(lambda: not world.gate.connections)
        assert reasons(world) == ["protocol_mismatch"]
        assert len(looks) <= 4
        assert world.origin.accepted == 0

    hostile(tmp_path, test)


def test_a_hello_in_one_byte_segments_is_looked_at_only_when_that_can_matter(tmp_path, looks):
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


def test_an_endless_head_is_refused(tmp_path, looks):
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
def test_urgent_data_in_a_hello_neither_spins_nor_hides_what_is_decided_on(tmp_path, looks, at):
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


def test_urgent_data_alone_neither_spins_nor_passes(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WORDS", 0.1)

    async def test(world):
        task = await world.connect("good.example")
        task.sock.send(b"\x16", socket.MSG_OOB)
        assert await task.ended() == "reset"
        assert reasons(world) == ["protocol_mismatch"]
        assert len(looks) <= 3

    hostile(tmp_path, test)


def test_urgent_data_after_the_hello_is_passed_on_in_its_place(tmp_path):
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


# silence


def test_hundreds_of_silent_clients_cost_nothing_and_are_ended(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WORDS", 1.0)

    async def test(world):
        tasks = [await world.connect("good.example") for _ in range(300)]
        await world.until(lambda: world.gate.connections == 300)
        other = await world.connect("raw.example")
        server = await world.origin.take()
        await server.send(b"still here")
        assert await other.read() == b"still here"
        assert {await task.ended() for task in tasks} == {"reset"}
        assert reasons(world).count("protocol_mismatch") == 300
        assert world.gate.connections == 1
        assert not looks

    hostile(tmp_path, test, most=1000)


def test_more_connections_than_there_may_be_are_refused_and_room_is_made_by_those_that_end(tmp_path):
    async def test(world):
        tasks = [await world.connect("good.example") for _ in range(5)]
        await world.until(lambda: world.gate.connections == 5)
        sixth = await world.connect("good.example")
        assert await sixth.ended() == "reset"
        assert reasons(world) == ["limit_exceeded"]
        tasks[0].reset()
        await world.until(lambda: world.gate.connections == 4)
        seventh = await world.connect("good.example")
        await seventh.send(HELLO)
        await world.origin.take()

    hostile(tmp_path, test, most=5)


def test_the_bound_is_below_what_descriptors_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(gate.resource, "getrlimit", lambda _: (264, 4096))

    async def test(world):
        assert world.gate.most == 100

    hostile(tmp_path, test, most=4096)


def test_an_idle_connection_is_reset_after_its_rules_time_and_a_busy_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EVERY", 0.02)

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


def test_no_connection_lives_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EVERY", 0.02)
    monkeypatch.setattr(passing, "LIFETIME", 0.1)

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


def test_a_lookup_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EVERY", 0.02)
    monkeypatch.setattr(passing, "LOOKUP_TIMEOUT", 0.05)

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


def test_a_dial_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EVERY", 0.02)
    monkeypatch.setattr(passing, "CONNECT_TIMEOUT", 0.05)

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


# the machine


class Failing:
    """A listener whose accept fails so many times."""

    def __init__(self, sock, error, times):
        self.sock, self.error, self.times, self.tried = sock, error, times, 0

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def accept(self):
        self.tried += 1
        if self.times:
            self.times -= 1
            raise self.error
        return self.sock.accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_the_gate_rests_instead_of_spinning_and_then_goes_on(tmp_path, number):
    async def test(world):
        failing = world.gate._listener = Failing(world.listener, OSError(number, os.strerror(number)), 2)
        await world.connect("raw.example")
        await world.origin.take()
        assert failing.tried <= 6
        assert [e["fault"]["where"] for e in world.errors] == ["accept"] * 2
        assert world.gate._pause == gate._SHORTEST_PAUSE

    hostile(tmp_path, test, errors=2)


def test_a_connection_that_is_gone_before_it_is_accepted_is_nobodys_trouble(tmp_path):
    async def test(world):
        world.gate._listener = Failing(world.listener, ConnectionAbortedError(errno.ECONNABORTED, "gone"), 3)
        await world.connect("raw.example")
        await world.origin.take()

    hostile(tmp_path, test)


def test_without_descriptors_for_a_server_its_connection_fails_and_is_told(tmp_path, monkeypatch):
    def no_socket(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("proxy.dialling.connecting.socket", SimpleNamespace(**{**vars(socket), "socket": no_socket}))

    async def test(world):
        task = await world.connect("raw.example")
        closed = await world.closing()
        assert (closed["outcome"], closed["reason"]) == ("failed", "upstream_failed")
        assert await task.ended() == "reset"

    hostile(tmp_path, test)


def test_a_full_journal_lets_nothing_new_out_and_keeps_what_is_open(tmp_path):
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
        assert world.gate.connections == 1

    hostile(tmp_path, test)


# bugs


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("proxy.recall.recognise", Where.PEEK),
        ("proxy.recall.judge", Where.PEEK),
        ("proxy.recall.patience", Where.PEEK),
        ("proxy.gate.nowhere", Where.PEEK),
        ("proxy.dialling.dial.Dialer.known", Where.DECIDE),
        ("proxy.dialling.dial.Dialer.connect", Where.DIAL),
        ("proxy.passing.Relay", Where.DIAL),
        ("proxy.relay.Relay.start", Where.RELAY),
        ("proxy.relay._End.read", Where.RELAY),
    ],
)
def test_a_bug_anywhere_closes_the_connection_and_is_told(tmp_path, monkeypatch, what, where):
    def broken(*_, **__):
        raise RuntimeError("on purpose")

    async def inside():
        async with World(tmp_path, RULES, hosts=HOSTS) as world:
            with monkeypatch.context() as patch:
                patch.setattr(what, broken)
                task = await world.connect("good.example")
                with contextlib.suppress(ConnectionError):
                    await task.send(HELLO)
                assert await task.ended() == "reset"
                await world.until(lambda: not world.gate.connections)
            assert [(e["fault"]["where"], e["fault"]["detail"]) for e in world.errors] == [
                (where.value, "RuntimeError: on purpose")
            ]
            assert len(world.decisions) == 1
            passed = world.decisions[0]["outcome"] == "passed"
            assert passed == (where in (Where.DIAL, Where.RELAY))
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


def test_a_bug_in_a_timer_or_a_lookup_closes_the_connection_too(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "EVERY", 0.02)
    monkeypatch.setattr(connection, "FIRST_WORDS", 0.05)

    def broken(*_, **__):
        raise RuntimeError("on purpose")

    async def test(world):
        with monkeypatch.context() as patch:
            patch.setattr("proxy.recall.judge", broken)
            task = await world.connect("good.example")
            assert await task.ended() == "reset"
        world.servers.hold = asyncio.Event()
        task = await world.connect("raw.example")
        await world.until(lambda: world.servers.asked)
        with monkeypatch.context() as patch:
            patch.setattr("proxy.dialling.dial.Dialer.connect", broken)
            world.servers.known["raw.example", "A"] = ["127.0.0.1"]
            world.servers.hold.set()
            assert await task.ended() == "reset"
        assert reasons(world) == ["gate_error", "rule"]
        assert [e["reason"] for e in world.closings] == ["gate_error"]

    hostile(tmp_path, test, errors=2, hosts="")


def test_a_bug_where_the_destination_is_found_lets_nothing_in(tmp_path):
    async def test(world):
        world.gate._destination_of = lambda _sock: 1 / 0
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert world.origin.accepted == 0

    hostile(tmp_path, test, errors=1)


# the end


def test_closing_the_gate_ends_everything_and_tells_it(tmp_path):
    async def test(world):
        silent = await world.connect("good.example")
        dns = await world.connect(world.synthetic("good.example"), 53)
        task = await world.connect("raw.example")
        server = await world.origin.take()
        await server.send(b"half of")
        assert await task.read() == b"half of"
        world.servers.hold = asyncio.Event()
        looking = await world.connect("missing.raw.example")
        await world.until(lambda: world.gate.connections == 4)
        world.gate.close()
        world.gate.close()
        assert [await one.ended() for one in (silent, dns, task, looking, server)] == ["reset"] * 5
        assert len(world.decisions) == 4
        assert [e["bytes"]["down"] for e in world.closings] == [7]
        assert not world.gate.connections
        late = await world.connect("raw.example")
        await late.send(b"x")
        await asyncio.sleep(0.02)
        assert world.origin.accepted == 1

    hostile(tmp_path, test, [SPLICED, RAW, RAW.replace("id: raw, to: raw.example", "id: more, to: '*.raw.example'")])


def test_with_nothing_to_do_the_loop_is_not_woken(tmp_path):
    async def test(world):
        task = await world.connect("raw.example")
        await world.origin.take()
        task.reset()
        await world.until(lambda: not world.gate.connections)
        await world.until(lambda: not world.gate._rounds.waiting)
        assert isinstance(asyncio.get_running_loop(), Loop)

    hostile(tmp_path, test)
