"""One group of cgroups for one task: made, limited, entered, counted, killed and taken away again.

Whoever made a group holds a lock on its directory (flock(2)) for as long as it lives. A group that nobody has locked is
left over from a run that was killed; the next run takes it away, or the service that runs are forked from, so that not
each of many looks through the groups of all others. A lock, unlike a process id in its name, can't be
mistaken for another process's, and is seen from other pid namespaces.

In version 2 the task's processes are in a group inside the one that is made. That outer one hands its controllers down,
which keeps them: a controller can't be taken from a group while a group below it uses it (cgroups(7)), so no service
manager that tidies up its slices can lift the limits.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from enforcer.limits.files import numbers, put, whole, words
from enforcer.limits.hierarchies import V2
from enforcer.limits.places import Place, give

# No name that a service manager gives: those end in `.service`, `.scope` or `.slice`.
_PREFIX, _ASIDE = "exeat-task-", "exeat-runner-"
_OURS = _PREFIX + "[0-9a-f]+-[0-9a-f]+-[0-9]+"
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
                if name.startswith(_PREFIX) and re.fullmatch(_OURS, name):
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
