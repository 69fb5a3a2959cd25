"""How a path leads to a file: every name that is looked up on the way, and what is there.

What the kernel does in one step (path_resolution(7)) is done here name by name, so that it can be said whether a task
could make a path lead elsewhere, and whether anything on the way has changed since. Nothing is opened.
"""

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

_MOST_LINKS = 40  # symbolic links on one path, as the kernel has it


class Step(NamedTuple):
    """One name that is looked up in a directory (a real path); `what` is None where there is nothing."""

    directory: str
    name: str
    what: "What | None"

    @property
    def path(self) -> str:
        """Where the name stands."""
        return os.path.join(self.directory, self.name)


class What(NamedTuple):
    """What a name leads to. Of a directory only which one it is: what happens to other names in it is no matter."""

    device: int
    inode: int
    kind: int
    size: int = 0
    modified: int = 0  # ns since 1970
    changed: int = 0  # ns since 1970; set by the kernel at every write, whatever tools do to `modified`

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.kind == stat.S_IFLNK

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR

    def is_same(self, other: "What | None") -> bool:
        """Whether it is the same file or directory, whatever is in it now."""
        return other is not None and self[:3] == other[:3]


def trail(path: str) -> tuple[Step, ...]:
    """Return every step on the way to `path`; the last one has no `what` where the way ends before the end."""
    steps: list[Step] = []
    at, links = "/", 0
    rest = os.path.join(os.getcwd(), path).split("/")[::-1]
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        step = Step(at, name, _what(os.path.join(at, name)))
        steps.append(step)
        if step.what is None:
            break
        if step.what.is_link:
            links += 1
            try:
                to = os.readlink(step.path)
            except OSError:
                break
            if links > _MOST_LINKS:
                break
            if to.startswith("/"):
                at = "/"
            rest += to.split("/")[::-1]
        else:
            at = step.path
    return tuple(steps)


def fingerprint(paths: Iterable[str]) -> frozenset[Step]:
    """Return every step to every path: as long as it is the same, so is what they hold."""
    return frozenset(step for path in paths for step in trail(path))


def listed(directory: str) -> Step:
    """Return which names a directory has, as a step: for directories whose every file counts."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return Step(directory, "", None)
    return Step(directory, "/".join(names), None)


def _what(path: str) -> What | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        return What(status.st_dev, status.st_ino, kind)
    return What(status.st_dev, status.st_ino, kind, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
