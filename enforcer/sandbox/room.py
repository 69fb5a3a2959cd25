"""One room in memory for all that a task may write and that isn't the host's: one bound for home, /tmp and the rest.

A tmpfs for each would be bounded by itself only, each at half of the host's memory where nobody says a size (tmpfs(5)).
"""

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from enforcer import linux
from enforcer.limits.wanted import files_in
from enforcer.sandbox.steps import NEW, Step, Tmpfs

_ROOM = "/room"
_OWN = "/dev"  # made read-only once it is furnished
# The room that this process has made: a descriptor, for nothing in a view is sure to be it.
_made: Final[list[int]] = []


def full() -> str:
    """Say what there is none left of in the room that this process has made: `bytes`, or `files`. Raises OSError."""
    for room in _made:
        status = os.fstatvfs(room)
        if not status.f_bavail:
            return "bytes"
        if not status.f_favail:
            return "files"
    return ""


class Room(NamedTuple):
    """The tmpfs itself, of `size` bytes. Empty files are bounded too: they cost memory that no size counts."""

    size: int

    def describe(self) -> str:
        """Say it in a line."""
        return f"keep what the task writes in memory in one tmpfs of {self.size} bytes"

    def execute(self) -> None:
        """Do it."""
        os.mkdir(_ROOM, 0o700)
        options = f"mode=700,size={self.size},nr_inodes={files_in(self.size)}"
        linux.mount("tmpfs", _ROOM, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
        _made.append(os.open(_ROOM, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


class Part(NamedTuple):
    """An empty directory of the room, shown at its own place."""

    target: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        """Say it in a line."""
        return f"show an empty directory of it on {self.target} (mode {self.mode:o})"

    def execute(self) -> None:
        """Do it."""
        own = _ROOM + "/" + self.target.strip("/").replace("/", "\\")
        os.mkdir(own)
        os.chmod(own, self.mode)
        if self.owner:
            os.chown(own, *self.owner)
        os.makedirs(NEW + self.target, exist_ok=True)
        tree = linux.open_tree(own)
        linux.move_mount(tree, NEW + self.target)
        os.close(tree)


def bounded(steps: Iterable[Step], size: int) -> tuple[Step, ...]:
    """Return the steps of a view with one room of `size` bytes in the place of each empty file system in memory."""
    return (Room(size), *(_bounded(step) for step in steps))


def _bounded(step: Step) -> Step:
    if isinstance(step, Tmpfs) and step.target != _OWN:
        return Part(step.target, step.mode, step.owner)
    return step
