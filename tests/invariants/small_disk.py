"""A small tmpfs for a journal, which tests fill and empty."""

import contextlib
import subprocess
from pathlib import Path


class SmallDisk:
    """A small file system for a journal, mounted in the mount namespace of the runs."""

    def __init__(self, runner, size, name="disk"):
        view = runner.lab._pids["root" if runner.user is None else "everybody"]
        self.path = runner.lab.home(runner.user) / name
        self.path.mkdir()
        options = f"size={size},mode=700,uid={runner.user or 0},gid={runner.user or 0}"
        enter = ["nsenter", f"--mount=/proc/{view}/ns/mnt", "--"]
        subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", options, "exeat-test", self.path], check=True)
        self.host_path = Path(f"/proc/{view}/root{self.path}")

    def fill(self):
        """Fill the disk. Only the rest of the last page of an open segment stays writable."""
        with contextlib.suppress(OSError), open(self.host_path / "filler", "ab", buffering=0) as filler:
            while filler.write(bytes(1024)):
                pass

    def empty(self):
        (self.host_path / "filler").unlink()
