"""What only a sandbox's init can see of its task's limits: those that the kernel keeps and doesn't count.

A look every few seconds, so what was reached and given back in between isn't seen. Imported by whoever makes the fence,
and only for limits that want it: a sandbox's init can't read our code any more.
"""

import contextlib
import os
import resource
import stat
from collections.abc import Iterable, Iterator
from typing import Final

_LAST_PID: Final = "/proc/sys/kernel/ns_last_pid"  # proc_sys_kernel(5): of the reader's own pid namespace
_DESCRIPTORS: Final = 1 << 16  # that are looked at for files without a name, a time
_BLOCK: Final = 512  # bytes, stat(2)
_OURS: Final = 1  # process 1 is init


def look(limits: Iterable[tuple[int, int]], reviewed: str = "") -> dict[str, object]:
    """Return which of these rlimits are reached: `files`, as a program and how many, and `processes`, how many.

    And `nameless`, the bytes in files that have no name any more of the file system that is mounted at `reviewed`.
    """
    found: dict[str, object] = {}
    for which, value in limits:
        if which == resource.RLIMIT_NOFILE and (full := _full_of_files(value)):
            found["files"] = full
        elif which == resource.RLIMIT_NPROC and (count := _processes(value)) >= value:
            found["processes"] = count
    if reviewed and (size := _nameless(reviewed)):
        found["nameless"] = size
    return found


def _full_of_files(value: int) -> list[object] | None:
    """Find a process that has as many descriptors open as it may. Before Linux 6.2 none has a number of them."""
    least = min(value, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # a task that lowers its own has reached none
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError):
            count = os.stat(f"/proc/{pid}/fd").st_size
            if count >= least and count >= resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]:
                with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
                    name = file.read(64).rstrip(b"\n").decode("utf-8", "backslashreplace")
                return [name, count]
    return None


def _processes(most: int) -> int:
    """Count processes and threads; 0 where it can't have been as many yet."""
    with contextlib.suppress(OSError, ValueError), open(_LAST_PID, "rb", buffering=0) as file:
        if int(file.read(32)) < most:
            return 0
    count = 0
    for pid in _pids():
        with contextlib.suppress(OSError):
            count += os.stat(f"/proc/{pid}/task").st_nlink - 2  # a link for each thread: proc_task_getattr()
    return count


def _nameless(reviewed: str) -> int:
    """Add up what is open and was removed, or never had a name: no look at the directories finds that."""
    mounts: set[bytes] = set()
    sizes: dict[tuple[int, int], int] = {}
    looked = 0
    for pid in _pids():
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for each in descriptors:
                looked += 1
                if looked > _DESCRIPTORS:
                    return sum(sizes.values())
                with contextlib.suppress(OSError):
                    status = each.stat()
                    if status.st_nlink or not stat.S_ISREG(status.st_mode) or not status.st_blocks:
                        continue
                    mounts = mounts or _mounts(os.stat(reviewed).st_dev)
                    if _mount_of(pid, each.name) in mounts:
                        sizes[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK
    return sum(sizes.values())


def _mounts(device: int) -> set[bytes]:
    """Return the ids of a file system's mounts. Its files may have other device numbers: overlayfs.rst, "st_dev"."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        fields = [line.split(b" ", 3) for line in file.readall().splitlines()]
    return {identity for identity, _, of, _ in fields if of == number}


def _mount_of(pid: int, descriptor: str) -> bytes:
    with open(f"/proc/{pid}/fdinfo/{descriptor}", "rb", buffering=0) as file:
        return next(line.split()[1] for line in file.read(512).splitlines() if line.startswith(b"mnt_id:"))


def _pids() -> Iterator[int]:
    return (pid for name in os.listdir("/proc") if name.isdecimal() and (pid := int(name)) != _OURS)
