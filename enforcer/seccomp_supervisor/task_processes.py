"""Process attribution: finds the process of a task that made a call or owns a socket, from outside, through /proc.

Names and arguments are the task's own claims. A result is about the calling process only if the call still waits
afterwards.

The owner of a socket is the only process of the sandbox that has it open, searched among all descendants of its init.
An uncertain result is None, "unknown": it informs people, and decides nothing. A look-up reads a bounded number of
entries, whatever the task does.

A task can hide: in a thread with a descriptor table of its own (unshare(2), CLONE_FILES), which isn't searched, or by
leaving its socket to another process: a child, or a program that receives descriptors, which is named then. A named
process is always one of its sandbox that has the socket open.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Final, NamedTuple

from proxy.supervisor_channel.messages import Ancestor, ProcessInfo

_MAX_COMMAND_LINE: Final = 4096  # bytes of its command line
_MAX_LINKS: Final = 40  # path_resolution(7)
_MAGIC: Final = re.compile(r"^/proc/[0-9]+/(?:task/[0-9]+/)?(?:exe|fd/[0-9]+)$")  # leads to a file, not to a path


class File(NamedTuple):
    """Identity of a file and its times: stat(2). `changed` can't be set back, unlike `modified`."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int


class Program(NamedTuple):
    """The file to execute: the resolved path, and the errno that the kernel would return for it, or 0.

    `file` is None where it can't be read.
    """

    path: str
    error: int = 0
    file: File | None = None


@cache
def _uid_map(proc: int) -> bytes:
    """Return how this process's uids map to the host's (user_namespaces(7))."""
    try:
        file = os.open("self/uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return b""
    with os.fdopen(file, "rb") as lines:
        return lines.read()


def _host_uid(uid: int, uid_map: bytes) -> int:
    """Return the uid on the host, or -1."""
    for line in uid_map.splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return -1


class Caller:
    """A process of the task, by the id of one of its threads. `proc`: a descriptor of /proc of the host.

    Our own root directory is the sandbox's, so paths mean the same as for the task.
    """

    def __init__(self, proc: int, thread: int) -> None:
        self._proc = proc
        self._thread = thread
        self._status: bytes | None = None  # proc_pid_status(5)

    @property
    def pid(self) -> int:
        """Its pid on the host."""
        return int(self._status_field(b"Tgid") or self._thread)

    def executable(self) -> bytes:
        """Return the path of its executable, or an empty text."""
        return os.fsencode(self._link("exe") or "")

    def info(self) -> ProcessInfo:
        """Return its pid, uid, executable and arguments, as far as /proc shows them."""
        uid = int(
            (self._status_field(b"Uid").split() or [b"-1"])[0]
        )  # as this process sees it, in the sandbox's user namespace
        line = self._read_proc("cmdline", _MAX_COMMAND_LINE)
        argv = tuple(line.removesuffix(b"\0").split(b"\0")) if line else ()
        exe = os.fsencode(self._link("exe") or "")
        return ProcessInfo(self.pid, _host_uid(uid, _uid_map(self._proc)), exe, argv, uid)

    def file_access_ids(self) -> tuple[int, frozenset[int]]:
        """Return the uid and groups that the kernel checks its file access by, as this process sees them.

        The uid is -1 if it is unknown.
        """
        ids, group_ids = self._status_field(b"Uid").split(), self._status_field(b"Gid").split()
        uid = int(ids[3]) if len(ids) > 3 else -1
        return uid, frozenset(map(int, (*group_ids[3:4], *self._status_field(b"Groups").split())))

    def path(self, path: str, directory: int | None = None) -> str:
        """Return the absolute form of a path relative to its working directory or an open one."""
        if path.startswith("/"):
            return path
        base = self._link("cwd" if directory is None else f"fd/{directory}") or ""
        return f"{base}/{path}" if path else base

    def program(self, path: str) -> Program:
        """Resolve the file of an absolute path, and whether the kernel would execute it."""
        try:
            resolved, magic = _follow(path, self._status_field(b"NSpid").split()[-1:])
            if magic:
                with contextlib.suppress(OSError):
                    return Program(resolved, file=_file(os.stat(magic)))
                return Program(resolved)
            status = os.stat(resolved, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
                return Program(resolved, errno.EACCES)
        except OSError as error:
            # The task may read what we can't: only a missing file is an error.
            is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
            return Program(path, error.errno or errno.ENOENT if is_missing else 0)
        return Program(resolved, file=_file(status))

    def open_file(self, path: str, descriptor: int) -> Program:
        """Return the file that it has open at a descriptor, with the path it was opened by."""
        try:
            return Program(path, file=_file(os.stat(f"{self._thread}/fd/{descriptor}", dir_fd=self._proc)))
        except OSError:
            return Program(path)

    def _status_field(self, name: bytes) -> bytes:
        if self._status is None:
            self._status = self._read_proc("status", 4096)
        _, _, after_name = self._status.partition(b"\n%b:" % name)  # the kernel escapes newlines in a task's name
        return after_name.partition(b"\n")[0].strip()

    def _read_proc(self, name: str, size: int) -> bytes:
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


def _file(status: os.stat_result) -> File:
    return File(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _follow(path: str, inner: list[bytes]) -> tuple[str, str]:
    """Follow links as the kernel does for the caller; also returns the last link if it leads to a file, not a path.

    /proc/self means the caller there: `inner` is its pid in the sandbox. Raises OSError.
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
        current = f"{at}/{part}"
        if current in {"/proc/self", "/proc/thread-self"} and inner:
            at = f"/proc/{inner[0].decode()}"
            continue
        if not stat.S_ISLNK(os.lstat(current).st_mode):
            at = current
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(current)
        if not todo and _MAGIC.match(current):
            return target, current
        if target.startswith("/"):
            at = ""
        todo.extend(_parts(target))
    return at or "/", ""


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    parts.reverse()
    return parts


MAX_LOOKS: Final = 8192  # processes, threads and descriptors per look-up, 10 ms; beyond it the owner is unknown
MAX_ANCESTORS: Final = 8
_BUDGET_EXCEEDED: Final = "too many /proc entries to read"
CPU_BURST: Final = 0.03  # seconds of processor time at once: about fifty look-ups
CPU_REFILL: Final = 0.001  # ... refilled per second, which bounds the cost of a task that connects without end


class SocketOwner(NamedTuple):
    """A process that owns a socket, and its ancestors, parent first, up to the sandbox's first process."""

    info: ProcessInfo
    ancestors: tuple[Ancestor, ...]


class SocketOwnerLookup:
    """Looks up socket owners within a budget of processor time; beyond it the answer is unknown."""

    __slots__ = ("_at", "_budget", "_clock", "_processor_time")

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, processor_time: Callable[[], float] = time.thread_time
    ) -> None:
        """Begin with the full budget. `processor_time`: processor time of this thread in seconds."""
        self._clock, self._processor_time = clock, processor_time
        self._budget, self._at = CPU_BURST, clock()

    def find(self, proc: int, init: int, inode: int) -> SocketOwner | None:
        """Return what `find_socket_owner` does, if the budget allows; a long look-up is charged in full."""
        now = self._clock()
        self._budget, self._at = min(CPU_BURST, self._budget + (now - self._at) * CPU_REFILL), now
        if self._budget <= 0:
            return None
        start = self._processor_time()
        try:
            return find_socket_owner(proc, init, inode)
        finally:
            self._budget -= self._processor_time() - start


class LookBudget:
    """The number of /proc entries that may still be read. Beyond it, a look-up raises ValueError."""

    def __init__(self, most: int | None = None) -> None:
        self.left = MAX_LOOKS if most is None else most


def find_socket_owner(proc: int, init: int, inode: int) -> SocketOwner | None:
    """Return the only process with the socket of this inode; None if unknown.

    `proc`: /proc, `init`: the first process.
    """
    link, looks = f"socket:[{inode}]", LookBudget()
    try:
        parents = descendants(proc, init, looks)
        holders = [(pid, at) for pid in parents if (at := _find_descriptor(proc, pid, link, looks))]
        if len(holders) != 1:
            return None
        [(pid, at)] = holders
        owner = SocketOwner(Caller(proc, pid).info(), _ancestors(proc, parents, pid))
        # The pid may be another process's by now: then it doesn't have the socket open.
        return owner if os.readlink(at, dir_fd=proc) == link else None
    except (OSError, ValueError):
        return None


def descendants(proc: int, init: int, looks: LookBudget) -> dict[int, int]:
    """Return the parent of each process below `init`: proc_tid_children(5). Orphans are children of init."""
    todo = [init]
    parents: dict[int, int] = {}
    while todo:
        parent = todo.pop()
        for thread in list_directory(proc, f"{parent}/task", looks):
            children = [int(word) for word in read_file(proc, f"{parent}/task/{thread}/children").split()]
            looks.left -= len(children)
            if looks.left < 0:
                raise ValueError(_BUDGET_EXCEEDED)
            parents |= dict.fromkeys(children, parent)
            todo += children
    return parents


def _ancestors(proc: int, parents: dict[int, int], pid: int) -> tuple[Ancestor, ...]:
    """Return the ancestors from the parent up, without the sandbox's init."""
    ancestors: list[Ancestor] = []
    while len(ancestors) < MAX_ANCESTORS and (pid := parents.get(pid, 0)) in parents:
        ancestors.append(Ancestor(pid, Caller(proc, pid).executable()))
    return tuple(ancestors)


def _find_descriptor(proc: int, pid: int, link: str, looks: LookBudget) -> str:
    """Return the descriptor, as a path in /proc, with which a process has `link` open; empty if it doesn't."""
    for name in list_directory(proc, f"{pid}/fd", looks):
        path = f"{pid}/fd/{name}"
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(path, dir_fd=proc) == link:
                return path
    return ""


def list_directory(proc: int, path: str, looks: LookBudget) -> list[str]:
    """List a directory of /proc; empty for a process that is gone or not readable.

    Raises ValueError once the budget is used up.
    """
    names: list[str] = []
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return names
    try:
        with contextlib.suppress(ProcessLookupError), os.scandir(directory) as entries:
            names.extend([entry.name for entry in islice(entries, looks.left + 1)])
    finally:
        os.close(directory)
    looks.left -= len(names)
    if looks.left < 0:
        raise ValueError(_BUDGET_EXCEEDED)
    return names


def read_file(proc: int, path: str) -> bytes:
    """Read a file of /proc; empty for a process that is gone or not readable."""
    content = b""
    with contextlib.suppress(OSError):  # it ended meanwhile
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            while chunk := os.read(file, 65536):
                content += chunk
        finally:
            os.close(file)
    return content
