"""One room in memory for all that a task may write and that isn't the host's: one bound for home, /tmp and the rest.

A tmpfs for each would be bounded by itself only, each at half of the host's memory where nobody says a size (tmpfs(5)).
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

from enforcer import linux
from enforcer.limits.resource_limits import files_in
from enforcer.sandbox.calls import ROOM
from enforcer.sandbox.player import Player
from enforcer.sandbox.steps import NEW, Step, Tmpfs, mount
from enforcer.sandbox.walking import made, move, tree_of

_ROOM = "/room"
_OWN = "/dev"  # made read-only once it is furnished


class Room(NamedTuple):
    """The tmpfs itself, of `size` bytes. Empty files are bounded too: they cost memory that no size counts."""

    size: int

    def describe(self) -> str:
        """Say it in a line."""
        return f"keep what the task writes in memory in one tmpfs of {self.size} bytes"

    def take(self, player: Player) -> None:
        """Have it done, and a descriptor kept of it: nothing in a view is sure to be it."""
        calls = player.calls
        calls.call("mkdirat", linux.AT_FDCWD, _ROOM, 0o700)
        options = f"mode=700,size={self.size},nr_inodes={files_in(self.size)}"
        mount(calls, "tmpfs", _ROOM, linux.MS_NOSUID | linux.MS_NODEV, options)
        calls.call("openat", linux.AT_FDCWD, _ROOM, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, into=ROOM)


class Part(NamedTuple):
    """An empty directory of the room, shown at its own place."""

    target: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        """Say it in a line."""
        return f"show an empty directory of it on {self.target} (mode {self.mode:o})"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls, own = player.calls, _ROOM + "/" + self.target.strip("/").replace("/", "\\")
        calls.call("mkdirat", linux.AT_FDCWD, own, 0o700)
        calls.call("fchmodat", linux.AT_FDCWD, own, self.mode)
        if self.owner:
            calls.call("fchownat", linux.AT_FDCWD, own, *self.owner, 0)
        place = made(calls, NEW + self.target)
        move(calls, tree_of(calls, own, recursive=False), place)
        calls.close(place)


def bounded(steps: Iterable[Step], size: int) -> tuple[Step, ...]:
    """Return the steps of a view with one room of `size` bytes in the place of each empty file system in memory."""
    return (Room(size), *(_bounded(step) for step in steps))


def _bounded(step: Step) -> Step:
    if isinstance(step, Tmpfs) and step.target != _OWN:
        return Part(step.target, step.mode, step.owner)
    return step
