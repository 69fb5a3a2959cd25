"""Caches: named directories that persist between tasks. Besides a workspace nothing else does.

One task at a time has a cache: sharing a directory is sharing sockets, which no network namespace keeps apart
(invariant 11). Whoever comes second gets an empty one in its place, of which nothing is kept: a cache can always be
empty, and nobody waits. The lock belongs to the open directory and goes when the sandbox's last process is gone.
"""

import fcntl
import os
import stat
import sys
from collections.abc import Iterable
from typing import NamedTuple

from enforcer.sandbox.mount_plan import CacheMount
from enforcer.sandbox.system_paths import contains
from enforcer.system import state
from enforcer.system.errors import HostError, UsageError


class TaskCaches(NamedTuple):
    """The caches of one task; `locks` are to stay open as long as anything of it runs."""

    kept: tuple[CacheMount, ...] = ()
    locks: tuple[int, ...] = ()


def caches_directory() -> str:
    """Return where they lie, by its real path."""
    return os.path.realpath(state.state_directory() / "caches")


def cache_target(path: str, home: str) -> str:
    """Return where a cache lies in a sandbox whose task's home is `home`."""
    return home + path[1:] if path.startswith("~") else path


def lock_caches(caches: Iterable[tuple[str, str]], home: str, writable: Iterable[str]) -> TaskCaches:
    """Take the caches that are free, and say which are not. `home` is the task's, `writable` what of the host is too.

    Raises UsageError where a task could have put another directory in a cache's place, HostError where none can be
    made.
    """
    caches = tuple(caches)
    if not caches:
        return TaskCaches()
    top = caches_directory()
    for place in writable:
        if contains(place, top) or contains(top, place):
            raise UsageError(f"caches lie in `{top}`, and a task may not write where they do: `{place}`")
    state.make_private(state.state_directory() / "caches")
    kept: list[CacheMount] = []
    locks: list[int] = []
    for name, path in caches:
        place = cache_target(path, home)
        source = f"{top}/{name}"
        _make(source)
        lock = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            said = f"the cache `{name}` is in use by another task: this one has an empty one, of which nothing is kept"
            sys.stderr.write(f"exeat: {said}\n")
            kept.append(CacheMount("", place))
            continue
        locks.append(lock)
        kept.append(CacheMount(source, place))
    return TaskCaches(tuple(kept), tuple(locks))


def _make(source: str) -> None:
    """Make a cache, or give one back the mode that only its last task can have changed. Raises HostError."""
    try:
        os.makedirs(source, mode=0o700, exist_ok=True)
        if os.lstat(source).st_mode != stat.S_IFDIR | 0o700:
            os.chmod(source, 0o700)
    except OSError as error:
        raise HostError(f"the cache `{source}` cannot be had: {error.strerror}", "remove it") from error
