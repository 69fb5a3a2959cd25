"""Limit monitor of a running task: reports limits that it reaches, and ends it when its time is up.

The kernel enforces some limits without counting; those show only inside the sandbox. `SandboxProbe` checks every few
seconds, so a limit that was reached and left in between goes unnoticed. It reads the sandbox's own /proc, from the
runner.
"""

import contextlib
import errno
import math
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.limits.cgroups import Counts
from enforcer.limits.resource_limits import Limits, Means, ResourceLimits, format_bytes, format_seconds, max_files
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from enforcer.limits.disk_quota import DiskQuota

_NOTICED = 1.0  # seconds of throttling before it is reported
_ABORTS: Final = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS})
_SHELLS: Final = 128  # plus a signal number: the exit status of a shell whose program ended by that signal
_NAME = 64  # characters of a program's name


class LimitReached(NamedTuple):
    """A limit that the task reached, and the outcome."""

    reason: Reason
    detail: str
    outcome: Outcome = Outcome.BLOCKED


def limits_reached(before: Counts, now: Counts, limits: Limits) -> list[LimitReached]:
    """Return the limits that were reached between two counts."""
    found = []
    if killed := now.killed - before.killed:
        whose = f"it may have {format_bytes(limits.memory or 0)}" if now.full else "the host had none left for it"
        found.append(LimitReached(Reason.MEMORY_LIMIT, f"memory: {_some(killed, 'process', 'es')} killed, {whose}"))
    if refused := now.refused - before.refused:
        times = "once" if refused == 1 else f"{refused} times"
        said = f"processes: it could not start another {times}, it may have {limits.processes} at most"
        found.append(LimitReached(Reason.PROCESS_LIMIT, said))
    if limits.cpu is not None and (held := now.held_back - before.held_back) >= _NOTICED:
        said = f"cpu: its threads were held back for {held:.1f} s, it may use {limits.cpu:g} processors"
        found.append(LimitReached(Reason.CPU_LIMIT, said, Outcome.PASSED))
    return found


def memory_denied(status: int, limits: Limits) -> LimitReached | None:
    """Return that memory may be the reason for this wait status; None: the task ended otherwise.

    For an rlimit on memory: the kernel counts no denial, and a runtime aborts on one.
    """
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - _SHELLS
    if number not in _ABORTS:
        return None
    name, most = signal.Signals(number).name, format_bytes(limits.memory or 0)
    said = f"memory: the task ended by {name}, as programs do that are refused memory; each process may have {most}"
    return LimitReached(Reason.MEMORY_LIMIT, said)


def limit_detail(limit: str, found: object, limits: Limits) -> LimitReached:
    """Return that a task is at a limit, from what was found in its sandbox (`SandboxProbe.look`)."""
    if limit == "files":
        from proxy.telemetry.visible import visible  # the task chooses its programs' names

        name, count = found if isinstance(found, list) and len(found) == 2 else ("", 0)
        said = f"files: `{visible(str(name)[:_NAME])}` had {count} open, as many as it may at a time"
        return LimitReached(Reason.FILE_LIMIT, said)
    if limit == "processes":
        return LimitReached(Reason.PROCESS_LIMIT, f"processes: it had as many as it may, {limits.processes}")
    if found == "files":
        said = f"disk: no more files could be made in home, /tmp and the like, there may be {max_files(limits.disk)}"
    else:
        said = f"disk: no more could be written to home, /tmp and the like, it may be {format_bytes(limits.disk)}"
    return LimitReached(Reason.DISK_LIMIT, said)


def _some(count: int, what: str, plural: str) -> str:
    return f"{count} {what}{plural if count != 1 else ''} {'were' if count != 1 else 'was'}"


_DESCRIPTORS: Final = 1 << 16  # that one probe checks for files without a name
_BLOCK: Final = 512  # bytes, stat(2)
_OURS: Final = 1  # pid of init


class SandboxProbe:
    """Probes one sandbox, by descriptors of its quota tmpfs, its /proc and its root, which it takes over.

    `rlimits`: those of the task; `reviewed`: the directory of its changes, if it has one.
    """

    def __init__(self, room: int, proc: int, root: int, rlimits: Iterable[tuple[int, int]], reviewed: str) -> None:
        self._room = room
        self._proc = proc
        self._rlimits = tuple(rlimits)
        self._device: int | None = None
        try:
            if reviewed:
                self._device = os.stat(reviewed.lstrip("/"), dir_fd=root).st_dev
        finally:
            os.close(root)

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        for descriptor in {self._room, self._proc} - {-1}:
            os.close(descriptor)
        self._room = self._proc = -1

    def look(self) -> dict[str, object]:
        """Return the limits that the task is at.

        - `disk`: `bytes` or `files`, which the quota tmpfs has none left of.
        - `files`: a program, and how many files it has open.
        - `processes`: how many there are.
        - `nameless`: bytes in open files without a name, where its changes are.
        """
        found: dict[str, object] = {}
        with contextlib.suppress(OSError):
            if self._room >= 0 and (left := exhausted_resource(self._room)):
                found["disk"] = left
            for which, value in self._rlimits:
                if which == resource.RLIMIT_NOFILE and (most := _full_of_files(self._proc, value)):
                    found["files"] = most
                elif which == resource.RLIMIT_NPROC and (count := _processes(self._proc)) >= value:
                    found["processes"] = count
            if self._device is not None and (size := _nameless(self._proc, self._device)):
                found["nameless"] = size
        return found


def exhausted_resource(room: int) -> str:
    """Return what a tmpfs has none left of: `bytes` or `files`; empty if neither. Raises OSError."""
    status = os.fstatvfs(room)
    if not status.f_bavail:
        return "bytes"
    return "" if status.f_favail else "files"


def _full_of_files(proc: int, value: int) -> list[object] | None:
    """Find a process at its limit of open files. Before Linux 6.2 /proc has no count of them."""
    least = min(value, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # a lower limit of the task's own doesn't count
    for pid in _pids(proc):
        with contextlib.suppress(OSError, ValueError):
            count = os.stat(f"{pid}/fd", dir_fd=proc).st_size
            if count >= least and count >= _most_files(proc, pid):
                return [_read(proc, f"{pid}/comm").rstrip(b"\n").decode("utf-8", "backslashreplace"), count]
    return None


def _most_files(proc: int, pid: int) -> int:
    """Return the limit of open files of a process: proc_pid_limits(5)."""
    for line in _read(proc, f"{pid}/limits").splitlines():
        if line.startswith(b"Max open files"):
            return int(line.split()[3])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # an ending process has none


def _processes(proc: int) -> int:
    """Count processes and threads."""
    count = 0
    for pid in _pids(proc):
        with contextlib.suppress(OSError):
            # A link for each thread: proc_task_getattr()
            count += os.stat(f"{pid}/task", dir_fd=proc).st_nlink - 2
    return count


def _nameless(proc: int, device: int) -> int:
    """Sum the sizes of open files without a name: no scan of directories finds them."""
    mounts: set[bytes] | None = None
    sizes: dict[tuple[int, int], int] = {}
    looked = 0
    for pid in _pids(proc):
        with contextlib.suppress(OSError), _listed(proc, f"{pid}/fd") as descriptors:
            for each in descriptors:
                looked += 1
                if looked > _DESCRIPTORS:
                    return sum(sizes.values())
                with contextlib.suppress(OSError):
                    status = each.stat()
                    if status.st_nlink or not stat.S_ISREG(status.st_mode) or not status.st_blocks:
                        continue
                    if (file := (status.st_dev, status.st_ino)) in sizes:
                        continue  # looked up once, however many descriptors it has
                    if mounts is None:
                        mounts = _mounts(proc, device)
                    sizes[file] = status.st_blocks * _BLOCK if _mount_of(proc, pid, each.name) in mounts else 0
    return sum(sizes.values())


def _mounts(proc: int, device: int) -> set[bytes]:
    """Return the mount ids of a file system. Its files may have other device numbers: overlayfs.rst, "st_dev"."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    fields = [line.split(b" ", 3) for line in _read(proc, f"{_OURS}/mountinfo").split(b"\n") if line]
    return {identity for identity, _, of, _ in fields if of == number}


def _mount_of(proc: int, pid: int, descriptor: str) -> bytes:
    """Return the mount id of a task's descriptor.

    Reads fdinfo of a descriptor of our own: the task's also lists its locks, and thousands of them on thousands of
    descriptors would block this process for minutes (proc_pid_fdinfo(5)).
    """
    ours = os.open(f"{pid}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC, dir_fd=proc)
    try:
        with open(f"/proc/self/fdinfo/{ours}", "rb", buffering=0) as file:
            lines = file.readall().splitlines()
        return next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), b"")
    finally:
        os.close(ours)


def _pids(proc: int) -> Iterator[int]:
    with _listed(proc, ".") as entries:
        return iter([int(each.name) for each in entries if each.name.isdecimal() and each.name != str(_OURS)])


@contextlib.contextmanager
def _listed(proc: int, path: str) -> "Iterator[Iterator[os.DirEntry[str]]]":
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        with os.scandir(directory) as entries:
            yield entries
    finally:
        os.close(directory)


def _read(proc: int, path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb", buffering=0) as file:
        return file.readall()


GRACE = 5.0  # seconds between asking a task to end and ending it
_INSIDE: Final = ("disk", "files", "processes")  # limits that only show inside the sandbox

type ReportLimit = Callable[[Reason, str, Outcome], None]


class LimitMonitor:
    """Monitor of one task, in the runner's loop. `tell` gets each limit that was reached since the last call.

    `layer`: the disk quota of a reviewed workspace. The timeout runs from construction, and stands still while the
    machine sleeps (CLOCK_MONOTONIC).
    """

    def __init__(self, resource_limits: ResourceLimits, tell: ReportLimit, layer: "DiskQuota | None" = None) -> None:
        self._resource_limits = resource_limits
        self._tell = tell
        self._layer = layer
        self._seen = Counts()
        self._at: frozenset[str] = frozenset()
        self._times: dict[str, tuple[str, int]] = {}  # the last detail of each limit, and how often it was reached
        self._beyond: LimitReached | None = None  # of the layer
        timeout = resource_limits.limits.timeout
        self._due = math.inf if timeout is None else time.monotonic() + timeout
        self.cut_short = False  # it was asked to end for a limit

    @property
    def told(self) -> tuple[str, ...]:
        """Each limit that was reached so far, as text, and how often."""
        found = limits_reached(Counts(), self._seen, self._resource_limits.limits)
        said = [each.detail for each in found]
        said += [detail if times == 1 else f"{detail}; {times} times" for detail, times in self._times.values()]
        if self._beyond is not None:
            said.append(self._beyond.detail)
        elif self.cut_short:
            said.append(self._time_is_up().detail)
        return tuple(said)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do; infinite if there is nothing."""
        due = max(0.0, self._due - time.monotonic())
        return due if self._layer is None else min(due, self._layer.wait())

    def turn(self, signals: Callable[[int], None]) -> bool:
        """Do what is due; `signals` sends a signal to the task's group. True: kill the task now."""
        if time.monotonic() < self._due:
            if self._layer is None:
                return False
            if self.cut_short:
                return self._layer.presses()
            if (over := self._layer.turn()) is None:
                return False
            why = self._beyond = LimitReached(Reason.DISK_LIMIT, over.detail)
        elif self.cut_short:
            return True
        else:
            why = self._time_is_up()
        self.cut_short = True
        self._due = time.monotonic() + GRACE
        self._tell(*why)
        signals(signal.SIGTERM)
        signals(signal.SIGCONT)  # a stopped task couldn't act on SIGTERM: timeout(1)
        return False

    def see(self, found: Mapping[str, object]) -> None:
        """Take the limits found in the sandbox; reports each when the task gets there."""
        if self._layer is not None:
            nameless = found.get("nameless", 0)
            self._layer.nameless = nameless if isinstance(nameless, int) else 0
        now = frozenset(limit for limit in _INSIDE if limit in found)
        for limit in sorted(now - self._at):
            each = limit_detail(limit, found[limit], self._resource_limits.limits)
            self._times[limit] = each.detail, self._times.get(limit, ("", 0))[1] + 1
            self._tell(*each)
        self._at = now

    def look(self, *, over: bool = False, status: int | None = None) -> None:
        """Report limits that were reached since the last call; the cpu limit once, when the task is over.

        `status`: the wait status of the task (waitpid(2)); None: it was ended.
        """
        now = self._resource_limits.counts()
        if not over:
            now = now._replace(held_back=self._seen.held_back)
        found = limits_reached(self._seen, now, self._resource_limits.limits)
        self._seen = now
        for each in found:
            self._tell(*each)
        if over and status is not None and self._resource_limits.means.get("memory") is Means.RLIMIT:
            died = memory_denied(status, self._resource_limits.limits)
            if died is not None:
                self._times["memory"] = died.detail, 1
                self._tell(*died)
        if over and self._layer is not None and not self.cut_short and (beyond := self._layer.last()) is not None:
            self._beyond = LimitReached(
                Reason.DISK_LIMIT, beyond.detail, Outcome.PASSED
            )  # the task had ended by itself
            self._tell(*self._beyond)

    def _time_is_up(self) -> LimitReached:
        said = f"timeout: it has run for {format_seconds(self._resource_limits.limits.timeout or 0)}"
        return LimitReached(Reason.TIME_LIMIT, said)
