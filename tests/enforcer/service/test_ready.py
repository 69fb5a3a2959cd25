"""What every run is forked with is no larger than what runs use."""

import gc
import os
import subprocess
import sys

from enforcer import planning
from enforcer.planning import plan
from enforcer.service.warming import warm

PROGRAM = """
import enforcer.service.service, importlib, sys
from enforcer.service.ready import MODULES
for name in MODULES:
    importlib.import_module(name)
print(*sorted({"asyncio", "cryptography", "mitmproxy", "pyroute2", "random", "shutil", "ssl", "tempfile", "threading"} & set(sys.modules)))
"""


def test_a_service_has_nothing_large_in_memory_that_a_run_does_without():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_planning_ahead_takes_a_start_s_way_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    gc.collect()  # what other tests have left open goes now, and not in between
    before, planned = os.listdir("/proc/self/fd"), []
    monkeypatch.setattr(planning, "plan", lambda wanted: planned.append((wanted, plan(wanted))))
    assert warm(tmp_path / "etc")
    assert {wanted.argv for wanted, _ in planned} == {("true",)}
    assert all(any(line.does == "run true" for line in lines) for _, lines in planned)
    assert sorted(os.listdir(tmp_path)) == ["state"]
    assert os.listdir("/proc/self/fd") == before


def test_what_cannot_be_planned_ahead_is_left_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert not warm(tmp_path / "etc")
