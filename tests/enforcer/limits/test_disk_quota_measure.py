"""What a directory holds, however a task has made it, and whatever it does to it meanwhile."""

import errno
import os
import shutil
import stat
import subprocess
import sys

import pytest

from enforcer.limits import disk_quota
from enforcer.limits.disk_quota import UsageScan
from tests.support import harness


def measured(path, between=lambda _: None):
    top = os.open(path, os.O_RDONLY)
    try:
        found = UsageScan(top)
        for step, _ in enumerate(found.steps()):
            between(step)
        return found
    finally:
        os.close(top)


def allocated(*paths):
    return sum(os.lstat(path).st_blocks * 512 for path in paths)


def write(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def open_now():
    return set(os.listdir("/proc/self/fd"))


def test_allocated_blocks_count_once(tmp_path):
    top = tmp_path / "top"
    outside = write(tmp_path / "outside" / "large", 1 << 20)
    one = write(top / "a" / "one", 100_000)
    for number in range(7):
        os.link(one, top / "a" / f"again{number}")
    sparse = top / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 40)
    write(top / "b" / "two", 5000)
    (top / "b" / "file").symlink_to(outside)
    (top / "b" / "directory").symlink_to(outside.parent)
    found = measured(top)
    others = (top / name for name in ("a", "b", "b/two", "b/file", "b/directory"))
    assert round(found.bytes) == allocated(one, sparse, *others)
    assert found.names == 2 + 8 + 1 + 3
    assert not found.is_incomplete


def test_tree_deeper_than_path_max_is_measured(tmp_path):
    """Configure scripts make such directories too, to see what getcwd(3) does."""
    top, name, levels = tmp_path / "top", "d" * 50, 150
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        further = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = further
    with os.fdopen(os.open("large", os.O_WRONLY | os.O_CREAT, dir_fd=at), "wb") as file:
        file.write(b"x" * 300_000)
        file.flush()
        held = os.fstat(file.fileno()).st_blocks * 512
    os.close(at)
    assert levels * len(name) > 4096
    before = open_now()
    found = measured(top)
    assert open_now() == before
    assert (found.names, found.is_incomplete) == (levels + 1, False)
    assert found.bytes >= held
    shutil.rmtree(top)


BOUNDS = {"deep": ("_MAX_DEPTH", 3, 1), "many": ("_MAX_DEFERRED", 5, 10)}


@pytest.mark.parametrize(("name", "bound", "wide"), BOUNDS.values(), ids=BOUNDS)
def test_oversized_directory_is_not_read(tmp_path, monkeypatch, name, bound, wide):
    monkeypatch.setattr(disk_quota, "_MAX_OPEN", 1)
    deep = 2 if wide > 1 else 9
    for number in range(wide):
        (tmp_path / "top" / "/".join([f"{number}"] * deep)).mkdir(parents=True)
    assert not measured(tmp_path / "top").is_incomplete
    monkeypatch.setattr(disk_quota, name, bound)
    found = measured(tmp_path / "top")
    assert found.is_incomplete
    assert found.names < wide * deep


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o100, 0o755])
def test_unreadable_directory_is_measured_and_restored(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(os, "geteuid", lambda: 1)  # root needs no leave
    closed = tmp_path / "top" / "closed"
    held = write(closed / "in" / "file", 50_000)
    sizes = allocated(held, closed, closed.parent, closed / "in")
    for path in (closed / "in", closed, closed.parent):
        path.chmod(mode)
    modes = []
    found = measured(closed.parent, lambda _: modes.append(stat.S_IMODE(closed.parent.lstat().st_mode)))
    left = [stat.S_IMODE(path.lstat().st_mode) for path in (closed.parent, closed)]
    for path in (closed.parent, closed, closed / "in"):
        path.chmod(0o700)
    assert left == [mode, mode]
    assert modes == [mode | 0o500] * 3
    assert round(found.bytes) == sizes - allocated(closed.parent)
    assert not found.is_incomplete


def test_mode_changed_meanwhile_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    closed = tmp_path / "top" / "closed"
    write(closed / "file", 1)
    closed.chmod(0)
    measured(closed.parent, lambda step: closed.chmod(0o711) if step == 1 else None)
    assert stat.S_IMODE(closed.lstat().st_mode) == 0o711


def test_unmeasurable_directory_is_reported(tmp_path, monkeypatch):
    """As where a directory is closed again and again while it is looked at."""
    write(tmp_path / "top" / "closed" / "file", 1)

    def refuse(path, *rest, **more):
        if path == "closed":
            raise PermissionError(errno.EACCES, "no")
        return really(path, *rest, **more)

    really = os.open
    monkeypatch.setattr(disk_quota.os, "open", refuse)
    assert measured(tmp_path / "top").is_incomplete


def swap(tmp_path):
    """A directory and a link to what lies outside, exchanged."""
    os.rename(tmp_path / "top/a", tmp_path / "top/was")
    os.symlink(tmp_path / "outside", tmp_path / "top/a")


CHANGES = {
    "taken away": lambda base: shutil.rmtree(base / "top/a"),
    "moved": lambda base: os.rename(base / "top/a", base / "top/z"),
    "moved out of sight": lambda base: os.rename(base / "top/a/b/c", base / "top/c"),
    "swapped for a link": swap,
    "swapped for a file": lambda base: (os.rename(base / "top/a", base / "top/was"), write(base / "top/a", 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_concurrent_changes_never_lead_outside(tmp_path, change, monkeypatch):
    monkeypatch.setattr(disk_quota, "_MAX_OPEN", 2)  # what is deeper is gone to anew
    ends = []
    for at in range(9):
        base = tmp_path / str(at)
        write(base / "outside" / "large", 8 << 20)
        for name in ("a/b/c/d/e", "a/b/f", "g/h"):
            write(base / "top" / name, 10_000)
        before = open_now()
        found = measured(base / "top", lambda step, at=at, base=base: change(base) if step == at else None)
        assert found.bytes < 1 << 20
        assert open_now() == before
        ends.append(found.names)
    assert max(ends) <= 2 * 8
    assert ends[-1] == 8  # it was over before


def test_aborted_measurement_leaves_nothing_open(tmp_path):
    for name in ("a/b/c/d", "e/f"):
        write(tmp_path / "top" / name, 1)
    top = os.open(tmp_path / "top", os.O_RDONLY)
    before = open_now()
    steps = UsageScan(top).steps()
    for _ in range(3):
        next(steps)
    steps.close()
    assert open_now() == before
    os.close(top)


MOUNTED = """
import os, sys
from enforcer.system import linux
from enforcer.limits.disk_quota import UsageScan
os.unshare(os.CLONE_NEWNS)
linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
linux.mount("tmpfs", sys.argv[1] + "/mounted", "tmpfs")
with open(sys.argv[1] + "/mounted/large", "wb") as file:
    file.write(b"x" * (1 << 20))
found = UsageScan(os.open(sys.argv[1], os.O_RDONLY))
for _ in found.steps(): pass
print(int(found.bytes), found.names)
"""


def test_other_file_systems_are_not_entered(tmp_path):
    harness.needs_root()
    (tmp_path / "mounted").mkdir()
    done = subprocess.run([sys.executable, "-c", MOUNTED, tmp_path], capture_output=True, check=True)
    assert done.stdout.split() == [b"0", b"1"]


def test_many_names_are_read_in_batches(tmp_path):
    """However many there are: each step is one name, and none is kept."""
    for number in range(200):
        (tmp_path / f"{number}").touch()
    top = os.open(tmp_path, os.O_RDONLY)
    found = UsageScan(top)
    steps = found.steps()
    for wanted in (1, 2, 3):
        next(steps)
        assert found.names in (wanted - 1, wanted)
    steps.close()
    os.close(top)
