"""Where we are in the host's cgroups, from what /proc says: layouts of machines that this one isn't."""

import pytest

from enforcer.limits.cgroup_tree import match_mounts

V1 = "30 20 0:25 / /sys/fs/cgroup/{0} rw,nosuid - cgroup cgroup rw,{0}"
V2 = "31 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = "32 20 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
SHARED = "33 20 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OF_A_CONTAINER = "34 20 0:29 /docker/0f3c /sys/fs/cgroup/memory ro - cgroup cgroup ro,memory"
ODD = r"35 20 0:30 / /mnt/a\040b rw - cgroup cgroup rw,pids"

# /proc/self/cgroup, the lines of mountinfo about cgroups, and what is found: version and directory.
LAYOUTS = {
    "version 2": ("0::/user.slice/a.scope", [V2], [(2, "/sys/fs/cgroup/user.slice/a.scope")]),
    "version 2, at its root": ("0::/", [V2], [(2, "/sys/fs/cgroup")]),
    "version 1": (
        "9:memory:/x\n8:pids:/",
        [V1.format("memory"), V1.format("pids")],
        [(1, "/sys/fs/cgroup/memory/x"), (1, "/sys/fs/cgroup/pids")],
    ),
    "two controllers in one hierarchy": (
        "4:cpu,cpuacct:/x",
        [V1.format("memory"), SHARED],
        [(1, "/sys/fs/cgroup/cpu,cpuacct/x")],
    ),
    "some of each": (
        "4:memory:/x\n0::/y",
        [V1.format("memory"), HYBRID],
        [(1, "/sys/fs/cgroup/memory/x"), (2, "/sys/fs/cgroup/unified/y")],
    ),
    "a container's part of the host's": ("4:memory:/docker/0f3c/x", [OF_A_CONTAINER], [(1, "/sys/fs/cgroup/memory/x")]),
    "a part that we are not in": ("4:memory:/docker/0f3cc", [OF_A_CONTAINER], []),
    "outside of our cgroup namespace": ("0::/../x", [V2], []),
    "named by escapes": ("4:pids:/", [ODD], [(1, "/mnt/a b")]),
    "not mounted": ("4:pids:/\n0::/", [V1.format("memory")], []),
}


@pytest.mark.parametrize(("groups", "mounts", "found"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_cgroup_layout_is_parsed(groups, mounts, found):
    assert [(each.version, each.own) for each in match_mounts(groups, mounts)] == found
