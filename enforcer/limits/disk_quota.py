"""Disk quota: bounds what a task changes in a reviewed workspace, whose upper layer is on the host's disk.

No kernel bounds a directory without a quota of the file system's, which most hosts don't have. So it is measured. What
is free on the file system costs one call, and is asked for the more often the less is left. How much of what has gone
is the task's takes a look at every name, once so much has gone that it matters, and no more than a part of a processor
unless the task may be over its bound already. So a task can exceed the bound by what it writes during a look; the last
of the host's disk is kept from it.

Meanwhile the task may do to the tree what it likes. No link is followed and no other file system entered. A file with
several names counts once, as the sum of its names' shares; what was renamed meanwhile may count twice or not at all.
Directories may be nested deeper than any path is long, and than descriptors can be had.
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

_BLOCK: Final = 512  # bytes, stat(2): also where st_blksize says another
_DEPTH: Final = 64  # directories that are open one in the other; what is deeper is gone to again from the top
_DEEPEST, _LATER = 1 << 14, 1 << 14  # how deep that goes, and how many of those are kept in mind: memory is ours
_HOP: Final = 15  # names that are looked up at once: of 255 bytes at most each, within PATH_MAX
_OPEN: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_XDEV
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_LISTED: Final = stat.S_IRUSR | stat.S_IXUSR  # what a directory has to give its owner to be looked through

type _Place = tuple["_Place", str, int] | None  # a directory by where it is in, its name, and how deep that is


class UsageScan:
    """One look through a directory, and what it has found so far."""

    __slots__ = ("_device", "_later", "_top", "bytes", "names", "unsure")

    def __init__(self, top: int) -> None:
        """Take an open directory; it stays the caller's."""
        self._top = top
        self._device = os.fstat(top).st_dev
        self._later: list[_Place] = [None]
        self.bytes = 0.0  # that are allocated, not those that a file says it has
        self.names = 0
        self.unsure = False  # whether there was something that could not be looked into, as far as can be told

    def steps(self) -> Generator[None]:
        """Look, from one name to the next. Close it if it isn't gone through to the end."""
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
        """Go there later, if there is an end to that."""
        if place is not None and place[2] < _DEEPEST and len(self._later) < _LATER:
            self._later.append(place)
        else:
            self.unsure = True

    def _reach(self, place: _Place) -> "_Directory | None":
        """Go to a directory again from the top. One that has gone meanwhile may have been moved: that is not sure."""
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
        """Know of what couldn't be looked into; what is gone meanwhile needn't be."""
        self.unsure = self.unsure or error.errno not in _NO_DIRECTORY


class _Directory:
    """An open one. What its owner has closed to everybody, as a task may, is open to its owner meanwhile."""

    __slots__ = ("_mode", "descriptor", "entries")

    def __init__(self, place: int) -> None:
        """Open what a descriptor stands for; that stays the caller's. Raises OSError."""
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
        """Leave it as it was found, unless its owner has changed that since. Idempotent."""
        if self.descriptor < 0:
            return
        if self._mode >= 0:
            with contextlib.suppress(OSError):
                if stat.S_IMODE(os.fstat(self.descriptor).st_mode) == self._mode | _LISTED:
                    os.fchmod(self.descriptor, self._mode)
        os.close(self.descriptor)
        self.descriptor = -1


_FASTEST: Final = 4 << 30  # bytes a second that a disk is thought to take
_SOON, _IDLE = 0.1, 5.0  # seconds between two looks at what is free
_MATTERS: Final = 4  # a part of what it may still write, worth another look
_SHARE, _HURRY, _REGULARLY = 4, 1, 50  # times as long as it looked, until it looks at all names again
_SLICE: Final = 512  # names that are looked at in a row
_RESERVE: Final = 4 << 30  # bytes; of small or full disks a part of them
_OF_DISK, _OF_FREE = 20, 2
_GROWN: Final = 16  # a part of the reserve, which no task is ended for
_AT_END, _OF_BOUND = 64 << 20, 8  # bytes, and a part of its bound, that a task may still take when it is to end
_MOST_NAMES: Final = 300_000  # each is a change that is held in memory at the end, with about a kilobyte
_BLIND: Final = 3  # looks in a row that could not be sure of all


class FreeSpace(NamedTuple):
    """What is free on a file system, or has gone: bytes, and files; of those some don't say how many they can have."""

    bytes: int
    files: int

    def since(self, then: "FreeSpace") -> "FreeSpace":
        """Return what has gone since then; less than nothing where it has become more."""
        return FreeSpace(then.bytes - self.bytes, then.files - self.files)


class QuotaExceeded(NamedTuple):
    """That the layer is beyond its bound, in words."""

    detail: str


class DiskQuota:
    """One task's. `nameless` is what is said to be in files that have no name, in bytes. Close it."""

    def __init__(self, path: str, limits: Limits) -> None:
        """Take the directory that has the changes. They may take what a rule says, or half of what is free.

        Raises HostError.
        """
        try:
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the task's changes can't be measured in `{path}`: {error.strerror}") from error
        status = os.fstatvfs(self._top)
        self._began = self._then = self._free = self._free_now()
        # Some file systems don't say what they have.
        self._bound = limits.disk if "disk" in limits.said or not status.f_blocks else self._began.bytes // _OF_FREE
        most = min(max_files(self._bound), _MOST_NAMES)
        self._names = min(most, self._began.files // _OF_FREE) if status.f_files else most
        self._reserve = min(_RESERVE, status.f_blocks * status.f_frsize // _OF_DISK, self._began.bytes // _OF_FREE)
        self.nameless = 0
        self._held = FreeSpace(0, 0)  # what it had when it was looked at last
        self._before: int | None = None  # what it held before the reserve was reached
        self._blind = 0
        self._now: UsageScan | None = None
        self._steps: Generator[None] | None = None
        self._spent = self._took = 0.0  # seconds, of that one and the last
        self._asked: FreeSpace | None = None  # what was free when the task had been asked to end
        self._doubted = False  # whether it was over its bound, when some of it may have been seen twice
        self._looked = self._due = time.monotonic()

    def close(self) -> None:
        """Look no more. Idempotent."""
        if self._top >= 0:
            self._stop()
            os.close(self._top)
            self._top = -1

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called; infinite once it looks no more."""
        return max(0.0, self._due - time.monotonic()) if self._top >= 0 else math.inf

    def turn(self) -> QuotaExceeded | None:
        """Do what is due, for a moment."""
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
        """Whether it goes on taking room so fast that it can't be waited for: it was asked to end already."""
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
        """Look once more, to the end: nobody changes it any more."""
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
        """Whether there is no need to look at all names now. If there is none, it says when to see again."""
        now, free = time.monotonic(), self._free_now()
        gone = free.since(self._then)
        left = FreeSpace(self._bound - self._held.bytes - self.nameless, self._names - self._held.files)
        age = now - self._looked
        rest = (_HURRY if gone.bytes > left.bytes or gone.files > left.files else _SHARE) * self._took
        matters = gone.bytes * _MATTERS > left.bytes or gone.files * _MATTERS > left.files or left.bytes < 0
        matters = matters or (gone.bytes > 0 and free.bytes < self._reserve)
        # Others may have given back what it took.
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
        """Look at some names more. Whether that is enough."""
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
        """Whether it is over its bound, by what was found so far."""
        assert self._now is not None
        if (held := int(self._now.bytes) + self.nameless) > self._bound:
            return QuotaExceeded(
                f"disk: its changes take {format_bytes(held)}, they may take {format_bytes(self._bound)}"
            )
        if self._now.names > self._names:
            return QuotaExceeded(f"disk: its changes are {self._now.names} files or more, they may be {self._names}")
        return None

    def _short(self) -> QuotaExceeded | None:
        """Whether it takes what nobody can do without: the last of the host's disk."""
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
        """Whether it is somewhere that can't be looked into, and more has gone than it may take."""
        assert self._now is not None
        gone = self._free.since(self._began).bytes
        if self._now.unsure and self._blind + 1 >= _BLIND and gone > self._bound:
            said = f"disk: not all of its changes can be found, and {format_bytes(gone)} have gone since it began"
            return QuotaExceeded(f"{said}, they may take {format_bytes(self._bound)}")
        return None

    def _free_now(self) -> FreeSpace:
        status = os.fstatvfs(self._top)
        return FreeSpace(status.f_bavail * status.f_frsize, status.f_favail)
