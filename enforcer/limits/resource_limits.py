"""How much of the host a task may take: what the rules say, and the defaults. Each default's reason: docs/resources.md.

The defaults only keep a task that takes all it can get from taking the host down; one that works doesn't notice them.

What getrlimit(2) can keep without any cgroup, set in the task itself just before it is executed. Nothing raises it
again: that takes CAP_SYS_RESOURCE on the host.

- open files: by process; there is no other means.
- processes: counted for one kernel uid *in one user namespace* since Linux 5.14, and a task has a user namespace of its
  own; before, all that its uid runs counts along.
- memory: RLIMIT_DATA, what a process has that is private and writable, is nearer to what it uses than RLIMIT_AS, since
  languages reserve terabytes that they never touch. It bounds each process alone, not their sum, nor what they share.

What the kernel counts for each user, in whatever sandbox it is, a task may have a part of. Inotify's instances and
watches, and queued signals with the timers that reserve one each, are counted in the task's own user namespace, and
with all that its maker has (user_namespaces(7), kernel/ucount.c). Without a bound of its own one task has them all, and
its user's other programs, root's too, have none. Each bound is one for all of a sandbox's processes together, though
one is set as an rlimit: since Linux 5.14 that counts so.

Descriptors that are sent and not received yet (unix(7), ETOOMANYREFS) are counted for the user alone, and each sender
is held to its own limit of open files: so a task's is a quarter lower than ours, who have to send some at each start.
"""

import contextlib
import os
import resource
from functools import cache
from typing import Final, NamedTuple

from rules.sandbox import Box

type Rlimit = tuple[int, int]  # which resource, and how much
type Bound = tuple[int, int, int]  # which resource, and at most how much: soft, hard


def needed(*, files: int | None, processes: int | None, memory: int | None) -> tuple[Rlimit, ...]:
    """Return those to set; None: not by this means."""
    wanted = (
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_DATA, memory),
    )
    return tuple((which, value) for which, value in wanted if value is not None)


def least(one: int, other: int) -> int:
    """Return the lower of two limits."""
    if resource.RLIM_INFINITY in (one, other):
        return one if other == resource.RLIM_INFINITY else other
    return min(one, other)


PROCESSES = 4096
TIMED_OUT = 124  # the exit status of a task whose time was up, as timeout(1) has it
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")  # IEC 80000-13
_MEMORY_SHARE, _DISK_SHARE = 3 / 4, 1 / 2
_PAGE = 4096  # bytes; a file that holds anything takes one
_OF_OURS = 64  # files: the directories that a view has before a task makes any


class Limits(NamedTuple):
    """Of one task. None: not limited. `said` names those that a rule file or an option says."""

    memory: int | None = None  # bytes
    cpu: float | None = None  # cores
    processes: int = PROCESSES  # and threads
    files: int | None = None  # open at a time, a process
    disk: int = 0  # bytes in all that is writable and in memory
    timeout: float | None = None  # seconds
    said: frozenset[str] = frozenset()


def limits_of(box: Box, host_memory: int | None = None) -> Limits:
    """Return what a task in this box may take. `host_memory` (bytes) is this machine's, unless a test says another."""
    memory = _memory_of_host() if host_memory is None else host_memory
    said = {name: value for name in Limits._fields if (value := getattr(box, name, None)) is not None}
    usual = {"memory": int(memory * _MEMORY_SHARE), "disk": int(memory * _DISK_SHARE)}
    return Limits(**{**usual, **said}, said=frozenset(said))


def files_in(disk: int) -> int:
    """Return how many files go with so many bytes of `disk`: empty ones cost what no size counts."""
    return disk // _PAGE + _OF_OURS


def _memory_of_host() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_bytes(count: int) -> str:
    """Return an amount in the unit that suits it."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.4g} {_UNITS[unit]}"


def in_seconds(seconds: float) -> str:
    """Return a time in seconds."""
    return f"{seconds:g} s"


_USERS_SHARE: Final = 4
_OURS_OF_FILES: Final = 4  # of open files, the part that is ours alone
_LEAST_FILES: Final = 2 * 253  # and of those: a last message takes no look at how many go along (unix(7), SCM_MAX_FD)
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
        most = _setting("kernel/pty/max") - _setting("kernel/pty/reserve")
    except (OSError, ValueError):
        return _LEAST_TERMINALS
    return max(_LEAST_TERMINALS, most // _TERMINALS)


@cache
def of_namespace() -> tuple[tuple[str, int], ...]:
    """Return the settings of a sandbox's own user namespace: which, below /proc/sys, and how much."""
    found = []
    for own, machine in _INOTIFY:
        with contextlib.suppress(OSError, ValueError):
            found.append((own, max(1, min(_setting(own), _setting(machine)) // _USERS_SHARE)))
    return tuple(found)


def _setting(name: str) -> int:
    with open(f"/proc/sys/{name}", "rb", buffering=0) as file:
        return int(file.read(32))


def of_processes(*, among_others: bool) -> tuple[Bound, ...]:
    """Return the limits to set in a task, by what this process may have; `among_others` of its own user, if there are.

    One of open files is always there: what this process may have now, whatever it has meanwhile.
    """
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if among_others:
        most_files = max(most_files - max(most_files // _OURS_OF_FILES, _LEAST_FILES), most_files // 2)
    _, most = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    signals = (
        ()
        if most == resource.RLIM_INFINITY
        else ((resource.RLIMIT_SIGPENDING, most // _USERS_SHARE, most // _USERS_SHARE),)
    )
    return (resource.RLIMIT_NOFILE, min(files, most_files), most_files), *signals
