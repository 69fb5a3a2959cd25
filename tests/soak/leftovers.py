"""What may be left of what was killed: processes, cgroups, mounts, namespaces, descriptors and files, each looked for exactly."""

import contextlib
import ctypes
import fcntl
import os
import time
from pathlib import Path

from enforcer.system import linux

PATIENCE = 60.0  # seconds
_JOURNAL = ("exeat/journal/", "exeat/keeper/journal/")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
_PIDFD_GETFD, _SIOCGSKNS = 438, 0x894C
_KINDS = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}
_syscall = ctypes.CDLL(None, use_errno=True).syscall


def poll_until(true, seconds=PATIENCE):
    """Return the first true answer, or the last one."""
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def adopt_orphans():
    """Have whatever loses its parent below this process become a child of it: none can get away (prctl(2))."""
    linux.prctl(_SUBREAPER, 1)


def reap(ours):
    """Wait for orphans that have ended; return the children that are alive, without those that are `ours`."""
    found = []
    for pid in children(os.getpid()):
        if pid in ours:
            continue
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                found.append(pid)
    return found


def children(pid):
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def below(pid):
    """Every process below one, with when it was started: numbers are used again."""
    found = set()
    for child in children(pid):
        found |= below(child)
        if (since := started(child)) is not None:
            found.add((child, since))
    return found


def started(pid):
    """When a process was started, in ticks since the boot; None for one that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None


def name(pid):
    with contextlib.suppress(OSError):
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()[:60]}"
    return str(pid)


def mounts():
    """Every mount here; one of a namespace (nsfs) would keep that."""
    return sorted(Path("/proc/self/mountinfo").read_text().splitlines())


def groups(pids=None):
    """The cgroups that were made by processes of these ids, or all: their names begin with whose they are."""
    found = [path for kind in ("task", "runner") for path in Path("/sys/fs/cgroup").rglob(f"exeat-{kind}-*")]
    return {str(path) for path in found if pids is None or int(path.name.split("-")[2], 16) in pids}


def namespaces(service):
    """The namespaces that a service or a worker holds, by a descriptor or a socket, and that no sandbox which is there has.

    Whose sockets are in which network only root is told (SIOCGSKNS, Linux 4.9; pidfd_getfd(2)).
    """
    long, there = [service], {*links("/proc/self/ns")}
    for pid in children(service):
        if inside := below(pid):  # it waits with an empty sandbox: all of that is its own
            for each in (pid, *(each for each, _ in inside)):
                there.update(links(f"/proc/{each}/ns"), links(f"/proc/{each}/fd"))
        else:
            long.append(pid)
    held = {link for pid in long for link in (*links(f"/proc/{pid}/ns"), *links(f"/proc/{pid}/fd"), *_networks(pid))}
    own = {link for pid in long for link in links(f"/proc/{pid}/ns")}  # a worker of an ordinary user's has some
    return sorted(link for link in held - there - own if link.partition(":")[0] in _KINDS)


def links(directory):
    """What the links in a directory of /proc lead to; nothing of a process that may not be looked at."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"{directory}/{entry}"))
    return found


def _networks(pid):
    """The networks that the sockets of a process are in, as far as this may be known."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for entry in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{entry}").startswith("socket:"):
                        yield _network(process, int(entry))
        finally:
            os.close(process)


def _network(process, number):
    sock = _syscall(_PIDFD_GETFD, process, number, 0)
    if sock < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    try:
        network = fcntl.ioctl(sock, _SIOCGSKNS)
    finally:
        os.close(sock)
    try:
        return os.readlink(f"/proc/self/fd/{network}")
    finally:
        os.close(network)


def files(place):
    """What lies below a directory, but what belongs to a journal."""
    found = {str(path.relative_to(place)) for path in place.rglob("*")}
    return {each for each in found if not f"{each}/".startswith(_JOURNAL)}
