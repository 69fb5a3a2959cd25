"""What a process can be limited in without any cgroup: getrlimit(2), set in the task itself just before it is executed.

Nothing gets them back up: that takes CAP_SYS_RESOURCE on the host. How good each is:

- open files: as good as it gets, by process; there is no other.
- processes: counted for one kernel uid *in one user namespace* since Linux 5.14, and a task has a user namespace of its
  own; before, all that its uid runs counts along.
- memory: RLIMIT_DATA, what a process has that is private and writable, which is nearer to what it uses than RLIMIT_AS:
  languages reserve terabytes of addresses that they never touch. It bounds each process alone, not their sum, nor what
  they share.
"""

import resource

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
