"""Who made a call: what /proc says of a process of the task while it waits, looked up from outside the sandbox.

Names and arguments are the task's own claims, and only what is asked while the call still waits is about its process.
"""

import contextlib
import errno
import os
import re
import stat
from functools import cache
from typing import Final, NamedTuple

from proxy.watched.wire import Who

_MOST_ARGUMENTS: Final = 4096  # bytes of its command line that are told
_MOST_LINKS: Final = 40  # path_resolution(7)
_MAGIC: Final = re.compile(r"^/proc/[0-9]+/(?:task/[0-9]+/)?(?:exe|fd/[0-9]+)$")  # leads to a file, not to a path


class File(NamedTuple):
    """Which file it is and when it was last written: stat(2). `changed`, unlike `modified`, nobody can set back."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int


class Program(NamedTuple):
    """The file that is to be executed: what a path leads to, and the errno that the kernel would say to it, or 0.

    `file` is None where we can't look at it.
    """

    path: str
    error: int = 0
    file: File | None = None


@cache
def _uid_map(proc: int) -> bytes:
    """Return how this process's user ids are mapped to the host's (user_namespaces(7))."""
    try:
        file = os.open("self/uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return b""
    with os.fdopen(file, "rb") as lines:
        return lines.read()


def _on_the_host(uid: int, uid_map: bytes) -> int:
    """Return which user of the host's that is, or -1."""
    for line in uid_map.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return -1


class Caller:
    """A process of the task, by the id of one of its threads. `proc` is a descriptor of /proc outside the sandbox.

    Our own root directory is the sandbox's: paths mean to us what they mean to the task.
    """

    def __init__(self, proc: int, thread: int) -> None:
        self._proc = proc
        self._thread = thread
        self._status: dict[bytes, bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id, on the host."""
        return int(self._said(b"Tgid") or self._thread)

    def executable(self) -> bytes:
        """Return the path of what it runs, or nothing."""
        return os.fsencode(self._link("exe") or "")

    def who(self) -> Who:
        """Say who it is, as far as it can be found out."""
        uid = int((self._said(b"Uid").split() or [b"-1"])[0])  # as this process sees it, whose users the sandbox has
        line = self._read("cmdline", _MOST_ARGUMENTS)
        argv = tuple(line.removesuffix(b"\0").split(b"\0")) if line else ()
        return Who(self.pid, _on_the_host(uid, _uid_map(self._proc)), self.executable(), argv, uid)

    def owns(self) -> tuple[int, frozenset[int]]:
        """Return the ids that the kernel checks it by when it touches a file, as this process sees them.

        The uid is -1 where it can't be found out.
        """
        ids, group_ids = self._said(b"Uid").split(), self._said(b"Gid").split()
        uid = int(ids[3]) if len(ids) > 3 else -1
        return uid, frozenset(map(int, (*group_ids[3:4], *self._said(b"Groups").split())))

    def path(self, path: str, directory: int | None = None) -> str:
        """Make a path whole, which it starts from the working directory or from an open one."""
        if path.startswith("/"):
            return path
        base = self._link("cwd" if directory is None else f"fd/{directory}") or ""
        return f"{base}/{path}" if path else base

    def program(self, path: str) -> Program:
        """Find the file that a whole path leads to, and whether the kernel would execute it at all."""
        try:
            found, magic = _follow(path, self._said(b"NSpid").split()[-1:])
            if magic:
                with contextlib.suppress(OSError):
                    return Program(found, file=_file(os.stat(magic)))
                return Program(found)
            about = os.stat(found, follow_symlinks=False)
            if not stat.S_ISREG(about.st_mode) or not about.st_mode & 0o111:
                return Program(found, errno.EACCES)
        except OSError as error:
            # What we can't look at the task may: only what isn't there is none.
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
            return Program(path, error.errno or errno.ENOENT if gone else 0)
        return Program(found, file=_file(about))

    def opened(self, path: str, descriptor: int) -> Program:
        """Return the file that it has open there, which goes by the path it once had."""
        try:
            return Program(path, file=_file(os.stat(f"{self._thread}/fd/{descriptor}", dir_fd=self._proc)))
        except OSError:
            return Program(path)

    def _said(self, name: bytes) -> bytes:
        if self._status is None:
            lines = self._read("status", 4096).splitlines()
            pairs = [line.partition(b":") for line in lines]
            self._status = {key: value.strip() for key, _, value in pairs}
        return self._status.get(name, b"")

    def _read(self, name: str, size: int) -> bytes:
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{self._thread}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                return os.read(descriptor, size)
            finally:
                os.close(descriptor)
        return b""

    def _link(self, name: str) -> str | None:
        try:
            return os.readlink(f"{self._thread}/{name}", dir_fd=self._proc)
        except OSError:
            return None


def _file(about: os.stat_result) -> File:
    return File(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _follow(path: str, inner: list[bytes]) -> tuple[str, str]:
    """Follow links as the kernel does for the caller; with the last, if that leads to a file and not to a path.

    /proc/self is the caller there, and nobody for us: `inner` is its id in the sandbox. Raises OSError.
    """
    todo = _parts(path)
    at, links = "", 0
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        here = f"{at}/{part}"
        if here in {"/proc/self", "/proc/thread-self"} and inner:
            at = f"/proc/{inner[0].decode()}"
            continue
        if not stat.S_ISLNK(os.lstat(here).st_mode):
            at = here
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(here)
        if not todo and _MAGIC.match(here):
            return target, here
        if target.startswith("/"):
            at = ""
        todo.extend(_parts(target))
    return at or "/", ""


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    parts.reverse()
    return parts
