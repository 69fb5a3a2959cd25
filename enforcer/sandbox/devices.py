"""Device nodes of a sandbox: inodes of its own where this process may make device nodes, else the host's, read-only.

An inode that two sandboxes have is a channel between them: byte-range locks, flock(2), inotify(7) and time stamps all
belong to the inode, and no namespace parts them. A user namespace can't open a device node on a file system that it has
mounted (SB_I_NODEV), so root makes the file system outside and the sandbox attaches it.
"""

import functools
import os
import stat
from typing import Final, NamedTuple

from enforcer import linux
from enforcer.sandbox.player import Player
from enforcer.sandbox.steps import NEW
from enforcer.sandbox.walking import made, move

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
DIRECTORIES: Final = ("pts", "shm")  # what is mounted in it
_MEMORY_MAJOR: Final = 1
_MODE: Final = 0o666  # whatever the umask
_SIZE: Final = {"mode": "755", "size": "64k", "nr_inodes": "32"}


class Devices(NamedTuple):
    """The sandbox's /dev, complete: device nodes, links, and the directories that other file systems go on."""

    target: str = "/dev"

    def describe(self) -> str:
        """Say it in a line."""
        return f"mount a tmpfs on {self.target} with device nodes of its own: {', '.join(NODES)}"

    def take(self, player: Player) -> None:
        """Make the file system here, and have the sandbox attach it."""
        calls, tree = player.calls, make()
        try:
            place = made(calls, NEW + self.target)
            move(calls, calls.take(tree), place)
            calls.close(place)
            player.begin()
        finally:
            os.close(tree)


def make() -> int:
    """Return a detached tmpfs with all of /dev in it. Raises OSError for who may not make device nodes."""
    tree = linux.detached("tmpfs", _SIZE, linux.MOUNT_ATTR_NOSUID)
    try:
        for name, number in NODES.items():
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(*number), dir_fd=tree)
            os.chmod(name, _MODE, dir_fd=tree)
        for name, to in LINKS.items():
            os.symlink(to, name, dir_fd=tree)
        for name in DIRECTORIES:
            os.mkdir(name, 0o700, dir_fd=tree)
    except BaseException:
        os.close(tree)
        raise
    return tree


@functools.cache
def can_make() -> bool:
    """Whether this process may make device nodes: it takes CAP_MKNOD and CAP_SYS_ADMIN of the host."""
    try:
        os.close(make())
    except OSError:
        return False
    return True


def name_of(descriptor: int) -> str:
    """Return which of `NODES` a descriptor is open on; empty: none of them, or a terminal."""
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode):
        return ""
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    return next((name for name, each in NODES.items() if each == number and number[0] == _MEMORY_MAJOR), "")
