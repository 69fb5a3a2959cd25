"""What the kernel counts for each user, in whatever sandbox it is: a task may have a part, and the others the rest.

Inotify's instances and watches, and queued signals with the timers that reserve one each, are counted in the task's own
user namespace, and with all that whoever made that has (user_namespaces(7), kernel/ucount.c). So without a bound of its
own one task has them all, and its user's other programs, root's too, have none. Each of these bounds is one for all of
a sandbox's processes together, though one is set as an rlimit: since Linux 5.14 that counts so.

Descriptors that are sent and not received yet (unix(7), ETOOMANYREFS) are counted for the user alone, and each sender
is held to its own limit of open files: so a task's is a quarter lower than ours, who have to send some at each start.
"""

import contextlib
import resource
from functools import cache
from typing import Final

from enforcer.limits.rlimits import Bound

_SHARE: Final = 4
_OURS: Final = 4  # of open files, the part that is ours alone
_LEAST: Final = 2 * 253  # and of those: a last message takes no look at how many go along (unix(7), SCM_MAX_FD)
# A user namespace's own, and the whole machine's, of which a container sees no other: below /proc/sys.
_INOTIFY: Final = (
    ("user/max_inotify_instances", "fs/inotify/max_user_instances"),
    ("user/max_inotify_watches", "fs/inotify/max_user_watches"),
)

_TERMINALS: Final = 16  # the part of the machine's terminals that a sandbox may have: many sandboxes run at once
_LEAST_TERMINALS: Final = 16


@cache
def terminals() -> int:
    """Return how many terminals a sandbox may have: a part of those that the kernel doesn't reserve for the host."""
    try:
        most = _read("kernel/pty/max") - _read("kernel/pty/reserve")
    except (OSError, ValueError):
        return _LEAST_TERMINALS
    return max(_LEAST_TERMINALS, most // _TERMINALS)


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


def of_processes(*, among_others: bool) -> tuple[Bound, ...]:
    """Return the limits to set in a task, by what this process may have; `among_others` of its own user, if there are.

    One of open files is always there: what this process may have now, whatever it has meanwhile.
    """
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if among_others:
        most_files = max(most_files - max(most_files // _OURS, _LEAST), most_files // 2)
    _, most = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    signals = () if most == resource.RLIM_INFINITY else ((resource.RLIMIT_SIGPENDING, most // _SHARE, most // _SHARE),)
    return (resource.RLIMIT_NOFILE, min(files, most_files), most_files), *signals
