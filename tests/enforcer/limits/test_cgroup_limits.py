"""What limits write into the groups of version 2, on a tree of plain files: few machines have both versions."""

import os
from pathlib import Path

import pytest

from enforcer.limits import cgroup_tree, resource_limits
from enforcer.limits.cgroup_tree import Hierarchy
from enforcer.limits.resource_limits import Limits, Means, make_resource_limits

ALL = frozenset({"cpu", "memory", "pids"})
GIVES = {"memory": ("memory.max", "memory.swap.max"), "pids": ("pids.max",), "cpu": ("cpu.max",)}
ALWAYS = ("cgroup.procs", "cgroup.subtree_control")
LIMITS = Limits(memory=1 << 30, processes=50)
WITH_CPU, LITTLE, NO_MEMORY = LIMITS._replace(cpu=1.5), LIMITS._replace(cpu=0.001), LIMITS._replace(memory=None)
MEMORY = {"memory.max": "1073741824", "memory.swap.max": "0"}
BELOW = {"memory.max": "536870912\n", "pids.max": "20\n", "cpu.max": "50000 100000\n"}
BEYOND = {"memory.max": "2147483648\n", "pids.max": "max\n", "cpu.max": "max 100000\n"}

# What is wanted, what the group that the task is taken out of says, what is written, and what holds.
WRITTEN = {
    "no processor": (LIMITS, {}, {**MEMORY, "pids.max": "52"}, LIMITS),
    "all": (WITH_CPU, {}, {**MEMORY, "pids.max": "52", "cpu.max": "150000 100000"}, WITH_CPU),
    "less than a kernel gives": (LITTLE, {}, {**MEMORY, "pids.max": "52", "cpu.max": "1000 100000"}, LITTLE),
    "no memory": (NO_MEMORY, {}, {"pids.max": "52"}, NO_MEMORY),
    "less above": (
        WITH_CPU, BELOW,
        {"memory.max": "536870912", "memory.swap.max": "0", "pids.max": "22", "cpu.max": "50000 100000"},
        Limits(memory=1 << 29, processes=20, cpu=0.5),
    ),
    "more above": (WITH_CPU, BEYOND, {**MEMORY, "pids.max": "52", "cpu.max": "150000 100000"}, WITH_CPU),
}  # fmt: skip


def put(path, text):
    """Write a file as a kernel has it written: one controller more is given, any other file has a value."""
    more = path.endswith("subtree_control")
    with open(path, "a" if more else "r+", encoding="ascii") as file:
        file.write(f"{text[1:]} " if more else text)


@pytest.fixture
def top(tmp_path, monkeypatch):
    """A hierarchy whose root we may make groups in, and one of others' below it that we are in."""
    make, remove = os.mkdir, os.rmdir

    def appear(path, mode):
        """Have a group come with the files of what the one above it gives; they go with it."""
        make(path, mode)
        given = Path(path, "..", "cgroup.subtree_control").read_text().split()
        for name in (*ALWAYS, *(name for each in given for name in GIVES[each])):
            Path(path, name).touch()

    def vanish(path):
        for each in filter(Path.is_file, Path(path).iterdir()):
            each.unlink()
        remove(path)

    (tmp_path / "ours").mkdir()
    for group, processes in (tmp_path, ""), (tmp_path / "ours", "1\n2\n"):
        (group / "cgroup.controllers").write_text(" ".join(ALL))
        (group / "cgroup.subtree_control").touch()
        (group / "cgroup.procs").write_text(processes)
    (tmp_path / "ours/cgroup.type").write_text("domain")
    monkeypatch.setattr(os, "mkdir", appear)
    monkeypatch.setattr(os, "rmdir", vanish)
    monkeypatch.setattr(cgroup_tree, "write_file", put)
    found = [Hierarchy(2, ALL, str(tmp_path), str(tmp_path / "ours"))]
    monkeypatch.setattr(resource_limits, "hierarchies", lambda: found)
    return tmp_path


@pytest.mark.parametrize(("limits", "above", "written", "held"), WRITTEN.values(), ids=WRITTEN)
def test_limits_are_written_to_the_groups_of_the_processes(top, limits, above, written, held):
    for name, value in above.items():
        (top / "ours" / name).write_text(value)
    made = make_resource_limits(limits)
    made.admit(1234)
    [inner] = top.glob("exeat-task-*/task")
    names = {name for each in GIVES.values() for name in each}
    found = {path.name: path.read_text() for path in inner.iterdir() if path.name in names}
    assert {name: text for name, text in found.items() if text} == written
    assert ("cpu.max" in found) == (limits.cpu is not None)  # asked for by nobody, it is not given either
    assert [(inner / "cgroup.procs").read_text(), (inner / "../cgroup.procs").read_text()] == ["1234", ""]
    assert made.limits == held
    cpu = Means.NONE if limits.cpu is None else Means.CGROUP2
    assert made.means == {"memory": Means.CGROUP2, "processes": Means.CGROUP2, "cpu": cpu}
    assert made.rlimits == ()
    made.remove()
    assert not any(top.glob("exeat-*"))
