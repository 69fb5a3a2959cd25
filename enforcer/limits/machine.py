"""What this machine has for each limit of a task, found by making a group as for a task, and what would get more."""

import os

from enforcer.errors import HostError
from enforcer.limits.fence import Means, build
from enforcer.limits.hierarchies import V2, hierarchies
from enforcer.limits.places import CONTROLLERS
from enforcer.limits.wanted import Limits

_COUNTS_BY_NAMESPACE = (5, 14)  # the Linux from which on RLIMIT_NPROC is counted in the task's own user namespace
_AS_A_SCOPE = "run it as `systemd-run --user --scope -p Delegate=yes exeat run …`"
_DELEGATE_CPU = (
    "as root, put `[Service]` and `Delegate=cpu memory pids` into /etc/systemd/system/user@.service.d/delegate.conf, "
    "then log in anew"
)
_BOOT_V2 = "run exeat as root, or boot with `systemd.unified_cgroup_hierarchy=1`: version 1 can't be given to users"
_MOUNT = "make cgroups writable: in a container, mount /sys/fs/cgroup writable in a cgroup namespace of its own"
_WEAK = {
    "memory": "by rlimit, each process alone: not what they have together, nor what they share",
    "processes": "by rlimit, with all that this user runs: this kernel counts them together",
    "cpu": "not at all: a rule that says `cpu` starts nothing here",
}


def try_limit(kind: str) -> str:
    """Say by what means a limit is kept. Raises HostError where that is less than the limit says."""
    fence = build(Limits(memory=1 << 30, said=frozenset({"memory"})))
    fence.remove()
    means = fence.means[kind]
    if means in (Means.CGROUP1, Means.CGROUP2):
        return f"by {means}"
    if kind == "processes" and _kernel() >= _COUNTS_BY_NAMESPACE:
        return "by rlimit, in the task's own user namespace"
    raise HostError(_WEAK[kind], remedy(kind))


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


def remedy(kind: str) -> str:
    """Say what would give a limit a cgroup here."""
    found = hierarchies()
    second = [each for each in found if each.version == V2]
    if not any(os.access(each.top, os.R_OK) for each in found) or (os.geteuid() == 0):
        return _MOUNT
    if not any(each.controllers & CONTROLLERS for each in second):
        return _BOOT_V2
    delegated = any(each.own.split("/user@")[0] != each.own for each in second)
    return _DELEGATE_CPU if kind == "cpu" and delegated else _AS_A_SCOPE
