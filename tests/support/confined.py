"""What the kernel says that a process may still do, read from outside: of those that read hostile bytes all day."""

import os
import stat
from pathlib import Path

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NAMESPACES = ("mnt", "ipc", "user")


def found(pid: int) -> dict[str, object]:
    """Read it (proc_pid_status(5)): of each value those that its threads have, which is one where they agree."""
    threads = [_status(thread) for thread in Path(f"/proc/{pid}/task").iterdir()]
    names = (*SETS, "NoNewPrivs", "Seccomp", "Groups", "Uid", "Gid")
    # Files in /proc/PID of who can't be dumped are root's (proc(5)), and nobody with its ids may open mem, fd or root.
    dumpable = os.stat(f"/proc/{pid}/mem").st_uid != 0
    return {**{name: sorted({thread[name] for thread in threads}) for name in names}, "dumpable": dumpable}


def wanted(uid: int) -> dict[str, object]:
    """Give what is to be found: nothing in any set, no new privileges, a filter, and these ids alone."""
    ids = ["\t".join([str(uid)] * 4)]
    nothing = {name: ["0" * 16] for name in SETS}
    return {**nothing, "NoNewPrivs": ["1"], "Seccomp": ["2"], "Groups": [""], "Uid": ids, "Gid": ids, "dumpable": False}


def shared(pid: int) -> list[str]:
    """Return which namespaces it has in common with this process. For root to ask."""
    return [
        kind for kind in NAMESPACES if os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
    ]


def descriptors(pid: int, below: Path) -> set[str]:
    """Return what kinds of things it has open; of files their paths, but for what lies `below`. For root to ask."""
    known = {_identity(path.stat()) for path in (below, *below.rglob("*"))}
    kinds = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            status, named = one.stat(), os.readlink(one)
        except FileNotFoundError:  # it went while it was looked at
            continue
        if stat.S_ISSOCK(status.st_mode) or named.startswith("anon_inode:"):
            kinds.add(named.partition(":")[0])
        else:
            kinds.add("below" if _identity(status) in known else named)
    return kinds


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(thread: Path) -> dict[str, str]:
    fields = (line.split(":", 1) for line in (thread / "status").read_text().splitlines())
    return {name: value.strip() for name, value in fields}
