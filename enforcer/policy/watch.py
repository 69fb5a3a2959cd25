"""Noticing that rule files change: inotify(7) says that something happened, what the files look like says what.

Every way of saving ends in one of these: a write to the file itself, or another file, link or directory standing where
one stood before. So the files and every directory on the way to them are watched, by the names that count in them.
Where inotify doesn't tell (network file systems, directories that can't be listed, too many watches) a look every few
seconds does. Where a task may write, no directory is watched, so that its files wake nobody up.
"""

import contextlib
import time
from collections.abc import Collection, Iterable

from enforcer.policy import path_resolution
from enforcer.sandbox.system_paths import contains
from enforcer.system import inotify
from enforcer.system.inotify import Inotify

QUIET = 0.15  # seconds without a change before files count as saved
LONGEST_WAIT = 2.0  # seconds of changes without end, after which they are looked at all the same
LOOK_EVERY = 5.0  # seconds
DEAF = 0.05  # seconds between two times that events are read: a task can cause some without end, as by chmod(2)


class Watch:
    """The files of one policy. Close it."""

    def __init__(self, writable: Collection[str]) -> None:
        """Watch nothing yet. `writable` are the trees that a task may write."""
        self._inotify: Inotify | None = None
        with contextlib.suppress(OSError):  # a user may have so many, and no more
            self._inotify = Inotify()
        self._writable = writable
        self._names: dict[str, set[str]] = {}  # that count, by directory
        self._since = self._last = 0.0  # when changes that weren't looked at began, and the last one was
        self._looked = time.monotonic()

    def fileno(self) -> int | None:
        """Return what becomes readable when something may have changed; None: only a look every few seconds tells."""
        return None if self._inotify is None else self._inotify.fd

    def follow(self, paths: Iterable[str], directories: Iterable[str] = ()) -> None:
        """Watch these files, and every name in these directories, instead of those before."""
        if self._inotify is None:
            return
        names: dict[str, set[str]] = {directory: set() for directory in directories}
        files: set[str] = set()
        for path in paths:
            for step in path_resolution.trail(path):
                if step.directory not in directories:
                    names.setdefault(step.directory, set()).add(step.name)
                if step.what is not None and not step.what.is_directory and not step.what.is_link:
                    files.add(step.path)
        self._inotify.clear()
        moved = inotify.IN_MOVE | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB
        gone = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
        itself = inotify.IN_MODIFY | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | gone
        for place in sorted({*names, *files}):
            if place in names and any(contains(tree, place) for tree in self._writable):
                continue
            with contextlib.suppress(OSError):
                self._inotify.add(place, itself if place in files else moved | gone)
        self._names = names

    def read(self) -> None:
        """Take note of what happened, as far as that has an end: signals and the task's own end don't wait for it."""
        if self._inotify is None:
            return
        events, more = self._inotify.read()
        for event in events:
            if event.mask & inotify.IN_IGNORED:
                continue
            names = self._names.get(event.place)
            if not event.name or not names or event.name in names:
                self.stir()
        if more:
            self.stir()  # whatever is in the rest

    def stir(self) -> None:
        """Take note that something changed just now."""
        self._last = time.monotonic()
        self._since = self._since or self._last

    def wait(self) -> float:
        """Return how many seconds there are until `is_due`."""
        now = time.monotonic()
        if self._since:
            return max(0.0, min(self._last + QUIET, self._since + LONGEST_WAIT) - now)
        return max(0.0, self._looked + LOOK_EVERY - now)

    def is_due(self) -> bool:
        """Whether it is time to look at the files; the next time is a while later then."""
        if self.wait() > 0:
            return False
        self._since = 0.0
        self._looked = time.monotonic()
        return True

    def close(self) -> None:
        """Watch nothing any more."""
        if self._inotify is not None:
            self._inotify.close()
