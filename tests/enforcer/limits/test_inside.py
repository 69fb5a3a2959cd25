"""What is seen inside a sandbox of processes that end while they are looked at."""

import os
import resource

from enforcer.limits.inside import Inside


def test_a_process_that_ends_has_no_limits_any_more_and_ends_nobody(tmp_path):
    """The kernel gives an empty file then (proc_pid_limits(5))."""
    (tmp_path / "7" / "fd").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "7" / "fd" / f"{number}").touch()
    (tmp_path / "7" / "limits").touch()
    proc, root = (os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
    inside = Inside(-1, proc, root, [(resource.RLIMIT_NOFILE, 1)], "")
    assert inside.look() == {}
    inside.close()
    inside.close()
