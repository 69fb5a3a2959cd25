"""Whose socket is this: the one process of the sandbox that has it open, looked for among all that its init has begot.

What is not certain is None, "unknown" and never a guess: this tells people who did something, it decides nothing. It
costs a bounded number of looks into /proc, whatever the task does: each directory is read no further than they last.

A task can hide itself: in a thread with a table of descriptors of its own (unshare(2), CLONE_FILES), which isn't looked
into, or by leaving its socket to another alone: a child, or a program that takes descriptors, which is named then. Who
is named is always one of its sandbox that has the socket open.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from enforcer.notify.caller import Caller
from proxy.watched.wire import Ancestor, Who

MOST_LOOKS: Final = 8192  # processes, threads and descriptors that are looked at, 10 ms; more of them is "unknown"
MOST_ANCESTORS: Final = 8
AT_ONCE: Final = 0.03  # seconds of a processor that looking may take: some fifty looks, mostly
A_SECOND: Final = 0.001  # ... and then: a task that connects without end is nobody's to pay for


class Holder(NamedTuple):
    """A process, and what it descends from, parent first, up to the sandbox's own first process."""

    who: Who
    ancestors: tuple[Ancestor, ...]


class Looking:
    """Looks for holders as long as that takes little of a processor; what is asked beyond is "unknown"."""

    __slots__ = ("_at", "_clock", "_left", "_used")

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.thread_time
    ) -> None:
        """Begin with all there may be. `used` says how much of a processor this thread has had (seconds)."""
        self._clock, self._used = clock, used
        self._left, self._at = AT_ONCE, clock()

    def holder(self, proc: int, init: int, inode: int) -> Holder | None:
        """Return what `holder` does, if there is time left for it; one that takes longer is made up for."""
        now = self._clock()
        self._left, self._at = min(AT_ONCE, self._left + (now - self._at) * A_SECOND), now
        if self._left <= 0:
            return None
        began = self._used()
        try:
            return holder(proc, init, inode)
        finally:
            self._left -= self._used() - began


class Looks:
    """How many looks are left."""

    def __init__(self, most: int | None = None) -> None:
        self._left = MOST_LOOKS if most is None else most

    def take(self) -> None:
        """Take one. Raises ValueError where there are none."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("too much to look at")


def holder(proc: int, init: int, inode: int) -> Holder | None:
    """Return who alone holds the socket with that inode; `proc` is a descriptor of /proc, `init` the first process."""
    wanted = f"socket:[{inode}]"
    looks = Looks()
    try:
        parents = {}
        holders = []
        for pid, parent in begotten(proc, init, looks):
            parents[pid] = parent
            if wanted in _links(proc, pid, looks):
                holders.append(pid)
        if len(holders) != 1:
            return None
        [pid] = holders
        found = Holder(Caller(proc, pid).who(), tuple(_ancestors(proc, parents, pid)))
        # The id may have changed hands since it was found: then the socket isn't there any more.
        return found if wanted in _links(proc, pid, Looks()) else None
    except (OSError, ValueError):
        return None


def begotten(proc: int, init: int, looks: Looks) -> Iterator[tuple[int, int]]:
    """Yield each process below `init` and its parent: proc_tid_children(5). What is orphaned is init's."""
    todo = [init]
    while todo:
        parent = todo.pop()
        for thread in listed(proc, f"{parent}/task", looks):
            for word in read(proc, f"{parent}/task/{thread}/children").split():
                looks.take()
                todo.append(int(word))
                yield int(word), parent


def _ancestors(proc: int, parents: dict[int, int], pid: int) -> Iterator[Ancestor]:
    """Yield from the parent up; the sandbox's init is none of the task's."""
    for _ in range(MOST_ANCESTORS):
        pid = parents.get(pid, 0)
        if pid not in parents:
            return
        yield Ancestor(pid, Caller(proc, pid).executable())


def _links(proc: int, pid: int, looks: Looks) -> Iterator[str]:
    """Yield what each descriptor of a process is, in /proc's words."""
    for name in listed(proc, f"{pid}/fd", looks):
        try:
            link = os.readlink(f"{pid}/fd/{name}", dir_fd=proc)
        except OSError:
            continue  # closed meanwhile
        yield link


def listed(proc: int, path: str, looks: Looks) -> Iterator[str]:
    """List a directory; one of a process that is gone, or is nobody's to look into, is empty."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return
    try:
        with contextlib.suppress(ProcessLookupError), os.scandir(directory) as entries:
            for entry in entries:
                looks.take()
                yield entry.name
    finally:
        os.close(directory)


def read(proc: int, path: str) -> bytes:
    """Read a file; one of a process that is gone, or is nobody's to look into, is empty."""
    found = b""
    with contextlib.suppress(OSError):  # it ended meanwhile
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            while piece := os.read(file, 65536):
                found += piece
        finally:
            os.close(file)
    return found
