"""No task keeps others from being told: how much of the journal's disk is one's, and what becomes of who has had it."""

import errno
import time

import pytest

from proxy.telemetry.events import Agent, Component, Kind
from proxy.telemetry.journal import writer
from proxy.telemetry.journal.writer import LITTLE, DiskQuota, JournalWriteError
from rules.verdicts import OnJournalFailure, Outcome, Reason, Verdict
from tests.proxy.telemetry.telemetry_harness import ALLOWED, StandInPolicy, StandInSettings, close, connect, rig


class Disk:
    """A disk of a size, on which one writer's is what it has taken."""

    def __init__(self, size):
        self.size = size
        self.looks = 0

    def free(self):
        self.looks += 1
        return self.size


@pytest.fixture
def clock(monkeypatch):
    """Seconds since 1970 and of the monotonic clock, as they are set."""
    now = {"time": 1_795_000_000.0, "monotonic": 1000.0}
    monkeypatch.setattr(writer.time, "time", lambda: now["time"])
    monkeypatch.setattr(writer.time, "monotonic", lambda: now["monotonic"])
    return now


def fill(mine, disk, piece):
    """Write as long as there is room; how much that was."""
    before = mine.taken
    while mine.has_room():
        mine.taken += piece
        disk.size -= piece
    return mine.taken - before


def test_a_little_is_nobodys_business():
    disk = Disk(0)
    mine = DiskQuota(disk)
    assert fill(mine, disk, 4096) == LITTLE


def test_one_task_fills_a_third_of_what_was_free():
    size = 900 << 20
    disk = Disk(size)
    assert size // 3 <= fill(DiskQuota(disk), disk, 4096) <= size // 3 + (2 << 20)


def test_each_of_several_leaves_room_for_others():
    disk = Disk(900 << 20)
    for _ in range(5):
        fill(DiskQuota(disk), disk, 4096)
    assert disk.size > 100 << 20
    assert DiskQuota(disk).has_room()


def test_the_disk_is_looked_at_seldom():
    disk = Disk(1 << 40)
    mine = DiskQuota(disk)
    for _ in range(10_000):
        mine.has_room()
        mine.taken += 4096
    assert disk.looks <= (10_000 * 4096 - LITTLE >> 20) + 1


def test_without_room_it_is_looked_at_once_a_second(clock):
    disk = Disk(0)
    mine = DiskQuota(disk)
    mine.taken = LITTLE
    assert [mine.has_room() for _ in range(100)] == [False] * 100
    assert disk.looks == 1
    disk.size = 1 << 40
    assert not mine.has_room()
    clock["monotonic"] += 1
    assert mine.has_room()
    assert disk.looks == 2


def test_another_day_is_another_portion(clock):
    disk = Disk(0)
    mine = DiskQuota(disk)
    mine.taken = 2 * LITTLE
    assert not mine.has_room()
    clock["time"] += 86_400
    clock["monotonic"] += 86_400
    assert mine.has_room()
    assert mine.taken == 0


@pytest.fixture(params=OnJournalFailure)
def used_up(request, tmp_path, monkeypatch):
    """A task that has had its portion, and a connection of its own that is open; whatever the rules want of failures."""
    here = rig(tmp_path)
    here.recorder.sandbox.policy = StandInPolicy(settings=StandInSettings(on_journal_failure=request.param))
    monkeypatch.setattr(type(here.recorder.journal), "free", lambda _: 0)
    here.recorder._quota.taken = LITTLE
    return here


@pytest.fixture
def opened(used_up):
    """The event of a connection that it has still."""
    used_up.recorder._quota.taken = 0
    event = connect(used_up.recorder)
    used_up.recorder._quota.taken = LITTLE
    return event


def test_what_it_tries_is_refused_and_not_told(used_up):
    recorder, metrics = used_up.recorder, used_up.metrics
    for _ in range(3):
        with pytest.raises(JournalWriteError) as failed:
            connect(recorder)
        assert failed.value.errno == errno.EDQUOT
    with pytest.raises(JournalWriteError):
        recorder.command_decided(ALLOWED, ["/bin/true"], None)
    with pytest.raises(JournalWriteError):
        recorder.agent_said(Agent("span", "an agent"))
    assert metrics.decisions[Kind.CONNECTION_DECIDED, Verdict.DENY, Outcome.BLOCKED, Reason.JOURNAL_FAILED] == 3
    assert metrics.events_dropped == 5
    assert [line["kind"] for line in used_up.lines()] == ["gate.error"]


def test_that_is_told_once_and_with_how_much_it_was(used_up):
    for _ in range(3):
        with pytest.raises(JournalWriteError):
            connect(used_up.recorder)
    assert used_up.metrics.gate_errors == {Component.JOURNAL: 1}
    [error] = used_up.lines()
    assert error["fault"]["detail"].startswith("16 MiB were told of the task today")


def test_the_end_of_what_has_left_is_told_all_the_same(used_up, opened):
    with pytest.raises(JournalWriteError):
        connect(used_up.recorder)
    close(used_up.recorder, opened)
    assert [line["kind"] for line in used_up.lines()] == ["connection.decided", "gate.error", "connection.closed"]


def test_room_that_is_made_is_used(used_up, monkeypatch):
    with pytest.raises(JournalWriteError):
        connect(used_up.recorder)
    monkeypatch.setattr(type(used_up.recorder.journal), "free", lambda _: 1 << 40)
    used_up.recorder._quota._next_check_time = time.monotonic()
    connect(used_up.recorder)
    assert used_up.metrics.decisions[Kind.CONNECTION_DECIDED, Verdict.ALLOW, Outcome.PASSED, Reason.RULE] == 1


def test_another_task_of_the_same_worker_has_its_own(used_up, tmp_path):
    with pytest.raises(JournalWriteError):
        connect(used_up.recorder)
    connect(rig(tmp_path).recorder)


def test_how_much_is_free_is_the_disks_own(tmp_path):
    free = rig(tmp_path).recorder.journal.free()
    assert 0 < free < 1 << 60
