"""Checks which resource limits this machine supports, by trying them, with remedies (`exeat doctor`).

Also lists machine-wide resources that a task with default limits could use up here. A task can't use much of the
others: see `resource_limits`, `enforcer.sandbox.seccomp` and docs/explanation/limits.md.
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

_COUNTS_BY_NAMESPACE = (5, 14)  # from this Linux on, RLIMIT_NPROC is counted in the task's own user namespace
_WEAK = {
    "memory": "by rlimit, for each process alone: neither their sum nor shared memory is limited",
    "processes": "by rlimit, together with all other processes of this user on this kernel",
    "cpu": "not at all: rules with a `cpu` limit start no task here",
}


def try_limit(kind: str) -> str:
    """Return what keeps a limit on this machine. Raises HostError if that is weaker than the limit."""
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


_OPEN_FILE: Final = 256  # bytes of kernel memory of an open file: `struct file`
_FILTERS: Final = 512 << 10  # bytes of compiled filters of one process at most
_ENOUGH: Final = 500  # processes, the suggested limit

type Read = Callable[[str], int]  # reads a sysctl by its name below /proc/sys; raises OSError, ValueError


def unbounded(read: Read | None = None) -> list[tuple[str, str]]:
    """Return resources that one task can use up on this machine, and how to bound each."""
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
    """Whether a sysctl is lower than `enough`; False if it doesn't exist."""
    try:
        return read(name) < enough
    except (OSError, ValueError):
        return False
