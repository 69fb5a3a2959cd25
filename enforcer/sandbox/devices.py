"""Device nodes of a sandbox: nodes of its own where this process may make them, else the host's, read-only.

Two sandboxes that share an inode share a channel: byte-range locks, flock(2), inotify(7) and time stamps belong to the
inode, and no namespace separates them. In a user namespace, device nodes of a file system mounted there can't be opened
(SB_I_NODEV). So root makes the file system outside, and the sandbox attaches it.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from enforcer.sandbox.init import Executor
from enforcer.sandbox.path_scan import NEW, attach_mount, make_directory
from enforcer.system import linux
from enforcer.system.errors import UsageError
from rules.sandbox import GPU, is_card

NODES: Final = {  # Documentation/admin-guide/devices.txt: major and minor number
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS: Final = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
DIRECTORIES: Final = ("pts", "shm")  # mount points in it
_MEMORY_MAJOR: Final = 1
_KVM, _DRM = (10, 232), 226
_NOT_CARD_MAJORS: Final = frozenset(
    {_MEMORY_MAJOR, *range(2, 10), 13, 14, 29, 81, 116}
)  # memory, terminals, disks, keys, sound, films
_MODE: Final = 0o666  # whatever the umask
_TMPFS_OPTIONS: Final = {"mode": "755", "size": "64k", "nr_inodes": "256"}


class Devices(NamedTuple):
    """Mount the sandbox's /dev: device nodes, links, and directories for other file systems.

    `extra_devices`: names of further host devices; the task's nodes for them belong to `owner`, a kernel uid and gid.
    """

    target: str = "/dev"
    extra_devices: tuple[str, ...] = ()
    owner: tuple[int, int] = (0, 0)

    def describe(self) -> str:
        names = ", ".join((*NODES, *self.extra_devices))
        return f"mount a tmpfs on {self.target} with device nodes of its own: {names}"

    def execute(self, executor: Executor) -> None:
        """Make the file system in this process, and have the sandbox attach it."""
        calls, tree = executor.calls, make_dev(self.extra_devices, self.owner)
        try:
            target_directory = make_directory(calls, NEW + self.target)
            attach_mount(calls, calls.take(tree), target_directory)
            calls.close(target_directory)
            executor.submit()
        finally:
            os.close(tree)


def make_dev(extra_devices: Iterable[str] = (), owner: tuple[int, int] = (0, 0)) -> int:
    """Return a detached tmpfs with the content of /dev. Raises OSError without the right to make device nodes."""
    tree = linux.make_detached_mount("tmpfs", _TMPFS_OPTIONS, linux.MOUNT_ATTR_NOSUID)
    try:
        for name, number in NODES.items():
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(*number), dir_fd=tree)
            os.chmod(name, _MODE, dir_fd=tree)
        for name, to in LINKS.items():
            os.symlink(to, name, dir_fd=tree)
        for name in DIRECTORIES:
            os.mkdir(name, 0o700, dir_fd=tree)
        for name in extra_devices:
            if directory := os.path.dirname(name):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o755, dir_fd=tree)
            os.mknod(name, stat.S_IFCHR | 0o600, _device_number(name), dir_fd=tree)
            os.chown(name, *owner, dir_fd=tree)
    except BaseException:
        os.close(tree)
        raise
    return tree


@functools.cache
def can_make() -> bool:
    """Whether this process may make device nodes: it takes CAP_MKNOD and CAP_SYS_ADMIN on the host."""
    try:
        os.close(make_dev())
    except OSError:
        return False
    return True


def host_devices(names: Iterable[str]) -> tuple[str, ...]:
    """Resolve the device names of rules and options on this host.

    Raises UsageError for one that a task may not have.
    """
    names_found: set[str] = set()
    for name in names:
        if name == GPU:
            cards = {card for card in _list_dev() if is_card(card)}
            if not cards:
                raise UsageError("devices: this host has no node of a card (/dev/dri/renderD*, /dev/kfd, /dev/nvidia*)")
            names_found |= cards
        else:
            names_found.add(name)
    for name in names_found:
        _device_number(name)
        if os.geteuid() and not os.access(f"/dev/{name}", os.R_OK | os.W_OK):
            raise UsageError(
                f"devices: you may not use `/dev/{name}` yourself; become a member of its group (`ls -l /dev/{name}`)"
            )
    return tuple(sorted(names_found))


def _list_dev() -> Iterator[str]:
    for directory in ("", "dri/", "accel/"):
        with contextlib.suppress(OSError):
            yield from (directory + name for name in os.listdir(f"/dev/{directory}"))


def _device_number(name: str) -> int:
    """Return the device number of a host device. Raises UsageError if it is another device than its name says."""
    try:
        status = os.stat(f"/dev/{name}", follow_symlinks=False)
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise UsageError(
            f"devices: `/dev/{name}` can't be given to a task: {reason}; check the name with `ls -l /dev`"
        ) from error
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    is_allowed = stat.S_ISCHR(status.st_mode) and number[0] not in _NOT_CARD_MAJORS
    if (name == "kvm" and number != _KVM) or (name.startswith("dri/") and number[0] != _DRM) or not is_allowed:
        raise UsageError(
            f"devices: `/dev/{name}` is not the device of that name: its number is {number[0]}:{number[1]}"
        )
    return status.st_rdev


def memory_device(descriptor: int) -> str:
    """Return which of `NODES` a descriptor is open on; empty for anything else, and for terminals."""
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode):
        return ""
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    return next(
        (name for name, device_number in NODES.items() if device_number == number and number[0] == _MEMORY_MAJOR), ""
    )
