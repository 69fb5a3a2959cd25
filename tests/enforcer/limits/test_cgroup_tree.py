"""Groups of this machine's own cgroups, whichever version: made, limited, killed, swept, and gone."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from enforcer.limits import cgroup_tree
from enforcer.limits.cgroup_tree import CgroupLocation, choose_locations, hierarchies, write_file
from tests.support import harness

HOLDER = """
import os, sys, time
from enforcer.limits.cgroup_tree import make_group
from enforcer.limits.cgroup_tree import hierarchies
from enforcer.limits.cgroup_tree import choose_locations
made = [make_group(place) for place in choose_locations(hierarchies()) if not place.must_empty]
print(*[each.path for each in made], sep="\\n", flush=True)
time.sleep(600)
"""


@pytest.fixture
def place():
    """A place of this machine's for each hierarchy that has one; the one with the most to give."""
    harness.needs_root()
    found = choose_locations(hierarchies())
    if not found:
        harness.missing("a cgroup that can be written to")
    return max(found, key=lambda each: len(each.controllers))


@pytest.fixture
def made(place):
    one = cgroup_tree.make_group(place)
    yield one
    one.kill()
    one.remove()


def _sleeper(one):
    process = subprocess.Popen(["sleep", "600"])
    one.admit(process.pid)
    return process


def test_removal_of_a_group_is_idempotent(place):
    one = cgroup_tree.make_group(place)
    assert os.path.isdir(one.inner)
    one.remove()
    one.remove()
    assert not os.path.exists(one.path)


def test_group_contains_its_process_and_children(made):
    with subprocess.Popen(["sh", "-c", "read x; sleep 600 & wait"], stdin=subprocess.PIPE) as process:
        made.admit(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while len(inside := _processes(made)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(inside) == 2
        for pid in inside:
            os.kill(pid, signal.SIGKILL)


def _processes(one):
    with open(f"{one.inner}/cgroup.procs") as file:
        return [int(line) for line in file]


def test_group_with_processes_is_not_removed(made, monkeypatch):
    monkeypatch.setattr(cgroup_tree, "_REMOVAL_TIMEOUT", 0.0)
    with _sleeper(made) as process:
        cgroup_tree.Group(made.place, made.path, os.dup(made.lock)).remove()
        assert os.path.isdir(made.path)
        process.kill()


def test_group_of_a_killed_run_is_swept_by_the_next(place):
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        path = next(line.strip() for line in holder.stdout if line.startswith(place.path + "/exeat-task-"))
        cgroup_tree.remove_dead_groups(place.path)
        assert os.path.isdir(path)  # its maker lives
        holder.kill()
        holder.wait()
        assert os.path.isdir(path)
        for each in choose_locations(hierarchies()):
            cgroup_tree.remove_dead_groups(each.path)
        assert not os.path.exists(path)


def test_runs_of_a_service_sweep_no_groups(place, monkeypatch):
    monkeypatch.setattr(cgroup_tree, "_swept_by_parent", set())
    dead = cgroup_tree.make_group(place)
    cgroup_tree.leave_sweep_to_parent([place.path])
    with _sleeper(dead) as process:
        os.close(dead.lock)  # as when the run that made it is killed
        cgroup_tree.make_group(place).remove()
        assert process.poll() is None
        process.kill()
    while cgroup_tree.remove_dead_groups(place.path):  # its process may be on its way out yet
        time.sleep(0.01)
    assert not os.path.exists(dead.path)


def test_sweep_removes_only_exeats_groups(place):
    """A service manager's groups may be called so too, and are killed by nobody."""
    names = [f"{prefix}{os.getpid():x}{end}" for prefix, end in (("exeat-web-", ".service"), ("exeat-task-", ".scope"))]
    paths = [f"{place.path}/{name}" for name in names]
    for path in paths:
        os.mkdir(path)
    try:
        cgroup_tree.remove_dead_groups(place.path)
        assert all(map(os.path.isdir, paths))
    finally:
        for path in paths:
            os.rmdir(path)


def test_sweep_between_creation_and_lock_is_repaired(place, monkeypatch):
    make, tries = os.mkdir, []

    def made_and_swept(path, mode=0o777):
        make(path, mode)
        if not tries:
            tries.append(path)
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", made_and_swept)
    one = cgroup_tree.make_group(place)
    assert one.path != tries[0]
    assert os.path.isdir(one.path)
    one.remove()


def test_whole_group_is_killed_by_cgroup_kill(made):
    if not os.path.exists(f"{made.path}/cgroup.kill"):
        made = next((each for each in map(_made_again, choose_locations(hierarchies())) if each is not None), None)
        if made is None:
            harness.missing("a kernel with cgroup.kill")
    with contextlib.ExitStack() as after:
        after.callback(made.remove)
        with _sleeper(made) as process:
            made.kill()
            assert process.wait(timeout=30) == -signal.SIGKILL


def _made_again(place):
    one = cgroup_tree.make_group(place)
    if os.path.exists(f"{one.path}/cgroup.kill"):
        return one
    one.remove()
    return None


def test_error_names_the_file_and_the_value(made):
    with pytest.raises(OSError, match=r"write `99999999` to .*/cgroup.procs: No such process"):
        write_file(f"{made.inner}/cgroup.procs", "99999999")


FIRST = {
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory.max_usage_in_bytes": "4096000\n",
    "memory.limit_in_bytes": "4096000\n",
    "pids.events": "max 3\n",
    "cpu.stat": "nr_throttled 1\nthrottled_time 1500000000\n",
}
SECOND = {"memory.events": "max 7\noom_kill 2\n", "pids.events": "max 3\n", "cpu.stat": "throttled_usec 1500000\n"}
ALL = frozenset({"memory", "pids", "cpu"})


@pytest.mark.parametrize(
    ("version", "files", "controllers", "counted"),
    [
        pytest.param(1, FIRST, ALL, cgroup_tree.Counts(2, 1, 3, 1.5), id="first version"),
        pytest.param(1, {**FIRST, "memory.max_usage_in_bytes": "5\n"}, ALL, (2, 0, 3, 1.5), id="the host's memory"),
        pytest.param(1, FIRST, {"pids"}, cgroup_tree.Counts(refused=3), id="first version, a controller a hierarchy"),
        pytest.param(2, SECOND, ALL, cgroup_tree.Counts(2, 7, 3, 1.5), id="second version"),
        pytest.param(2, SECOND, {"memory"}, cgroup_tree.Counts(2, 7), id="second version, of what it may limit"),
        pytest.param(2, {}, ALL, cgroup_tree.Counts(), id="nothing"),
    ],
)
def test_events_of_a_group_are_read_from_its_controllers(tmp_path, version, files, controllers, counted):
    one = cgroup_tree.Group(CgroupLocation(version, str(tmp_path), frozenset(controllers)), str(tmp_path), -1)
    os.makedirs(one.inner, exist_ok=True)
    for name, text in files.items():
        with open(f"{one.inner}/{name}", "w", encoding="ascii") as file:
            file.write(text)
    assert one.counts() == counted
