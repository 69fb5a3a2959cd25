"""Where a task's cgroup can be made: this process's place in each hierarchy, and the controllers to be had there.

Read anew for each task: another program (systemd, a container's engine) may move this process at any time (cgroups(7)).

In version 1 a group is made below our own. In version 2 a group with processes in it has no controllers to give to
groups below it ("no internal processes"). So the group is made in the nearest group above that may give what is wanted
and lets us write: a slice that was delegated to its user, a container's own root, or the host's as root. The limits of
the groups left behind on the way up are taken along, so that nothing is gained by it. Two kinds of group need no way
up, because their processes can step aside into a part of them: one with no process but ours, and one that systemd has
marked as delegated (a service or scope with `Delegate=yes`).
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


def put(path: str, text: str) -> None:
    """Write a file of the kernel's in one go. Raises OSError that names it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write `{text}` to {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)


def get(path: str) -> str:
    """Read one; nothing where there is none, or none for us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode("ascii", "replace")
    except OSError:
        return ""


def words(path: str) -> frozenset[str]:
    """Read one that is a list of words."""
    return frozenset(get(path).split())


def numbers(path: str) -> dict[str, int]:
    """Read one of lines like `oom_kill 3`; lines of another form are passed over."""
    found = {}
    for line in get(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def whole(path: str) -> int | None:
    """Read one that is a number; None for `max`, for -1, and where there is none."""
    text = get(path).strip()
    return int(text) if text.isdigit() else None


V2 = 2
_ESCAPE = r"\\([0-7]{3})"


class Hierarchy(NamedTuple):
    """A tree of groups. Paths are directories: where it is mounted, and the group that this process is in."""

    version: int
    controllers: frozenset[str]  # of version 2: those that could be had anywhere in it
    top: str
    own: str


def hierarchies() -> list[Hierarchy]:
    """Return those that this process can see itself in: none of a kernel without cgroups."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = file.read()
    except FileNotFoundError:
        return []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line for line in file if " - cgroup" in line]
    return list(placed(groups, mounts))


def placed(groups: str, mounts: list[str]) -> Iterator[Hierarchy]:
    """Find the directory of each group of /proc/self/cgroup among lines of mountinfo; once for each hierarchy."""
    parsed = [_mount(line) for line in mounts]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        names = frozenset(controllers.split(",")) - {""}
        for root, top, version, options in parsed:
            if version == V2 if not names else (version == 1 and names <= options):
                inside = _below(root, path)
                if inside is not None:
                    yield Hierarchy(version, names or _offered(top), top, top + inside)
                    break


def _mount(line: str) -> tuple[str, str, int, frozenset[str]]:
    """Root, mount point, version and options of one line of mountinfo (proc_pid_mountinfo(5))."""
    before, _, after = line.partition(" - ")
    fields, (kind, *rest) = before.split(), after.split()
    root, top = (_unescaped(field) for field in fields[3:5])
    return root, top.rstrip("/"), V2 if kind == "cgroup2" else 1, frozenset(rest[-1].split(","))


def _unescaped(field: str) -> str:
    return re.sub(_ESCAPE, lambda match: chr(int(match[1], 8)), field) if "\\" in field else field


def _below(root: str, path: str) -> str | None:
    """Return where `path` lies below a mount whose root is `root`; None: it shows another part of the tree."""
    if path.startswith("/.."):  # outside of our cgroup namespace
        return None
    if root == "/":
        return path.rstrip("/")
    return path.removeprefix(root) if path == root or path.startswith(root + "/") else None


def _offered(top: str) -> frozenset[str]:
    return words(f"{top}/cgroup.controllers")


CONTROLLERS = frozenset({"memory", "pids", "cpu"})


class Ceiling(NamedTuple):
    """What the groups that a task's isn't made in would have let it take. None: they don't say."""

    memory: int | None = None  # bytes
    processes: int | None = None
    cpu: float | None = None  # cores


NO_CEILING = Ceiling()


class Place(NamedTuple):
    """A directory that a group can be made in, and the controllers that it would have."""

    version: int
    path: str
    controllers: frozenset[str]
    ceiling: Ceiling = NO_CEILING
    aside: bool = False  # whether who is in it has to go into a group below it first


def places(found: list[Hierarchy], needed: frozenset[str] = CONTROLLERS) -> list[Place]:
    """Choose a place in each hierarchy that has something for us, version 2 first; a controller is only in one.

    `needed` are the controllers that are worth going further up for.
    """
    chosen: list[Place] = []
    for hierarchy in sorted(found, key=lambda hierarchy: -hierarchy.version):
        place = _in_v2(hierarchy, needed) if hierarchy.version == V2 else _in_v1(hierarchy)
        if place is not None:
            chosen.append(place)
    return chosen


def _in_v1(hierarchy: Hierarchy) -> Place | None:
    useful = hierarchy.controllers & CONTROLLERS
    return Place(1, hierarchy.own, useful) if useful and _may_make(hierarchy.own) else None


def _in_v2(hierarchy: Hierarchy, needed: frozenset[str]) -> Place | None:
    """Return the one with the most of them, of several the nearest. One without any can still be killed whole."""
    best: Place | None = None
    passed: list[str] = []
    for path in _upwards(hierarchy):
        if not _may_make(path):
            break  # nor may we move a process across it
        aside = path == hierarchy.own and not _is_root(path) and (_is_delegated(path) or _only_ours(path))
        given = words(f"{path}/cgroup.subtree_control") & CONTROLLERS
        useful = given | (words(f"{path}/cgroup.controllers") & needed if aside or _can_give(path) else frozenset())
        if best is None or len(useful & needed) > len(best.controllers & needed):
            best = Place(V2, path, useful, _ceiling(passed), aside)
        passed.append(path)
    return best


def _upwards(hierarchy: Hierarchy) -> list[str]:
    below = hierarchy.own[len(hierarchy.top) :].split("/")[1:]
    return ["/".join((hierarchy.top, *below[:depth])) for depth in range(len(below), -1, -1)]


def _may_make(path: str) -> bool:
    """Whether we may make a group there and move processes into it, which takes its own `cgroup.procs` (cgroups(7))."""
    return os.access(path, os.W_OK | os.X_OK) and os.access(f"{path}/cgroup.procs", os.W_OK)


def _can_give(path: str) -> bool:
    """Whether groups below `path` have controllers, or could be given those that it has."""
    given = words(f"{path}/cgroup.subtree_control")
    return bool(given) or _is_root(path) or not words(f"{path}/cgroup.procs")


def _is_delegated(path: str) -> bool:
    """Whether systemd leaves what is below to us (systemd.io/CGROUP_DELEGATION, from version 251 on)."""
    try:
        return os.getxattr(path, "user.delegate") == b"1"
    except OSError:
        return False


def _only_ours(path: str) -> bool:
    """Whether nobody is in a group but this process and its children."""
    found = map(int, words(f"{path}/cgroup.procs"))
    return all(pid == os.getpid() or _parent(pid) == os.getpid() for pid in found)


def _parent(pid: int) -> int:
    fields = get(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _is_root(path: str) -> bool:
    """Whether it is the root of the whole hierarchy, which may have processes and controllers (cgroups(7))."""
    return not os.path.exists(f"{path}/cgroup.type")


def give(path: str, controllers: frozenset[str]) -> None:
    """Let groups below `path` have these controllers. Raises OSError."""
    for name in sorted(controllers - words(f"{path}/cgroup.subtree_control")):
        put(f"{path}/cgroup.subtree_control", f"+{name}")


def _ceiling(passed: list[str]) -> Ceiling:
    return Ceiling(
        _least(whole(f"{path}/memory.max") for path in passed),
        _least(whole(f"{path}/pids.max") for path in passed),
        _least(_cores(get(f"{path}/cpu.max")) for path in passed),
    )


def _cores(text: str) -> float | None:
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _least[T: (int, float)](values: Iterable[T | None]) -> T | None:
    return min((value for value in values if value is not None), default=None)
