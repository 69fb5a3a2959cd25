"""What can only be seen inside a sandbox of its task's limits: those that the kernel keeps and doesn't count.

A look every few seconds, so what was reached and given back in between isn't seen. Whoever made the sandbox looks, at
its /proc, where ids are what they are in there.
"""

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterable, Iterator
from typing import Final

_DESCRIPTORS: Final = 1 << 16  # that are looked at for files without a name, a time
_BLOCK: Final = 512  # bytes, stat(2)
_OURS: Final = 1  # process 1 is init


class Inside:
    """One sandbox, by descriptors of its room, its /proc and its root, which are taken over.

    `rlimits` are those that its task is kept to, `reviewed` where changes are written aside, if they are.
    """

    def __init__(self, room: int, proc: int, root: int, rlimits: Iterable[tuple[int, int]], reviewed: str) -> None:
        self._room = room
        self._proc = proc
        self._rlimits = tuple(rlimits)
        self._device: int | None = None
        try:
            if reviewed:
                self._device = os.stat(reviewed.lstrip("/"), dir_fd=root).st_dev
        finally:
            os.close(root)

    def close(self) -> None:
        """Look no more. Idempotent."""
        for descriptor in {self._room, self._proc} - {-1}:
            os.close(descriptor)
        self._room = self._proc = -1

    def look(self) -> dict[str, object]:
        """Return where the task is at its limits, and how.

        `disk`: `bytes` or `files`, of which its room has none left; `files`: a program and how many it has open;
        `processes`: how many. And `nameless`, the bytes in files without a name any more where its changes are.
        """
        found: dict[str, object] = {}
        with contextlib.suppress(OSError):
            if self._room >= 0 and (left := full(self._room)):
                found["disk"] = left
            for which, value in self._rlimits:
                if which == resource.RLIMIT_NOFILE and (most := _full_of_files(self._proc, value)):
                    found["files"] = most
                elif which == resource.RLIMIT_NPROC and (count := _processes(self._proc)) >= value:
                    found["processes"] = count
            if self._device is not None and (size := _nameless(self._proc, self._device)):
                found["nameless"] = size
        return found


def full(room: int) -> str:
    """Say what there is none left of in the room that a descriptor is of: `bytes`, or `files`. Raises OSError."""
    status = os.fstatvfs(room)
    if not status.f_bavail:
        return "bytes"
    return "" if status.f_favail else "files"


def _full_of_files(proc: int, value: int) -> list[object] | None:
    """Find a process that has as many descriptors open as it may. Before Linux 6.2 none has a number of them."""
    least = min(value, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # a task that lowers its own has reached none
    for pid in _pids(proc):
        with contextlib.suppress(OSError, ValueError):
            count = os.stat(f"{pid}/fd", dir_fd=proc).st_size
            if count >= least and count >= _most_files(proc, pid):
                return [_read(proc, f"{pid}/comm").rstrip(b"\n").decode("utf-8", "backslashreplace"), count]
    return None


def _most_files(proc: int, pid: int) -> int:
    """Return how many descriptors a process may have open: proc_pid_limits(5)."""
    for line in _read(proc, f"{pid}/limits").splitlines():
        if line.startswith(b"Max open files"):
            return int(line.split()[3])
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # there are none of one that ends


def _processes(proc: int) -> int:
    """Count processes and threads."""
    count = 0
    for pid in _pids(proc):
        with contextlib.suppress(OSError):
            # A link for each thread: proc_task_getattr()
            count += os.stat(f"{pid}/task", dir_fd=proc).st_nlink - 2
    return count


def _nameless(proc: int, device: int) -> int:
    """Add up what is open and was removed, or never had a name: no look at the directories finds that."""
    mounts: set[bytes] | None = None
    sizes: dict[tuple[int, int], int] = {}
    looked = 0
    for pid in _pids(proc):
        with contextlib.suppress(OSError), _listed(proc, f"{pid}/fd") as descriptors:
            for each in descriptors:
                looked += 1
                if looked > _DESCRIPTORS:
                    return sum(sizes.values())
                with contextlib.suppress(OSError):
                    status = each.stat()
                    if status.st_nlink or not stat.S_ISREG(status.st_mode) or not status.st_blocks:
                        continue
                    if (file := (status.st_dev, status.st_ino)) in sizes:
                        continue  # one word of its mount is enough, however many have it open
                    if mounts is None:
                        mounts = _mounts(proc, device)
                    sizes[file] = status.st_blocks * _BLOCK if _mount_of(proc, pid, each.name) in mounts else 0
    return sum(sizes.values())


def _mounts(proc: int, device: int) -> set[bytes]:
    """Return the ids of a file system's mounts. Its files may have other device numbers: overlayfs.rst, "st_dev"."""
    number = b"%d:%d" % (os.major(device), os.minor(device))
    fields = [line.split(b" ", 3) for line in _read(proc, f"{_OURS}/mountinfo").split(b"\n") if line]
    return {identity for identity, _, of, _ in fields if of == number}


def _mount_of(proc: int, pid: int, descriptor: str) -> bytes:
    """Return the id of the mount that a descriptor of a task's is of.

    By one of our own: of the task's the kernel tells its locks as well, and with thousands of those on thousands of
    descriptors whoever looks would see to nothing else for minutes, its timeout among it (proc_pid_fdinfo(5)).
    """
    ours = os.open(f"{pid}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC, dir_fd=proc)
    try:
        with open(f"/proc/self/fdinfo/{ours}", "rb", buffering=0) as file:
            lines = file.readall().splitlines()
        return next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), b"")
    finally:
        os.close(ours)


def _pids(proc: int) -> Iterator[int]:
    with _listed(proc, ".") as entries:
        return iter([int(each.name) for each in entries if each.name.isdecimal() and each.name != str(_OURS)])


@contextlib.contextmanager
def _listed(proc: int, path: str) -> "Iterator[Iterator[os.DirEntry[str]]]":
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        with os.scandir(directory) as entries:
            yield entries
    finally:
        os.close(directory)


def _read(proc: int, path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb", buffering=0) as file:
        return file.readall()
