"""Connections that were known again and stay, or whose server doesn't answer."""

import asyncio
import contextlib
import socket

import pytest
from gate_harness import (
    SPLICED,
)  # fmt: skip
from regulars_harness import DENIED, known

from proxy import gate, regular, regulars


async def grown(world):
    """Open one that is known, and let it become one like any other."""
    client, far = await world.open_one()
    assert world.known == 1
    await world.go_by()
    assert not isinstance(next(iter(world.gate._guests)), regular.Regular)
    return client, far


def test_one_that_stays_goes_on_as_any_other(tmp_path):
    async def test(world):
        client, far = await grown(world)
        for data in (b"x" * 500_000, b"y"):
            sending = asyncio.create_task(client.send(data))
            assert await far.read_exactly(len(data)) == data
            await sending
        far.shutdown()
        assert await client.ended() == "end"
        client.shutdown()
        assert await far.ended() == "end"
        closing = await world.closing(2)
        assert closing["outcome"] == "passed"
        assert closing["bytes"] == {"up": len(world.hello) + 500_001, "down": 0}
        assert sum(world.metrics.dial_seconds["connected"].counts) == world.passed + 1

    known(test, tmp_path)


def test_one_that_cant_go_on_as_any_other_is_ended_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(regulars, "_MET_AFTER", 0.0)

    async def test(world):
        def raising(*_):
            raise RuntimeError("broken on purpose")

        client, far = await world.open_one()
        with monkeypatch.context() as patch:
            patch.setattr("proxy.relay.Relay.ready", raising)
            world.gate._rounds.go()
        assert await client.ended() == await far.ended() == "reset"
        assert (await world.closing(2))["reason"] == "gate_error"
        assert not world.gate.connections

    known(test, tmp_path, errors=1)


def test_many_become_like_any_other_in_several_rounds(tmp_path, monkeypatch):
    """What that takes, all others of the worker wait for."""
    monkeypatch.setattr(regulars, "_GROWING", 2)
    monkeypatch.setattr(regulars, "_MET_AFTER", 0.0)
    monkeypatch.setattr("proxy.rounds.EVERY", 60.0)  # those here are the only ones

    async def test(world):
        there = [await world.open_one() for _ in range(5)]
        rounds = []
        while len(rounds) < 4:
            world.gate._rounds.go()
            rounds.append(sum(isinstance(each, regular.Regular) for each in world.gate._guests))
        assert rounds == [3, 1, 0, 0]
        for client, far in there:
            far.close()
            client.close()

    known(test, tmp_path)


@pytest.mark.parametrize("old", [False, True], ids=["new", "grown"])
def test_other_rules_end_it(tmp_path, old):
    async def test(world):
        client, far = await (grown(world) if old else world.open_one())
        world.put(DENIED)
        world.gate.review()
        closing = await world.closing(2)
        assert (closing["outcome"], closing["reason"]) == ("blocked", "rule")
        assert await client.ended() == await far.ended() == "reset"

    known(test, tmp_path)


def test_one_that_becomes_like_any_other_in_the_midst_of_a_review_is_reviewed(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_REVIEWING", 0.0)  # one at a time

    async def test(world):
        there = [await world.open_one() for _ in range(3)]
        world.put(DENIED)
        world.gate.review()
        world.gate._rounds.go()
        for client, _ in there:
            assert await client.ended() == "reset"
        assert [each.get("reason") for each in world.closings] == [None, "rule", "rule", "rule"]

    known(test, tmp_path)


def test_limits_that_come_into_force_hold_it(tmp_path):
    async def test(world):
        client, far = await world.open_one()
        world.put(f"{SPLICED}, limits: {{bytes_up: 1KB}}")
        world.gate.review()
        await client.send(b"x" * 900)
        assert await far.read_exactly(900) == b"x" * 900
        await client.send(b"x" * 900)
        closing = await world.closing(2)
        assert (closing["outcome"], closing["reason"]) == ("blocked", "limit_exceeded")
        assert await client.ended() == "reset"

    known(test, tmp_path)


@pytest.mark.parametrize("who", ["client", "far"])
def test_a_cut_is_carried_over(tmp_path, who):
    async def test(world):
        client, far = await world.open_one()
        (client if who == "client" else far).reset()
        assert await (far if who == "client" else client).ended() == "reset"
        closing = await world.closing(2)
        assert closing["outcome"] == ("passed" if who == "client" else "failed")
        assert closing.get("reason") == (None if who == "client" else "upstream_failed")

    known(test, tmp_path)


def test_a_gate_that_closes_ends_all_and_tells(tmp_path):
    async def test(world):
        old = await grown(world)
        new = await world.open_one()
        silent = await world.connect()
        await world.until(lambda: world.gate.connections == 3)
        world.gate.close()
        assert world.gate.connections == 0
        for client in (old[0], new[0], silent):
            assert await client.ended() == "reset"
        assert len(world.decisions) == 4
        assert [each["reason"] for each in world.closings[1:]] == ["gate_error", "gate_error"]

    known(test, tmp_path)


# those whose server doesn't answer


@contextlib.contextmanager
def unanswering(world):
    """Have the origin's queue full, so that the kernel leaves who comes without an answer."""
    world.origin._task.cancel()
    world.origin.listener.listen(0)
    waiting = []
    for _ in range(8):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(world.origin.listener.getsockname())
        waiting.append(sock)
    yield
    for sock in waiting:
        sock.close()


def test_one_whose_server_doesnt_answer_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(regular, "CONNECT_TIMEOUT", 0.5)

    async def test(world):
        with unanswering(world):
            client = await world.connect(world.hello)
            closing = await world.closing(2)
            assert world.known == 1
            assert (closing["outcome"], closing["reason"]) == ("failed", "upstream_failed")
            assert closing["bytes"] == {"up": 0, "down": 0}
            assert await client.ended() == "reset"

    known(test, tmp_path)


def test_other_rules_end_one_that_is_dialled(tmp_path):
    async def test(world):
        with unanswering(world):
            client = await world.connect(world.hello)
            await world.decision(2)
            world.put(DENIED)
            world.gate.review()
            closing = await world.closing(2)
            assert (closing["outcome"], closing["reason"]) == ("blocked", "rule")
            assert await client.ended() == "reset"

    known(test, tmp_path)
