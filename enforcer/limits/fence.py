"""The fence around one task: every limit, by the best means that this machine has for it.

Decided before anything of the task exists. A limit that somebody said and that can't be had here at all refuses the
start; one that is only a default gives way to the next best means.
"""

import contextlib
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from enforcer.errors import HostError
from enforcer.limits.group import Counts, Group, make
from enforcer.limits.hierarchies import V2, hierarchies
from enforcer.limits.places import CONTROLLERS, Ceiling, Place, places
from enforcer.limits.rlimits import Rlimit, needed
from enforcer.limits.wanted import Limits, in_bytes, in_seconds

# The sandbox's two processes of ours: they are in its groups, so that all it costs is counted.
_OURS = 2
_PERIOD = 100_000  # microseconds, the kernel's own (sched-bwc); a quota is at least 1000
_LEAST_QUOTA = 1000
_BUFFERS = 4  # the part of `memory` that socket buffers may have on top of it in version 1
_LEAST_BUFFERS = 16 << 20  # bytes


class Means(StrEnum):
    """How a limit is kept."""

    NONE = "nothing"
    RLIMIT = "rlimit"
    CGROUP1 = "cgroup v1"
    CGROUP2 = "cgroup v2"


class Fence(NamedTuple):
    """What keeps a task within its limits. `limits` are those that hold, with what groups above the task's say."""

    limits: Limits
    groups: tuple[Group, ...]
    rlimits: tuple[Rlimit, ...]
    means: Mapping[str, Means]  # of memory, processes and cpu

    def admit(self, pid: int) -> None:
        """Put a process in, and with it all that it will ever fork. Raises HostError: then nothing may run in it."""
        for group in self.groups:
            try:
                group.admit(pid)
            except OSError as error:
                raise HostError(
                    f"a task cannot be put into its cgroup: {error.strerror}", "see `exeat doctor`"
                ) from error

    def admit_more(self, pid: int) -> None:
        """Put another process of ours in, beside those that every sandbox has. Raises HostError."""
        self.admit(pid)
        for group in self.groups:
            if "pids" in group.place.controllers:
                with contextlib.suppress(OSError):  # then the task may have one less
                    group.limit({"pids.max": str(self.limits.processes + _OURS + 1)}, {})

    def counts(self) -> Counts:
        """Return what the task has come up against so far."""
        total = Counts()
        for group in self.groups:
            more = group.counts()
            total = Counts(*(getattr(total, name) + getattr(more, name) for name in Counts._fields))
        return total

    def kill(self) -> None:
        """Kill every process in it, where there is a group that can."""
        for group in self.groups:
            group.kill()

    def remove(self) -> None:
        """Take its groups away. Idempotent."""
        for group in self.groups:
            group.remove()

    def describe(self) -> str:
        """Say in a line what is limited, to how much, and by what means."""
        limits = self.limits
        said = [f"processes {limits.processes} by {self.means['processes']}"]
        if limits.memory is not None and self.means["memory"] is not Means.NONE:
            said.append(f"memory {in_bytes(limits.memory)} by {self.means['memory']}")
        if limits.cpu is not None:
            said.append(f"cpu {limits.cpu:g} by {self.means['cpu']}")
        if limits.files is not None:
            said.append(f"files {limits.files} by {Means.RLIMIT}")
        if limits.timeout is not None:
            said.append(f"timeout {in_seconds(limits.timeout)}")
        return ", ".join((*said, f"disk {in_bytes(limits.disk)} in memory"))


def build(limits: Limits) -> Fence:
    """Make the groups. The caller sees that they are removed. Raises HostError when what was said can't be kept."""
    made: list[Group] = []
    means: dict[str, Means] = {}
    troubles: list[str] = []
    for place in places(hierarchies(), CONTROLLERS if limits.cpu is not None else CONTROLLERS - {"cpu"}):
        try:
            group, limits = _made(place, limits)
        except OSError as error:
            troubles.append(error.strerror or str(error))
            continue
        made.append(group)
        means.update(dict.fromkeys(_limited(place), Means.CGROUP2 if place.version == V2 else Means.CGROUP1))
    fence = Fence(limits, tuple(made), _rlimits(limits, means), {**_without(limits), **means})
    if limits.cpu is not None and fence.means["cpu"] is Means.NONE:
        fence.remove()
        from enforcer.limits.machine import remedy

        why = f" ({'; '.join(troubles)})" if troubles else ""
        raise HostError(f"`cpu` cannot be limited here: it takes a cgroup, and none can be made{why}", remedy("cpu"))
    return fence


def _made(place: Place, limits: Limits) -> tuple[Group, Limits]:
    lower = _within(limits, place.ceiling)
    group = make(place)
    try:
        group.limit(*_files(place, lower))
    except OSError:
        group.remove()
        raise
    return group, lower


def _limited(place: Place) -> list[str]:
    names = {"memory": "memory", "pids": "processes", "cpu": "cpu"}
    return [names[controller] for controller in place.controllers]


def _least[T: (int, float)](one: T | None, other: T | None) -> T | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _within(limits: Limits, ceiling: Ceiling) -> Limits:
    return limits._replace(
        memory=_least(limits.memory, ceiling.memory),
        cpu=_least(limits.cpu, ceiling.cpu),
        processes=min(limits.processes, limits.processes if ceiling.processes is None else ceiling.processes),
    )


def _files(place: Place, limits: Limits) -> tuple[dict[str, str], dict[str, str]]:
    """Return what to write into a group's files, and what only where the kernel has the file."""
    wanted: dict[str, str] = {}
    optional: dict[str, str] = {}
    second = place.version == V2
    if "memory" in place.controllers and limits.memory is not None:
        wanted["memory.max" if second else "memory.limit_in_bytes"] = str(limits.memory)
        # No swap on top: it would make `memory` a matter of how much swap the host has.
        optional |= {"memory.swap.max": "0"} if second else {"memory.memsw.limit_in_bytes": str(limits.memory)}
        if not second:  # which doesn't count socket buffers as memory, and counts them at all once it has a limit
            optional["memory.kmem.tcp.limit_in_bytes"] = str(max(_LEAST_BUFFERS, limits.memory // _BUFFERS))
    if "pids" in place.controllers:
        wanted["pids.max"] = str(limits.processes + _OURS)
    if "cpu" in place.controllers and limits.cpu is not None:
        quota = max(_LEAST_QUOTA, round(limits.cpu * _PERIOD))
        wanted |= (
            {"cpu.max": f"{quota} {_PERIOD}"}
            if second
            else {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(quota)}
        )
    return wanted, optional


def _without(limits: Limits) -> dict[str, Means]:
    """Return the means of a machine without cgroups."""
    memory = Means.RLIMIT if "memory" in limits.said else Means.NONE
    return {"memory": memory, "processes": Means.RLIMIT, "cpu": Means.NONE}


def _rlimits(limits: Limits, means: Mapping[str, Means]) -> tuple[Rlimit, ...]:
    return needed(
        files=limits.files,
        processes=None if "processes" in means else limits.processes,
        memory=limits.memory if "memory" in limits.said and "memory" not in means else None,
    )
