"""Resource limits of a task: values from rules and defaults, and the means that enforce them (cgroup, rlimit, sysctl).

`make_resource_limits` chooses the best means for each limit before anything of the task exists. A limit that a rule or
an option sets, and that this machine can't enforce, fails the start; a default falls back to the next best means. The
defaults only protect the host from a task that takes all it can get: docs/explanation/limits.md gives the reasons.

Rlimits (getrlimit(2)) are set in the task just before its program is executed. Raising one takes CAP_SYS_RESOURCE on
the host, which no task has.

- open files: per process; there is no other means.
- processes: counted for a kernel uid in one user namespace since Linux 5.14, and a task has its own; before that, with
  everything else of its uid.
- memory: RLIMIT_DATA, the private writable memory of a process, is closer to its use than RLIMIT_AS: language runtimes
  reserve terabytes that they never touch. It bounds each process alone, neither their sum nor shared memory.

Some resources the kernel counts for each user, across sandboxes. Inotify instances and watches, queued signals and
timers (one queued signal each) are counted in the task's user namespace and in every namespace above it
(user_namespaces(7), kernel/ucount.c). So a task gets a share of them: without one it could take all that its user has,
or root. The share is for all processes of a sandbox together, also where an rlimit sets it (since Linux 5.14).

Descriptors in flight (unix(7), ETOOMANYREFS) are counted for the user alone, against the sender's limit of open files.
So a task's limit is a quarter lower than ours: the runner sends descriptors at each start.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from typing import Final, NamedTuple

from enforcer.limits import cgroup_tree
from enforcer.limits.cgroup_tree import (
    CONTROLLERS,
    V2,
    CgroupLocation,
    Counts,
    Group,
    ParentLimits,
    choose_locations,
    hierarchies,
    make_group,
)
from enforcer.system.errors import HostError
from rules.sandbox import SandboxSettings

type Rlimit = tuple[int, int]  # which resource, and how much
type Bound = tuple[int, int, int]  # which resource, and at most how much: soft, hard


def rlimits_for(*, files: int | None, processes: int | None, memory: int | None) -> tuple[Rlimit, ...]:
    """Return the rlimits to set; None leaves one out."""
    values = (
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_DATA, memory),
    )
    return tuple((which, value) for which, value in values if value is not None)


def lower_rlimit(first: int, second: int) -> int:
    """Return the lower of two rlimits; RLIM_INFINITY is the highest."""
    if resource.RLIM_INFINITY in (first, second):
        return first if second == resource.RLIM_INFINITY else second
    return min(first, second)


PROCESSES = 4096
TIMED_OUT = 124  # the exit status of a task whose time was up, as timeout(1) has it
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")  # IEC 80000-13
_MEMORY_SHARE, _DISK_SHARE = 3 / 4, 1 / 2
_PAGE = 4096  # bytes; a file that holds anything takes one
_RESERVED_FILES = 64  # files: the directories of a new sandbox


class Limits(NamedTuple):
    """Limits of one task; None: unlimited. `said`: the names of those that a rule file or an option sets."""

    memory: int | None = None  # bytes
    cpu: float | None = None  # cores
    processes: int = PROCESSES  # and threads
    files: int | None = None  # open at a time, a process
    disk: int = 0  # bytes in all that is writable and in memory
    timeout: float | None = None  # seconds
    said: frozenset[str] = frozenset()


def limits_of(settings: SandboxSettings, host_memory: int | None = None) -> Limits:
    """Return the limits of a task under these sandbox settings. `host_memory`: bytes, by default this machine's."""
    memory = _memory_of_host() if host_memory is None else host_memory
    explicit = {name: value for name in Limits._fields if (value := getattr(settings, name, None)) is not None}
    defaults = {"memory": int(memory * _MEMORY_SHARE), "disk": int(memory * _DISK_SHARE)}
    return Limits(**{**defaults, **explicit}, said=frozenset(explicit))


def max_files(disk: int) -> int:
    """Return the most files for a quota of `disk` bytes: empty files take memory that no size counts."""
    return disk // _PAGE + _RESERVED_FILES


def _memory_of_host() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def format_bytes(count: int) -> str:
    """Format bytes with the unit that fits: `1.5 GiB`."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.4g} {_UNITS[unit]}"


def format_seconds(seconds: float) -> str:
    """Format seconds: `90 s`."""
    return f"{seconds:g} s"


_USERS_SHARE: Final = 4
_EXEAT_FILE_SHARE: Final = 4  # of the open files: a fourth is for Exeat alone
_MIN_EXEAT_FILES: Final = (
    2 * 253
)  # of those: the kernel checks the limit before it adds a message's descriptors (unix(7), SCM_MAX_FD)
# Below /proc/sys: the setting of a user namespace, and the machine's, the only one that a container sees.
_INOTIFY: Final = (
    ("user/max_inotify_instances", "fs/inotify/max_user_instances"),
    ("user/max_inotify_watches", "fs/inotify/max_user_watches"),
)

_TERMINAL_SHARE: Final = 16  # a sandbox may have a sixteenth of the machine's terminals
_MIN_TERMINALS: Final = 16


@cache
def max_terminals() -> int:
    """Return how many pseudo-terminals a sandbox may have: a share of those not reserved for the host."""
    try:
        available = read_sysctl("kernel/pty/max") - read_sysctl("kernel/pty/reserve")
    except (OSError, ValueError):
        return _MIN_TERMINALS
    return max(_MIN_TERMINALS, available // _TERMINAL_SHARE)


@cache
def namespace_sysctls() -> tuple[tuple[str, int], ...]:
    """Return the sysctls of a sandbox's user namespace: name below /proc/sys, and value."""
    sysctls = []
    for name, machine_name in _INOTIFY:
        with contextlib.suppress(OSError, ValueError):
            sysctls.append((name, max(1, min(read_sysctl(name), read_sysctl(machine_name)) // _USERS_SHARE)))
    return tuple(sysctls)


def read_sysctl(name: str) -> int:
    """Read a sysctl, named as below /proc/sys. Raises OSError, ValueError."""
    with open(f"/proc/sys/{name}", "rb", buffering=0) as file:
        return int(file.read(32))


def task_rlimits(*, shares_uid: bool) -> tuple[Bound, ...]:
    """Return the rlimits of a task, derived from this process's own.

    `shares_uid`: the task has the uid of its user's other programs, so it gets less. RLIMIT_NOFILE is always
    included.
    """
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if shares_uid:
        most_files = max(most_files - max(most_files // _EXEAT_FILE_SHARE, _MIN_EXEAT_FILES), most_files // 2)
    _, max_signals = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    signals = (
        ()
        if max_signals == resource.RLIM_INFINITY
        else ((resource.RLIMIT_SIGPENDING, max_signals // _USERS_SHARE, max_signals // _USERS_SHARE),)
    )
    return (resource.RLIMIT_NOFILE, min(files, most_files), most_files), *signals


# Exeat's two processes in every sandbox: they are in its cgroups, so that all its cost is counted.
_EXEAT_PROCESSES = 2
_PERIOD = 100_000  # microseconds, the kernel's own (sched-bwc); a quota is at least 1000
_MIN_QUOTA = 1000
_BUFFER_SHARE = 4  # in version 1, socket buffers may take a fourth of `memory` on top of it
_MIN_BUFFERS = 16 << 20  # bytes

_RUN_AS_SCOPE = "run it as `systemd-run --user --scope -p Delegate=yes exeat run …`"
_DELEGATE_CPU = (
    "as root, put `[Service]` and `Delegate=cpu memory pids` into /etc/systemd/system/user@.service.d/delegate.conf, "
    "then log in anew"
)
_BOOT_V2 = "run exeat as root, or boot with `systemd.unified_cgroup_hierarchy=1`: version 1 can't be given to users"
_MOUNT = "make cgroups writable: in a container, mount /sys/fs/cgroup writable in a cgroup namespace of its own"


class Means(StrEnum):
    """Means that enforce a limit."""

    NONE = "nothing"
    RLIMIT = "rlimit"
    CGROUP1 = "cgroup v1"
    CGROUP2 = "cgroup v2"


class ResourceLimits(NamedTuple):
    """The cgroups and rlimits of a task. `limits`: the effective ones, with those of the cgroups above."""

    limits: Limits
    groups: tuple[Group, ...]
    rlimits: tuple[Rlimit, ...]
    means: Mapping[str, Means]  # of memory, processes and cpu

    def admit(self, pid: int) -> None:
        """Move a process, and so its future children, into the cgroups.

        Raises HostError; then nothing may run in it.
        """
        for group in self.groups:
            try:
                group.admit(pid)
            except OSError as error:
                raise HostError(
                    f"the task's process cannot be moved into its cgroup: {error.strerror}",
                    "run `exeat doctor` to see why",
                ) from error

    def admit_supervisor(self, pid: int) -> None:
        """Move the supervisor into the cgroups, and raise the process limit by one for it. Raises HostError."""
        self.admit(pid)
        for group in self.groups:
            if "pids" in group.place.controllers:
                with contextlib.suppress(OSError):  # the task may have one process less then
                    group.limit({"pids.max": str(self.limits.processes + _EXEAT_PROCESSES + 1)}, {})

    def counts(self) -> Counts:
        """Return the kernel's counts of exceeded limits so far."""
        total = Counts()
        for group in self.groups:
            counts = group.counts()
            total = Counts(*(getattr(total, name) + getattr(counts, name) for name in Counts._fields))
        return total

    def kill(self) -> None:
        """Kill every process in the cgroups, where the kernel supports it."""
        for group in self.groups:
            group.kill()

    def remove(self) -> None:
        """Remove the cgroups. Idempotent."""
        for group in self.groups:
            group.remove()

    def describe(self) -> str:
        """Describe all limits in one line: name, value and means of each."""
        limits = self.limits
        parts = [f"processes {limits.processes} by {self.means['processes']}"]
        if limits.memory is not None and self.means["memory"] is not Means.NONE:
            parts.append(f"memory {format_bytes(limits.memory)} by {self.means['memory']}")
        if limits.cpu is not None:
            parts.append(f"cpu {limits.cpu:g} by {self.means['cpu']}")
        if limits.files is not None:
            parts.append(f"files {limits.files} by {Means.RLIMIT}")
        if limits.timeout is not None:
            parts.append(f"timeout {format_seconds(limits.timeout)}")
        return ", ".join((*parts, f"disk {format_bytes(limits.disk)} in memory"))


def make_resource_limits(limits: Limits) -> ResourceLimits:
    """Make the cgroups of a task; the caller calls `remove`. Raises HostError if `cpu` can't be enforced."""
    groups: list[Group] = []
    means: dict[str, Means] = {}
    troubles: list[str] = []
    for location in choose_locations(hierarchies(), CONTROLLERS if limits.cpu is not None else CONTROLLERS - {"cpu"}):
        try:
            group, limits = _make_limited_group(location, limits)
        except OSError as error:
            troubles.append(error.strerror or str(error))
            continue
        groups.append(group)
        means.update(dict.fromkeys(_limit_names(location), Means.CGROUP2 if location.version == V2 else Means.CGROUP1))
    resource_limits = ResourceLimits(
        limits, tuple(groups), _rlimits(limits, means), {**_means_without_cgroups(limits), **means}
    )
    if limits.cpu is not None and resource_limits.means["cpu"] is Means.NONE:
        resource_limits.remove()
        reasons = f" ({'; '.join(troubles)})" if troubles else ""
        raise HostError(
            f"`cpu` cannot be limited on this machine: no cgroup with the cpu controller can be made{reasons}",
            remedy("cpu"),
        )
    return resource_limits


def _make_limited_group(location: CgroupLocation, limits: Limits) -> tuple[Group, Limits]:
    lowered = _lower_to_parent(limits, location.ceiling)
    group = make_group(location)
    try:
        group.limit(*_cgroup_files(location, lowered))
    except OSError:
        group.remove()
        raise
    return group, lowered


def _limit_names(location: CgroupLocation) -> list[str]:
    names = {"memory": "memory", "pids": "processes", "cpu": "cpu"}
    return [names[controller] for controller in location.controllers]


def _lower_to_parent(limits: Limits, ceiling: ParentLimits) -> Limits:
    return limits._replace(
        memory=cgroup_tree.lowest((limits.memory, ceiling.memory)),
        cpu=cgroup_tree.lowest((limits.cpu, ceiling.cpu)),
        processes=limits.processes if ceiling.processes is None else min(limits.processes, ceiling.processes),
    )


def _cgroup_files(location: CgroupLocation, limits: Limits) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of a cgroup's files, and those of files that not every kernel has."""
    required: dict[str, str] = {}
    optional: dict[str, str] = {}
    is_v2 = location.version == V2
    if "memory" in location.controllers and limits.memory is not None:
        required["memory.max" if is_v2 else "memory.limit_in_bytes"] = str(limits.memory)
        # No swap on top: the limit would depend on the host's swap.
        optional |= {"memory.swap.max": "0"} if is_v2 else {"memory.memsw.limit_in_bytes": str(limits.memory)}
        if not is_v2:  # version 1 counts socket buffers apart from memory, and only once they have a limit
            optional["memory.kmem.tcp.limit_in_bytes"] = str(max(_MIN_BUFFERS, limits.memory // _BUFFER_SHARE))
    if "pids" in location.controllers:
        required["pids.max"] = str(limits.processes + _EXEAT_PROCESSES)
    if "cpu" in location.controllers and limits.cpu is not None:
        quota = max(_MIN_QUOTA, round(limits.cpu * _PERIOD))
        required |= (
            {"cpu.max": f"{quota} {_PERIOD}"}
            if is_v2
            else {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(quota)}
        )
    return required, optional


def _means_without_cgroups(limits: Limits) -> dict[str, Means]:
    """Return the means on a machine without cgroups."""
    memory = Means.RLIMIT if "memory" in limits.said else Means.NONE
    return {"memory": memory, "processes": Means.RLIMIT, "cpu": Means.NONE}


def _rlimits(limits: Limits, means: Mapping[str, Means]) -> tuple[Rlimit, ...]:
    return rlimits_for(
        files=limits.files,
        processes=None if "processes" in means else limits.processes,
        memory=limits.memory if "memory" in limits.said and "memory" not in means else None,
    )


def remedy(kind: str) -> str:
    """Return how to get a cgroup for a limit on this machine."""
    all_hierarchies = hierarchies()
    v2 = [hierarchy for hierarchy in all_hierarchies if hierarchy.version == V2]
    if not any(os.access(hierarchy.top, os.R_OK) for hierarchy in all_hierarchies) or (os.geteuid() == 0):
        return _MOUNT
    if not any(hierarchy.controllers & CONTROLLERS for hierarchy in v2):
        return _BOOT_V2
    is_user_service = any(hierarchy.own.split("/user@")[0] != hierarchy.own for hierarchy in v2)
    return _DELEGATE_CPU if kind == "cpu" and is_user_service else _RUN_AS_SCOPE


_COUNTS_BY_NAMESPACE = (5, 14)  # from this Linux on, RLIMIT_NPROC is counted in the task's own user namespace
_WEAK_MEANS = {
    "memory": "by rlimit, for each process alone: neither their sum nor shared memory is limited",
    "processes": "by rlimit, together with all other processes of this user on this kernel",
    "cpu": "not at all: rules with a `cpu` limit start no task here",
}


def try_limit(kind: str) -> str:
    """Return the means that enforce a limit on this machine. Raises HostError if it is weaker than the limit."""
    resource_limits = make_resource_limits(Limits(memory=1 << 30, said=frozenset({"memory"})))
    resource_limits.remove()
    means = resource_limits.means[kind]
    if means in (Means.CGROUP1, Means.CGROUP2):
        return f"by {means}"
    if kind == "processes" and _kernel() >= _COUNTS_BY_NAMESPACE:
        return "by rlimit, in the task's own user namespace"
    raise HostError(_WEAK_MEANS[kind], remedy(kind))


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


_OPEN_FILE: Final = 256  # bytes of kernel memory of an open file: `struct file`
_FILTER_BYTES: Final = 512 << 10  # bytes of compiled filters of one process at most
_SUGGESTED_PROCESSES: Final = 500  # processes, the suggested limit

type Read = Callable[[str], int]  # reads a sysctl by its name below /proc/sys; raises OSError, ValueError


def unbounded(read: Read | None = None) -> list[tuple[str, str]]:
    """Return resources that one task can use up on this machine, and how to bound each."""
    read, resources = read or read_sysctl, []
    memory = limits_of(SandboxSettings()).memory or 0
    if _is_below(read, "fs/file-max", memory // _OPEN_FILE):
        resources.append(("open files (fs.file-max)", "as root, `sysctl -w fs.file-max=9223372036854775807`"))
    compiled = not _is_below(read, "net/core/bpf_jit_enable", 1)
    if compiled and _is_below(read, "net/core/bpf_jit_limit", PROCESSES * _FILTER_BYTES):
        resources.append(
            (
                "system call filters (net.core.bpf_jit_limit)",
                f"write `limits: {{processes: {_SUGGESTED_PROCESSES}}}` into the rules",
            )
        )
    if not any("memory" in hierarchy.controllers for hierarchy in hierarchies()):
        resources.append(("socket buffers", "have a memory cgroup: see `memory`"))
    return resources


def _is_below(read: Read, name: str, enough: int) -> bool:
    """Whether a sysctl is lower than `enough`; False if it doesn't exist."""
    try:
        return read(name) < enough
    except (OSError, ValueError):
        return False
