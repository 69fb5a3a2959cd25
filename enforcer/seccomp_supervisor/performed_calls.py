"""System calls that the supervisor makes or bounds for a task: directory modes, attributes, file locks.

The supervisor opens a file and changes what it opened: names in the task's memory may lead elsewhere a moment later.
Its root directory is the sandbox's, so paths mean the same as for the task.

Modes: the filter refuses every set-id bit, since it can't see whether a path names a file; a set-id *file* would give
its owner's rights to a program of the task. On a directory set-gid only decides which group new files get (inode(7)),
and `cp -a`, `tar -xp` and git use it.

Attributes: a filter can't see their names, and `security.selinux` or `security.SMACK64` would change how the host
labels a file. So the supervisor copies the name, and makes the call with the task's rights over files.

Byte-range locks (fcntl(2)): the kernel keeps each in about 190 bytes that no cgroup counts (CVE-2022-0480). Calls that
may make locks are counted; at the bound, the existing locks are counted again (proc_pid_fdinfo(5)).
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from enforcer.seccomp_supervisor import notification_listener
from enforcer.seccomp_supervisor.notification_listener import Notification
from enforcer.seccomp_supervisor.task_processes import Caller, LookBudget, descendants, list_directory, read_file
from enforcer.system import linux

AT_FDCWD: Final = -100
# /proc/self isn't the task for the supervisor. The C library's fchmodat() uses this path (glibc 2.32 to 2.38, musl).
_PROC_SELF_FD: Final = re.compile(rb"/proc/(?:self|thread-self)/fd/([0-9]+)")


def by_descriptor(proc: int, thread: int, number: int, flags: int) -> int:
    """Open again what a thread of the task has open; `proc`: /proc of the host. Raises OSError: EBADF if it doesn't."""
    try:
        return os.open(f"{thread}/fd/{signed(number)}", flags | os.O_CLOEXEC, dir_fd=proc)
    except FileNotFoundError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None


def by_path(proc: int, thread: int, address: int, flags: int, at: int = AT_FDCWD) -> int:
    """Open the path at an address in a thread's memory, relative to its working directory or `at`. Raises OSError."""
    path = notification_listener.read_text(thread, address, notification_listener.PATH_MAX)
    if path is None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if descriptor_path := _PROC_SELF_FD.fullmatch(path):
        return by_descriptor(proc, thread, int(descriptor_path[1]), flags)
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if path.startswith(b"/"):  # openat(2) ignores the directory then
        return os.open(path, flags | os.O_CLOEXEC)
    if signed(at) == AT_FDCWD:
        base = os.open(f"{thread}/cwd", os.O_PATH | os.O_CLOEXEC, dir_fd=proc)
    else:
        base = by_descriptor(proc, thread, at, os.O_PATH)
    try:
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=base)
    finally:
        os.close(base)


def signed(argument: int) -> int:
    """Return a descriptor argument as the kernel reads it: the low 32 bits, signed."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOCTTY
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_SET_GID: Final = stat.S_ISGID
MODE_CALLS: Final = frozenset({"chmod", "fchmod", "fchmodat", "fchmodat2"})


def open_directory(proc: int, name: str, call: Notification) -> int:
    """Open the directory that one of `MODE_CALLS` names. Raises OSError: ENOTDIR for a file."""
    thread, (first, second, _, fourth, *_) = call.thread, call.arguments
    if name == "fchmod":
        return by_descriptor(proc, thread, first, _DIRECTORY)
    if name == "chmod":
        return by_path(proc, thread, first, _DIRECTORY)
    at_flags = fourth & 0xFFFFFFFF if name == "fchmodat2" else 0
    if at_flags & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if (
        at_flags & _AT_EMPTY_PATH
        and notification_listener.read_text(thread, second, notification_listener.PATH_MAX) == b""
    ):
        return by_descriptor(proc, thread, first, _DIRECTORY)
    flags = _DIRECTORY | (os.O_NOFOLLOW if at_flags & _AT_SYMLINK_NOFOLLOW else 0)
    return by_path(proc, thread, second, flags, first)


def change_mode(directory: int, name: str, call: Notification, ids: tuple[int, frozenset[int]]) -> None:
    """Change the mode of an open directory, as the kernel does for a caller with these `ids`. Raises OSError."""
    mode = call.arguments[1 if name in {"chmod", "fchmod"} else 2] & 0o7777
    status, (uid, groups) = os.fstat(directory), ids
    if status.st_uid != uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if status.st_gid not in groups:  # chmod(2): the kernel clears the bit then, without an error
        mode &= ~_SET_GID
    os.fchmod(directory, mode)


ATTRIBUTE_CALLS: Final = frozenset(
    {"setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"}
)
_NAME_MAX, _SIZE_MAX = 256, 1 << 16  # bytes, xattr(7); the first with the zero byte
_ALLOWED: Final = ("user.", "system.posix_acl_access", "system.posix_acl_default")
_FLAGS: Final = os.XATTR_CREATE | os.XATTR_REPLACE
_SIGKILL: Final = 9


def set_attribute(proc: int, name: str, call: Notification, is_waiting: Callable[[], bool]) -> None:
    """Make one of `ATTRIBUTE_CALLS` if it still `is_waiting`. `proc`: /proc of the host, our working directory.

    Raises OSError.
    """
    first, second, third, fourth, fifth, _ = call.arguments
    flags = fifth & 0xFFFFFFFF if name.endswith("setxattr") else 0
    if flags & ~_FLAGS:  # other flags are invalid
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    attribute = notification_listener.read_text(call.thread, second, _NAME_MAX)
    if not attribute:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    attribute_name = os.fsdecode(attribute)
    if not attribute_name.startswith(_ALLOWED):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    value = _value(call.thread, third, fourth) if name.endswith("setxattr") else None
    open_flags = os.O_PATH | (os.O_NOFOLLOW if name.startswith("l") else 0)
    open_file = by_descriptor if name.startswith("f") else by_path
    file = open_file(proc, call.thread, first, open_flags)
    try:
        ids = Caller(proc, call.thread).file_access_ids()
        if not is_waiting():  # the memory read may be another process's
            return
        with _rights_of(*ids):
            if value is None:
                os.removexattr(f"self/fd/{file}", attribute_name)
            else:
                os.setxattr(f"self/fd/{file}", attribute_name, value, flags)
    finally:
        os.close(file)


def _value(thread: int, address: int, size: int) -> bytes:
    if size > _SIZE_MAX:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    value = b""
    while len(value) < size:
        value += notification_listener.read_memory(thread, address + len(value), size - len(value))
    return value


@contextlib.contextmanager
def _rights_of(uid: int, groups: frozenset[int]) -> Iterator[None]:
    """Take on the task's ids for file access; with another uid than ours, our own rights over files are gone."""
    if uid < 0 or not groups:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    try:
        os.setegid(min(groups))
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        linux.prctl(linux.PR_SET_PDEATHSIG, _SIGKILL)  # which a change of ids has cleared


LOCK_CALL: Final = "fcntl"
MAX_LOCKS: Final = 50_000  # 10 MB
_LOOK_BUDGET: Final = 400_000  # processes, threads and descriptors, about a second; a task with more gets no more locks
_LOCKS_PER_CALL: Final = 2  # locks that one call makes at most: it may split another lock
_OPEN_FILE_LOCKS: Final = frozenset({37, 38})  # F_OFD_SETLK, F_OFD_SETLKW
_RECOUNT_PAUSE: Final = 0.1  # seconds between two counts, where there are many


class Locks:
    """The bound of byte-range locks of one sandbox. `proc`: /proc of the host, `first`: the sandbox's first process."""

    def __init__(self, proc: int, first: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._first, self._clock = proc, first, clock
        self._locks_left = MAX_LOCKS
        self._open_file_locks_left = MAX_LOCKS
        self._due = 0.0  # when they may be counted again

    def allows(self, command: int) -> bool:
        """Whether one more call may make locks."""
        # Locks of an open file may be in no process: the file may be in a socket. They are never counted as freed.
        if command in _OPEN_FILE_LOCKS:
            self._open_file_locks_left -= _LOCKS_PER_CALL
            if self._open_file_locks_left < 0:
                return False
        self._locks_left -= _LOCKS_PER_CALL
        if self._locks_left < 0 and self._clock() >= self._due:
            self._locks_left = MAX_LOCKS - _LOCKS_PER_CALL - count_locks(self._proc, self._first)
            if self._locks_left < MAX_LOCKS // 10:
                self._due = self._clock() + _RECOUNT_PAUSE
        return self._locks_left >= 0


def count_locks(proc: int, first: int) -> int:
    """Count the locks of a process and its descendants; MAX_LOCKS if they have too many /proc entries."""
    looks, count = LookBudget(_LOOK_BUDGET), 0
    try:
        for pid in (first, *descendants(proc, first, looks)):
            for thread in map(int, list_directory(proc, f"{pid}/task", looks)):
                if thread == pid or not linux.shares_descriptor_table(pid, thread):
                    table = f"{pid}/task/{thread}/fdinfo"
                    count += sum(
                        read_file(proc, f"{table}/{name}").count(b"\nlock:")
                        for name in list_directory(proc, table, looks)
                    )
    except ValueError:
        return MAX_LOCKS
    return count
