"""The cgroups and rlimits that keep one task within its limits, by the best means that this machine has for each.

Decided before anything of the task exists. A limit that somebody said and that can't be had here refuses the start; one
that is only a default gives way to the next best means.

The process that made a group holds a lock on its directory (flock(2)) for as long as it lives. A group without a lock
is left over from a run that was killed; the next run removes it, or the service that runs are forked from, so that not
each of many looks through the groups of all others. Unlike a process id in its name, a lock can't be mistaken for
another process's, and is seen from other pid namespaces.

In version 2 the task's processes are in a group inside the one that is made. The outer group hands its controllers
down, which keeps them: a controller can't be taken from a group while a group below it uses it (cgroups(7)), so no
service manager that tidies up its slices can lift the limits.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from enforcer.limits.cgroup_places import (
    CONTROLLERS,
    V2,
    Ceiling,
    Place,
    give,
    hierarchies,
    numbers,
    places,
    put,
    whole,
    words,
)
from enforcer.limits.resource_limits import Limits, Rlimit, in_bytes, in_seconds, needed
from enforcer.system.errors import HostError

# No name that a service manager gives: those end in `.service`, `.scope` or `.slice`.
_PREFIX, _ASIDE = "exeat-task-", "exeat-runner-"
_NAME = _PREFIX + "[0-9a-f]+-[0-9a-f]+-[0-9]+"
_INNER = "task"
_TRIES = 16
_PATIENCE, _PAUSE = 2.0, 0.005  # seconds: killed processes take a moment to be gone
_MICRO, _NANO = 1e-6, 1e-9
_BATCH = 1 << 20  # bytes, more than what a kernel charges a group ahead for
_looked_after: Final[set[str]] = set()  # where a process that we were forked from sweeps


class Counts(NamedTuple):
    """What the kernel says a group has come up against so far."""

    killed: int = 0  # processes, for want of memory
    full: int = 0  # above 0: its own memory has been all in use
    refused: int = 0  # processes and threads that could not be made
    held_back: float = 0.0  # seconds without a processor that its quota had no more of


class Group(NamedTuple):
    """A group that exists. `path` is what is locked and taken away, `inner` where processes and limits are."""

    place: Place
    path: str
    lock: int

    @property
    def inner(self) -> str:
        """Return the directory of the group that holds the processes."""
        return f"{self.path}/{_INNER}" if self.place.version == V2 else self.path

    def limit(self, values: Mapping[str, str], optional: Mapping[str, str]) -> None:
        """Write files of limits; the optional ones only where the kernel has them. Raises OSError."""
        for name, value in values.items():
            put(f"{self.inner}/{name}", value)
        for name, value in optional.items():
            with contextlib.suppress(OSError):
                put(f"{self.inner}/{name}", value)

    def admit(self, pid: int) -> None:
        """Move a process in; what it forks from then on is in it too. Raises OSError."""
        put(f"{self.inner}/cgroup.procs", str(pid))

    def counts(self) -> Counts:
        """Read what it has come up against, and no file but those: they are read every few seconds."""
        has = self.place.controllers
        cpu = numbers(f"{self.inner}/cpu.stat") if "cpu" in has else {}
        refused = numbers(f"{self.inner}/pids.events").get("max", 0) if "pids" in has else 0
        if self.place.version == V2:
            memory = numbers(f"{self.inner}/memory.events") if "memory" in has else {}
            held = cpu.get("throttled_usec", 0) * _MICRO
            return Counts(memory.get("oom_kill", 0), memory.get("max", 0), refused, held)
        killed = numbers(f"{self.inner}/memory.oom_control").get("oom_kill", 0) if "memory" in has else 0
        return Counts(killed, int(killed > 0 and self._is_full()), refused, cpu.get("throttled_time", 0) * _NANO)

    def _is_full(self) -> bool:
        """Whether its own memory has been all in use: not by `memory.failcnt`, newer kernels count there for root's."""
        most, limit = (whole(f"{self.inner}/memory.{name}_in_bytes") for name in ("max_usage", "limit"))
        return most is not None and limit is not None and most + _BATCH >= limit

    def kill(self) -> None:
        """Kill whatever is in it, where the kernel can (cgroup.kill, Linux 5.14)."""
        _kill(self.path)

    def remove(self) -> None:
        """Take it away once its processes are gone. What can't go in time is left to the next run. Idempotent."""
        deadline = time.monotonic() + _PATIENCE
        while not _removed(self.path) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        with contextlib.suppress(OSError):
            os.close(self.lock)


def make(place: Place) -> Group:
    """Make a group there, after taking away what dead runs have left. Raises OSError."""
    if place.aside:
        _step_aside(place)
    if place.path not in _looked_after:
        sweep(place.path)
    if place.version == V2:
        give(place.path, place.controllers)
    group = _locked(place)
    try:
        if place.version == V2:
            give(group.path, place.controllers)
            os.mkdir(group.inner, 0o755)
    except OSError:
        group.remove()
        raise
    return group


def look_after(directories: Iterable[str]) -> None:
    """Have processes that are forked from this one leave it to this one to `sweep` there."""
    _looked_after.update(directories)


def sweep(directory: str) -> int:
    """Take away the groups of runs that are dead: those that nobody has locked. Returns how many have to stay yet."""
    left = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if name.startswith(_PREFIX) and re.fullmatch(_NAME, name):
                    left += not _swept(f"{directory}/{name}")
                elif name.startswith(_ASIDE):
                    os.rmdir(f"{directory}/{name}")  # one with a process in it stays (EBUSY)
    return left


def _swept(path: str) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _kill(path)
        return _removed(path)
    finally:
        os.close(lock)


def _locked(place: Place) -> Group:
    """Make a directory and lock it. Somebody who sweeps may come between: then another one."""
    for number in range(_TRIES):
        path = f"{place.path}/{_PREFIX}{os.getpid():x}-{time.time_ns():x}-{number}"
        os.mkdir(path, 0o755)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(lock).st_ino:
                return Group(place, path, lock)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(lock)
    raise OSError(errno.EAGAIN, f"no group could be kept in {place.path}: others remove it")


def _step_aside(place: Place) -> None:
    path = f"{place.path}/{_ASIDE}{os.getpid():x}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
    for _ in range(_TRIES):  # some may fork meanwhile
        for pid in words(f"{place.path}/cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                put(f"{path}/cgroup.procs", pid)


def _kill(path: str) -> None:
    with contextlib.suppress(OSError):
        put(f"{path}/cgroup.kill", "1")


def _removed(path: str) -> bool:
    for each in (f"{path}/{_INNER}", path):
        try:
            os.rmdir(each)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


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
    fence = ResourceLimits(limits, tuple(made), _rlimits(limits, means), {**_without(limits), **means})
    if limits.cpu is not None and fence.means["cpu"] is Means.NONE:
        fence.remove()
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


def _lower[T: (int, float)](one: T | None, other: T | None) -> T | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _within(limits: Limits, ceiling: Ceiling) -> Limits:
    return limits._replace(
        memory=_lower(limits.memory, ceiling.memory),
        cpu=_lower(limits.cpu, ceiling.cpu),
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
