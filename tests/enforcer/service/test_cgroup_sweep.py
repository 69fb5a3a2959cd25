"""What killed runs leave in the host's cgroups is gone once the service has looked, and when it ends."""

import os
import subprocess
import time

import pytest

from enforcer.limits import cgroup_tree
from enforcer.limits.cgroup_tree import choose_locations, hierarchies
from enforcer.service.helper_processes import CgroupSweep
from tests.support import harness


@pytest.fixture
def left(monkeypatch):
    """A group with a process in it whose run was killed, and who looks after it."""
    harness.needs_root()
    monkeypatch.setattr(cgroup_tree, "_swept_by_parent", set())
    found = choose_locations(hierarchies())
    if not found:
        harness.missing("a cgroup that can be written to")
    looking = CgroupSweep()
    made = cgroup_tree.make_group(found[0])
    process = subprocess.Popen(["sleep", "600"])
    made.admit(process.pid)
    os.close(made.lock)
    yield made, process, looking
    process.kill()
    process.wait()
    looking.close()


def test_empty_group_is_removed_at_once(left):
    made, process, looking = left
    process.kill()
    process.wait()
    looking.schedule()
    while os.path.exists(made.path):
        assert looking.wait() < 1
        time.sleep(max(looking.wait(), 0))
        looking.turn()


def test_ending_service_waits_for_processes(left, monkeypatch):
    made, process, looking = left
    monkeypatch.setattr(time, "sleep", lambda _seconds: (process.kill(), process.wait()))
    looking.close()
    assert not os.path.exists(made.path)
