"""When the changes of a reviewed workspace are looked at, and when that ends its task. Time and the disk are made up."""

import os
from types import SimpleNamespace

import pytest

from enforcer.limits import disk_quota as module
from enforcer.limits.disk_quota import DiskQuota
from enforcer.limits.resource_limits import Limits

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30


class DiskLab:
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
    """What is found at one look, which takes as long as the lab says."""

    def __init__(self, lab):
        self.lab = lab
        self.bytes, self.names, self.is_incomplete = 0.0, 0, lab.is_incomplete
        lab.looks += 1

    def steps(self):
        self.lab.now += self.lab.took
        self.bytes, self.names = float(self.lab.held), self.lab.names
        yield


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return DiskLab(tmp_path, monkeypatch)


def test_exceeded_quota_is_reported_with_use_and_limit(lab):
    layer = lab.layer(64 * MIB)
    lab.write(63 * MIB)
    assert lab.pass_by(layer, 60) is None
    lab.write(2 * MIB)
    assert lab.pass_by(layer, 60) == "disk: its changes take 65 MiB, they may take 64 MiB"


def test_default_quota_is_half_of_the_free_space(lab):
    layer = lab.layer()
    assert lab.pass_by(layer, 600, lambda: lab.write(GIB) if lab.held < 40 * GIB else None) is None
    assert lab.held == 40 * GIB
    lab.write(GIB)
    assert lab.pass_by(layer, 60) == "disk: its changes take 41 GiB, they may take 40 GiB"


def test_unknown_disk_gets_the_fallback_quota(lab):
    lab.size = lab.free = 0
    layer = lab.layer()
    lab.held = 2 * GIB
    assert lab.pass_by(layer, 60) is None
    lab.held += 1
    assert lab.pass_by(layer, 60) == "disk: its changes take 2 GiB, they may take 2 GiB"


def test_writes_between_two_checks_are_bounded(lab):
    """At a rate that no disk takes, what it may still write is never more than it takes until it is asked again."""
    layer, rate, before = lab.layer(10 * GIB), 4 * GIB, lab.now

    def write():
        nonlocal before
        lab.write(int((lab.now - before) * rate))
        before = lab.now

    assert lab.pass_by(layer, 60, write) is not None
    assert lab.held < 11 * GIB


FILES = {"of a size": (GIB, 1 << 30, GIB // PAGE + 64), "where few can be made": (GIB, 1000, 500)}


@pytest.mark.parametrize(("disk", "inodes", "most"), FILES.values(), ids=FILES)
def test_empty_files_count(lab, disk, inodes, most):
    lab.inodes = inodes
    layer = lab.layer(disk)
    lab.names = most
    assert lab.pass_by(layer, 120) is None
    lab.names = most + 1
    assert lab.pass_by(layer, 120) == f"disk: its changes are {most + 1} files or more, they may be {most}"


def test_inodes_are_counted_by_the_free_ones(lab):
    """Of a layer that takes long to look at, so that it isn't looked at often."""
    layer, lab.took = lab.layer(GIB), 2.0
    lab.names = 100_000
    assert lab.pass_by(layer, 10) is None

    def make():
        lab.names += 10_000
        lab.inodes -= 10_000

    assert lab.pass_by(layer, 60, make) is not None


def test_file_counted_twice_ends_no_task(lab):
    """A directory that is moved while it is looked at may be found at both places."""
    layer = lab.layer(64 * MIB)
    lab.write(40 * MIB)
    looks = []

    def twice():
        if lab.looks != len(looks):
            looks.append(lab.looks)
        lab.held = (80 if len(looks) % 2 == 0 else 40) * MIB

    assert lab.pass_by(layer, 120, twice) is None
    assert len(looks) > 2


def test_unlinked_files_count(lab):
    """They are found by who can see what is open, and only by them."""
    layer = lab.layer(64 * MIB)
    lab.write(30 * MIB)
    assert lab.pass_by(layer, 20) is None
    layer.nameless = 40 * MIB
    lab.free += GIB  # others give back what it took
    assert lab.pass_by(layer, 20) == "disk: its changes take 70 MiB, they may take 64 MiB"


def test_other_users_of_the_disk_end_no_task(lab):
    layer = lab.layer(GIB)
    lab.write(MIB)

    def others():
        lab.free = max(MIB, lab.free - 2 * GIB)

    assert lab.pass_by(layer, 600, others) is None
    assert lab.free == MIB


def test_reserve_of_the_disk_stays_free(lab):
    layer = lab.layer(60 * GIB)
    lab.write(GIB)
    assert lab.pass_by(layer, 60) is None
    lab.free = 3 * GIB  # others did that
    assert lab.pass_by(layer, 60) is None
    lab.write(100 * MIB)
    assert lab.pass_by(layer, 60) is None
    lab.write(300 * MIB)
    assert lab.pass_by(layer, 60) == "disk: its changes grow, and the disk that they are on has 2.609 GiB left"


def test_small_disk_has_a_smaller_reserve(lab):
    lab.free = 100 * MIB
    layer = lab.layer(60 * GIB)
    lab.write(49 * MIB)
    assert lab.pass_by(layer, 60) is None
    lab.write(10 * MIB)
    assert "has 41 MiB left" in lab.pass_by(layer, 60)


def test_unexplained_use_is_derived_from_free_space(lab):
    layer = lab.layer(GIB)
    lab.is_incomplete = True
    assert lab.pass_by(layer, 200) is None
    lab.free -= 2 * GIB
    said = "disk: not all of its changes can be found, and 2 GiB have gone since it began, they may take 1 GiB"
    assert lab.pass_by(layer, 200) == said


def test_failed_measurement_is_repeated(lab):
    layer = lab.layer(GIB)
    lab.is_incomplete = True
    lab.free -= 2 * GIB
    assert lab.pass_by(layer, 200, lambda: setattr(lab, "is_incomplete", lab.looks % 3 != 0)) is None
    assert lab.looks > 3


def test_idle_task_costs_no_measurement(lab):
    layer = lab.layer()
    assert lab.pass_by(layer, 600) is None
    assert lab.looks <= 600 / 5
    assert lab.asked <= 3 * 600 / 5


def test_space_freed_by_others_hides_no_use(lab):
    layer = lab.layer(GIB)
    lab.held = 2 * GIB
    assert lab.pass_by(layer, 30, lambda: setattr(lab, "free", lab.free + GIB)) is not None


def test_large_measurement_takes_a_share_of_time(lab):
    """Whatever others write meanwhile: half of it while the task may be over its bound, else a fifth."""
    layer, lab.took = lab.layer(GIB), 1.0
    lab.write(GIB // 2)
    began = lab.now

    def others():
        lab.free -= MIB

    assert lab.pass_by(layer, 400, others) is None
    assert lab.looks <= (lab.now - began) / 2 + 1


def test_grace_period_needs_no_further_growth(lab):
    layer = lab.layer(64 * MIB)
    lab.write(80 * MIB)
    assert lab.pass_by(layer, 10) is not None
    pressed = []
    for size in (0, 30 * MIB, 30 * MIB, 30 * MIB):
        lab.write(size)
        lab.now += layer.wait()
        pressed.append(layer.uses_space_fast())
        assert not layer.uses_space_fast()  # not due
    assert pressed == [False, False, False, True]


def test_grace_period_ends_with_new_files(lab):
    layer = lab.layer(64 * MIB)
    lab.held = 80 * MIB
    assert lab.pass_by(layer, 10) is not None
    lab.now += layer.wait()
    assert not layer.uses_space_fast()
    lab.inodes -= 20_000
    lab.now += layer.wait()
    assert layer.uses_space_fast()


def test_final_measurement_finds_late_writes(lab):
    layer = lab.layer(64 * MIB)
    lab.write(80 * MIB)
    layer.nameless = GIB  # of processes that are gone
    assert layer.final_scan() == ("disk: its changes take 80 MiB, they may take 64 MiB",)
    lab.held = 60 * MIB
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
