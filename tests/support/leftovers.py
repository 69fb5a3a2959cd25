"""What a run has while it runs, and what of exactly that is left afterwards: nothing is counted that others may have."""

import contextlib
import os
import time
from fnmatch import fnmatch
from pathlib import Path

PATIENCE = 60.0  # seconds that the kernel has to let go
_KINDS = ("net", "mnt", "user", "pid", "ipc", "uts", "cgroup")


class Leftovers:
    """The processes below one, with it, and the namespaces, cgroups and sockets of the host that only they have."""

    def __init__(self, pid):
        self.then = processes()
        members = {pid}
        while more := {child for child, (parent, _) in self.then.items() if parent in members} - members:
            members |= more
        self.family = {(member, self.then[member][1]) for member in members}
        self.namespaces = _namespaces(members) - _namespaces({os.getpid()})
        self.groups = {name for member in members for name in _groups(member)}
        self.sockets = _sockets(members) - _sockets({os.getpid()})

    def left(self):
        """What is left of them but cgroups."""
        return until_gone(self._left)

    def _left(self):
        now = processes()
        found = {member for member in self.family if now.get(member[0], (0, 0))[1] == member[1]}
        # The number of a namespace that is gone may be another's now: asked are those who were there then.
        found |= self.namespaces & _namespaces(pid for pid, known in now.items() if self.then.get(pid) == known)
        return found | self.sockets & _sockets_here()

    def groups_left(self):
        """Which of its cgroups are still there."""
        return {name for name in self.groups if any(Path("/sys/fs/cgroup").rglob(name))}


def until_gone(look):
    """What is still found after giving the kernel time to let go."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def processes():
    """Every process there is: pid -> (parent, start time), by proc_pid_stat(5)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                found[int(entry)] = int(fields[1]), int(fields[19])
    return found


def lives_in(pid, namespaces):
    """Whether a process is in a pid namespace of these."""
    return bool(_links(f"/proc/{pid}/ns", ("pid",)) & namespaces)


def marked(variable):
    """The processes that were started with this `NAME=VALUE` in their environment."""
    found = set()
    for pid in processes():
        with contextlib.suppress(OSError):
            if variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def mounts():
    """What is mounted on this side that is ours; what else is mounted meanwhile is others' business."""
    return {line for line in Path("/proc/self/mounts").read_text().splitlines() if "exeat" in line}


def strange(home, known):
    """What lies below a home that is no journal's, and matches none of the `known` globs."""
    paths = {str(path.relative_to(home)) for path in home.rglob("*") if "journal" not in path.parts}
    return {path for path in paths if not any(fnmatch(path, glob) for glob in known)}


def files(place):
    """Everything below a directory but journals and the keys that they are signed with: path -> mode and size."""
    lasting = {"journal", "keeper"}
    found = {path: path.lstat() for path in place.rglob("*") if lasting.isdisjoint(path.relative_to(place).parts)}
    return {str(path): (status.st_mode, status.st_size if path.is_file() else 0) for path, status in found.items()}


def _groups(pid):
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            yield from (part for part in line.split(":", 2)[2].split("/") if part.startswith("exeat-"))


def _namespaces(pids):
    return {link for pid in pids for link in _links(f"/proc/{pid}/ns", _KINDS)}


def _sockets(pids):
    return {link for pid in pids for link in _links(f"/proc/{pid}/fd") if link.startswith("socket:")}


def _sockets_here():
    """Every socket of this network, as links to them are: their inodes are what /proc/net shows (proc_pid_net(5))."""
    found = set()
    for name, column in (("unix", 6), ("netlink", 9), ("tcp", 9), ("tcp6", 9), ("udp", 9), ("udp6", 9)):
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
            found.add(f"socket:[{line.split()[column]}]")
    return found


def _links(directory, names=None):
    found = set()
    with contextlib.suppress(OSError):
        for name in names or os.listdir(directory):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"{directory}/{name}"))
    return found
