"""Caches: named directories that persist between tasks. Nothing else does, except the workspace.

One task at a time has a cache: tasks that share a directory share its sockets, which no network namespace separates
(invariant 11). A second task gets an empty directory in its place, which isn't kept: no task depends on a cache, and
none waits. The lock belongs to the open directory, and is released with the sandbox's last process.
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
    """The caches of one task; `locks` stay open as long as a process of the task runs."""

    kept: tuple[CacheMount, ...] = ()
    locks: tuple[int, ...] = ()


def caches_directory() -> str:
    """Return the resolved path of the directory of all caches."""
    return os.path.realpath(state.state_directory() / "caches")


def cache_target(path: str, home: str) -> str:
    """Return a cache's path in a sandbox, for a task with this home directory."""
    return home + path[1:] if path.startswith("~") else path


def lock_caches(caches: Iterable[tuple[str, str]], home: str, writable: Iterable[str]) -> TaskCaches:
    """Lock the free caches, and report those in use. `home`: the task's; `writable`: host paths that it may write.

    Raises UsageError where a task could have replaced a cache's directory, HostError where one can't be made.
    """
    caches = tuple(caches)
    if not caches:
        return TaskCaches()
    top = caches_directory()
    for place in writable:
        if contains(place, top) or contains(top, place):
            raise UsageError(
                f"the task may write to `{place}`, where the caches are (`{top}`): "
                "choose another workspace or `--write` path"
            )
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
            said = f"the cache `{name}` is in use by another task: this task gets an empty one, which isn't kept"
            sys.stderr.write(f"exeat: {said}\n")
            kept.append(CacheMount("", place))
            continue
        locks.append(lock)
        kept.append(CacheMount(source, place))
    return TaskCaches(tuple(kept), tuple(locks))


def _make(source: str) -> None:
    """Make a cache's directory, or restore its mode, which a task may have changed. Raises HostError."""
    try:
        os.makedirs(source, mode=0o700, exist_ok=True)
        if os.lstat(source).st_mode != stat.S_IFDIR | 0o700:
            os.chmod(source, 0o700)
    except OSError as error:
        raise HostError(f"the cache `{source}` cannot be used: {error.strerror}", "remove that directory") from error
