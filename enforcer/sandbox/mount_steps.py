"""Mount steps: frozen values that each describe and execute one change of a sandbox's file system view.

`describe` returns a line, `execute` writes the calls for an init process, and some steps `explain` an error.

They are executed in a new mount namespace between two pivots: `/old` is the host's tree, `/new` becomes the sandbox's
root, and `/layers` holds the layers of overlays. A step never follows a symbolic link that a task could have made.

All that a task may write in memory is in one tmpfs (`TmpfsQuota`), with one quota for home, /tmp and the rest. Separate
ones would each have a limit of their own, by default half of the host's memory (tmpfs(5)).
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
from enforcer.sandbox.step_lists import QUOTA, CallList, Label
from enforcer.system import linux
from rules.values.patterns import Pattern

UNMASK = (
    "in a container, unmask /proc (podman: `--security-opt unmask=ALL`, "
    "docker: `--security-opt systempaths=unconfined`, Kubernetes: `procMount: Unmasked`)"
)
_DISK_FILE_SYSTEMS = frozenset(
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
    """Mount an empty tmpfs. It counts against the task's memory; `size`: a limit in bytes."""

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
    """Make a directory on the sandbox's own tmpfs."""

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
    """Write files on the sandbox's own tmpfs, by their paths below a directory."""

    target: str
    content: Mapping[str, bytes]

    def describe(self) -> str:
        return f"write {len(self.content)} small files of its own below {self.target}"

    def execute(self, executor: Executor) -> None:
        overlays.write_files(executor.calls, NEW + self.target, self.content)


class Link(NamedTuple):
    """Make a symbolic link on the sandbox's own tmpfs."""

    target: str
    to: str

    def describe(self) -> str:
        return f"link {self.target} to {self.to}"

    def execute(self, executor: Executor) -> None:
        executor.calls.call("symlinkat", self.to, linux.AT_FDCWD, NEW + self.target)


class Bind(NamedTuple):
    """Mount a host path as it is, writable or not: devices, and directories that the task writes."""

    source: str
    target: str
    writable: bool = False
    devices: bool = False
    tree: int | None = None  # a detached mount of the source, id-mapped, that the runner made with more rights

    def describe(self) -> str:
        mode = "writable" if self.writable else "read-only"
        return f"mount {self.source} on {self.target}, {mode}{', id-mapped' if self.tree is not None else ''}"

    def execute(self, executor: Executor) -> None:
        """Mount the source if it still has the file type that it has now."""
        calls = executor.calls
        kind = stat.S_IFMT(os.stat(self.source if self.tree is None else self.tree).st_mode)
        if not self.devices and kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise OSError(errno.EPERM, "it is neither a directory nor a regular file any more")
        tree = clone_path(calls, OLD + self.source) if self.tree is None else calls.take(self.tree)
        calls.is_kind(tree, kind, purpose="its file type has changed")
        attributes = linux.MOUNT_ATTR_NOSUID
        attributes |= 0 if self.devices else linux.MOUNT_ATTR_NODEV
        attributes |= 0 if self.writable else linux.MOUNT_ATTR_RDONLY
        add_mount_attributes(calls, tree, attributes, recursive=True)
        place = (make_directory if kind == stat.S_IFDIR else make_file)(calls, NEW + self.target)
        attach_mount(calls, tree, place)
        calls.close(place)


def mount(calls: CallList, kind: str, target: str, flags: int, data: str) -> None:
    """Write a mount(2) call."""
    calls.call("mount", kind, target, kind, flags, data, purpose=f"mount {kind} on {target}")


class Kernel(NamedTuple):
    """Mount a kernel file system: proc or devpts."""

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
        # A new /proc would reveal what mounts mask in the present one (fs/namespace.c, mount_too_revealing)
        message = f"{os.strerror(errno.EPERM)}, since parts of this host's /proc are masked; {UNMASK}"
        return OSError(error.errno, message)


class Sysctl(NamedTuple):
    """Set a kernel setting of the sandbox's own namespaces, through its new /proc."""

    name: str
    value: str

    def describe(self) -> str:
        return f"set {self.name} to {self.value}"

    def execute(self, executor: Executor) -> None:
        calls, path = executor.calls, f"{NEW}/proc/sys/{self.name}"
        file = calls.get("openat", linux.AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, purpose=f"open {path}")
        calls.call("write", file, self.value.encode(), len(self.value.encode()), purpose=f"write {path}")
        calls.close(file)


class Pin(NamedTuple):
    """Mount a directory on itself, so that it can't be renamed with a mask below it."""

    target: str

    def describe(self) -> str:
        return f"pin {self.target} in place"

    def execute(self, executor: Executor) -> None:
        calls = executor.calls
        directory = open_path(calls, NEW + self.target)
        pin(calls, directory)
        calls.close(directory)


class Mask(NamedTuple):
    """Make a path read-only, or with `hide` unreadable, inside something shown."""

    target: str
    hide: bool = False

    def describe(self) -> str:
        return f"{'hide' if self.hide else 'make read-only:'} {self.target}"

    def execute(self, executor: Executor) -> None:
        """Mount the mask. A path to hide that doesn't exist needs none."""
        calls, gone = executor.calls, Label()
        place = open_path(calls, NEW + self.target, ignored=(errno.ENOENT,) if self.hide else (), to=gone)
        if self.hide:
            mask(calls, place)
        else:
            tree = clone_mount(calls, place)
            add_mount_attributes(calls, tree, linux.MOUNT_ATTR_RDONLY, recursive=True)
            attach_mount(calls, tree, place)
        calls.close(place)
        calls.place_label(gone)


class MaskSockets(NamedTuple):
    """Mask every socket and FIFO below a directory: a read-only mount doesn't prevent connect(2)."""

    target: str

    def describe(self) -> str:
        return f"mask every socket and FIFO below {self.target}"

    def execute(self, executor: Executor) -> None:
        """Find them in the sandbox's mount, from the runner, and mask each."""
        with _open_directory(executor, self.target) as root:
            _mask_or_pin(executor, ((place, True) for place in find_sockets(root)))


class HideNames(NamedTuple):
    """Hide everything below a directory whose name matches; `patterns`: globs of names, one below the other."""

    target: str
    patterns: tuple[tuple[str, ...], ...]

    def describe(self) -> str:
        return f"hide {', '.join('**/' + '/'.join(pattern) for pattern in self.patterns)} below {self.target}"

    def execute(self, executor: Executor) -> None:
        """Hide matches, and pin the directories above them that a pattern names, so that none can be renamed."""
        patterns = [[Pattern.parse(glob) for glob in pattern] for pattern in self.patterns]
        with _open_directory(executor, self.target) as root:
            _mask_or_pin(executor, find_names(root, patterns))


@contextlib.contextmanager
def _open_directory(executor: Executor, target: str) -> Iterator[int]:
    """Open a directory as the sandbox shows it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    path = NEW + target
    [root] = executor.run(executor.calls.get("openat", linux.AT_FDCWD, path, flags, purpose=f"open {path}"))
    try:
        yield root
    finally:
        os.close(root)


def _mask_or_pin(executor: Executor, targets: Iterable[tuple[int, bool]]) -> None:
    """Mask or pin each place, and close it."""
    calls = executor.calls
    for target, is_masked in targets:
        try:
            register = calls.take(target)
            (mask if is_masked else pin)(calls, register)
            calls.close(register)
            executor.run()  # the search goes on in what this has mounted
        finally:
            os.close(target)


class HideMounts(NamedTuple):
    """Hide file systems mounted inside a directory, except those of disks and memory."""

    target: str

    def describe(self) -> str:
        return f"hide network, FUSE, automount and kernel file systems mounted below {self.target}"

    def execute(self, executor: Executor) -> None:
        calls = executor.calls
        for point, kind in overlays.mounts_below(executor, NEW + self.target):
            if kind not in _DISK_FILE_SYSTEMS:
                place = open_path(calls, point)
                mask(calls, place)
                calls.close(place)


class ReadOnly(NamedTuple):
    """Make the mount at a path read-only, once it is complete."""

    target: str

    def describe(self) -> str:
        return f"make {self.target} itself read-only"

    def execute(self, executor: Executor) -> None:
        add_mount_attributes(executor.calls, NEW + self.target, linux.MOUNT_ATTR_RDONLY)


_QUOTA = "/quota"
_DEV = "/dev"  # read-only once it is complete


class TmpfsQuota(NamedTuple):
    """Mount the tmpfs for all of the task's files in memory: `size` bytes, and a number of files derived from it."""

    size: int

    def describe(self) -> str:
        return f"keep what the task writes in memory in one tmpfs of {self.size} bytes"

    def execute(self, executor: Executor) -> None:
        """Mount it, and keep a descriptor in a register: no path in the sandbox is sure to lead to it."""
        calls = executor.calls
        calls.call("mkdirat", linux.AT_FDCWD, _QUOTA, 0o700)
        options = f"mode=700,size={self.size},nr_inodes={max_files(self.size)}"
        mount(calls, "tmpfs", _QUOTA, linux.MS_NOSUID | linux.MS_NODEV, options)
        calls.call("openat", linux.AT_FDCWD, _QUOTA, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, into=QUOTA)


class TmpfsPart(NamedTuple):
    """Mount an empty directory of the quota tmpfs at a path."""

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
    """Return the steps with one tmpfs of `size` bytes in place of each separate one."""
    return (TmpfsQuota(size), *(_with_quota(step) for step in steps))


def _with_quota(step: Step) -> Step:
    if isinstance(step, Tmpfs) and step.target != _DEV:
        return TmpfsPart(step.target, step.mode, step.owner)
    return step
