"""Sets and removes extended attributes in the place of a task: those that say nothing to the kernel or the host.

A file's owner may set `security.selinux` or `security.SMACK64` where the host's security module lets it, and that is
what the host then takes a file of the workspace for. A filter can't see a name, and one that is only looked at could be
another one when the kernel reads it. So the watcher takes the name over, and makes the call itself with the rights that
the task has over files.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from enforcer import linux
from enforcer.notify import memory, target
from enforcer.notify.caller import Caller
from enforcer.notify.kernel import Notification

CALLS: Final = frozenset({"setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"})
_NAME_MAX, _SIZE_MAX = 256, 1 << 16  # bytes, xattr(7); the first with the zero byte
_ALLOWED: Final = ("user.", "system.posix_acl_access", "system.posix_acl_default")
_FLAGS: Final = os.XATTR_CREATE | os.XATTR_REPLACE
_SIGKILL: Final = 9


def perform(proc: int, name: str, call: Notification, waits: Callable[[], bool]) -> None:
    """Make one of `CALLS` if it still `waits`. `proc` is /proc outside, and our working directory. Raises OSError."""
    first, second, third, fourth, fifth, _ = call.arguments
    flags = fifth & 0xFFFFFFFF if name.endswith("setxattr") else 0
    if flags & ~_FLAGS:  # some are no number that can be passed on
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    attribute = memory.text(call.thread, second, _NAME_MAX)
    if not attribute:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    named = os.fsdecode(attribute)
    if not named.startswith(_ALLOWED):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    value = _value(call.thread, third, fourth) if name.endswith("setxattr") else None
    how = os.O_PATH | (os.O_NOFOLLOW if name.startswith("l") else 0)
    opened = target.by_descriptor if name.startswith("f") else target.by_path
    file = opened(proc, call.thread, first, how)
    try:
        ids = Caller(proc, call.thread).owns()
        if not waits():  # what was read may be another process's
            return
        with _rights_of(*ids):
            if value is None:
                os.removexattr(f"self/fd/{file}", named)
            else:
                os.setxattr(f"self/fd/{file}", named, value, flags)
    finally:
        os.close(file)


def _value(thread: int, address: int, size: int) -> bytes:
    if size > _SIZE_MAX:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    found = b""
    while len(found) < size:
        found += memory.read(thread, address + len(found), size - len(found))
    return found


@contextlib.contextmanager
def _rights_of(uid: int, groups: frozenset[int]) -> Iterator[None]:
    """Have the ids that the task touches files with, and with another uid than ours none of our rights over them."""
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
