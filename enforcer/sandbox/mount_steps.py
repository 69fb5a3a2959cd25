"""Steps that make a file system view, as frozen values.

Each can say in a line what it does (`describe`), have an init process do it (`execute`), and some explain an error
(`explain`).

They are taken in a fresh mount namespace between two pivots: the host's tree lies at `/old`, the view grows at `/new`,
and `/layers` holds what overlays are made of. A step never follows a symbolic link that a task could have planted.

All that a task may write and that isn't the host's lies in one tmpfs (`TmpfsQuota`): one quota for home, /tmp and the
rest. A tmpfs for each would be bounded by itself only, each at half of the host's memory where nobody says a size
(tmpfs(5)).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from enforcer.limits.resource_limits import max_files
from enforcer.sandbox import overlays
from enforcer.sandbox.devices import Devices
from enforcer.sandbox.init import Executor
from enforcer.sandbox.overlays import Review, Show, ShowFile
from enforcer.sandbox.path_scan import (
    NEW,
    OLD,
    add_mount_attributes,
    attach_mount,
    clone_mount,
    clone_path,
    find_names,
    find_sockets,
    make_directory,
    make_file,
    mask,
    open_path,
    pin,
)
from enforcer.sandbox.system_calls import QUOTA, CallList, Label
from enforcer.system import linux
from rules.patterns import Pattern

UNMASK = (
    "in a container, unmask /proc (podman: `--security-opt unmask=ALL`, "
    "docker: `--security-opt systempaths=unconfined`, Kubernetes: `procMount: Unmasked`)"
)
_PLAIN = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "zfs", "f2fs", "jfs", "tmpfs", "overlay", "squashfs", "erofs"}
)


type Step = (
    Devices
    | TmpfsQuota
    | TmpfsPart
    | Tmpfs
    | Directory
    | Files
    | Link
    | Show
    | ShowFile
    | Bind
    | HideMounts
    | HideNames
    | Kernel
    | Sysctl
    | Pin
    | Mask
    | MaskSockets
    | ReadOnly
    | Review
)


class Tmpfs(NamedTuple):
    """An empty file system in memory. Counted against the task's memory; `size` is a bound in bytes."""

    target: str
    mode: int = 0o755
    size: int = 0
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        return f"mount an empty tmpfs on {self.target} (mode {self.mode:o})"

    def execute(self, executor: Executor) -> None:
        calls, path = executor.calls, NEW + self.target
        calls.close(make_directory(calls, path))
        size = f",size={self.size}" if self.size else ""
        mount(calls, "tmpfs", path, linux.MS_NOSUID | linux.MS_NODEV, f"mode={self.mode:o}{size}")
        if self.owner:
            calls.call("fchownat", linux.AT_FDCWD, path, *self.owner, 0)


class Directory(NamedTuple):
    """A directory on the view's own tmpfs."""

    target: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        return f"make the directory {self.target}"

    def execute(self, executor: Executor) -> None:
        calls = executor.calls
        place = make_directory(calls, NEW + self.target)
        directory = calls.get("openat", place, ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        calls.call("fchmod", directory, self.mode)
        if self.owner:
            calls.call("fchown", directory, *self.owner)
        calls.close(place, directory)


class Files(NamedTuple):
    """Files on the view's own tmpfs, by their paths below a directory there."""

    target: str
    content: Mapping[str, bytes]

    def describe(self) -> str:
        return f"write {len(self.content)} small files of its own below {self.target}"

    def execute(self, executor: Executor) -> None:
        overlays.write_files(executor.calls, NEW + self.target, self.content)


class Link(NamedTuple):
    """A symbolic link on the view's own tmpfs."""

    target: str
    to: str

    def describe(self) -> str:
        return f"link {self.target} to {self.to}"

    def execute(self, executor: Executor) -> None:
        executor.calls.call("symlinkat", self.to, linux.AT_FDCWD, NEW + self.target)


class Bind(NamedTuple):
    """A host path as it is, writable or not; for devices and for the directory that a task works in."""

    source: str
    target: str
    writable: bool = False
    devices: bool = False
    tree: int | None = None  # a detached mount of the source, made (and id-mapped) by who could

    def describe(self) -> str:
        how = "writable" if self.writable else "read-only"
        return f"mount {self.source} on {self.target}, {how}{', id-mapped' if self.tree is not None else ''}"

    def execute(self, executor: Executor) -> None:
        """Have it done. What is there is of the kind that it is when this is worked out, or it isn't done."""
        calls = executor.calls
        kind = stat.S_IFMT(os.stat(self.source if self.tree is None else self.tree).st_mode)
        if not self.devices and kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise OSError(errno.EPERM, "it is neither a directory nor a file any more")
        tree = clone_path(calls, OLD + self.source) if self.tree is None else calls.take(self.tree)
        calls.is_kind(tree, kind, says="it is something else by now")
        attributes = linux.MOUNT_ATTR_NOSUID
        attributes |= 0 if self.devices else linux.MOUNT_ATTR_NODEV
        attributes |= 0 if self.writable else linux.MOUNT_ATTR_RDONLY
        add_mount_attributes(calls, tree, attributes, recursive=True)
        place = (make_directory if kind == stat.S_IFDIR else make_file)(calls, NEW + self.target)
        attach_mount(calls, tree, place)
        calls.close(place)


def mount(calls: CallList, kind: str, target: str, flags: int, data: str) -> None:
    """Have a file system mounted, as mount(2) does."""
    calls.call("mount", kind, target, kind, flags, data, says=f"mount {kind} on {target}")


class Kernel(NamedTuple):
    """One of the kernel's own file systems: proc or devpts."""

    kind: str
    target: str
    data: str = ""

    def describe(self) -> str:
        return f"mount a fresh {self.kind} on {self.target}"

    def execute(self, executor: Executor) -> None:
        calls, path = executor.calls, NEW + self.target
        calls.close(make_directory(calls, path))
        flags = linux.MS_NOSUID | linux.MS_NOEXEC | (linux.MS_NODEV if self.kind == "proc" else 0)
        mount(calls, self.kind, path, flags, self.data)

    def explain(self, error: OSError) -> OSError:
        if self.kind != "proc" or error.errno != errno.EPERM:
            return error
        # A new one would show what is mounted over in the one that is there (fs/namespace.c, mount_too_revealing)
        said = f"{os.strerror(errno.EPERM)}, since parts of this host's /proc are masked; {UNMASK}"
        return OSError(error.errno, said)


class Sysctl(NamedTuple):
    """A kernel setting of the sandbox's own namespaces, written through its fresh /proc."""

    name: str
    value: str

    def describe(self) -> str:
        return f"set {self.name} to {self.value}"

    def execute(self, executor: Executor) -> None:
        calls, path = executor.calls, f"{NEW}/proc/sys/{self.name}"
        file = calls.get("openat", linux.AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, says=f"open {path}")
        calls.call("write", file, self.value.encode(), len(self.value.encode()), says=f"write {path}")
        calls.close(file)


class Pin(NamedTuple):
    """A directory mounted on itself, so that it can't be renamed away from above something covered."""

    target: str

    def describe(self) -> str:
        return f"pin {self.target} in place"

    def execute(self, executor: Executor) -> None:
        calls = executor.calls
        directory = open_path(calls, NEW + self.target)
        pin(calls, directory)
        calls.close(directory)


class Mask(NamedTuple):
    """A path inside something shown that a task must not write, or (`hide`) not even read."""

    target: str
    hide: bool = False

    def describe(self) -> str:
        return f"{'hide' if self.hide else 'make read-only:'} {self.target}"

    def execute(self, executor: Executor) -> None:
        """Have it done; what isn't there needs no cover when it is to be hidden."""
        calls, gone = executor.calls, Label()
        place = open_path(calls, NEW + self.target, but=(errno.ENOENT,) if self.hide else (), to=gone)
        if self.hide:
            mask(calls, place)
        else:
            tree = clone_mount(calls, place)
            add_mount_attributes(calls, tree, linux.MOUNT_ATTR_RDONLY, recursive=True)
            attach_mount(calls, tree, place)
        calls.close(place)
        calls.put(gone)


class MaskSockets(NamedTuple):
    """Every socket and FIFO below a directory that is shown as it is: read-only mounts don't stop a connect."""

    target: str

    def describe(self) -> str:
        return f"mask every socket and FIFO below {self.target}"

    def execute(self, executor: Executor) -> None:
        """Have it done: who made the sandbox looks for them, at what is shown in it."""
        with _listed(executor, self.target) as root:
            _cover(executor, ((place, True) for place in find_sockets(root)))


class HideNames(NamedTuple):
    """Everything below a directory that has one of some names: `patterns` are globs of names, one below the other."""

    target: str
    patterns: tuple[tuple[str, ...], ...]

    def describe(self) -> str:
        return f"hide {', '.join('**/' + '/'.join(pattern) for pattern in self.patterns)} below {self.target}"

    def execute(self, executor: Executor) -> None:
        """Have it done, and directories that a pattern names above pinned: renamed, they would show it next time."""
        patterns = [[Pattern.parse(glob) for glob in pattern] for pattern in self.patterns]
        with _listed(executor, self.target) as root:
            _cover(executor, find_names(root, patterns))


@contextlib.contextmanager
def _listed(executor: Executor, target: str) -> Iterator[int]:
    """Have a directory as it is shown."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    path = NEW + target
    [root] = executor.do(executor.calls.get("openat", linux.AT_FDCWD, path, flags, says=f"open {path}"))
    try:
        yield root
    finally:
        os.close(root)


def _cover(executor: Executor, places: Iterable[tuple[int, bool]]) -> None:
    """Have a mask put over these, or have them pinned; they are closed."""
    calls = executor.calls
    for place, masked in places:
        try:
            there = calls.take(place)
            (mask if masked else pin)(calls, there)
            calls.close(there)
            executor.do()  # what is looked for next is looked for in what this has mounted
        finally:
            os.close(place)


class HideMounts(NamedTuple):
    """Whatever is mounted inside a directory that is shown as it is, but for file systems of disks and memory."""

    target: str

    def describe(self) -> str:
        return f"hide network, FUSE, automount and kernel file systems mounted below {self.target}"

    def execute(self, executor: Executor) -> None:
        calls = executor.calls
        for point, kind in overlays.mounts_below(executor, NEW + self.target):
            if kind not in _PLAIN:
                place = open_path(calls, point)
                mask(calls, place)
                calls.close(place)


class ReadOnly(NamedTuple):
    """The view's own mount at a path, made read-only once it is complete."""

    target: str

    def describe(self) -> str:
        return f"make {self.target} itself read-only"

    def execute(self, executor: Executor) -> None:
        add_mount_attributes(executor.calls, NEW + self.target, linux.MOUNT_ATTR_RDONLY)


_QUOTA = "/room"
_DEV = "/dev"  # made read-only once it is furnished


class TmpfsQuota(NamedTuple):
    """The tmpfs itself, of `size` bytes. Empty files are bounded too: they cost memory that no size counts."""

    size: int

    def describe(self) -> str:
        return f"keep what the task writes in memory in one tmpfs of {self.size} bytes"

    def execute(self, executor: Executor) -> None:
        """Have it done, and a descriptor kept of it: nothing in a view is sure to be it."""
        calls = executor.calls
        calls.call("mkdirat", linux.AT_FDCWD, _QUOTA, 0o700)
        options = f"mode=700,size={self.size},nr_inodes={max_files(self.size)}"
        mount(calls, "tmpfs", _QUOTA, linux.MS_NOSUID | linux.MS_NODEV, options)
        calls.call("openat", linux.AT_FDCWD, _QUOTA, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, into=QUOTA)


class TmpfsPart(NamedTuple):
    """An empty directory of the room, shown at its own place."""

    target: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        return f"show an empty directory of it on {self.target} (mode {self.mode:o})"

    def execute(self, executor: Executor) -> None:
        calls, own = executor.calls, _QUOTA + "/" + self.target.strip("/").replace("/", "\\")
        calls.call("mkdirat", linux.AT_FDCWD, own, 0o700)
        calls.call("fchmodat", linux.AT_FDCWD, own, self.mode)
        if self.owner:
            calls.call("fchownat", linux.AT_FDCWD, own, *self.owner, 0)
        place = make_directory(calls, NEW + self.target)
        attach_mount(calls, clone_mount(calls, own, recursive=False), place)
        calls.close(place)


def with_tmpfs_quota(steps: Iterable[Step], size: int) -> tuple[Step, ...]:
    """Return the steps of a view with one room of `size` bytes in the place of each empty file system in memory."""
    return (TmpfsQuota(size), *(_bounded(step) for step in steps))


def _bounded(step: Step) -> Step:
    if isinstance(step, Tmpfs) and step.target != _DEV:
        return TmpfsPart(step.target, step.mode, step.owner)
    return step
