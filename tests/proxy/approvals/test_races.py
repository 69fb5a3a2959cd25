"""Two at once, one that is killed, and stores that go away: one of them decides, and nothing is half-done."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from proxy.approvals.model import ApprovalState, Vote
from proxy.approvals.protocol import GrantsEnded, Result
from proxy.approvals.store import SqliteStore, StoreError
from proxy.approvals.votes import CastVote, VoteRefusedError
from tests.proxy.approvals.approval_samples import CONNECTION, PUSH, REQUEST
from tests.proxy.approvals.approval_world import ADA, BO, World, until
from tests.support.harness import PROJECT

ROUNDS = 12


async def _outcome(coroutine):
    try:
        return await coroutine
    except VoteRefusedError as refused:
        return refused


def test_approve_and_reject_at_once(play, store):
    async def story(world):
        task = await world.task()
        for round_ in range(ROUNDS):
            number, id_ = await world.held(task, REQUEST._replace(path=f"/{round_}"))
            both = [_outcome(world.approve(id_, ADA)), _outcome(world.reject(id_, BO))]
            found = await asyncio.gather(*(both if round_ % 2 else reversed(both)))
            decided = [one for one in found if not isinstance(one, VoteRefusedError)]
            assert len(decided) == 1
            granted = decided[0].approval.state is ApprovalState.APPROVED
            assert (world.answer(number).result is Result.GRANTED) == granted
            assert bool(decided[0].grants) == granted

    play(story, store)


@pytest.mark.xdist_group("postgres")
def test_two_hosts_share_a_queue(shared):
    """Two registries that know of each other only by the store."""

    async def story():
        here, there = World(shared()), World(shared())
        await here.registry.open()
        await there.registry.open()
        task = await here.task()
        for round_ in range(ROUNDS):
            number, id_ = await here.held(task, REQUEST._replace(path=f"/{round_}"))
            found = await asyncio.gather(_outcome(here.approve(id_, ADA)), _outcome(there.reject(id_, BO)))
            decided = [one for one in found if not isinstance(one, VoteRefusedError)]
            assert len(decided) == 1
            await until(lambda number=number: here.answer(number) is not None)
            granted = decided[0].approval.state is ApprovalState.APPROVED
            assert (here.answer(number).result is Result.GRANTED) == granted
        number, id_ = await here.held(task, PUSH)
        assert not (await here.approve(id_, ADA)).final
        assert (await there.approve(id_, BO)).final
        await until(lambda: here.answer(number) is not None)
        assert here.answer(number).by == ("ada", "bo")
        number, id_ = await here.held(task, CONNECTION)
        (grant,) = (await there.approve(id_, ADA)).grants
        await until(lambda: here.answer(number) is not None)
        await there.registry.revoke(grant.id, there.who(ADA))
        await until(lambda: GrantsEnded((grant.id,)) in here.replies[task])
        assert {news.here for news in here.news if news.kind == "asked"} == {True}
        await until(lambda: any(news.kind == "asked" and not news.here for news in there.news))
        await here.registry.close()
        await there.registry.close()

    asyncio.run(story())


@pytest.mark.xdist_group("postgres")
def test_a_server_that_is_gone_denies_and_comes_back(shared, postgres):
    async def story():
        here, there = World(shared()), World(shared())
        await here.registry.open()
        await there.registry.open()
        task = await here.task()
        number, id_ = await here.held(task, REQUEST)
        await asyncio.to_thread(postgres.kill)
        try:
            answer = await here.asked(task, CONNECTION)
            assert answer.result is Result.UNAVAILABLE
            assert "the shared approvals can't be" in answer.why
            with pytest.raises(StoreError):
                await there.registry.decide(id_, CastVote(there.who(ADA), Vote.APPROVE))
        finally:
            await asyncio.to_thread(postgres.start)
        assert here.answer(number) is None

        for _ in range(100):
            try:
                await there.approve(id_, ADA)
                break
            except StoreError:
                await asyncio.sleep(0.1)
        # Whoever listens hears of it, or looks when it listens again
        await until(lambda: here.answer(number) is not None)
        assert here.answer(number).result is Result.GRANTED
        await here.registry.close()
        await there.registry.close()

    asyncio.run(story())


@pytest.mark.xdist_group("postgres")
def test_a_server_that_hangs_denies(shared, monkeypatch):
    from proxy.approvals import postgres_store as module

    monkeypatch.setattr(module, "_PATIENCE", 3.0)

    async def story():
        world = World(shared())
        await world.registry.open()
        task = await world.task()
        process = world.registry.store._writing.get_server_pid()
        os.kill(process, signal.SIGSTOP)
        try:
            answer = await world.asked(task, REQUEST)
        finally:
            os.kill(process, signal.SIGCONT)
        assert answer.result is Result.UNAVAILABLE
        assert answer.why == "the shared approvals can't be used: the server doesn't answer"
        await world.held(task, REQUEST)  # over another connection
        await world.registry.close()

    asyncio.run(story())


def test_a_server_that_never_says_a_word_is_asked_rarely(monkeypatch):
    from proxy.approvals import postgres_store as module

    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    monkeypatch.setattr(module, "_PAUSE", 60.0)
    with tempfile.TemporaryDirectory(prefix="exeat-") as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{directory}/.s.PGSQL.5432")
        silent.listen()

        async def story():
            store = module.PostgresStore(f"postgresql://exeat@/x?host={directory}")
            with pytest.raises(StoreError, match="can't be reached: it doesn't answer"):
                await store.open(lambda _: None)
            connections = _accepted(silent)
            with pytest.raises(StoreError, match="can't be reached: it doesn't answer"):
                await store.open(lambda _: None)
            assert (connections, _accepted(silent)) == (1, 0)

        asyncio.run(story())


def _accepted(listener):
    """How many have connected since."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_two_takers_of_one_use(play, store):
    async def story(world):
        from proxy.approvals import lifecycle
        from proxy.approvals.transaction import Transaction

        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        (grant,) = (await world.approve(id_, ADA, "uses 4")).grants  # and one is taken by who waited
        other = store()
        await other.open(lambda _: None)

        def on(rows):
            return Transaction(rows, world.hands.wall, world.registry.people, None)

        async def take(through):
            async with through.transaction() as rows:
                found, unmet = await lifecycle.find_grants(on(rows), task, CONNECTION)
                await asyncio.sleep(0.01)  # as if it took long
                return bool(await lifecycle.take_uses(on(rows), found)) if not unmet else False

        taken = await asyncio.gather(*(take(through) for _ in range(4) for through in (world.registry.store, other)))
        assert sum(taken) == 3
        async with other.reading() as rows:
            assert (await on(rows).grant(grant.id)).uses == 0
        await other.close()

    play(story, store)


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.proxy.approvals.approval_world import World
from tests.proxy.approvals.approval_samples import REQUEST
from proxy.approvals.store import SqliteStore

async def main():
    world = World(SqliteStore(Path(sys.argv[1])))
    await world.registry.open()
    task = await world.task()
    number = 0
    while True:
        _, id_ = await world.held(task, REQUEST._replace(path=f"/{number}"))
        await world.approve(id_)
        number += 1
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_registry_that_is_killed_leaves_nothing_half_done(tmp_path, play, after):
    file = tmp_path / "approvals.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE, env=environment)
    try:
        for _ in range(after):
            done = int(writer.stdout.readline())
        time.sleep(0.0007 * after)  # anywhere within one
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait(60)
        writer.stdout.close()

    async def story(world):
        async with world.registry.store.reading() as rows:
            assert await rows.run("PRAGMA integrity_check") == [("ok",)]
        async with world.registry.reading() as t:
            found = await t.listed(list(ApprovalState), (-1.0, ""), 10_000)
            assert len(found) >= done, "what was told is there"
            for approval in found:
                votes, grants = await t.votes(approval.id), await t.grants_of(approval.id)
                whole = (1, 1) if approval.state is ApprovalState.APPROVED else (0, 0)
                assert (len(votes), len(grants)) == whole, "an answer is there with all it does, or not at all"
        task = await world.task()
        await world.held(task, REQUEST._replace(path="/next"))

    play(story)


def test_a_store_that_is_gone_denies_at_once(tmp_path):
    async def story():
        world = World(SqliteStore(tmp_path / "approvals.sqlite"))
        await world.registry.open()
        task = await world.task()
        _, id_ = await world.held(task, REQUEST)
        await world.registry.store.close()
        answer = await world.asked(task, CONNECTION)
        assert answer.result is Result.UNAVAILABLE
        assert "can't be used" in answer.why
        with pytest.raises(StoreError):
            await world.registry.decide(id_, CastVote(world.who(ADA), Vote.APPROVE))
        await world.registry.expire()

    asyncio.run(story())


@pytest.mark.parametrize("damage", ["no database at all", "", "version"], ids=["noise", "directory", "version"])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, damage):
    file = tmp_path / "approvals.sqlite"

    async def opened():
        store = SqliteStore(file)
        await store.open(lambda _: None)
        return store

    async def newer():
        store = await opened()
        async with store.transaction() as rows:
            await rows.run("UPDATE exeat_approvals SET value = '99' WHERE key = 'version'")
        await store.close()

    match damage:
        case "":
            file.mkdir()
        case "version":
            asyncio.run(newer())
        case noise:
            file.write_text(noise * 500)
    with pytest.raises(StoreError, match="version 99" if damage == "version" else "can't be used"):
        asyncio.run(opened())


def test_the_file_is_nobody_elses(tmp_path, play):
    async def story(world):
        await world.task()
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("approvals.sqlite*")} == {
            "approvals.sqlite": 0o600,
            "approvals.sqlite-wal": 0o600,
            "approvals.sqlite-shm": 0o600,
        }

    before = os.umask(0)
    try:
        play(story)
    finally:
        os.umask(before)
