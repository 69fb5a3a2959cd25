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

from enforcer.limits.cgroup_tree import Counts
from enforcer.limits.resource_limits import Limits, Means, ResourceLimits, format_bytes, format_seconds, max_files
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from enforcer.limits.disk_quota import DiskQuota

_MIN_THROTTLED = 1.0  # seconds of throttling before it is reported
_ABORTS: Final = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS})
_SHELL_STATUS_BASE: Final = 128  # plus a signal number: the exit status of a shell whose program ended by that signal
_MAX_NAME = 64  # characters of a program's name


class LimitReached(NamedTuple):
    """A limit that the task reached, and the outcome."""

    reason: Reason
    detail: str
    outcome: Outcome = Outcome.BLOCKED


def limits_reached(previous: Counts, now: Counts, limits: Limits) -> list[LimitReached]:
    """Return the limits that were reached between two counts."""
    reached = []
    if killed := now.killed - previous.killed:
        detail = f"it may have {format_bytes(limits.memory or 0)}" if now.full else "the host had none left for it"
        reached.append(
            LimitReached(Reason.MEMORY_LIMIT, f"memory: {_count_of(killed, 'process', 'es')} killed, {detail}")
        )
    if refused := now.refused - previous.refused:
        times = "once" if refused == 1 else f"{refused} times"
        detail = f"processes: it could not start another {times}, it may have {limits.processes} at most"
        reached.append(LimitReached(Reason.PROCESS_LIMIT, detail))
    if limits.cpu is not None and (throttled := now.throttled - previous.throttled) >= _MIN_THROTTLED:
        detail = f"cpu: its threads were held back for {throttled:.1f} s, it may use {limits.cpu:g} processors"
        reached.append(LimitReached(Reason.CPU_LIMIT, detail, Outcome.PASSED))
    return reached


def memory_denied(status: int, limits: Limits) -> LimitReached | None:
    """Return that memory may be the reason for this wait status; None: the task ended otherwise.

    For an rlimit on memory: the kernel counts no denial, and a runtime aborts on one.
    """
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - _SHELL_STATUS_BASE
    if number not in _ABORTS:
        return None
    name, limit = signal.Signals(number).name, format_bytes(limits.memory or 0)
    detail = f"memory: the task ended by {name}, as programs do that are refused memory; each process may have {limit}"
    return LimitReached(Reason.MEMORY_LIMIT, detail)


def limit_detail(limit: str, found: object, limits: Limits) -> LimitReached:
    """Return that a task is at a limit, from what was found in its sandbox (`SandboxProbe.probe`)."""
    if limit == "files":
        from proxy.telemetry.visible import visible  # the task chooses its programs' names

        name, count = found if isinstance(found, list) and len(found) == 2 else ("", 0)
        detail = f"files: `{visible(str(name)[:_MAX_NAME])}` had {count} open, as many as it may at a time"
        return LimitReached(Reason.FILE_LIMIT, detail)
    if limit == "processes":
        return LimitReached(Reason.PROCESS_LIMIT, f"processes: it had as many as it may, {limits.processes}")
    if found == "files":
        detail = f"disk: no more files could be made in home, /tmp and the like, there may be {max_files(limits.disk)}"
    else:
        detail = f"disk: no more could be written to home, /tmp and the like, it may be {format_bytes(limits.disk)}"
    return LimitReached(Reason.DISK_LIMIT, detail)


def _count_of(count: int, noun: str, plural: str) -> str:
    return f"{count} {noun}{plural if count != 1 else ''} {'were' if count != 1 else 'was'}"


_DESCRIPTORS: Final = 1 << 16  # that one probe checks for files without a name
_BLOCK: Final = 512  # bytes, stat(2)
_INIT_PID: Final = 1  # pid of init


class SandboxProbe:
    """Probes one sandbox, by descriptors of its quota tmpfs, its /proc and its root, which it takes over.

    `rlimits`: those of the task; `reviewed`: the directory of its changes, if it has one.
    """

    def __init__(
        self, quota_tmpfs: int, proc: int, root: int, rlimits: Iterable[tuple[int, int]], reviewed: str
    ) -> None:
        self._quota_tmpfs = quota_tmpfs
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
        for descriptor in {self._quota_tmpfs, self._proc} - {-1}:
            os.close(descriptor)
        self._quota_tmpfs = self._proc = -1

    def probe(self) -> dict[str, object]:
        """Return the limits that the task is at.

        - `disk`: `bytes` or `files`, which the quota tmpfs has none left of.
        - `files`: a program, and how many files it has open.
        - `processes`: how many there are.
        - `nameless`: bytes in open files without a name, where its changes are.
        """
        reached_limits: dict[str, object] = {}
        with contextlib.suppress(OSError):
            if self._quota_tmpfs >= 0 and (resource_name := exhausted_resource(self._quota_tmpfs)):
                reached_limits["disk"] = resource_name
            for which, value in self._rlimits:
                if which == resource.RLIMIT_NOFILE and (process := _find_process_at_file_limit(self._proc, value)):
                    reached_limits["files"] = process
                elif which == resource.RLIMIT_NPROC and (count := _count_processes(self._proc)) >= value:
                    reached_limits["processes"] = count
            if self._device is not None and (size := _nameless_bytes(self._proc, self._device)):
                reached_limits["nameless"] = size
        return reached_limits


def exhausted_resource(descriptor: int) -> str:
    """Return what a tmpfs has none left of: `bytes` or `files`; empty if neither. Raises OSError."""
    status = os.fstatvfs(descriptor)
    if not status.f_bavail:
        return "bytes"
    return "" if status.f_favail else "files"


def _find_process_at_file_limit(proc: int, value: int) -> list[object] | None:
    """Find a process at its limit of open files. Before Linux 6.2 /proc has no count of them."""
    soft_limit = min(
        value, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )  # a lower limit of the task's own doesn't count
    for pid in _pids(proc):
        with contextlib.suppress(OSError, ValueError):
            count = os.stat(f"{pid}/fd", dir_fd=proc).st_size
            if count >= soft_limit and count >= _file_limit(proc, pid):
                return [_read(proc, f"{pid}/comm").rstrip(b"\n").decode("utf-8", "backslashreplace"), count]
    return None


def _file_limit(proc: int, pid: int) -> int:
    """Return the limit of open files of a process: proc_pid_limits(5)."""
    for line in _read(proc, f"{pid}/limits").splitlines():
        if line.startswith(b"Max open files"):
            return int(line.split()[3])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # an ending process has none


def _count_processes(proc: int) -> int:
    """Count processes and threads."""
    count = 0
    for pid in _pids(proc):
        with contextlib.suppress(OSError):
            # A link for each thread: proc_task_getattr()
            count += os.stat(f"{pid}/task", dir_fd=proc).st_nlink - 2
    return count


def _nameless_bytes(proc: int, device: int) -> int:
    """Sum the sizes of open files without a name: no scan of directories finds them."""
    mounts: set[bytes] | None = None
    sizes: dict[tuple[int, int], int] = {}
    checked = 0
    for pid in _pids(proc):
        with contextlib.suppress(OSError), _listed(proc, f"{pid}/fd") as descriptors:
            for entry in descriptors:
                checked += 1
                if checked > _DESCRIPTORS:
                    return sum(sizes.values())
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if status.st_nlink or not stat.S_ISREG(status.st_mode) or not status.st_blocks:
                        continue
                    if (file := (status.st_dev, status.st_ino)) in sizes:
                        continue  # looked up once, however many descriptors it has
                    if mounts is None:
                        mounts = _mounts(proc, device)
                    sizes[file] = status.st_blocks * _BLOCK if _mount_of(proc, pid, entry.name) in mounts else 0
    return sum(sizes.values())


def _mounts(proc: int, device: int) -> set[bytes]:
    """Return the mount ids of a file system. Its files may have other device numbers: overlayfs.rst, "st_dev"."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    fields = [line.split(b" ", 3) for line in _read(proc, f"{_INIT_PID}/mountinfo").split(b"\n") if line]
    return {identity for identity, _, of, _ in fields if of == number}


def _mount_of(proc: int, pid: int, descriptor: str) -> bytes:
    """Return the mount id of a task's descriptor.

    Reads fdinfo of a descriptor of our own: the task's also lists its locks, and thousands of them on thousands of
    descriptors would block this process for minutes (proc_pid_fdinfo(5)).
    """
    descriptor_copy = os.open(f"{pid}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC, dir_fd=proc)
    try:
        with open(f"/proc/self/fdinfo/{descriptor_copy}", "rb", buffering=0) as file:
            lines = file.readall().splitlines()
        return next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), b"")
    finally:
        os.close(descriptor_copy)


def _pids(proc: int) -> Iterator[int]:
    with _listed(proc, ".") as entries:
        return iter([int(entry.name) for entry in entries if entry.name.isdecimal() and entry.name != str(_INIT_PID)])


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
_PROBED_LIMITS: Final = ("disk", "files", "processes")  # limits that only show inside the sandbox

type ReportLimit = Callable[[Reason, str, Outcome], None]


class LimitMonitor:
    """Monitor of one task, in the runner's loop. `report` gets each limit that was reached since the last call.

    `disk_quota`: the disk quota of a reviewed workspace. The timeout runs from construction, and stands still while the
    machine sleeps (CLOCK_MONOTONIC).
    """

    def __init__(
        self, resource_limits: ResourceLimits, report: ReportLimit, disk_quota: "DiskQuota | None" = None
    ) -> None:
        self._resource_limits = resource_limits
        self._report = report
        self._disk_quota = disk_quota
        self._last_counts = Counts()
        self._current: frozenset[str] = frozenset()
        self._times: dict[str, tuple[str, int]] = {}  # the last detail of each limit, and how often it was reached
        self._disk_excess: LimitReached | None = None  # of the layer
        timeout = resource_limits.limits.timeout
        self._due = math.inf if timeout is None else time.monotonic() + timeout
        self.cut_short = False  # it was asked to end for a limit

    @property
    def reached(self) -> tuple[str, ...]:
        """Each limit that was reached so far, as text, and how often."""
        reached_limits = limits_reached(Counts(), self._last_counts, self._resource_limits.limits)
        details = [limit.detail for limit in reached_limits]
        details += [detail if times == 1 else f"{detail}; {times} times" for detail, times in self._times.values()]
        if self._disk_excess is not None:
            details.append(self._disk_excess.detail)
        elif self.cut_short:
            details.append(self._timeout_reached().detail)
        return tuple(details)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do; infinite if there is nothing."""
        due = max(0.0, self._due - time.monotonic())
        return due if self._disk_quota is None else min(due, self._disk_quota.wait())

    def turn(self, signals: Callable[[int], None]) -> bool:
        """Check the timeout and the disk quota. True: kill the task now.

        `signals` sends a signal to the task's process group.
        """
        if time.monotonic() < self._due:
            if self._disk_quota is None:
                return False
            if self.cut_short:
                return self._disk_quota.uses_space_fast()
            if (excess := self._disk_quota.turn()) is None:
                return False
            reached = self._disk_excess = LimitReached(Reason.DISK_LIMIT, excess.detail)
        elif self.cut_short:
            return True
        else:
            reached = self._timeout_reached()
        self.cut_short = True
        self._due = time.monotonic() + GRACE
        self._report(*reached)
        signals(signal.SIGTERM)
        signals(signal.SIGCONT)  # a stopped task couldn't act on SIGTERM: timeout(1)
        return False

    def report_probe(self, found: Mapping[str, object]) -> None:
        """Report each limit that the probe found now and not in its last call."""
        if self._disk_quota is not None:
            nameless = found.get("nameless", 0)
            self._disk_quota.nameless = nameless if isinstance(nameless, int) else 0
        current = frozenset(limit for limit in _PROBED_LIMITS if limit in found)
        for limit in sorted(current - self._current):
            reached = limit_detail(limit, found[limit], self._resource_limits.limits)
            self._times[limit] = reached.detail, self._times.get(limit, ("", 0))[1] + 1
            self._report(*reached)
        self._current = current

    def report_counts(self, *, is_final: bool = False, status: int | None = None) -> None:
        """Report limits that were reached since the last call; the cpu limit once, when the task is over.

        `status`: the wait status of the task (waitpid(2)); None: it was ended.
        """
        counts = self._resource_limits.counts()
        if not is_final:
            counts = counts._replace(throttled=self._last_counts.throttled)
        reached_limits = limits_reached(self._last_counts, counts, self._resource_limits.limits)
        self._last_counts = counts
        for reached in reached_limits:
            self._report(*reached)
        if is_final and status is not None and self._resource_limits.means.get("memory") is Means.RLIMIT:
            denied = memory_denied(status, self._resource_limits.limits)
            if denied is not None:
                self._times["memory"] = denied.detail, 1
                self._report(*denied)
        if (
            is_final
            and self._disk_quota is not None
            and not self.cut_short
            and (excess := self._disk_quota.final_scan()) is not None
        ):
            self._disk_excess = LimitReached(
                Reason.DISK_LIMIT, excess.detail, Outcome.PASSED
            )  # the task had ended by itself
            self._report(*self._disk_excess)

    def _timeout_reached(self) -> LimitReached:
        detail = f"timeout: it has run for {format_seconds(self._resource_limits.limits.timeout or 0)}"
        return LimitReached(Reason.TIME_LIMIT, detail)
