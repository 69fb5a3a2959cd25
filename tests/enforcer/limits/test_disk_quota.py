"""When the changes of a reviewed workspace are looked at, and when that ends its task. Time and the disk are made up."""

import os
from types import SimpleNamespace

import pytest

from enforcer.limits import disk_quota as module
from enforcer.limits.disk_quota import DiskQuota
from enforcer.limits.resource_limits import Limits

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30


class World:
    """A disk of 100 GiB, a clock, and a layer in which `held` bytes are found at each look, in `names`."""

    def __init__(self, tmp_path, monkeypatch):
        self.path = str(tmp_path)
        self.now, self.size, self.free, self.inodes = 1000.0, 100 * GIB, 80 * GIB, 1 << 30
        self.held, self.names, self.is_incomplete, self.took = 0, 1, False, 0.0
        self.looks = self.asked = 0
        monkeypatch.setattr(module.os, "fstatvfs", self._statvfs)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "UsageScan", lambda _: Found(self))

    def _statvfs(self, _):
        self.asked += 1
        blocks = {"f_frsize": PAGE, "f_blocks": self.size // PAGE, "f_bavail": self.free // PAGE}
        return SimpleNamespace(**blocks, f_files=2 << 30, f_favail=self.inodes)

    def layer(self, disk=None):
        said = {"disk": 2 * GIB} if disk is None else {"disk": disk, "said": frozenset({"disk"})}
        return DiskQuota(self.path, Limits(**said))

    def pass_by(self, layer, seconds, each=lambda: None):
        """Let time pass, and `each` happen before every turn; what was over first."""
        until = self.now + seconds
        while self.now < until:
            each()
            if (over := layer.turn()) is not None:
                return over.detail
            self.now += max(layer.wait(), 0.001)
        return None

    def write(self, size):
        self.held += size
        self.free -= size


class Found:
    """What is found at one look, which takes as long as the world says."""

    def __init__(self, world):
        self.world = world
        self.bytes, self.names, self.is_incomplete = 0.0, 0, world.is_incomplete
        world.looks += 1

    def steps(self):
        self.world.now += self.world.took
        self.bytes, self.names = float(self.world.held), self.world.names
        yield


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def test_exceeded_quota_is_reported_with_use_and_limit(world):
    layer = world.layer(64 * MIB)
    world.write(63 * MIB)
    assert world.pass_by(layer, 60) is None
    world.write(2 * MIB)
    assert world.pass_by(layer, 60) == "disk: its changes take 65 MiB, they may take 64 MiB"


def test_default_quota_is_half_of_the_free_space(world):
    layer = world.layer()
    assert world.pass_by(layer, 600, lambda: world.write(GIB) if world.held < 40 * GIB else None) is None
    assert world.held == 40 * GIB
    world.write(GIB)
    assert world.pass_by(layer, 60) == "disk: its changes take 41 GiB, they may take 40 GiB"


def test_unknown_disk_gets_the_fallback_quota(world):
    world.size = world.free = 0
    layer = world.layer()
    world.held = 2 * GIB
    assert world.pass_by(layer, 60) is None
    world.held += 1
    assert world.pass_by(layer, 60) == "disk: its changes take 2 GiB, they may take 2 GiB"


def test_writes_between_two_checks_are_bounded(world):
    """At a rate that no disk takes, what it may still write is never more than it takes until it is asked again."""
    layer, rate, before = world.layer(10 * GIB), 4 * GIB, world.now

    def write():
        nonlocal before
        world.write(int((world.now - before) * rate))
        before = world.now

    assert world.pass_by(layer, 60, write) is not None
    assert world.held < 11 * GIB


FILES = {"of a size": (GIB, 1 << 30, GIB // PAGE + 64), "where few can be made": (GIB, 1000, 500)}


@pytest.mark.parametrize(("disk", "inodes", "most"), FILES.values(), ids=FILES)
def test_empty_files_count(world, disk, inodes, most):
    world.inodes = inodes
    layer = world.layer(disk)
    world.names = most
    assert world.pass_by(layer, 120) is None
    world.names = most + 1
    assert world.pass_by(layer, 120) == f"disk: its changes are {most + 1} files or more, they may be {most}"


def test_inodes_are_counted_by_the_free_ones(world):
    """Of a layer that takes long to look at, so that it isn't looked at often."""
    layer, world.took = world.layer(GIB), 2.0
    world.names = 100_000
    assert world.pass_by(layer, 10) is None

    def make():
        world.names += 10_000
        world.inodes -= 10_000

    assert world.pass_by(layer, 60, make) is not None


def test_file_counted_twice_ends_no_task(world):
    """A directory that is moved while it is looked at may be found at both places."""
    layer = world.layer(64 * MIB)
    world.write(40 * MIB)
    looks = []

    def twice():
        if world.looks != len(looks):
            looks.append(world.looks)
        world.held = (80 if len(looks) % 2 == 0 else 40) * MIB

    assert world.pass_by(layer, 120, twice) is None
    assert len(looks) > 2


def test_unlinked_files_count(world):
    """They are found by who can see what is open, and only by them."""
    layer = world.layer(64 * MIB)
    world.write(30 * MIB)
    assert world.pass_by(layer, 20) is None
    layer.nameless = 40 * MIB
    world.free += GIB  # others give back what it took
    assert world.pass_by(layer, 20) == "disk: its changes take 70 MiB, they may take 64 MiB"


def test_other_users_of_the_disk_end_no_task(world):
    layer = world.layer(GIB)
    world.write(MIB)

    def others():
        world.free = max(MIB, world.free - 2 * GIB)

    assert world.pass_by(layer, 600, others) is None
    assert world.free == MIB


def test_reserve_of_the_disk_stays_free(world):
    layer = world.layer(60 * GIB)
    world.write(GIB)
    assert world.pass_by(layer, 60) is None
    world.free = 3 * GIB  # others did that
    assert world.pass_by(layer, 60) is None
    world.write(100 * MIB)
    assert world.pass_by(layer, 60) is None
    world.write(300 * MIB)
    assert world.pass_by(layer, 60) == "disk: its changes grow, and the disk that they are on has 2.609 GiB left"


def test_small_disk_has_a_smaller_reserve(world):
    world.free = 100 * MIB
    layer = world.layer(60 * GIB)
    world.write(49 * MIB)
    assert world.pass_by(layer, 60) is None
    world.write(10 * MIB)
    assert "has 41 MiB left" in world.pass_by(layer, 60)


def test_unexplained_use_is_derived_from_free_space(world):
    layer = world.layer(GIB)
    world.is_incomplete = True
    assert world.pass_by(layer, 200) is None
    world.free -= 2 * GIB
    said = "disk: not all of its changes can be found, and 2 GiB have gone since it began, they may take 1 GiB"
    assert world.pass_by(layer, 200) == said


def test_failed_measurement_is_repeated(world):
    layer = world.layer(GIB)
    world.is_incomplete = True
    world.free -= 2 * GIB
    assert world.pass_by(layer, 200, lambda: setattr(world, "is_incomplete", world.looks % 3 != 0)) is None
    assert world.looks > 3


def test_idle_task_costs_no_measurement(world):
    layer = world.layer()
    assert world.pass_by(layer, 600) is None
    assert world.looks <= 600 / 5
    assert world.asked <= 3 * 600 / 5


def test_space_freed_by_others_hides_no_use(world):
    layer = world.layer(GIB)
    world.held = 2 * GIB
    assert world.pass_by(layer, 30, lambda: setattr(world, "free", world.free + GIB)) is not None


def test_large_measurement_takes_a_share_of_time(world):
    """Whatever others write meanwhile: half of it while the task may be over its bound, else a fifth."""
    layer, world.took = world.layer(GIB), 1.0
    world.write(GIB // 2)
    began = world.now

    def others():
        world.free -= MIB

    assert world.pass_by(layer, 400, others) is None
    assert world.looks <= (world.now - began) / 2 + 1


def test_grace_period_needs_no_further_growth(world):
    layer = world.layer(64 * MIB)
    world.write(80 * MIB)
    assert world.pass_by(layer, 10) is not None
    pressed = []
    for size in (0, 30 * MIB, 30 * MIB, 30 * MIB):
        world.write(size)
        world.now += layer.wait()
        pressed.append(layer.uses_space_fast())
        assert not layer.uses_space_fast()  # not due
    assert pressed == [False, False, False, True]


def test_grace_period_ends_with_new_files(world):
    layer = world.layer(64 * MIB)
    world.held = 80 * MIB
    assert world.pass_by(layer, 10) is not None
    world.now += layer.wait()
    assert not layer.uses_space_fast()
    world.inodes -= 20_000
    world.now += layer.wait()
    assert layer.uses_space_fast()


def test_final_measurement_finds_late_writes(world):
    layer = world.layer(64 * MIB)
    world.write(80 * MIB)
    layer.nameless = GIB  # of processes that are gone
    assert layer.final_scan() == ("disk: its changes take 80 MiB, they may take 64 MiB",)
    world.held = 60 * MIB
    assert layer.final_scan() is None


def test_no_descriptor_stays_open(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    layer = DiskQuota(str(tmp_path), Limits())
    layer._start_scan()
    assert next(layer._steps, "") is None
    layer.close()
    layer.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert layer.wait() == float("inf")
    assert layer.turn() is None
