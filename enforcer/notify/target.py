"""Opens what a held system call names, for a watcher that makes the call in the place of the task.

What is opened is what is changed: a name in the task's memory, or in its directories, may mean something else a moment
later. The watcher's root directory is the sandbox's, so paths mean to it what they mean to the task.
"""

import errno
import os
import re
from typing import Final

from enforcer.notify import memory

AT_FDCWD: Final = -100
# /proc/self is nobody for the watcher. The C library's fchmodat() goes by this path (glibc 2.32 to 2.38, musl).
_OWN_DESCRIPTOR: Final = re.compile(rb"/proc/(?:self|thread-self)/fd/([0-9]+)")


def by_descriptor(proc: int, thread: int, number: int, flags: int) -> int:
    """Open again what a thread of the task has open; `proc` is /proc outside. Raises OSError: EBADF if it hasn't."""
    try:
        return os.open(f"{thread}/fd/{signed(number)}", flags | os.O_CLOEXEC, dir_fd=proc)
    except FileNotFoundError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None


def by_path(proc: int, thread: int, address: int, flags: int, at: int = AT_FDCWD) -> int:
    """Open the path at an address in a thread's memory, from its working directory or an open one. Raises OSError."""
    path = memory.text(thread, address, memory.PATH_MAX)
    if path is None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if own := _OWN_DESCRIPTOR.fullmatch(path):
        return by_descriptor(proc, thread, int(own[1]), flags)
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if path.startswith(b"/"):  # openat(2): then nobody looks at the directory
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
    """Return a descriptor as the kernel takes it: the low half of its argument, signed."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low
