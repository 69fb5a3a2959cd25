"""Overlay mounts: steps that show a host directory or file through an overlay, with Exeat's files above the host's.

Where other file systems are mounted inside the directory and locked there (a container's /etc/resolv.conf, for an
ordinary user), no overlay can be made: the directory is composed entry by entry around those mounts. Sources:
Documentation/filesystems/overlayfs.rst; mount_namespaces(7) on locked mounts.
"""

import errno
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import NamedTuple

from enforcer.sandbox import init
from enforcer.sandbox.init import Executor
from enforcer.sandbox.path_scan import (
    LAYERS,
    NEW,
    OLD,
    STAGE,
    add_mount_attributes,
    attach_mount,
    clone_mount,
    clone_path,
    make_directory,
    make_file,
)
from enforcer.sandbox.step_lists import CallList, Label, Register
from enforcer.system import linux

_TOP = f"{LAYERS}/top"  # the layer of the directory with `OwnFiles`
_WRITTEN = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_IN_WORDS = 4096  # bytes of a file that go into the call list itself
_CLOSED = errno.EACCES, errno.EPERM
_AT_ONCE = 1 << 16  # bytes that one sendfile(2) copies at least
_FILES_AT_MOST = 1 << 20  # bytes of a file that is copied
_IN_OCTAL = re.compile(rb"[ \t\n\\#]")
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes space, tab, newline and backslash
_number = count()


def make_layers(calls: CallList) -> None:
    """Make the directory of layers, and the empty file and directory that masks use."""
    calls.call("mkdirat", linux.AT_FDCWD, f"{LAYERS}/nothing", 0o755)
    calls.call("mkdirat", linux.AT_FDCWD, f"{LAYERS}/nothing/directory", 0o000)
    calls.close(calls.get("openat", linux.AT_FDCWD, f"{LAYERS}/nothing/file", _WRITTEN, 0o000))


class OwnFiles(NamedTuple):
    """Files above a directory's own, by their paths in it: `same` for all tasks, `own` for one task."""

    same: Mapping[str, bytes]
    own: Mapping[str, bytes]


def mount_overlay(
    executor: Executor, source: str, target: str, top: Mapping[str, bytes] | OwnFiles, mode: int, *, around: bool
) -> None:
    """Mount `source` on the existing directory `target`, read-only. `top` maps relative paths to contents.

    `mode` is the directory's. `around`: file systems may be mounted inside it; this waits for the result then.
    """
    layer = _filled(executor, top)
    done = _overlay(executor.calls, layer, source, target, mode, but=(errno.EINVAL,) if around else ())
    if not around:
        executor.calls.let_go(done)
        return
    executor.do()
    # EINVAL: has_locked_children() in the kernel's clone_private_mount().
    if executor.value(done) == -errno.EINVAL:
        mounted = frozenset(point for point, _ in mounts_below(executor, source))
        if not mounted:
            raise OSError(errno.EINVAL, f"mount overlay on {target}: {os.strerror(errno.EINVAL)}")
        _compose(executor, source, target, {**top.same, **top.own} if isinstance(top, OwnFiles) else top, mounted)


def try_overlay(executor: Executor, source: str, target: str, seen: str) -> bool:
    """Mount `source` on the existing directory `target`, read-only; return whether `seen` can be opened there.

    False if file systems are mounted inside it and locked, if its file system can't be a layer, or without the right to
    look into it.
    """
    done = _overlay(executor.calls, _filled(executor, {}), source, target, 0o755, but=(errno.EINVAL,))
    executor.do()
    if executor.value(done) == -errno.EINVAL:
        return False
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    place = executor.calls.get("openat", linux.AT_FDCWD, seen, flags, but=_CLOSED)
    executor.calls.call("close", place, but=(errno.EBADF,))
    executor.calls.let_go(place)
    executor.do()
    return executor.value(place) >= 0


def _filled(executor: Executor, top: Mapping[str, bytes] | OwnFiles) -> str:
    """Make a layer with these files; returns its path."""
    if not isinstance(top, OwnFiles):
        layer = f"{LAYERS}/{next(_number)}"
        _fill(executor, layer, top)
        return layer
    init.execute_shared(executor, (_TOP, *top.same.items()), partial(_fill, layer=_TOP, files=top.same))
    for name, content in top.own.items():
        _parents(executor.calls, f"{_TOP}/{name}", {_TOP})
        _write(executor.calls, f"{_TOP}/{name}", content)
    return _TOP


def _fill(executor: Executor, layer: str, files: Mapping[str, bytes]) -> None:
    executor.calls.call("mkdirat", linux.AT_FDCWD, layer, 0o755)
    write_files(executor.calls, layer, files)


def write_files(calls: CallList, directory: str, files: Mapping[str, bytes]) -> None:
    """Write files below an existing directory of ours, by their paths in it."""
    written: dict[bytes, str] = {}  # files with the same content are hard links
    made = {directory}
    for name, content in files.items():
        path = f"{directory}/{name}"
        calls.may_be_cut()
        _parents(calls, path, made)
        if (same := written.setdefault(content, path)) is path:
            _write(calls, path, content)
        else:
            calls.call("linkat", linux.AT_FDCWD, same, linux.AT_FDCWD, path, 0)


def _overlay(  # noqa: PLR0917  what it is made of
    calls: CallList, layer: str, source: str, target: str, mode: int, but: tuple[int, ...]
) -> Register:
    # The merged directory takes its own mode from the topmost layer.
    calls.call("fchmodat", linux.AT_FDCWD, layer, mode & 0o777)
    escaped = source.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    data = f"lowerdir={layer}:{escaped},userxattr"
    flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    return calls.get("mount", "overlay", target, "overlay", flags, data, but=but, says=f"mount overlay on {target}")


def _parents(calls: CallList, path: str, made: set[str]) -> None:
    """Make the missing directories above `path`; `made` are known to exist. No task has access to them yet."""
    above = os.path.dirname(path)
    if above not in made:
        _parents(calls, above, made)
        calls.call("mkdirat", linux.AT_FDCWD, above, 0o755, but=(errno.EEXIST,), says=f"mkdir {above}")
        made.add(above)


def mount_review(calls: CallList, source: str, changes: str, target: str) -> None:
    """Mount `source` on the existing directory `target`, writable, with changes going to the directory `changes`.

    Attributes in `source` must not redirect directories or mark files as partly copied: a task that could write there
    before may have left some (Documentation/filesystems/overlayfs.rst, "Permission model").
    """
    options = f"lowerdir={source},upperdir={changes}/upper,workdir={changes}/work,userxattr"
    options += ",redirect_dir=nofollow,metacopy=off,index=off,xino=off"
    flags = linux.MS_NOSUID | linux.MS_NODEV
    calls.call("mount", "overlay", target, "overlay", flags, options, says=f"mount overlay on {target}")


def explain_review_error(error: OSError) -> OSError:
    """Return why a writable overlay couldn't be mounted, with the remedy."""
    if error.errno != errno.EINVAL:
        return error
    why = "this file system can't hold the changes of an overlay, or another one is mounted inside the directory"
    return OSError(errno.EINVAL, f"{why}; set XDG_STATE_HOME to a directory on ext4, xfs, btrfs or tmpfs")


def _write(calls: CallList, path: str, content: bytes) -> None:
    file = calls.get("openat", linux.AT_FDCWD, path, _WRITTEN, 0o644, says=f"open {path}")
    wrote = calls.register()
    if len(content) <= _IN_WORDS:
        calls.call("write", file, content, len(content), into=wrote, says=f"write {path}")
    else:
        source = calls.take(init.shared_file(content))
        there = calls.get("mmap", 0, len(content), mmap.PROT_READ, mmap.MAP_SHARED, source, 0)
        calls.call("write", file, there, len(content), into=wrote, says=f"write {path}")
        calls.call("munmap", there, len(content))
        calls.let_go(there)
        calls.close(source)
    size = calls.data(bytes(4))
    calls.store(size, wrote)
    calls.check(size, 0xFFFFFFFF, len(content), errno.ENOSPC, says=f"write {path}")
    calls.call("fchmod", file, 0o644)
    calls.let_go(wrote)
    calls.close(file)


def mounts_below(executor: Executor, source: str) -> list[tuple[str, str]]:
    """List every mount strictly below `source`, as (mount point, type); proc_pid_mountinfo(5)."""
    path = f"{OLD}/proc/self/mountinfo"
    mounts = executor.calls.get("openat", linux.AT_FDCWD, path, os.O_RDONLY | os.O_CLOEXEC, says="look at the mounts")
    with open(executor.do(mounts)[0], "rb", buffering=0) as file:
        return list(_below(source, file.readall()))


def mounts_of_host(path: str) -> list[tuple[str, str]]:
    """List every mount strictly below a host directory, as (mount point, type)."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        mounts = file.readall()
    return list(_below(path, mounts)) if _may_have_below(path, mounts) else []


def has_mounts_below(*paths: str) -> bool:
    """Whether anything is mounted below one of these host directories."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        mounts = file.readall()
    return any(_may_have_below(path, mounts) and any(True for _ in _below(path, mounts)) for path in paths)


def _may_have_below(path: str, mountinfo: bytes) -> bool:
    """Whether mountinfo has to be parsed for this path: most paths don't occur in it.

    Some characters are in octal there (proc_pid_mountinfo(5)); a path with one of them is always looked up.
    """
    name = os.fsencode(path)
    return _IN_OCTAL.search(name) is not None or b" " + name + b"/" in mountinfo


def _below(path: str, mountinfo: bytes) -> Iterator[tuple[str, str]]:
    for line in mountinfo.removesuffix(b"\n").split(b"\n"):  # not splitlines(): a name may contain a carriage return
        before, _, after = line.partition(b" - ")
        point = os.fsdecode(_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), before.split(b" ")[4]))
        if point.startswith(path + "/"):
            yield point, os.fsdecode(after.split(b" ")[0])


def _compose(executor: Executor, source: str, target: str, top: Mapping[str, bytes], mounted: frozenset[str]) -> None:
    """Build `target` from the entries of `source`: overlays for directories, copies for files, nothing for the rest."""
    calls = executor.calls
    calls.call("mount", "tmpfs", target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    made = {target}
    for name, content in top.items():
        _parents(calls, f"{target}/{name}", made)
        _write(calls, f"{target}/{name}", content)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    [directory] = executor.do(calls.get("openat", linux.AT_FDCWD, source, flags, says=f"open {source}"))
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                path, place = f"{source}/{entry.name}", f"{target}/{entry.name}"
                calls.may_be_cut()
                if entry.is_symlink():
                    if entry.name not in top:
                        to = os.readlink(entry.name, dir_fd=directory)
                        calls.call("symlinkat", to, linux.AT_FDCWD, place, but=(errno.EEXIST,))
                elif entry.is_dir(follow_symlinks=False):
                    if path in mounted:
                        continue  # another file system: not entered
                    calls.call("mkdirat", linux.AT_FDCWD, place, 0o755, but=(errno.EEXIST,), says=f"mkdir {place}")
                    inside = {k.partition("/")[2]: v for k, v in top.items() if k.startswith(entry.name + "/")}
                    mount_overlay(executor, path, place, inside, entry.stat(follow_symlinks=False).st_mode, around=True)
                elif entry.is_file(follow_symlinks=False) and entry.name not in top:
                    _copy(calls, path, entry.stat(follow_symlinks=False), place)
    finally:
        os.close(directory)
    attributes = struct.pack("=4Q", linux.MOUNT_ATTR_RDONLY, 0, 0, 0)
    calls.call("mount_setattr", linux.AT_FDCWD, target, 0, attributes, len(attributes), says="mount_setattr")


def _copy(calls: CallList, source: str, status: os.stat_result, place: str) -> None:
    """Copy a file in the sandbox, with the sandbox's rights; a file that these can't read is empty there.

    The runner may be root, and could read files that the task must not.
    """
    if status.st_size > _FILES_AT_MOST:
        return
    closed = Label()
    file = calls.get("openat", linux.AT_FDCWD, place, _WRITTEN, 0o000, says=f"open {place}")
    # O_NONBLOCK: it may be a FIFO by now.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    read = calls.get("openat", linux.AT_FDCWD, source, flags, but=_CLOSED, to=closed, says=f"open {source}")
    for _ in range(0, status.st_size, _AT_ONCE):  # a call may copy less than requested
        calls.call("sendfile", file, read, 0, status.st_size, says=f"copy {source}")
    passed, size = calls.get("lseek", file, 0, os.SEEK_CUR), calls.data(bytes(4))
    calls.store(size, passed)
    calls.check(size, 0xFFFFFFFF, status.st_size, errno.EBUSY, says=f"copy {source}")
    calls.let_go(passed)
    calls.call("fchmod", file, stat.S_IMODE(status.st_mode))
    calls.call("close", read)
    calls.put(closed)
    calls.let_go(read)
    calls.close(file)


_staging = count()


class Show(NamedTuple):
    """Show a host directory read-only, through an overlay.

    An overlay has inodes of its own: a socket or FIFO in it leads to no host process, and mounts below the directory
    (network, FUSE, automount) are not entered. `top` has files above the host's that are the same for all tasks, `own`
    this task's; only one directory of a sandbox has any.
    """

    source: str
    top: Mapping[str, bytes] = MappingProxyType({})
    own: Mapping[str, bytes] = MappingProxyType({})
    staged: int | None = None  # a detached mount of the source, where init can't reach it
    guarded: bool = False  # a task could have made a link on the path

    def describe(self) -> str:
        names = ", ".join((*self.top, *self.own))
        own = f", with its own {names}" if names else ""
        return f"show {self.source} read-only through an overlay{own}"

    def execute(self, executor: Executor) -> None:
        calls, source = executor.calls, OLD + self.source
        status = os.stat(self.source if self.staged is None else self.staged)
        tree = None if self.staged is None else calls.take(self.staged)
        if tree is None and self.guarded:
            tree = clone_path(calls, source)
        around = tree is not None or has_mounts_below(self.source)
        if tree is not None:
            source = _staged(calls, tree)
        target = _aside(calls) if self.guarded else NEW + self.source
        if not self.guarded:
            calls.close(make_directory(calls, target))
        files = OwnFiles(self.top, self.own) if self.top or self.own else self.top
        mount_overlay(executor, source, target, files, status.st_mode, around=around)
        if self.guarded:
            _put(calls, target, NEW + self.source)


class ShowFile(NamedTuple):
    """Show a host file read-only, through an overlay of its directory: locks and watches on it are the sandbox's own.

    Where the directory can't be a layer, or the sandbox may not look into it, the file is mounted as it is.
    """

    source: str
    tree: int | None = None  # a detached mount of the file, where init can't reach it
    around: int | None = None  # a detached mount of its directory

    def describe(self) -> str:
        return f"show {self.source} read-only through an overlay of its directory"

    def execute(self, executor: Executor) -> None:
        """Mount the file if it is a regular file, now and when it is mounted."""
        if not stat.S_ISREG(os.stat(self.source if self.tree is None else self.tree).st_mode):
            raise OSError(errno.EPERM, "it is not a regular file any more")
        calls, name = executor.calls, os.path.basename(self.source)
        above = (
            clone_path(calls, OLD + os.path.dirname(self.source)) if self.around is None else calls.take(self.around)
        )
        aside = _staged(calls, above)
        target = _aside(calls)
        if try_overlay(executor, aside, target, f"{target}/{name}"):
            tree = clone_path(calls, f"{target}/{name}")
        else:
            tree = clone_path(calls, f"{aside}/{name}") if self.tree is None else calls.take(self.tree)
        calls.is_kind(tree, stat.S_IFREG, says="its file type has changed")
        add_mount_attributes(calls, tree, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_RDONLY)
        place = make_file(calls, NEW + self.source)
        attach_mount(calls, tree, place)
        calls.close(place)


class Review(NamedTuple):
    """Show a host directory writable, with changes going to another directory.

    As with `Show`, sockets and FIFOs in it lead nowhere, and mounts below it are not entered.
    """

    source: str
    changes: str  # the directory for changes
    tree: int | None = None  # detached mounts of the two, id-mapped, where init can't reach them
    staged: int | None = None

    def describe(self) -> str:
        return f"show {self.source} writable through an overlay; what is written goes to {self.changes}"

    def execute(self, executor: Executor) -> None:
        calls = executor.calls
        source, changes = (
            _staged(calls, clone_path(calls, OLD + path) if tree is None else calls.take(tree))
            for path, tree in ((self.source, self.tree), (self.changes, self.staged))
        )
        target = _aside(calls)
        mount_review(calls, source, changes, target)
        _put(calls, target, NEW + self.source)

    def explain(self, error: OSError) -> OSError:
        return explain_review_error(error)


def _aside(calls: CallList) -> str:
    """Make a staging directory for a mount, with a name that needs no escaping."""
    path = f"{STAGE}/{next(_staging)}"
    calls.call("mkdirat", linux.AT_FDCWD, path, 0o755)
    return path


def _staged(calls: CallList, tree: Register) -> str:
    """Mount a detached mount in a staging directory."""
    path = _aside(calls)
    attach_mount(calls, tree, path)
    return path


def _put(calls: CallList, aside: str, path: str) -> None:
    """Move a staged mount to its path: mount(2) itself would look the path up later, when it may have changed."""
    tree = clone_mount(calls, aside)
    place = make_directory(calls, path)
    attach_mount(calls, tree, place)
    calls.close(place)
