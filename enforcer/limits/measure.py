"""How much a directory holds, found a name at a time: whoever looks has other things to do, and the end isn't known.

The tree is a task's, which may do to it what it likes meanwhile. No link is followed and no other file system
entered; a file with several names counts once, as the sum of its names' shares; what was renamed meanwhile may count
twice or not at all. Directories may be nested deeper than any path is long, and than descriptors can be had.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Generator
from typing import Final

from enforcer import linux

_BLOCK: Final = 512  # bytes, stat(2): also where st_blksize says another
_DEPTH: Final = 64  # directories that are open one in the other; what is deeper is gone to again from the top
_DEEPEST, _LATER = 1 << 14, 1 << 14  # how deep that goes, and how many of those are kept in mind: memory is ours
_HOP: Final = 15  # names that are looked up at once: of 255 bytes at most each, within PATH_MAX
_OPEN: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_XDEV
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_LISTED: Final = stat.S_IRUSR | stat.S_IXUSR  # what a directory has to give its owner to be looked through

type _Place = tuple["_Place", str, int] | None  # a directory by where it is in, its name, and how deep that is


class Measure:
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
