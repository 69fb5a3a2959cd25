"""A disk for a journal: small, and full when a test wants it to be."""

import contextlib
import subprocess
from pathlib import Path


class Disk:
    """A small file system of its own for a journal, in the mount namespace that a run sees."""

    def __init__(self, place, size, name="disk"):
        view = place.lab._views["root" if place.user is None else "everybody"]
        self.path = place.lab.home(place.user) / name
        self.path.mkdir()
        options = f"size={size},mode=700,uid={place.user or 0},gid={place.user or 0}"
        enter = ["nsenter", f"--mount=/proc/{view}/ns/mnt", "--"]
        subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", options, "exeat-test", self.path], check=True)
        self.seen = Path(f"/proc/{view}/root{self.path}")

    def fill(self):
        """Leave room for nothing but what the last page of an open segment has left."""
        with contextlib.suppress(OSError), open(self.seen / "filler", "ab", buffering=0) as filler:
            while filler.write(bytes(1024)):
                pass

    def empty(self):
        (self.seen / "filler").unlink()
