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
_DEPTH: Final = 64  # nested directories open at once; deeper ones are opened again from the top
_DEEPEST, _LATER = 1 << 14, 1 << 14  # the deepest directory, and the most remembered: bounds of our memory
_HOP: Final = 15  # names per look-up: with 255 bytes each they fit into PATH_MAX
_OPEN: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_XDEV
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_LISTED: Final = stat.S_IRUSR | stat.S_IXUSR  # the owner's permissions that a scan needs

type _Place = tuple["_Place", str, int] | None  # a directory: its parent, its name, its depth


class UsageScan:
    """One scan of a directory tree: bytes and names found so far."""

    __slots__ = ("_device", "_later", "_top", "bytes", "names", "unsure")

    def __init__(self, top: int) -> None:
        """Take an open directory, which stays the caller's."""
        self._top = top
        self._device = os.fstat(top).st_dev
        self._later: list[_Place] = [None]
        self.bytes = 0.0  # allocated, not the apparent size
        self.names = 0
        self.unsure = False  # some directory couldn't be read

    def steps(self) -> Generator[None]:
        """Scan, one name per step. Close the generator if it is not exhausted."""
        while self._later:
            place = self._later.pop()
            directory = self._reach(place)
            if directory is not None:
                yield from self._below(place, directory)

    def _below(self, top: _Place, directory: "_Directory") -> Generator[None]:
        open_now = [(top, directory)]
        try:
            while open_now:
                place, directory = open_now[-1]
                try:
                    entry = next(directory.entries, None)
                    status = None if entry is None else entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._doubt(error)
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
                inner = (place, entry.name, 1 if place is None else place[2] + 1)
                if len(open_now) == _DEPTH:
                    self._remember(inner)
                elif (found := self._open(entry.name, directory.descriptor)) is not None:
                    open_now.append((inner, found))
        finally:
            for _, directory in reversed(open_now):
                directory.close()

    def _remember(self, place: _Place) -> None:
        """Scan a deep directory later, within bounds."""
        if place is not None and place[2] < _DEEPEST and len(self._later) < _LATER:
            self._later.append(place)
        else:
            self.unsure = True

    def _reach(self, place: _Place) -> "_Directory | None":
        """Open a directory again from the top. One that is gone may have been moved, so the result is unsure."""
        names: list[str] = []
        while place is not None:
            place, name, _ = place
            names.append(name)
        names.reverse()
        at = os.dup(self._top)
        try:
            for first in range(0, len(names) - 1, _HOP):
                hop = "/".join(names[first : min(first + _HOP, len(names) - 1)])
                further = linux.openat2(at, hop, os.O_PATH | _OPEN, _RESOLVE)
                os.close(at)
                at = further
            found = self._open(names[-1], at) if names else _Directory(at)
        except OSError:
            found = None
        finally:
            os.close(at)
        self.unsure = self.unsure or found is None
        return found

    def _open(self, name: str, above: int) -> "_Directory | None":
        try:
            place = os.open(name, os.O_PATH | _OPEN, dir_fd=above)
            try:
                return _Directory(place)
            finally:
                os.close(place)
        except OSError as error:
            self._doubt(error)
            return None

    def _doubt(self, error: OSError) -> None:
        """Record that a directory couldn't be read, unless it is gone."""
        self.unsure = self.unsure or error.errno not in _NO_DIRECTORY


class _Directory:
    """An open directory. One whose mode excludes its owner, as a task may set, is opened to the owner meanwhile."""

    __slots__ = ("_mode", "descriptor", "entries")

    def __init__(self, place: int) -> None:
        """Open the directory of an O_PATH descriptor, which stays the caller's. Raises OSError."""
        self._mode = -1
        self.descriptor = -1
        mode = stat.S_IMODE(os.fstat(place).st_mode)
        if mode & _LISTED != _LISTED and os.geteuid() != 0:
            os.chmod(f"/proc/self/fd/{place}", mode | _LISTED)
            self._mode = mode
        self.descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
                if stat.S_IMODE(os.fstat(self.descriptor).st_mode) == self._mode | _LISTED:
                    os.fchmod(self.descriptor, self._mode)
        os.close(self.descriptor)
        self.descriptor = -1


_FASTEST: Final = 4 << 30  # bytes a second that a disk can take at most
_SOON, _IDLE = 0.1, 5.0  # seconds between two readings of free space
_MATTERS: Final = 4  # a fourth of what the task may still write triggers a scan
_SHARE, _HURRY, _REGULARLY = 4, 1, 50  # pause until the next scan, in durations of the last
_SLICE: Final = 512  # names per turn
_RESERVE: Final = 4 << 30  # bytes; less on small or full disks
_OF_DISK, _OF_FREE = 20, 2
_GROWN: Final = 16  # a sixteenth of the reserve ends no task
_AT_END, _OF_BOUND = 64 << 20, 8  # bytes, and share of the quota, that an ending task may still use
_MOST_NAMES: Final = 300_000  # each is a change in memory at the end, about a kilobyte
_BLIND: Final = 3  # unsure scans in a row


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
        self._began = self._then = self._free = self._free_now()
        # Some file systems report no size.
        self._bound = limits.disk if "disk" in limits.said or not status.f_blocks else self._began.bytes // _OF_FREE
        most = min(max_files(self._bound), _MOST_NAMES)
        self._names = min(most, self._began.files // _OF_FREE) if status.f_files else most
        self._reserve = min(_RESERVE, status.f_blocks * status.f_frsize // _OF_DISK, self._began.bytes // _OF_FREE)
        self.nameless = 0
        self._held = FreeSpace(0, 0)  # usage found by the last scan
        self._before: int | None = None  # usage before the reserve was reached
        self._blind = 0
        self._now: UsageScan | None = None
        self._steps: Generator[None] | None = None
        self._spent = self._took = 0.0  # seconds of the current scan and the last
        self._asked: FreeSpace | None = None  # free space when the task was asked to end
        self._doubted = False  # the last scan exceeded the quota, but may have counted files twice
        self._looked = self._due = time.monotonic()

    def close(self) -> None:
        """Stop measuring. Idempotent."""
        if self._top >= 0:
            self._stop()
            os.close(self._top)
            self._top = -1

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do; infinite once closed."""
        return max(0.0, self._due - time.monotonic()) if self._top >= 0 else math.inf

    def turn(self) -> QuotaExceeded | None:
        """Measure for a moment, if it is due."""
        if self._top < 0 or time.monotonic() < self._due:
            return None
        if self._now is None:
            if self._is_quiet():
                return None
            self._begin()
        if not self._go_on():
            return None
        short, found = self._short(), self._beyond() or self._lost()
        sure = short or self._doubted or self._free.since(self._began).bytes > self._bound
        self._end()
        if found and not sure:
            self._doubted, self._due = True, 0.0
            self._begin()
            return None
        self._doubted = False
        return found or short

    def presses(self) -> bool:
        """Whether the task, asked to end, uses space so fast that it has to be killed."""
        if self._top < 0 or time.monotonic() < self._due:
            return False
        free = self._free_now()
        if self._asked is None:
            self._stop()
            self._asked = free
        self._due = time.monotonic() + _SOON
        gone = free.since(self._asked)
        most = max(_AT_END, self._bound // _OF_BOUND)
        return gone.bytes > most or gone.files > max_files(most) or (gone.bytes > 0 and free.bytes < self._reserve)

    def last(self) -> QuotaExceeded | None:
        """Scan once more, to the end: no process changes the files any more."""
        if self._top < 0:
            return None
        self._stop()
        self.nameless = 0
        self._begin()
        while not self._go_on():
            pass
        found = self._beyond()
        self._end()
        return found

    def _is_quiet(self) -> bool:
        """Whether no scan is needed now; schedules the next check."""
        now, free = time.monotonic(), self._free_now()
        gone = free.since(self._then)
        left = FreeSpace(self._bound - self._held.bytes - self.nameless, self._names - self._held.files)
        age = now - self._looked
        rest = (_HURRY if gone.bytes > left.bytes or gone.files > left.files else _SHARE) * self._took
        matters = gone.bytes * _MATTERS > left.bytes or gone.files * _MATTERS > left.files or left.bytes < 0
        matters = matters or (gone.bytes > 0 and free.bytes < self._reserve)
        # Other processes may have freed what the task used.
        if age >= rest and (matters or age >= max(_IDLE, _REGULARLY * self._took)):
            return False
        self._due = now + min(max(_SOON, min(left.bytes - gone.bytes, free.bytes - self._reserve) / _FASTEST), _IDLE)
        return True

    def _begin(self) -> None:
        self._now = UsageScan(self._top)
        self._steps = self._now.steps()
        self._free = self._free_now()
        self._spent = 0.0

    def _go_on(self) -> bool:
        """Scan some names; returns whether the scan is done."""
        assert self._now is not None
        assert self._steps is not None
        began = time.monotonic()
        seen = sum(1 for _ in islice(self._steps, _SLICE))
        self._spent += time.monotonic() - began
        return seen < _SLICE or self._beyond() is not None

    def _end(self) -> None:
        assert self._now is not None
        self._blind = self._blind + 1 if self._now.unsure else 0
        self._held = FreeSpace(int(self._now.bytes), self._now.names)
        self._then, self._took = self._free, self._spent
        self._looked = time.monotonic()
        self._stop()

    def _stop(self) -> None:
        if self._steps is not None:
            self._steps.close()
        self._now = self._steps = None

    def _beyond(self) -> QuotaExceeded | None:
        """Return the excess by what was found so far."""
        assert self._now is not None
        if (held := int(self._now.bytes) + self.nameless) > self._bound:
            return QuotaExceeded(
                f"disk: its changes take {format_bytes(held)}, they may take {format_bytes(self._bound)}"
            )
        if self._now.names > self._names:
            return QuotaExceeded(f"disk: its changes are {self._now.names} files or more, they may be {self._names}")
        return None

    def _short(self) -> QuotaExceeded | None:
        """Return an excess if the task uses the reserve of the host's disk."""
        assert self._now is not None
        if self._free.bytes >= self._reserve:
            self._before = None
            return None
        if self._before is None:
            self._before = self._held.bytes
        if int(self._now.bytes) + self.nameless - self._before > self._reserve // _GROWN:
            return QuotaExceeded(
                f"disk: its changes grow, and the disk that they are on has {format_bytes(self._free.bytes)} left"
            )
        return None

    def _lost(self) -> QuotaExceeded | None:
        """Return an excess if directories can't be read, and more space was used than the quota."""
        assert self._now is not None
        gone = self._free.since(self._began).bytes
        if self._now.unsure and self._blind + 1 >= _BLIND and gone > self._bound:
            said = f"disk: not all of its changes can be found, and {format_bytes(gone)} have gone since it began"
            return QuotaExceeded(f"{said}, they may take {format_bytes(self._bound)}")
        return None

    def _free_now(self) -> FreeSpace:
        status = os.fstatvfs(self._top)
        return FreeSpace(status.f_bavail * status.f_frsize, status.f_favail)
