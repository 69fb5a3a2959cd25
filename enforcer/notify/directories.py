"""Changes the mode of a task's directory, set-id bits included, in the place of the task.

The filter refuses every set-id bit, since it can't see whether a path names a file: a set-id *file* on a disk of the
host's would give its owner's rights to a program of the task's. On a directory set-gid only says which group new files
get (inode(7)); `chmod`, `cp -a`, `rsync -a`, `tar -xp` and git in a shared repository set it.
"""

import errno
import os
import stat
from typing import Final

from enforcer.notify import memory, target
from enforcer.notify.kernel import Notification

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOCTTY
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_SET_GID: Final = stat.S_ISGID
CALLS: Final = frozenset({"chmod", "fchmod", "fchmodat", "fchmodat2"})


def open_for(proc: int, name: str, call: Notification) -> int:
    """Open the directory that one of `CALLS` is for. `proc` is /proc outside. Raises OSError, ENOTDIR for a file."""
    thread, (first, second, _, fourth, *_) = call.thread, call.arguments
    if name == "fchmod":
        return target.by_descriptor(proc, thread, first, _FLAGS)
    if name == "chmod":
        return target.by_path(proc, thread, first, _FLAGS)
    how = fourth & 0xFFFFFFFF if name == "fchmodat2" else 0
    if how & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if how & _AT_EMPTY_PATH and memory.text(thread, second, memory.PATH_MAX) == b"":
        return target.by_descriptor(proc, thread, first, _FLAGS)
    flags = _FLAGS | (os.O_NOFOLLOW if how & _AT_SYMLINK_NOFOLLOW else 0)
    return target.by_path(proc, thread, second, flags, first)


def change(directory: int, name: str, call: Notification, ids: tuple[int, frozenset[int]]) -> None:
    """Change the mode of an opened directory as the kernel does for a caller of these `ids`. Raises OSError."""
    mode = call.arguments[1 if name in {"chmod", "fchmod"} else 2] & 0o7777
    status, (uid, groups) = os.fstat(directory), ids
    if status.st_uid != uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if status.st_gid not in groups:  # chmod(2): then the kernel leaves the bit out, without an error
        mode &= ~_SET_GID
    os.fchmod(directory, mode)
