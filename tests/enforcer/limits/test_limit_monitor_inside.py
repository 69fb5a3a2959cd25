"""What is seen inside a sandbox of processes that end while they are looked at."""

import os
import resource

from enforcer.limits import limit_monitor as inside_of
from enforcer.limits.limit_monitor import SandboxProbe


def test_ended_process_is_skipped(tmp_path):
    """The kernel gives an empty file then (proc_pid_limits(5))."""
    (tmp_path / "7" / "fd").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "7" / "fd" / f"{number}").touch()
    (tmp_path / "7" / "limits").touch()
    proc, root = (os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
    inside = SandboxProbe(-1, proc, root, [(resource.RLIMIT_NOFILE, 1)], "")
    assert inside.probe() == {}
    inside.close()
    inside.close()


def test_mount_of_any_name_is_recognised(tmp_path):
    """Whose name has carriage returns in it, which stands in mountinfo as it is."""
    (tmp_path / str(inside_of._INIT_PID)).mkdir()
    line = b"%d 1 0:%d / /work%s rw - tmpfs none rw\n"
    content = line % (7, 9, b"") + line % (8, 9, b"\ra\rb") + line % (5, 4, b"")
    (tmp_path / str(inside_of._INIT_PID) / "mountinfo").write_bytes(content)
    proc = os.open(tmp_path, os.O_RDONLY)
    assert inside_of._mounts(proc, os.makedev(0, 9)) == {b"7", b"8"}
    os.close(proc)
