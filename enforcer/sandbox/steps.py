"""The steps that make a file system view, as frozen values: each can be described and executed.

They run in a fresh mount namespace between two pivots: the host's tree lies at `/old`, the view grows at `/new`, and
`/layers` holds what overlays are made of. A step never follows a symbolic link that a task could have planted.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from enforcer import linux
from enforcer.sandbox import layers
from enforcer.sandbox.walking import doors, made, made_file, mask, named, pin, walk
from rules.selectors import Pattern

if TYPE_CHECKING:
    from enforcer.sandbox.room import Part, Room

OLD, NEW, STAGE = "/old", "/new", "/stage"
UNMASK = (
    "in a container, unmask /proc (podman: `--security-opt unmask=ALL`, "
    "docker: `--security-opt systempaths=unconfined`, Kubernetes: `procMount: Unmasked`)"
)
_number = count()
_PLAIN = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "zfs", "f2fs", "jfs", "tmpfs", "overlay", "squashfs", "erofs"}
)


class Tmpfs(NamedTuple):
    """An empty file system in memory. Counted against the task's memory; `size` is a bound in bytes."""

    target: str
    mode: int = 0o755
    size: int = 0
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        """Say it in a line."""
        return f"mount an empty tmpfs on {self.target} (mode {self.mode:o})"

    def execute(self) -> None:
        """Do it."""
        path = NEW + self.target
        os.close(made(path))
        size = f",size={self.size}" if self.size else ""
        linux.mount("tmpfs", path, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"mode={self.mode:o}{size}")
        if self.owner:
            os.chown(path, *self.owner)


class Directory(NamedTuple):
    """A directory on the view's own tmpfs."""

    target: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None

    def describe(self) -> str:
        """Say it in a line."""
        return f"make the directory {self.target}"

    def execute(self) -> None:
        """Do it."""
        place = made(NEW + self.target)
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
        os.close(place)
        os.fchmod(directory, self.mode)
        if self.owner:
            os.fchown(directory, *self.owner)
        os.close(directory)


class Link(NamedTuple):
    """A symbolic link on the view's own tmpfs."""

    target: str
    to: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"link {self.target} to {self.to}"

    def execute(self) -> None:
        """Do it."""
        os.symlink(self.to, NEW + self.target)


class Show(NamedTuple):
    """A host directory, read-only, through an overlay.

    An overlay's inodes are its own: a socket or FIFO seen through one leads to no host process, and mounts below the
    directory (network, FUSE, automount) are not entered. `top` holds files that stand before the host's.
    """

    source: str
    top: Mapping[str, bytes] = MappingProxyType({})
    staged: int | None = None  # a detached mount of the source, where this process could not walk to it
    guarded: bool = False  # whether a task could have planted a link on the way to it

    def describe(self) -> str:
        """Say it in a line."""
        own = f", with its own {', '.join(self.top)}" if self.top else ""
        return f"show {self.source} read-only through an overlay{own}"

    def execute(self) -> None:
        """Do it."""
        source, tree = OLD + self.source, self.staged
        if tree is None and self.guarded:
            place = walk(source)
            tree = linux.open_tree("", directory=place, recursive=True)
            os.close(place)
        if tree is not None:
            source = f"{STAGE}/{next(_number)}"
            os.makedirs(source)
            linux.move_mount(tree, source)
            os.close(tree)
        if self.guarded:
            _mount_at(NEW + self.source, lambda place: layers.show(source, place, self.top))
        else:
            os.makedirs(NEW + self.source, exist_ok=True)
            layers.show(source, NEW + self.source, self.top)


class Bind(NamedTuple):
    """A host path as it is, writable or not; for devices and for the directory that a task works in."""

    source: str
    target: str
    writable: bool = False
    devices: bool = False
    tree: int | None = None  # a detached mount of the source, made (and id-mapped) by who could

    def describe(self) -> str:
        """Say it in a line."""
        how = "writable" if self.writable else "read-only"
        return f"mount {self.source} on {self.target}, {how}{', id-mapped' if self.tree is not None else ''}"

    def execute(self) -> None:
        """Do it."""
        tree = self._tree() if self.tree is None else self.tree
        kind = stat.S_IFMT(os.fstat(tree).st_mode)
        if not self.devices and kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise OSError(errno.EPERM, "it is neither a directory nor a file any more")
        attributes = linux.MOUNT_ATTR_NOSUID
        attributes |= 0 if self.devices else linux.MOUNT_ATTR_NODEV
        attributes |= 0 if self.writable else linux.MOUNT_ATTR_RDONLY
        linux.mount_setattr(tree, attributes, recursive=True)
        place = (made if kind == stat.S_IFDIR else made_file)(NEW + self.target)
        linux.move_mount(tree, place)
        os.close(place)
        os.close(tree)

    def _tree(self) -> int:
        place = walk(OLD + self.source)
        try:
            return linux.open_tree("", directory=place, recursive=True)
        finally:
            os.close(place)


class Review(NamedTuple):
    """A host directory that a task may write, and isn't written: what it changes goes to a directory of its own.

    As with what is shown: sockets and FIFOs in it lead nowhere, and what is mounted below it isn't entered.
    """

    source: str
    changes: str  # where the changes go
    tree: int | None = None  # detached mounts of the two, id-mapped, where this process could not walk to them
    staged: int | None = None

    def describe(self) -> str:
        """Say it in a line."""
        return f"show {self.source} writable through an overlay; what is written goes to {self.changes}"

    def execute(self) -> None:
        """Do it."""
        source, changes = _staged("source", self.source, self.tree), _staged("changes", self.changes, self.staged)
        _mount_at(NEW + self.source, lambda place: layers.review(source, changes, place))


def _staged(name: str, path: str, tree: int | None) -> str:
    """Mount a directory of the host's, or a detached mount of it, where its name has nothing that needs escaping."""
    if tree is None:
        place = walk(OLD + path)
        tree = linux.open_tree("", directory=place, recursive=True)
        os.close(place)
    staged = f"{STAGE}/{name}"
    os.makedirs(staged)
    linux.move_mount(tree, staged)
    os.close(tree)
    return staged


def _mount_at(path: str, mount: Callable[[str], None]) -> None:
    """Mount something aside, then where it belongs: what a path leads to could change before mount(2) looks it up."""
    aside = f"{STAGE}/{next(_number)}"
    os.makedirs(aside)
    mount(aside)
    tree = linux.open_tree(aside, recursive=True)
    place = made(path)
    linux.move_mount(tree, place)
    os.close(place)
    os.close(tree)


class Kernel(NamedTuple):
    """One of the kernel's own file systems: proc or devpts."""

    kind: str
    target: str
    data: str = ""

    def describe(self) -> str:
        """Say it in a line."""
        return f"mount a fresh {self.kind} on {self.target}"

    def execute(self) -> None:
        """Do it."""
        os.makedirs(NEW + self.target, exist_ok=True)
        flags = linux.MS_NOSUID | linux.MS_NOEXEC | (linux.MS_NODEV if self.kind == "proc" else 0)
        try:
            linux.mount(self.kind, NEW + self.target, self.kind, flags, self.data)
        except PermissionError as error:
            if self.kind != "proc":
                raise
            # A new one would show what is mounted over in the one that is there (fs/namespace.c, mount_too_revealing)
            why = f"{os.strerror(errno.EPERM)}, since parts of this host's /proc are masked; {UNMASK}"
            raise OSError(error.errno, why) from error


class Sysctl(NamedTuple):
    """A kernel setting of the sandbox's own namespaces, written through its fresh /proc."""

    name: str
    value: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"set {self.name} to {self.value}"

    def execute(self) -> None:
        """Do it."""
        with open(f"{NEW}/proc/sys/{self.name}", "wb", buffering=0) as file:
            file.write(self.value.encode())


class Pin(NamedTuple):
    """A directory mounted on itself, so that it can't be renamed away from above something covered."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"pin {self.target} in place"

    def execute(self) -> None:
        """Do it."""
        directory = walk(NEW + self.target)
        pin(directory)
        os.close(directory)


class Cover(NamedTuple):
    """A path inside something shown that a task must not write, or (`hide`) not even read."""

    target: str
    hide: bool = False

    def describe(self) -> str:
        """Say it in a line."""
        return f"{'hide' if self.hide else 'make read-only:'} {self.target}"

    def execute(self) -> None:
        """Do it; what isn't there needs no cover when it is to be hidden."""
        try:
            place = walk(NEW + self.target)
        except FileNotFoundError:
            if self.hide:
                return
            raise
        if self.hide:
            mask(place)
        else:
            tree = linux.open_tree("", directory=place, recursive=True)
            linux.mount_setattr(tree, linux.MOUNT_ATTR_RDONLY, recursive=True)
            linux.move_mount(tree, place)
            os.close(tree)
        os.close(place)


class MaskDoors(NamedTuple):
    """Every socket and FIFO below a directory that is shown as it is: read-only mounts don't stop a connect."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"mask every socket and FIFO below {self.target}"

    def execute(self) -> None:
        """Do it."""
        root = os.open(NEW + self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for place in doors(root):
            mask(place)
            os.close(place)
        os.close(root)


class HideNames(NamedTuple):
    """Everything below a directory that has one of some names: `patterns` are globs of names, one below the other."""

    target: str
    patterns: tuple[tuple[str, ...], ...]

    def describe(self) -> str:
        """Say it in a line."""
        return f"hide {', '.join('**/' + '/'.join(pattern) for pattern in self.patterns)} below {self.target}"

    def execute(self) -> None:
        """Do it, and pin the directories that a pattern names above them: renamed, they would show it next time."""
        patterns = [[Pattern.parse(glob) for glob in pattern] for pattern in self.patterns]
        root = os.open(NEW + self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for place, last in named(root, patterns):
            if last:
                mask(place)
            else:
                pin(place)
            os.close(place)
        os.close(root)


class HideMounts(NamedTuple):
    """Whatever is mounted inside a directory that is shown as it is, but for file systems of disks and memory."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"hide network, FUSE, automount and kernel file systems mounted below {self.target}"

    def execute(self) -> None:
        """Do it."""
        for point, kind in layers.mounts_below(NEW + self.target):
            if kind not in _PLAIN:
                place = walk(point)
                mask(place)
                os.close(place)


class ReadOnly(NamedTuple):
    """The view's own mount at a path, made read-only once it is complete."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"make {self.target} itself read-only"

    def execute(self) -> None:
        """Do it."""
        linux.mount_setattr(linux.AT_FDCWD, linux.MOUNT_ATTR_RDONLY, path=NEW + self.target)


type Step = (
    Room
    | Part
    | Tmpfs
    | Directory
    | Link
    | Show
    | Bind
    | HideMounts
    | HideNames
    | Kernel
    | Sysctl
    | Pin
    | Cover
    | MaskDoors
    | ReadOnly
    | Review
)
