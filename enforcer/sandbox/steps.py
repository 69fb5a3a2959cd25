"""The steps that make a file system view, as frozen values: each can be described, and taken by a player.

They are taken in a fresh mount namespace between two pivots: the host's tree lies at `/old`, the view grows at `/new`,
and `/layers` holds what overlays are made of. A step never follows a symbolic link that a task could have planted.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from enforcer import linux
from enforcer.sandbox import layers
from enforcer.sandbox.calls import Calls, Label, Register
from enforcer.sandbox.player import Player
from enforcer.sandbox.walking import change, doors, made, made_file, mask, move, named, pin, place_of, tree_of
from rules.selectors import Pattern

if TYPE_CHECKING:
    from enforcer.sandbox.devices import Devices
    from enforcer.sandbox.room import Part, Room

NEW, STAGE = "/new", "/stage"
UNMASK = (
    "in a container, unmask /proc (podman: `--security-opt unmask=ALL`, "
    "docker: `--security-opt systempaths=unconfined`, Kubernetes: `procMount: Unmasked`)"
)
_number = count()
OLD = layers.OLD
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

    def take(self, player: Player) -> None:
        """Have it done."""
        calls, path = player.calls, NEW + self.target
        calls.close(made(calls, path))
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
        """Say it in a line."""
        return f"make the directory {self.target}"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls = player.calls
        place = made(calls, NEW + self.target)
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
        """Say it in a line."""
        return f"write {len(self.content)} small files of its own below {self.target}"

    def take(self, player: Player) -> None:
        """Have it done."""
        layers.fill(player.calls, NEW + self.target, self.content)


class Link(NamedTuple):
    """A symbolic link on the view's own tmpfs."""

    target: str
    to: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"link {self.target} to {self.to}"

    def take(self, player: Player) -> None:
        """Have it done."""
        player.calls.call("symlinkat", self.to, linux.AT_FDCWD, NEW + self.target)


class Show(NamedTuple):
    """A host directory, read-only, through an overlay.

    An overlay's inodes are its own: a socket or FIFO seen through one leads to no host process, and mounts below the
    directory (network, FUSE, automount) are not entered. `top` holds files that stand before the host's, as they are
    for all tasks, and `own` those that are this task's; no more than one directory of a view has any.
    """

    source: str
    top: Mapping[str, bytes] = MappingProxyType({})
    own: Mapping[str, bytes] = MappingProxyType({})
    staged: int | None = None  # a detached mount of the source, where this process could not walk to it
    guarded: bool = False  # whether a task could have planted a link on the way to it

    def describe(self) -> str:
        """Say it in a line."""
        names = ", ".join((*self.top, *self.own))
        own = f", with its own {names}" if names else ""
        return f"show {self.source} read-only through an overlay{own}"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls, source = player.calls, OLD + self.source
        status = os.stat(self.source if self.staged is None else self.staged)
        tree = None if self.staged is None else calls.take(self.staged)
        if tree is None and self.guarded:
            tree = _cloned(calls, source)
        around = tree is not None or layers.has_mounts_below(self.source)
        if tree is not None:
            source = _staged(calls, tree)
        target = _aside(calls) if self.guarded else NEW + self.source
        if not self.guarded:
            calls.close(made(calls, target))
        files = layers.Top(self.top, self.own) if self.top or self.own else self.top
        layers.show(player, source, target, files, status.st_mode, around=around)
        if self.guarded:
            _put(calls, target, NEW + self.source)


class ShowFile(NamedTuple):
    """A host file, read-only, through an overlay of its directory: locks and watches on it are the sandbox's own.

    Where the directory can't be an overlay's, or the sandbox may not look into it, the file is mounted as it is.
    """

    source: str
    tree: int | None = None  # a detached mount of the file, where this process could not walk to it
    around: int | None = None  # and one of its directory

    def describe(self) -> str:
        """Say it in a line."""
        return f"show {self.source} read-only through an overlay of its directory"

    def take(self, player: Player) -> None:
        """Have it done. What is there is a file when this is worked out and when it is mounted, or it isn't done."""
        if not stat.S_ISREG(os.stat(self.source if self.tree is None else self.tree).st_mode):
            raise OSError(errno.EPERM, "it is neither a directory nor a file any more")
        calls, name = player.calls, os.path.basename(self.source)
        above = _cloned(calls, OLD + os.path.dirname(self.source)) if self.around is None else calls.take(self.around)
        aside = _staged(calls, above)
        target = _aside(calls)
        if layers.overlay_of(player, aside, target, f"{target}/{name}"):
            tree = _cloned(calls, f"{target}/{name}")
        else:
            tree = _cloned(calls, f"{aside}/{name}") if self.tree is None else calls.take(self.tree)
        calls.is_kind(tree, stat.S_IFREG, says="it is something else by now")
        change(calls, tree, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_RDONLY)
        place = made_file(calls, NEW + self.source)
        move(calls, tree, place)
        calls.close(place)


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

    def take(self, player: Player) -> None:
        """Have it done. What is there is of the kind that it is when this is worked out, or it isn't done."""
        calls = player.calls
        kind = stat.S_IFMT(os.stat(self.source if self.tree is None else self.tree).st_mode)
        if not self.devices and kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise OSError(errno.EPERM, "it is neither a directory nor a file any more")
        tree = _cloned(calls, OLD + self.source) if self.tree is None else calls.take(self.tree)
        calls.is_kind(tree, kind, says="it is something else by now")
        attributes = linux.MOUNT_ATTR_NOSUID
        attributes |= 0 if self.devices else linux.MOUNT_ATTR_NODEV
        attributes |= 0 if self.writable else linux.MOUNT_ATTR_RDONLY
        change(calls, tree, attributes, recursive=True)
        place = (made if kind == stat.S_IFDIR else made_file)(calls, NEW + self.target)
        move(calls, tree, place)
        calls.close(place)


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

    def take(self, player: Player) -> None:
        """Have it done."""
        calls = player.calls
        source, changes = (
            _staged(calls, _cloned(calls, OLD + path) if tree is None else calls.take(tree))
            for path, tree in ((self.source, self.tree), (self.changes, self.staged))
        )
        target = _aside(calls)
        layers.review(calls, source, changes, target)
        _put(calls, target, NEW + self.source)

    def why(self, error: OSError) -> OSError:
        """Say why it couldn't be done."""
        return layers.why_not_written(error)


def mount(calls: Calls, kind: str, target: str, flags: int, data: str) -> None:
    """Have a file system mounted, as mount(2) does."""
    calls.call("mount", kind, target, kind, flags, data, says=f"mount {kind} on {target}")


def _cloned(calls: Calls, path: str) -> Register:
    """Clone what is mounted at a path of the host's, and all below."""
    place = place_of(calls, path)
    tree = tree_of(calls, place)
    calls.close(place)
    return tree


def _aside(calls: Calls) -> str:
    """Make a directory for a mount, under a name that has nothing that needs escaping."""
    path = f"{STAGE}/{next(_number)}"
    calls.call("mkdirat", linux.AT_FDCWD, path, 0o755)
    return path


def _staged(calls: Calls, tree: Register) -> str:
    """Mount a detached mount aside."""
    path = _aside(calls)
    move(calls, tree, path)
    return path


def _put(calls: Calls, aside: str, path: str) -> None:
    """Put what is mounted aside where it belongs: what a path leads to could change before mount(2) looks it up."""
    tree = tree_of(calls, aside)
    place = made(calls, path)
    move(calls, tree, place)
    calls.close(place)


class Kernel(NamedTuple):
    """One of the kernel's own file systems: proc or devpts."""

    kind: str
    target: str
    data: str = ""

    def describe(self) -> str:
        """Say it in a line."""
        return f"mount a fresh {self.kind} on {self.target}"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls, path = player.calls, NEW + self.target
        calls.close(made(calls, path))
        flags = linux.MS_NOSUID | linux.MS_NOEXEC | (linux.MS_NODEV if self.kind == "proc" else 0)
        mount(calls, self.kind, path, flags, self.data)

    def why(self, error: OSError) -> OSError:
        """Say why it couldn't be done."""
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
        """Say it in a line."""
        return f"set {self.name} to {self.value}"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls, path = player.calls, f"{NEW}/proc/sys/{self.name}"
        file = calls.get("openat", linux.AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, says=f"open {path}")
        calls.call("write", file, self.value.encode(), len(self.value.encode()), says=f"write {path}")
        calls.close(file)


class Pin(NamedTuple):
    """A directory mounted on itself, so that it can't be renamed away from above something covered."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"pin {self.target} in place"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls = player.calls
        directory = place_of(calls, NEW + self.target)
        pin(calls, directory)
        calls.close(directory)


class Cover(NamedTuple):
    """A path inside something shown that a task must not write, or (`hide`) not even read."""

    target: str
    hide: bool = False

    def describe(self) -> str:
        """Say it in a line."""
        return f"{'hide' if self.hide else 'make read-only:'} {self.target}"

    def take(self, player: Player) -> None:
        """Have it done; what isn't there needs no cover when it is to be hidden."""
        calls, gone = player.calls, Label()
        place = place_of(calls, NEW + self.target, but=(errno.ENOENT,) if self.hide else (), to=gone)
        if self.hide:
            mask(calls, place)
        else:
            tree = tree_of(calls, place)
            change(calls, tree, linux.MOUNT_ATTR_RDONLY, recursive=True)
            move(calls, tree, place)
        calls.close(place)
        calls.put(gone)


class MaskDoors(NamedTuple):
    """Every socket and FIFO below a directory that is shown as it is: read-only mounts don't stop a connect."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"mask every socket and FIFO below {self.target}"

    def take(self, player: Player) -> None:
        """Have it done: who made the sandbox looks for them, at what is shown in it."""
        with _listed(player, self.target) as root:
            _cover(player, ((place, True) for place in doors(root)))


class HideNames(NamedTuple):
    """Everything below a directory that has one of some names: `patterns` are globs of names, one below the other."""

    target: str
    patterns: tuple[tuple[str, ...], ...]

    def describe(self) -> str:
        """Say it in a line."""
        return f"hide {', '.join('**/' + '/'.join(pattern) for pattern in self.patterns)} below {self.target}"

    def take(self, player: Player) -> None:
        """Have it done, and directories that a pattern names above pinned: renamed, they would show it next time."""
        patterns = [[Pattern.parse(glob) for glob in pattern] for pattern in self.patterns]
        with _listed(player, self.target) as root:
            _cover(player, named(root, patterns))


@contextlib.contextmanager
def _listed(player: Player, target: str) -> Iterator[int]:
    """Have a directory as it is shown."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    path = NEW + target
    [root] = player.do(player.calls.get("openat", linux.AT_FDCWD, path, flags, says=f"open {path}"))
    try:
        yield root
    finally:
        os.close(root)


def _cover(player: Player, places: Iterable[tuple[int, bool]]) -> None:
    """Have a mask put over these, or have them pinned; they are closed."""
    calls = player.calls
    for place, masked in places:
        try:
            there = calls.take(place)
            (mask if masked else pin)(calls, there)
            calls.close(there)
            player.do()  # what is looked for next is looked for in what this has mounted
        finally:
            os.close(place)


class HideMounts(NamedTuple):
    """Whatever is mounted inside a directory that is shown as it is, but for file systems of disks and memory."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"hide network, FUSE, automount and kernel file systems mounted below {self.target}"

    def take(self, player: Player) -> None:
        """Have it done."""
        calls = player.calls
        for point, kind in layers.mounts_below(player, NEW + self.target):
            if kind not in _PLAIN:
                place = place_of(calls, point)
                mask(calls, place)
                calls.close(place)


class ReadOnly(NamedTuple):
    """The view's own mount at a path, made read-only once it is complete."""

    target: str

    def describe(self) -> str:
        """Say it in a line."""
        return f"make {self.target} itself read-only"

    def take(self, player: Player) -> None:
        """Have it done."""
        change(player.calls, NEW + self.target, linux.MOUNT_ATTR_RDONLY)


type Step = (
    Devices
    | Room
    | Part
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
    | Cover
    | MaskDoors
    | ReadOnly
    | Review
)
