"""Changes the mode of a task's directory, set-id bits included, in the place of the task.

The filter refuses every set-id bit, since it can't see whether a path names a file: a set-id *file* on a disk of the
host's would give its owner's rights to a program of the task's. On a directory set-gid only says which group new files
get (inode(7)); `chmod`, `cp -a`, `rsync -a`, `tar -xp` and git in a shared repository set it. The watcher opens the
directory itself and changes what it has opened, so the task can't put a file in its place.
"""

import errno
import os
import re
import stat
from typing import Final

from enforcer.notify import memory
from enforcer.notify.caller import Caller
from enforcer.notify.kernel import Notification

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000
_SET_GID: Final = stat.S_ISGID
# /proc/self is nobody for the watcher. The C library's fchmodat() goes by this path (glibc 2.32 to 2.38, musl).
_OWN_DESCRIPTOR: Final = re.compile(rb"/proc/(?:self|thread-self)/fd/([0-9]+)")
CALLS: Final = frozenset({"chmod", "fchmod", "fchmodat", "fchmodat2"})


def open_for(proc: int, name: str, call: Notification) -> int:
    """Open the directory that one of `CALLS` is for. `proc` is /proc outside. Raises OSError, ENOTDIR for a file.

    Our own root directory is the sandbox's.
    """
    thread, first = call.thread, _signed(call.arguments[0])
    if name == "fchmod":
        return os.open(f"{thread}/fd/{first}", _FLAGS, dir_fd=proc)
    at, path_at = (_AT_FDCWD, call.arguments[0]) if name == "chmod" else (first, call.arguments[1])
    how = call.arguments[3] & 0xFFFFFFFF if name == "fchmodat2" else 0
    path = memory.text(thread, path_at, memory.PATH_MAX)
    if path is None or how & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if own := _OWN_DESCRIPTOR.fullmatch(path):
        return os.open(f"{thread}/fd/{int(own[1])}", _FLAGS, dir_fd=proc)
    if not path and not how & _AT_EMPTY_PATH:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    base = os.open(f"{thread}/cwd" if at == _AT_FDCWD else f"{thread}/fd/{at}", os.O_PATH | os.O_CLOEXEC, dir_fd=proc)
    try:
        return os.open(path or b".", _FLAGS | (os.O_NOFOLLOW if how & _AT_SYMLINK_NOFOLLOW else 0), dir_fd=base)
    finally:
        os.close(base)


def change(directory: int, name: str, call: Notification, caller: Caller) -> None:
    """Change the mode of an opened directory as the kernel does for this caller. Raises OSError."""
    mode = call.arguments[1 if name in {"chmod", "fchmod"} else 2] & 0o7777
    status, (uid, groups) = os.fstat(directory), caller.owns()
    if status.st_uid != uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if status.st_gid not in groups:  # chmod(2): then the kernel leaves the bit out, without an error
        mode &= ~_SET_GID
    os.fchmod(directory, mode)


def _signed(argument: int) -> int:
    """Return a descriptor as the kernel takes it: the low half of its argument, signed."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low
