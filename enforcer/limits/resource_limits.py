"""Resource limits of a task from rules and defaults. The reason for each default: docs/explanation/limits.md.

The defaults only keep a task that takes all it can get from taking the host down; one that works doesn't notice them.
`build` finds the best means that this machine has for each limit, before anything of the task exists. One that somebody
said and that can't be had here refuses the start; one that is only a default gives way to the next best means.

What getrlimit(2) can keep without any cgroup, set in the task itself just before it is executed. Nothing raises it
again: that takes CAP_SYS_RESOURCE on the host.

- open files: by process; there is no other means.
- processes: counted for one kernel uid *in one user namespace* since Linux 5.14, and a task has a user namespace of its
  own; before, all that its uid runs counts along.
- memory: RLIMIT_DATA, what a process has that is private and writable, is nearer to what it uses than RLIMIT_AS, since
  languages reserve terabytes that they never touch. It bounds each process alone, not their sum, nor what they share.

What the kernel counts for each user, in whatever sandbox it is, a task may have a part of. Inotify's instances and
watches, and queued signals with the timers that reserve one each, are counted in the task's own user namespace, and
with all that its maker has (user_namespaces(7), kernel/ucount.c). Without a bound of its own one task has them all, and
its user's other programs, root's too, have none. Each bound is one for all of a sandbox's processes together, though
one is set as an rlimit: since Linux 5.14 that counts so.

Descriptors that are sent and not received yet (unix(7), ETOOMANYREFS) are counted for the user alone, and each sender
is held to its own limit of open files: so a task's is a quarter lower than ours, who have to send some at each start.
"""

import contextlib
import os
import resource
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Final, NamedTuple

from enforcer.limits import cgroups
from enforcer.limits.cgroups import (
    CONTROLLERS,
    V2,
    Ceiling,
    Counts,
    Group,
    Place,
    hierarchies,
    make,
    places,
)
from enforcer.system.errors import HostError
from rules.sandbox import SandboxSettings

type Rlimit = tuple[int, int]  # which resource, and how much
type Bound = tuple[int, int, int]  # which resource, and at most how much: soft, hard


def needed(*, files: int | None, processes: int | None, memory: int | None) -> tuple[Rlimit, ...]:
    """Return those to set; None: not by this means."""
    wanted = (
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_DATA, memory),
    )
    return tuple((which, value) for which, value in wanted if value is not None)


def least(one: int, other: int) -> int:
    """Return the lower of two limits."""
    if resource.RLIM_INFINITY in (one, other):
        return one if other == resource.RLIM_INFINITY else other
    return min(one, other)


PROCESSES = 4096
TIMED_OUT = 124  # the exit status of a task whose time was up, as timeout(1) has it
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")  # IEC 80000-13
_MEMORY_SHARE, _DISK_SHARE = 3 / 4, 1 / 2
_PAGE = 4096  # bytes; a file that holds anything takes one
_OF_OURS = 64  # files: the directories that a view has before a task makes any


class Limits(NamedTuple):
    """Of one task. None: not limited. `said` names those that a rule file or an option says."""

    memory: int | None = None  # bytes
    cpu: float | None = None  # cores
    processes: int = PROCESSES  # and threads
    files: int | None = None  # open at a time, a process
    disk: int = 0  # bytes in all that is writable and in memory
    timeout: float | None = None  # seconds
    said: frozenset[str] = frozenset()


def limits_of(box: SandboxSettings, host_memory: int | None = None) -> Limits:
    """Return what a task in this box may take. `host_memory` (bytes) is this machine's, unless a test says another."""
    memory = _memory_of_host() if host_memory is None else host_memory
    said = {name: value for name in Limits._fields if (value := getattr(box, name, None)) is not None}
    usual = {"memory": int(memory * _MEMORY_SHARE), "disk": int(memory * _DISK_SHARE)}
    return Limits(**{**usual, **said}, said=frozenset(said))


def files_in(disk: int) -> int:
    """Return how many files go with so many bytes of `disk`: empty ones cost what no size counts."""
    return disk // _PAGE + _OF_OURS


def _memory_of_host() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_bytes(count: int) -> str:
    """Return an amount in the unit that suits it."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.4g} {_UNITS[unit]}"


def in_seconds(seconds: float) -> str:
    """Return a time in seconds."""
    return f"{seconds:g} s"


_USERS_SHARE: Final = 4
_OURS_OF_FILES: Final = 4  # of open files, the part that is ours alone
_LEAST_FILES: Final = 2 * 253  # and of those: a last message takes no look at how many go along (unix(7), SCM_MAX_FD)
# A user namespace's own, and the whole machine's, of which a container sees no other: below /proc/sys.
_INOTIFY: Final = (
    ("user/max_inotify_instances", "fs/inotify/max_user_instances"),
    ("user/max_inotify_watches", "fs/inotify/max_user_watches"),
)

_TERMINALS: Final = 16  # the part of the machine's terminals that a sandbox may have: many sandboxes run at once
_LEAST_TERMINALS: Final = 16


@cache
def terminals() -> int:
    """Return how many terminals a sandbox may have: a part of those that the kernel doesn't reserve for the host."""
    try:
        most = setting("kernel/pty/max") - setting("kernel/pty/reserve")
    except (OSError, ValueError):
        return _LEAST_TERMINALS
    return max(_LEAST_TERMINALS, most // _TERMINALS)


@cache
def of_namespace() -> tuple[tuple[str, int], ...]:
    """Return the settings of a sandbox's own user namespace: which, below /proc/sys, and how much."""
    found = []
    for own, machine in _INOTIFY:
        with contextlib.suppress(OSError, ValueError):
            found.append((own, max(1, min(setting(own), setting(machine)) // _USERS_SHARE)))
    return tuple(found)


def setting(name: str) -> int:
    """Read a setting below /proc/sys. Raises OSError, ValueError."""
    with open(f"/proc/sys/{name}", "rb", buffering=0) as file:
        return int(file.read(32))


def of_processes(*, among_others: bool) -> tuple[Bound, ...]:
    """Return the limits to set in a task, by what this process may have; `among_others` of its own user, if there are.

    One of open files is always there: what this process may have now, whatever it has meanwhile.
    """
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if among_others:
        most_files = max(most_files - max(most_files // _OURS_OF_FILES, _LEAST_FILES), most_files // 2)
    _, most = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    signals = (
        ()
        if most == resource.RLIM_INFINITY
        else ((resource.RLIMIT_SIGPENDING, most // _USERS_SHARE, most // _USERS_SHARE),)
    )
    return (resource.RLIMIT_NOFILE, min(files, most_files), most_files), *signals


# The sandbox's two processes of ours: they are in its groups, so that all it costs is counted.
_OURS = 2
_PERIOD = 100_000  # microseconds, the kernel's own (sched-bwc); a quota is at least 1000
_LEAST_QUOTA = 1000
_BUFFERS = 4  # the part of `memory` that socket buffers may have on top of it in version 1
_LEAST_BUFFERS = 16 << 20  # bytes

_AS_A_SCOPE = "run it as `systemd-run --user --scope -p Delegate=yes exeat run …`"
_DELEGATE_CPU = (
    "as root, put `[Service]` and `Delegate=cpu memory pids` into /etc/systemd/system/user@.service.d/delegate.conf, "
    "then log in anew"
)
_BOOT_V2 = "run exeat as root, or boot with `systemd.unified_cgroup_hierarchy=1`: version 1 can't be given to users"
_MOUNT = "make cgroups writable: in a container, mount /sys/fs/cgroup writable in a cgroup namespace of its own"


class Means(StrEnum):
    """How a limit is kept."""

    NONE = "nothing"
    RLIMIT = "rlimit"
    CGROUP1 = "cgroup v1"
    CGROUP2 = "cgroup v2"


class ResourceLimits(NamedTuple):
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


def build(limits: Limits) -> ResourceLimits:
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
    resource_limits = ResourceLimits(limits, tuple(made), _rlimits(limits, means), {**_without(limits), **means})
    if limits.cpu is not None and resource_limits.means["cpu"] is Means.NONE:
        resource_limits.remove()
        why = f" ({'; '.join(troubles)})" if troubles else ""
        raise HostError(f"`cpu` cannot be limited here: it takes a cgroup, and none can be made{why}", remedy("cpu"))
    return resource_limits


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


def _within(limits: Limits, ceiling: Ceiling) -> Limits:
    return limits._replace(
        memory=cgroups.least((limits.memory, ceiling.memory)),
        cpu=cgroups.least((limits.cpu, ceiling.cpu)),
        processes=cgroups.least((limits.processes, ceiling.processes)) or limits.processes,
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


def remedy(kind: str) -> str:
    """Say what would give a limit a cgroup here."""
    found = hierarchies()
    second = [each for each in found if each.version == V2]
    if not any(os.access(each.top, os.R_OK) for each in found) or (os.geteuid() == 0):
        return _MOUNT
    if not any(each.controllers & CONTROLLERS for each in second):
        return _BOOT_V2
    delegated = any(each.own.split("/user@")[0] != each.own for each in second)
    return _DELEGATE_CPU if kind == "cpu" and delegated else _AS_A_SCOPE
