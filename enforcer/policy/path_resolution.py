"""Path resolution, name by name: what is on the way to a rule file, and whether a task could change that.

What the kernel does in one step (path_resolution(7)) is done here for every name that is looked up. A task may write
its workspace and what `write` names. A rule file in there is covered for it, and every directory between is pinned
(`sandbox.mount_plan`): that holds for the files and directories that were there at the start, and for no symbolic link.
"""

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from enforcer.sandbox.system_paths import contains
from enforcer.system.control_socket import VARIABLE
from enforcer.system.errors import UsageError

_held: Final[list[int]] = []  # descriptors of what is covered, until this process ends
_MOST_LINKS: Final = 40  # symbolic links on one path, as the kernel has it


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


def exposed(paths: Iterable[str], writable: Collection[str]) -> list[str]:
    """Say what is wrong with paths that lead through what a task may write; nothing, if they can be covered."""
    problems: dict[str, None] = {}
    for path in paths:
        steps = trail(path)
        end = steps[-1].path if steps else "/"
        for step in steps:
            place = _holding(writable, step.directory)
            if place is None:
                continue
            if step.what is None:
                problems[
                    f"`{step.path}` is not there, and a task that may write `{place}` could make it; "
                    "let the task write a directory that does not hold that path"
                ] = None
            elif step.what.is_link:
                problems[
                    f"`{path}` is reached through the symbolic link `{step.path}`, which a task that may write "
                    f"`{place}` could change; name the file itself, or keep rules elsewhere"
                ] = None
            elif not contains(step.path, end):
                problems[
                    f"`{path}` is reached by way of `{step.path}`, which a task that may write `{place}` could "
                    "replace; spell it without `..`"
                ] = None
    return list(problems)


def refuse_service(path: str, writable: Iterable[str]) -> None:
    """Refuse a task that could listen where the service does (`place.control`; empty: nowhere). Raises UsageError.

    What `exeat run` says to who listens there is its environment, and where it is.
    """
    places = list(writable)
    for step in trail(path) if path else ():
        if (place := _holding(places, step.directory)) is not None:
            raise UsageError(
                f"the service's socket `{path}` is reached through `{place}`, which the task may write: it could "
                f"listen there itself; name another place with {VARIABLE}"
            )


def covered(paths: Iterable[str], writable: Collection[str]) -> dict[str, What]:
    """Return what a sandbox that is made now covers: every file and directory on these paths that a task may write.

    Each is held open for as long as this process lives: else its inode's number could be given to the file that takes
    its place, and the two would look the same. What was replaced already is left out, and so counts as uncovered.
    """
    found: dict[str, What] = {}
    for path in paths:
        for step in trail(path):
            within = _holding(writable, step.directory) is not None
            if within and step.what is not None and _hold(step.path, step.what):
                found[step.path] = step.what
    return found


def _holding(writable: Collection[str], directory: str) -> str | None:
    return next((place for place in writable if contains(place, directory)), None)


def _hold(path: str, what: What) -> bool:
    """Hold a file or directory open, if it is still what it was."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != (what.device, what.inode):
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True


def uncovered(paths: Iterable[str], writable: Collection[str], covers: Mapping[str, What]) -> tuple[str, ...]:
    """Return what a task may write by now although it was covered, or was never covered; outermost first.

    A cover lies on what was there when it was made. Where something else stands now, nothing is covered any more, nor
    is anything below.
    """
    lost: dict[str, None] = {}
    for path in paths:
        for step in trail(path):
            if step.what is None or _holding(writable, step.directory) is None:
                continue
            before = covers.get(step.path)
            below = any(contains(other, step.path) for other in lost)
            if below or before is None or not before.is_same(step.what):
                lost[step.path] = None
    return tuple(sorted(lost))
