"""Checks which resource limits this machine supports, by trying them, and says how to get more (`exeat doctor`).

Also what the machine has only once, and a task of the default limits could use up here, for people to bound. The rest
of such resources no task can have much of: see `resource_limits`, `enforcer.sandbox.seccomp` and
docs/explanation/limits.md.
"""

import os
from collections.abc import Callable
from typing import Final

from enforcer.limits.cgroups import hierarchies
from enforcer.limits.resource_limits import (
    PROCESSES,
    Limits,
    Means,
    limits_of,
    make_resource_limits,
    read_sysctl,
    remedy,
)
from enforcer.system.errors import HostError
from rules.sandbox import SandboxSettings

_COUNTS_BY_NAMESPACE = (5, 14)  # the Linux from which on RLIMIT_NPROC is counted in the task's own user namespace
_WEAK = {
    "memory": "by rlimit, each process alone: not what they have together, nor what they share",
    "processes": "by rlimit, with all that this user runs: this kernel counts them together",
    "cpu": "not at all: a rule that says `cpu` starts nothing here",
}


def try_limit(kind: str) -> str:
    """Say by what means a limit is kept. Raises HostError where that is less than the limit says."""
    resource_limits = make_resource_limits(Limits(memory=1 << 30, said=frozenset({"memory"})))
    resource_limits.remove()
    means = resource_limits.means[kind]
    if means in (Means.CGROUP1, Means.CGROUP2):
        return f"by {means}"
    if kind == "processes" and _kernel() >= _COUNTS_BY_NAMESPACE:
        return "by rlimit, in the task's own user namespace"
    raise HostError(_WEAK[kind], remedy(kind))


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


_OPEN_FILE: Final = 256  # bytes of kernel memory, and as good as nothing else: `struct file`
_FILTERS: Final = 512 << 10  # bytes that the system call filters of one process take of the pool at most, compiled
_ENOUGH: Final = 500  # processes, that a rule may say

type Read = Callable[[str], int]  # a setting, by its name below /proc/sys; raises OSError, ValueError


def unbounded(read: Read | None = None) -> list[tuple[str, str]]:
    """Return what one task can use up here, and what bounds it."""
    read, found = read or read_sysctl, []
    memory = limits_of(SandboxSettings()).memory or 0
    if _is_below(read, "fs/file-max", memory // _OPEN_FILE):
        found.append(("open files (fs.file-max)", "as root, `sysctl -w fs.file-max=9223372036854775807`"))
    compiled = not _is_below(read, "net/core/bpf_jit_enable", 1)
    if compiled and _is_below(read, "net/core/bpf_jit_limit", PROCESSES * _FILTERS):
        found.append(
            ("system call filters (net.core.bpf_jit_limit)", f"`limits: {{processes: {_ENOUGH}}}` in the rules")
        )
    if not any("memory" in each.controllers for each in hierarchies()):
        found.append(("socket buffers", "have a memory cgroup: see `memory`"))
    return found


def _is_below(read: Read, name: str, enough: int) -> bool:
    """Whether a setting is lower than what is enough; what isn't there is bounded in no way by it."""
    try:
        return read(name) < enough
    except (OSError, ValueError):
        return False
