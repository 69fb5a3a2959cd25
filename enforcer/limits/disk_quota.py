"""Disk quota: bounds what a task changes in a reviewed workspace, whose upper layer is on the host's disk.

The kernel bounds a directory only with a quota of the file system, which most hosts don't have. So this module
measures. The free space of the file system takes one call, read more often the less is left. How much of the used space
is the task's takes a scan of all names. A scan runs only when enough space was used, and takes at most a part of a
processor, unless the task may exceed its quota already. So a task can exceed the quota by what it writes during a scan;
a reserve of the host's disk stays free.

The task may change the tree meanwhile. The scan follows no link and enters no other file system. A file with several
names counts once, as the sum of its names' shares; a renamed one may count twice or not at all. Directories may be
nested deeper than paths are long, or descriptors available.
"""

import contextlib
import errno
import math
import os
import stat
import time
from collections.abc import Generator
from itertools import islice
from typing import Final, NamedTuple

from enforcer.limits.resource_limits import Limits, format_bytes, max_files
from enforcer.system import linux
from enforcer.system.errors import HostError

_BLOCK: Final = 512  # bytes of st_blocks, whatever st_blksize is (stat(2))
_MAX_OPEN: Final = 64  # nested directories open at once; deeper ones are opened again from the top
_MAX_DEPTH, _MAX_DEFERRED = 1 << 14, 1 << 14  # the deepest directory, and the most remembered: bounds of our memory
_NAMES_PER_OPEN: Final = 15  # names per look-up: with 255 bytes each they fit into PATH_MAX
_OPEN_FLAGS: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_XDEV
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_SCAN_PERMISSIONS: Final = stat.S_IRUSR | stat.S_IXUSR  # the owner's permissions that a scan needs

type _ScanPath = tuple["_ScanPath", str, int] | None  # a directory: its parent, its name, its depth


class UsageScan:
    """One scan of a directory tree: bytes and names found so far."""

    __slots__ = ("_deferred", "_device", "_top", "bytes", "is_incomplete", "names")

    def __init__(self, top: int) -> None:
        """Take an open directory, which stays the caller's."""
        self._top = top
        self._device = os.fstat(top).st_dev
        self._deferred: list[_ScanPath] = [None]
        self.bytes = 0.0  # allocated, not the apparent size
        self.names = 0
        self.is_incomplete = False  # a directory couldn't be read

    def steps(self) -> Generator[None]:
        """Scan, one name per step. Close the generator if it is not exhausted."""
        while self._deferred:
            path = self._deferred.pop()
            directory = self._reopen(path)
            if directory is not None:
                yield from self._scan_below(path, directory)

    def _scan_below(self, top: _ScanPath, directory: "_Directory") -> Generator[None]:
        open_now = [(top, directory)]
        try:
            while open_now:
                path, directory = open_now[-1]
                try:
                    entry = next(directory.entries, None)
                    status = None if entry is None else entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._record_error(error)
                    yield
                    continue
                if entry is None or status is None:
                    open_now.pop()
                    directory.close()
                    continue
                yield
                self.names += 1
                if not stat.S_ISDIR(status.st_mode):
                    self.bytes += status.st_blocks * _BLOCK / max(1, status.st_nlink)
                    continue
                if status.st_dev != self._device:
                    continue
                self.bytes += status.st_blocks * _BLOCK
                inner = (path, entry.name, 1 if path is None else path[2] + 1)
                if len(open_now) == _MAX_OPEN:
                    self._defer(inner)
                elif (child := self._open(entry.name, directory.descriptor)) is not None:
                    open_now.append((inner, child))
        finally:
            for _, directory in reversed(open_now):
                directory.close()

    def _defer(self, path: _ScanPath) -> None:
        """Scan a deep directory later, within bounds."""
        if path is not None and path[2] < _MAX_DEPTH and len(self._deferred) < _MAX_DEFERRED:
            self._deferred.append(path)
        else:
            self.is_incomplete = True

    def _reopen(self, path: _ScanPath) -> "_Directory | None":
        """Open a directory again from the top. If it is missing, it may have been moved: the scan is incomplete."""
        names: list[str] = []
        while path is not None:
            path, name, _ = path
            names.append(name)
        names.reverse()
        descriptor = os.dup(self._top)
        try:
            for start in range(0, len(names) - 1, _NAMES_PER_OPEN):
                relative = "/".join(names[start : min(start + _NAMES_PER_OPEN, len(names) - 1)])
                next_descriptor = linux.openat2(descriptor, relative, os.O_PATH | _OPEN_FLAGS, _RESOLVE)
                os.close(descriptor)
                descriptor = next_descriptor
            directory = self._open(names[-1], descriptor) if names else _Directory(descriptor)
        except OSError:
            directory = None
        finally:
            os.close(descriptor)
        self.is_incomplete = self.is_incomplete or directory is None
        return directory

    def _open(self, name: str, parent: int) -> "_Directory | None":
        try:
            descriptor = os.open(name, os.O_PATH | _OPEN_FLAGS, dir_fd=parent)
            try:
                return _Directory(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._record_error(error)
            return None

    def _record_error(self, error: OSError) -> None:
        """Record that a directory couldn't be read, unless it is gone."""
        self.is_incomplete = self.is_incomplete or error.errno not in _NO_DIRECTORY


class _Directory:
    """An open directory. If a task's mode excludes the owner, the owner gets access while it is open."""

    __slots__ = ("_mode", "descriptor", "entries")

    def __init__(self, path_descriptor: int) -> None:
        """Open the directory of an O_PATH descriptor, which stays the caller's. Raises OSError."""
        self._mode = -1
        self.descriptor = -1
        mode = stat.S_IMODE(os.fstat(path_descriptor).st_mode)
        if mode & _SCAN_PERMISSIONS != _SCAN_PERMISSIONS and os.geteuid() != 0:
            os.chmod(f"/proc/self/fd/{path_descriptor}", mode | _SCAN_PERMISSIONS)
            self._mode = mode
        self.descriptor = os.open(f"/proc/self/fd/{path_descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.entries = os.scandir(self.descriptor)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Restore the mode, unless its owner has changed it since. Idempotent."""
        if self.descriptor < 0:
            return
        if self._mode >= 0:
            with contextlib.suppress(OSError):
                if stat.S_IMODE(os.fstat(self.descriptor).st_mode) == self._mode | _SCAN_PERMISSIONS:
                    os.fchmod(self.descriptor, self._mode)
        os.close(self.descriptor)
        self.descriptor = -1


_MAX_WRITE_RATE: Final = 4 << 30  # bytes a second that a disk can take at most
_SHORT_PAUSE, _LONG_PAUSE = 0.1, 5.0  # seconds between two readings of free space
_SCAN_FRACTION: Final = 4  # a fourth of what the task may still write triggers a scan
_PAUSE_FACTOR, _URGENT_PAUSE_FACTOR, _REGULAR_PAUSE_FACTOR = (
    4,
    1,
    50,
)  # pause until the next scan, in durations of the last
_NAMES_PER_TURN: Final = 512  # names per turn
_RESERVE: Final = 4 << 30  # bytes; less on small or full disks
_DISK_FRACTION, _FREE_FRACTION = 20, 2
_GROWTH_FRACTION: Final = 16  # a sixteenth of the reserve ends no task
_END_ALLOWANCE, _END_FRACTION = 64 << 20, 8  # bytes, and share of the quota, that an ending task may still use
_MAX_NAMES: Final = 300_000  # each is a change in memory at the end, about a kilobyte
_MAX_INCOMPLETE: Final = 3  # unsure scans in a row


class FreeSpace(NamedTuple):
    """Free or used space of a file system: bytes, and files; some file systems report no number of files."""

    bytes: int
    files: int

    def since(self, then: "FreeSpace") -> "FreeSpace":
        """Return the space used since then; negative if more is free."""
        return FreeSpace(then.bytes - self.bytes, then.files - self.files)


class QuotaExceeded(NamedTuple):
    """The quota is exceeded; `detail` says how."""

    detail: str


class DiskQuota:
    """The disk quota of one task. `nameless`: bytes of open files without a name. Close it."""

    def __init__(self, path: str, limits: Limits) -> None:
        """Take the directory of the changes. The quota is the rules' `disk`, or half of the free space.

        Raises HostError.
        """
        try:
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the disk quota can't open the task's changes in `{path}`: {error.strerror}") from error
        status = os.fstatvfs(self._top)
        self._initial_free = self._scanned_free = self._free = self._read_free()
        # Some file systems report no size.
        self._max_bytes = (
            limits.disk if "disk" in limits.said or not status.f_blocks else self._initial_free.bytes // _FREE_FRACTION
        )
        max_names = min(max_files(self._max_bytes), _MAX_NAMES)
        self._max_names = min(max_names, self._initial_free.files // _FREE_FRACTION) if status.f_files else max_names
        self._reserve = min(
            _RESERVE, status.f_blocks * status.f_frsize // _DISK_FRACTION, self._initial_free.bytes // _FREE_FRACTION
        )
        self.nameless = 0
        self._last_usage = FreeSpace(0, 0)  # usage found by the last scan
        self._usage_before_reserve: int | None = None  # usage before the reserve was reached
        self._incomplete_scans = 0
        self._scan: UsageScan | None = None
        self._steps: Generator[None] | None = None
        self._scan_seconds = self._last_scan_seconds = 0.0  # seconds of the current scan and the last
        self._free_at_end_request: FreeSpace | None = None  # free space when the task was asked to end
        self._is_repeat = False  # the last scan exceeded the quota, but may have counted files twice
        self._last_scan_time = self._due = time.monotonic()

    def close(self) -> None:
        """Stop measuring. Idempotent."""
        if self._top >= 0:
            self._stop_scan()
            os.close(self._top)
            self._top = -1

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do; infinite once closed."""
        return max(0.0, self._due - time.monotonic()) if self._top >= 0 else math.inf

    def turn(self) -> QuotaExceeded | None:
        """Measure a part, if it is due; returns the excess, if there is one."""
        if self._top < 0 or time.monotonic() < self._due:
            return None
        if self._scan is None:
            if self._is_quiet():
                return None
            self._start_scan()
        if not self._continue_scan():
            return None
        reserve_excess, excess = self._reserve_excess(), self._excess() or self._unreadable_excess()
        is_certain = reserve_excess or self._is_repeat or self._free.since(self._initial_free).bytes > self._max_bytes
        self._finish_scan()
        if excess and not is_certain:
            self._is_repeat, self._due = True, 0.0
            self._start_scan()
            return None
        self._is_repeat = False
        return excess or reserve_excess

    def uses_space_fast(self) -> bool:
        """Whether the task, asked to end, uses space so fast that it has to be killed."""
        if self._top < 0 or time.monotonic() < self._due:
            return False
        free = self._read_free()
        if self._free_at_end_request is None:
            self._stop_scan()
            self._free_at_end_request = free
        self._due = time.monotonic() + _SHORT_PAUSE
        used = free.since(self._free_at_end_request)
        allowance = max(_END_ALLOWANCE, self._max_bytes // _END_FRACTION)
        return (
            used.bytes > allowance
            or used.files > max_files(allowance)
            or (used.bytes > 0 and free.bytes < self._reserve)
        )

    def final_scan(self) -> QuotaExceeded | None:
        """Scan completely once more, after the last process of the task has ended."""
        if self._top < 0:
            return None
        self._stop_scan()
        self.nameless = 0
        self._start_scan()
        while not self._continue_scan():
            pass
        excess = self._excess()
        self._finish_scan()
        return excess

    def _is_quiet(self) -> bool:
        """Whether no scan is needed now; schedules the next check."""
        now, free = time.monotonic(), self._read_free()
        used = free.since(self._scanned_free)
        remaining = FreeSpace(
            self._max_bytes - self._last_usage.bytes - self.nameless, self._max_names - self._last_usage.files
        )
        age = now - self._last_scan_time
        pause = (
            _URGENT_PAUSE_FACTOR if used.bytes > remaining.bytes or used.files > remaining.files else _PAUSE_FACTOR
        ) * self._last_scan_seconds
        needs_scan = (
            used.bytes * _SCAN_FRACTION > remaining.bytes
            or used.files * _SCAN_FRACTION > remaining.files
            or remaining.bytes < 0
        )
        needs_scan = needs_scan or (used.bytes > 0 and free.bytes < self._reserve)
        # Other processes may have freed what the task used.
        if age >= pause and (needs_scan or age >= max(_LONG_PAUSE, _REGULAR_PAUSE_FACTOR * self._last_scan_seconds)):
            return False
        self._due = now + min(
            max(_SHORT_PAUSE, min(remaining.bytes - used.bytes, free.bytes - self._reserve) / _MAX_WRITE_RATE),
            _LONG_PAUSE,
        )
        return True

    def _start_scan(self) -> None:
        self._scan = UsageScan(self._top)
        self._steps = self._scan.steps()
        self._free = self._read_free()
        self._scan_seconds = 0.0

    def _continue_scan(self) -> bool:
        """Scan some names; returns whether the scan is done."""
        assert self._scan is not None
        assert self._steps is not None
        start = time.monotonic()
        count = sum(1 for _ in islice(self._steps, _NAMES_PER_TURN))
        self._scan_seconds += time.monotonic() - start
        return count < _NAMES_PER_TURN or self._excess() is not None

    def _finish_scan(self) -> None:
        assert self._scan is not None
        self._incomplete_scans = self._incomplete_scans + 1 if self._scan.is_incomplete else 0
        self._last_usage = FreeSpace(int(self._scan.bytes), self._scan.names)
        self._scanned_free, self._last_scan_seconds = self._free, self._scan_seconds
        self._last_scan_time = time.monotonic()
        self._stop_scan()

    def _stop_scan(self) -> None:
        if self._steps is not None:
            self._steps.close()
        self._scan = self._steps = None

    def _excess(self) -> QuotaExceeded | None:
        """Return the excess by what was found so far."""
        assert self._scan is not None
        if (usage := int(self._scan.bytes) + self.nameless) > self._max_bytes:
            return QuotaExceeded(
                f"disk: its changes take {format_bytes(usage)}, they may take {format_bytes(self._max_bytes)}"
            )
        if self._scan.names > self._max_names:
            return QuotaExceeded(
                f"disk: its changes are {self._scan.names} files or more, they may be {self._max_names}"
            )
        return None

    def _reserve_excess(self) -> QuotaExceeded | None:
        """Return an excess if the task uses the reserve of the host's disk."""
        assert self._scan is not None
        if self._free.bytes >= self._reserve:
            self._usage_before_reserve = None
            return None
        if self._usage_before_reserve is None:
            self._usage_before_reserve = self._last_usage.bytes
        if int(self._scan.bytes) + self.nameless - self._usage_before_reserve > self._reserve // _GROWTH_FRACTION:
            return QuotaExceeded(
                f"disk: its changes grow, and the disk that they are on has {format_bytes(self._free.bytes)} left"
            )
        return None

    def _unreadable_excess(self) -> QuotaExceeded | None:
        """Return an excess if directories can't be read, and more space was used than the quota."""
        assert self._scan is not None
        used = self._free.since(self._initial_free).bytes
        if self._scan.is_incomplete and self._incomplete_scans + 1 >= _MAX_INCOMPLETE and used > self._max_bytes:
            detail = f"disk: not all of its changes can be found, and {format_bytes(used)} have gone since it began"
            return QuotaExceeded(f"{detail}, they may take {format_bytes(self._max_bytes)}")
        return None

    def _read_free(self) -> FreeSpace:
        status = os.fstatvfs(self._top)
        return FreeSpace(status.f_bavail * status.f_frsize, status.f_favail)
