"""Which file systems are mounted below a directory, whatever that is called: mountinfo has some names in octal."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import harness

LOOK = """
import json, os, subprocess, sys
from enforcer.sandbox import overlays
path = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "none", path + "/in it"], check=True)
print(json.dumps([overlays.mounts_of_host(path), overlays.has_mounts_below(path), overlays.mounts_of_host(path + "/none")]))
"""


@pytest.mark.parametrize(
    "name", ["plain", "with a space", "tab\there", "line\nfeed", "carriage\rreturn", "back\\slash", "#", b"\xff"]
)
def test_mount_is_found_in_a_directory_of_any_name(tmp_path, name):
    harness.needs_root()
    place = os.path.join(str(tmp_path), os.fsdecode(name))
    os.makedirs(f"{place}/in it")
    argv = ["unshare", "--mount", sys.executable, "-c", LOOK, place]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [[[f"{place}/in it", "tmpfs"]], True, []]
