"""Runs a program as root of a user namespace, as a rootless engine is run: `python -m ... MORE PROGRAM [ARGUMENT...]`.

It has ids of its own, none of them the host's root, as newuidmap(1) gives them. MORE user namespaces can be made below
it, or as many as the host allows where that is empty.
"""

import os
import signal
import sys
from pathlib import Path

from enforcer.system.linux import MS_PRIVATE, MS_REC, die_with_parent, mount
from tests.lab import mount_namespaces

FIRST, COUNT = 0x60000000, 65536


def main() -> None:
    """Make the namespaces in a child, which this process, still the host's root, gives its ids."""
    more, *argv = sys.argv[1:]
    os.unshare(os.CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount_namespaces.open_for_everybody()  # the runtime is nobody whom a closed directory of root's lets through
    made, says_made = os.pipe()
    mapped, says_mapped = os.pipe()
    above = os.getpid()
    child = os.fork()
    if child == 0:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWCGROUP)
        os.write(says_made, b"+")
        os.read(mapped, 1)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        die_with_parent(signal.SIGKILL, above)
        if more:
            Path("/proc/sys/user/max_user_namespaces").write_text(more, encoding="ascii")
        os.execvp(argv[0], argv)
    os.read(made, 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text(f"0 {FIRST} {COUNT}\n", encoding="ascii")
    os.write(says_mapped, b"+")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
