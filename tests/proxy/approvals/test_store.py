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
from tests.proxy.approvals.registry_lab import ADA, BO, RegistryLab
from tests.proxy.approvals.sample_requests import CONNECTION, PUSH, REQUEST
from tests.support.harness import PROJECT
from tests.support.waiting import wait_until_async

ROUNDS = 12


async def _outcome(coroutine):
    try:
        return await coroutine
    except VoteRefusedError as refused:
        return refused


def test_simultaneous_approve_and_reject_have_one_outcome(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        for round_ in range(ROUNDS):
            number, id_ = await lab.submit_pending(task, REQUEST._replace(path=f"/{round_}"))
            both = [_outcome(lab.approve(id_, ADA)), _outcome(lab.reject(id_, BO))]
            found = await asyncio.gather(*(both if round_ % 2 else reversed(both)))
            decided = [one for one in found if not isinstance(one, VoteRefusedError)]
            assert len(decided) == 1
            granted = decided[0].approval.state is ApprovalState.APPROVED
            assert (lab.answer(number).result is Result.GRANTED) == granted
            assert bool(decided[0].grants) == granted

    run_scenario(scenario, store)


@pytest.mark.xdist_group("postgres")
def test_two_hosts_share_one_queue(shared):
    """Two registries that know of each other only by the store."""

    async def scenario():
        here, there = RegistryLab(shared()), RegistryLab(shared())
        await here.registry.open()
        await there.registry.open()
        task = await here.task()
        for round_ in range(ROUNDS):
            number, id_ = await here.submit_pending(task, REQUEST._replace(path=f"/{round_}"))
            found = await asyncio.gather(_outcome(here.approve(id_, ADA)), _outcome(there.reject(id_, BO)))
            decided = [one for one in found if not isinstance(one, VoteRefusedError)]
            assert len(decided) == 1
            await wait_until_async(lambda number=number: here.answer(number) is not None)
            granted = decided[0].approval.state is ApprovalState.APPROVED
            assert (here.answer(number).result is Result.GRANTED) == granted
        number, id_ = await here.submit_pending(task, PUSH)
        assert not (await here.approve(id_, ADA)).final
        assert (await there.approve(id_, BO)).final
        await wait_until_async(lambda: here.answer(number) is not None)
        assert here.answer(number).by == ("ada", "bo")
        number, id_ = await here.submit_pending(task, CONNECTION)
        (grant,) = (await there.approve(id_, ADA)).grants
        await wait_until_async(lambda: here.answer(number) is not None)
        await there.registry.revoke(grant.id, there.who(ADA))
        await wait_until_async(lambda: GrantsEnded((grant.id,)) in here.replies[task])
        assert {news.here for news in here.news if news.kind == "asked"} == {True}
        await wait_until_async(lambda: any(news.kind == "asked" and not news.here for news in there.news))
        await here.registry.close()
        await there.registry.close()

    asyncio.run(scenario())


@pytest.mark.xdist_group("postgres")
def test_lost_database_denies_until_it_returns(shared, postgres):
    async def scenario():
        here, there = RegistryLab(shared()), RegistryLab(shared())
        await here.registry.open()
        await there.registry.open()
        task = await here.task()
        number, id_ = await here.submit_pending(task, REQUEST)
        await asyncio.to_thread(postgres.kill)
        try:
            answer = await here.submit_answered(task, CONNECTION)
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
        await wait_until_async(lambda: here.answer(number) is not None)
        assert here.answer(number).result is Result.GRANTED
        await here.registry.close()
        await there.registry.close()

    asyncio.run(scenario())


@pytest.mark.xdist_group("postgres")
def test_hanging_database_denies(shared, monkeypatch):
    from proxy.approvals import postgres_store as module

    monkeypatch.setattr(module, "_PATIENCE", 3.0)

    async def scenario():
        lab = RegistryLab(shared())
        await lab.registry.open()
        task = await lab.task()
        process = lab.registry.store._writing.get_server_pid()
        os.kill(process, signal.SIGSTOP)
        try:
            answer = await lab.submit_answered(task, REQUEST)
        finally:
            os.kill(process, signal.SIGCONT)
        assert answer.result is Result.UNAVAILABLE
        assert answer.why == "the shared approvals can't be used: the server doesn't answer"
        await lab.submit_pending(task, REQUEST)  # over another connection
        await lab.registry.close()

    asyncio.run(scenario())


def test_silent_database_is_retried_rarely(monkeypatch):
    from proxy.approvals import postgres_store as module

    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    monkeypatch.setattr(module, "_PAUSE", 60.0)
    with tempfile.TemporaryDirectory(prefix="exeat-") as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{directory}/.s.PGSQL.5432")
        silent.listen()

        async def scenario():
            store = module.PostgresStore(f"postgresql://exeat@/x?host={directory}")
            with pytest.raises(StoreError, match="can't be reached: it doesn't answer"):
                await store.open(lambda _: None)
            connections = _accepted(silent)
            with pytest.raises(StoreError, match="can't be reached: it doesn't answer"):
                await store.open(lambda _: None)
            assert (connections, _accepted(silent)) == (1, 0)

        asyncio.run(scenario())


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


def test_one_use_is_taken_by_one_of_two_processes(run_scenario, store):
    async def scenario(lab):
        from proxy.approvals import lifecycle
        from proxy.approvals.transaction import Transaction

        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        (grant,) = (await lab.approve(id_, ADA, "uses 4")).grants  # and one is taken by who waited
        other = store()
        await other.open(lambda _: None)

        def on(rows):
            return Transaction(rows, lab.clock.wall, lab.registry.people, None)

        async def take(through):
            async with through.transaction() as rows:
                found, unmet = await lifecycle.find_grants(on(rows), task, CONNECTION)
                await asyncio.sleep(0.01)  # as if it took long
                return bool(await lifecycle.take_uses(on(rows), found)) if not unmet else False

        taken = await asyncio.gather(*(take(through) for _ in range(4) for through in (lab.registry.store, other)))
        assert sum(taken) == 3
        async with other.reading() as rows:
            assert (await on(rows).grant(grant.id)).uses == 0
        await other.close()

    run_scenario(scenario, store)


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.proxy.approvals.registry_lab import RegistryLab
from tests.proxy.approvals.sample_requests import REQUEST
from proxy.approvals.store import SqliteStore

async def main():
    lab = RegistryLab(SqliteStore(Path(sys.argv[1])))
    await lab.registry.open()
    task = await lab.task()
    number = 0
    while True:
        _, id_ = await lab.submit_pending(task, REQUEST._replace(path=f"/{number}"))
        await lab.approve(id_)
        number += 1
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_killed_registry_leaves_no_partial_transaction(tmp_path, run_scenario, after):
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

    async def scenario(lab):
        async with lab.registry.store.reading() as rows:
            assert await rows.run("PRAGMA integrity_check") == [("ok",)]
        async with lab.registry.reading() as t:
            found = await t.listed(list(ApprovalState), (-1.0, ""), 10_000)
            assert len(found) >= done, "what was told is there"
            for approval in found:
                votes, grants = await t.votes(approval.id), await t.grants_of(approval.id)
                whole = (1, 1) if approval.state is ApprovalState.APPROVED else (0, 0)
                assert (len(votes), len(grants)) == whole, "an answer is there with all it does, or not at all"
        task = await lab.task()
        await lab.submit_pending(task, REQUEST._replace(path="/next"))

    run_scenario(scenario)


def test_missing_store_denies_at_once(tmp_path):
    async def scenario():
        lab = RegistryLab(SqliteStore(tmp_path / "approvals.sqlite"))
        await lab.registry.open()
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, REQUEST)
        await lab.registry.store.close()
        answer = await lab.submit_answered(task, CONNECTION)
        assert answer.result is Result.UNAVAILABLE
        assert "can't be used" in answer.why
        with pytest.raises(StoreError):
            await lab.registry.decide(id_, CastVote(lab.who(ADA), Vote.APPROVE))
        await lab.registry.expire()

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["no database at all", "", "version"], ids=["noise", "directory", "version"])
def test_foreign_or_damaged_store_file_is_refused(tmp_path, damage):
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


def test_store_file_is_private_to_its_owner(tmp_path, run_scenario):
    async def scenario(lab):
        await lab.task()
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("approvals.sqlite*")} == {
            "approvals.sqlite": 0o600,
            "approvals.sqlite-wal": 0o600,
            "approvals.sqlite-shm": 0o600,
        }

    before = os.umask(0)
    try:
        run_scenario(scenario)
    finally:
        os.umask(before)
