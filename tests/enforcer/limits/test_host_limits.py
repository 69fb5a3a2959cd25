"""What the machine has once: which of it one task could use up, by the settings of the machine."""

import pytest

from enforcer.limits import resource_limits
from enforcer.limits.cgroup_tree import V2, hierarchies
from enforcer.limits.resource_limits import Limits
from tests.support import harness

ENDLESS = {"fs/file-max": 2**63 - 1, "net/core/bpf_jit_enable": 1, "net/core/bpf_jit_limit": 2**40}


def _unbounded(monkeypatch, settings, controllers=frozenset({"memory"})):
    def read(name):
        if name not in settings:
            raise FileNotFoundError(name)
        return settings[name]

    monkeypatch.setattr(resource_limits, "hierarchies", lambda: [type("One", (), {"controllers": controllers})])
    return [what for what, _ in resource_limits.unbounded(read)]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, []),
        ({"fs/file-max": 200_000}, ["open files (fs.file-max)"]),
        ({"net/core/bpf_jit_limit": 200 << 20}, ["system call filters (net.core.bpf_jit_limit)"]),
        ({"net/core/bpf_jit_limit": 200 << 20, "net/core/bpf_jit_enable": 0}, []),  # nothing is compiled
    ],
)
def test_unbounded_resources_are_found(monkeypatch, settings, found):
    assert _unbounded(monkeypatch, {**ENDLESS, **settings}) == found


def test_socket_buffers_are_unbounded_without_a_memory_cgroup(monkeypatch):
    assert _unbounded(monkeypatch, ENDLESS, frozenset({"pids"})) == ["socket buffers"]


def test_missing_setting_bounds_nothing(monkeypatch):
    assert _unbounded(monkeypatch, {}) == []


def test_terminals_count_without_the_reserved_ones():
    resource_limits.max_terminals.cache_clear()
    with open("/proc/sys/kernel/pty/max") as most, open("/proc/sys/kernel/pty/reserve") as reserved:
        assert resource_limits.max_terminals() == max(16, (int(most.read()) - int(reserved.read())) // 16)


def test_socket_buffers_share_memory_in_cgroup_v1():
    harness.needs_root()
    if not any(each.version != V2 and "memory" in each.controllers for each in hierarchies()):
        harness.missing("a memory cgroup of version 1")
    built = resource_limits.make_resource_limits(Limits(memory=1 << 30, said=frozenset({"memory"})))
    try:
        [group] = [group for group in built.groups if "memory" in group.place.controllers]
        with open(f"{group.path}/memory.kmem.tcp.limit_in_bytes") as file:
            assert int(file.read()) == 1 << 28
    finally:
        built.remove()
