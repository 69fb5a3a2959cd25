"""Launches a program in the sandbox's namespaces *without* filter and Landlock: do the walls behind them hold?

Run as a program of its own: `python without_filter.py WORKSPACE PROGRAM [ARGUMENT...]`.
"""

import socket
import sys

from enforcer.limits.resource_limits import Limits, make_resource_limits
from enforcer.run import launch
from enforcer.sandbox import identity, landlock, mount_plan, seccomp, task_start
from enforcer.system import linux


def main():
    workspace, *argv = sys.argv[1:]
    who = identity.choose()
    trees = {workspace: identity.idmapped_tree(workspace, who.kernel_uid, who.kernel_gid)} if who.privileged else {}
    read = (sys.base_prefix,)
    trees |= {path: linux.open_tree(path) for path in read} if who.privileged else {}
    steps = mount_plan.plan(mount_plan.MountRequest(who, workspace, {}, read=read, trees=trees))
    gate, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = task_start.Program(
        tuple(argv),
        {"PATH": "/usr/bin:/bin", "HOME": who.home},
        workspace,
        frozenset(),
        seccomp.assemble(seccomp.Filter(()), linux.platform_machine()),
        grants=(landlock.Grant("/", landlock.ALL_RIGHTS | landlock.DEVICE_RIGHTS),),
    )
    fence = make_resource_limits(Limits())
    sandbox = launch.launch(launch.SandboxSpec(who, steps, program, (0, 1, 2), gate, "sandbox", fence))
    while sandbox.init.turn() is None:
        pass
    sandbox.end()
    fence.remove()


if __name__ == "__main__":
    main()
