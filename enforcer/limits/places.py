"""Where in a hierarchy a group for a task can be made, and which controllers it can have there.

In version 1 that is below our own group. In version 2 a group with processes in it has no controllers to give to groups
below it ("no internal processes", cgroups(7)); so the group is made above, in the nearest one that may give what is
wanted and lets us write: a slice that was delegated to its user, a container's own root, or the host's as root. What is
left behind on the way up may have limits of its own; they are taken along, so that nothing is gained by it. A group in
which there is nobody but us, or that systemd has marked as delegated (a service or scope with `Delegate=yes`), needs no
way up: who is in it can step aside into a part of it.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

from enforcer.limits.files import get, put, whole, words
from enforcer.limits.hierarchies import V2, Hierarchy

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
