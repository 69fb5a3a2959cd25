"""Connections that compiled code lets out without asking: what it tells, what it may not, and what it leaves to Python."""

import asyncio
import os
import re
import resource
import signal
import time
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from gate_harness import SPLICED, client_hello
from regulars_harness import Known, known

from proxy import unasked
from proxy.calendar import Calendar
from proxy.telemetry.journal.chain import BEGINNING, links
from proxy.watched.attributing import Whose
from tests import harness

UNASKED = (True,)


def lines(world):
    """What the journal has, file after file, without what links it; that is as it has to be."""
    found = []
    for path in sorted(world.directory.rglob("*.jsonl")):
        before = BEGINNING
        for line in path.read_bytes().splitlines(keepends=True):
            said = links(line)
            assert said is not None
            assert said.prev == before
            assert said.hash == sha256(said.hashed).hexdigest().encode()
            before = said.hash
            found.append(line[: -len(line) + line.rindex(b',"prev":"')] + b"}\n")
    return [line for line in found if b'"journal.opened"' not in line]


def nanoseconds(text):
    """Read a time of the journal's."""
    second, rest = text.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(second).replace(tzinfo=UTC).timestamp()) * 10**9 + int(rest)


def usual_of(world):
    """The one kind that is known."""
    (usual,) = world.gate._regulars._usual.values()
    return usual


def test_what_is_told_is_what_python_would_have_told_and_linked(tmp_path):
    async def test(world):
        for _ in range(5):
            await world.pass_one()
        assert world.asked == 0
        form = usual_of(world).form
        told = lines(world)[-10:]
        for decided, closed, line, end in zip(
            world.events[-10::2], world.events[-9::2], told[::2], told[1::2], strict=True
        ):
            assert line == form.decided(nanoseconds(decided["time"]), decided["id"])
            moved = closed["bytes"]["up"], closed["bytes"]["down"]
            assert end == form.closed(
                nanoseconds(closed["time"]), closed["id"], decided["id"], moved, closed["duration"]
            )
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", decided["id"])
        world.gate._regulars.forget()
        await world.pass_one()  # told by Python
        ids = [event["id"] for event in world.events]
        times = [event["time"] for event in world.events]
        assert ids == sorted(set(ids))
        assert times == sorted(times)
        assert lines(world)

    known(test, tmp_path, ways=UNASKED)


def test_segments_are_python_s_to_begin(tmp_path):
    async def test(world):
        world.journal.tail.most = 4000
        for _ in range(12):
            await world.pass_one()
        segments = sorted((world.directory / "journal").rglob("*.jsonl"))
        assert len(segments) > 3
        assert world.asked
        assert world.known > world.asked
        assert len(world.closings) == len(world.decisions) == 13
        assert len({event["id"] for event in world.events}) == 26

    known(test, tmp_path, ways=UNASKED)


def test_nobody_is_let_out_into_another_day(tmp_path):
    """It may begin while compiled code waits: what is vouched for was of the day before, and so is the segment."""

    async def test(world):
        tail = world.journal.tail
        first, last = (Calendar(lambda at=at: at // 10**9).today() for at in (tail.begins, tail.ends - 1))
        assert first == last
        tail.ends = time.time_ns()  # midnight
        await world.pass_one()
        assert world.asked == 1

    known(test, tmp_path, ways=UNASKED)


@pytest.mark.parametrize("taken", [0, 1, 300])
def test_a_line_that_the_disk_takes_a_part_of_is_taken_back_and_nothing_is_dialled(tmp_path, taken):
    async def test(world):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = world.journal.tail.length
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + taken, hard))
        try:
            client = await world.connect(world.hello)
            assert await client.ended() == "reset"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert world.asked == 1
        assert world.journal.tail.length == before
        assert len(world.decisions) == 1
        await world.pass_one()
        assert world.origin.accepted == 2
        assert lines(world)

    known(test, tmp_path, ways=UNASKED)


def test_behind_what_cant_be_taken_back_nothing_is_written(tmp_path):
    """Whether a write that failed left something is for nobody to say: the next line goes into another segment."""

    async def test(world):
        full = harness.full_disk(tmp_path)
        os.dup2(full, world.journal.tail.segment, inheritable=False)
        os.close(full)
        await world.pass_one()
        assert world.asked == 1
        await world.pass_one()
        assert world.asked == 1
        assert len(list((world.directory / "journal").rglob("*.jsonl"))) == 2
        assert len(lines(world)) == 2 * (world.passed + 2)

    known(test, tmp_path, ways=UNASKED)


def test_an_end_that_cant_be_told_is_counted_as_lost(tmp_path):
    async def test(world):
        client, far = await world.open_one()
        assert world.asked == 0
        world.journal.full = True
        client.shutdown()
        assert await far.ended() == "end"
        far.close()
        assert await client.ended() == "end"
        await world.until(lambda: not world.metrics.connections_open)
        world.journal.full = False
        assert not world.gate.connections
        assert world.metrics.events_dropped == 1
        assert len(world.decisions) == len(world.closings) + 1 == 2

    known(test, tmp_path, ways=UNASKED)


def test_beyond_so_many_at_once_there_is_asked_whether_there_is_room(tmp_path):
    async def test(world):
        there = [await world.open_one() for _ in range(unasked._AT_ONCE + 1)]
        assert world.asked == 1
        assert world.gate.connections == len(there)
        assert world.metrics.connections_open == len(there)
        there += [await world.open_one() for _ in range(unasked._AT_ONCE)]  # that one was vouched by
        assert world.asked == 1
        for client, far in there:
            client.close()
            far.close()
        await world.until(lambda: not world.gate.connections)
        assert len(world.closings) == len(world.decisions) == 1 + len(there)

    known(test, tmp_path, ways=UNASKED)


def test_without_room_in_the_worker_all_are_asked_for(tmp_path):
    async def test(world):
        world.gate._has_room = lambda more: not more  # for one, and no more
        usual_of(world).vouched.until = 0
        for _ in range(3):
            await world.pass_one()
        assert world.asked == 3

    known(test, tmp_path, ways=UNASKED)


def test_vouching_ends_and_is_renewed(tmp_path):
    async def test(world):
        usual = usual_of(world)
        usual.vouched.until = 0
        await world.pass_one()
        assert world.asked == 1
        await world.pass_one()
        assert world.asked == 1
        assert usual.vouched.until > 0

    known(test, tmp_path, ways=UNASKED)


@pytest.mark.parametrize("last", [[None], [Whose(is_last=True)]], ids=["not asked", "the last"])
def test_as_long_as_it_is_asked_who_opened_them_nobody_is_let_out_unasked(tmp_path, last):
    async def test(world):
        peers, answers = [], [Whose(), Whose(), *last]
        world.gate._attribute = lambda local, _, **__: (peers.append(local), answers.pop(0))[1]
        usual_of(world).vouched.until = 0
        for _ in range(3):
            await world.pass_one()
        assert world.asked == 3
        await world.pass_one()
        assert world.asked == 3
        assert len(set(peers)) == 3

    known(test, tmp_path, ways=UNASKED)


def test_one_for_which_there_is_no_descriptor_is_told_and_ended(tmp_path):
    async def test(world):
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)  # it is accepted, and waited for
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        await client.send(world.hello)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            assert await client.ended() == "reset"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert world.asked == 0
        decided, closed = world.decisions[-1], await world.closing(2)
        assert closed["cause"] == decided["id"]
        assert (closed["outcome"], closed["reason"]) == ("failed", "upstream_failed")
        assert world.metrics.connections_open == 0
        await world.pass_one()
        assert world.asked == 0

    known(test, tmp_path, ways=UNASKED)


def test_what_was_counted_is_there_whenever_anybody_looks(tmp_path):
    async def test(world):
        for count in range(1, 6):
            await world.pass_one()
            summary = world.recorder.summary()
            assert sum(summary.counts.values()) == world.passed + count
            assert sum(world.metrics.rule_decisions.values()) == world.passed + count
            assert world.metrics.journal_bytes == sum(path.stat().st_size for path in world.directory.rglob("*.jsonl"))

    known(test, tmp_path, ways=UNASKED)


def test_two_kinds_are_each_let_out_by_their_own(tmp_path):
    async def test(world):
        other = client_hello(alpn=("http/1.1",))
        await world.pass_one(other)
        await world.pass_one(other)
        asked = world.asked
        for hello in (other, world.hello) * 3:
            await world.pass_one(hello)
        assert world.asked == asked
        alpns = [event["tls"]["alpn"] for event in world.decisions[-6:]]
        assert alpns == [["http/1.1"], ["h2", "http/1.1"]] * 3

    known(test, tmp_path, ways=UNASKED)


def test_one_that_comes_after_a_round_in_which_nobody_was_there_is_met_in_the_next(tmp_path):
    async def test(world):
        await world.go_by()
        assert not world.gate.connections
        client, far = await world.open_one()
        assert world.asked == 0
        assert not world.gate._guests
        await world.until(lambda: world.gate._guests)
        assert world.gate.connections == 1
        client.close()
        far.close()
        await world.closing(2)

    known(test, tmp_path, ways=UNASKED)


def test_the_gate_goes_while_some_are_there(tmp_path):
    async def test(world):
        there = [await world.open_one() for _ in range(4)]
        assert world.asked == 0
        world.gate.close()
        for client, _ in there:
            assert await client.ended() == "reset"
        assert len(world.closings) == len(world.decisions) == 5
        assert world.metrics.connections_open == 0
        await asyncio.sleep(0)

    known(test, tmp_path, ways=UNASKED)


def test_several_tenants_of_a_worker_are_told_in_one_chain_and_none_ends_with_another(tmp_path):
    async def test(world):
        (tmp_path / "other").mkdir()
        other = Known(tmp_path / "other", (SPLICED,), in_turn=True)
        own, other.journal, other.recorder.journal = other.journal, world.journal, world.journal
        async with other:
            await other.pass_one()
            await other.pass_unseen()
            there = [await each.open_one(at_once=True) for each in (world, other, world, other)]
            assert world.asked == other.asked == 0
            assert [each.gate._regulars.unasked for each in (world, other)] == [2, 2]
            assert [each.metrics.connections_open for each in (world, other)] == [2, 2]
            other.journal = own
        for client, far in (there[0], there[2]):
            await client.send(b"still there")
            assert await far.read_exactly(11) == b"still there"
            client.close()
            far.close()
        await world.until(lambda: not world.gate.connections)
        assert world.metrics.connections_open == other.metrics.connections_open == 0
        assert len(world.closings) == len(world.decisions)
        ids = [event["id"] for event in world.events]
        assert ids == sorted(set(ids))
        assert len(lines(world)) == world.before + len(ids)
        size = sum(path.stat().st_size for path in world.directory.rglob("*.jsonl"))
        assert world.metrics.journal_bytes + other.metrics.journal_bytes == size

    known(test, tmp_path, in_turn=True, ways=UNASKED)
