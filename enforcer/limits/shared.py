"""What the kernel counts for each user, in whatever sandbox it is: a task may have a quarter, and the others the rest.

Inotify's instances and watches, and queued signals with the timers that reserve one each, are counted in the task's own
user namespace, and with all that whoever made that has (user_namespaces(7), kernel/ucount.c). So without a bound of its
own one task has them all, and its user's other programs, root's too, have none. Each of these bounds is one for all of
a sandbox's processes together, though one is set as an rlimit: since Linux 5.14 that counts so.
"""

import contextlib
import resource
from functools import cache
from typing import Final

from enforcer.limits.rlimits import Rlimit

_SHARE: Final = 4
# A user namespace's own, and the whole machine's, of which a container sees no other: below /proc/sys.
_INOTIFY: Final = (
    ("user/max_inotify_instances", "fs/inotify/max_user_instances"),
    ("user/max_inotify_watches", "fs/inotify/max_user_watches"),
)


@cache
def of_namespace() -> tuple[tuple[str, int], ...]:
    """Return the settings of a sandbox's own user namespace: which, below /proc/sys, and how much."""
    found = []
    for own, machine in _INOTIFY:
        with contextlib.suppress(OSError, ValueError):
            found.append((own, max(1, min(_read(own), _read(machine)) // _SHARE)))
    return tuple(found)


def _read(name: str) -> int:
    with open(f"/proc/sys/{name}", "rb", buffering=0) as file:
        return int(file.read(32))


def of_processes() -> tuple[Rlimit, ...]:
    """Return the limits to set in a task, by what this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    return () if most == resource.RLIM_INFINITY else ((resource.RLIMIT_SIGPENDING, most // _SHARE),)
