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

_OWN_LAYER = f"{LAYERS}/top"  # the layer of the directory with `OwnFiles`
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_INLINE_BYTES = 4096  # bytes of a file that go into the call list itself
_ACCESS_ERRORS = errno.EACCES, errno.EPERM
_SENDFILE_BYTES = 1 << 16  # bytes that one sendfile(2) copies at least
_MAX_COPIED = 1 << 20  # bytes of a file that is copied
_NEEDS_OCTAL = re.compile(rb"[ \t\n\\#]")
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes space, tab, newline and backslash
_layer_numbers = count()


def make_layers(calls: CallList) -> None:
    """Make the directory of layers, and the empty file and directory that masks use."""
    calls.call("mkdirat", linux.AT_FDCWD, f"{LAYERS}/nothing", 0o755)
    calls.call("mkdirat", linux.AT_FDCWD, f"{LAYERS}/nothing/directory", 0o000)
    calls.close(calls.get("openat", linux.AT_FDCWD, f"{LAYERS}/nothing/file", _WRITE_FLAGS, 0o000))


class OwnFiles(NamedTuple):
    """Files above a directory's own, by their paths in it: `same` for all tasks, `own` for one task."""

    same: Mapping[str, bytes]
    own: Mapping[str, bytes]


def mount_overlay(
    executor: Executor,
    source: str,
    target: str,
    top: Mapping[str, bytes] | OwnFiles,
    mode: int,
    *,
    has_inner_mounts: bool,
) -> None:
    """Mount `source` on the existing directory `target`, read-only. `top` maps relative paths to contents.

    `mode` is the directory's. `has_inner_mounts`: file systems may be mounted inside it, so this waits for the result.
    """
    layer = _make_layer(executor, top)
    result = _mount_overlay_of(
        executor.calls, layer, source, target, mode, ignored=(errno.EINVAL,) if has_inner_mounts else ()
    )
    if not has_inner_mounts:
        executor.calls.free(result)
        return
    executor.run()
    # EINVAL: has_locked_children() in the kernel's clone_private_mount().
    if executor.value(result) == -errno.EINVAL:
        inner_mounts = frozenset(point for point, _ in mounts_below(executor, source))
        if not inner_mounts:
            raise OSError(errno.EINVAL, f"mount overlay on {target}: {os.strerror(errno.EINVAL)}")
        _compose(executor, source, target, {**top.same, **top.own} if isinstance(top, OwnFiles) else top, inner_mounts)


def try_overlay(executor: Executor, source: str, target: str, probed_path: str) -> bool:
    """Mount `source` on the existing directory `target`, read-only; return whether `probed_path` can be opened there.

    False if file systems are mounted inside it and locked, if its file system can't be a layer, or without the right to
    look into it.
    """
    result = _mount_overlay_of(
        executor.calls, _make_layer(executor, {}), source, target, 0o755, ignored=(errno.EINVAL,)
    )
    executor.run()
    if executor.value(result) == -errno.EINVAL:
        return False
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    probe = executor.calls.get("openat", linux.AT_FDCWD, probed_path, flags, ignored=_ACCESS_ERRORS)
    executor.calls.call("close", probe, ignored=(errno.EBADF,))
    executor.calls.free(probe)
    executor.run()
    return executor.value(probe) >= 0


def _make_layer(executor: Executor, top: Mapping[str, bytes] | OwnFiles) -> str:
    """Make a layer with these files; returns its path."""
    if not isinstance(top, OwnFiles):
        layer = f"{LAYERS}/{next(_layer_numbers)}"
        _fill_layer(executor, layer, top)
        return layer
    init.execute_shared(
        executor, (_OWN_LAYER, *top.same.items()), partial(_fill_layer, layer=_OWN_LAYER, files=top.same)
    )
    for name, content in top.own.items():
        _make_parents(executor.calls, f"{_OWN_LAYER}/{name}", {_OWN_LAYER})
        _write(executor.calls, f"{_OWN_LAYER}/{name}", content)
    return _OWN_LAYER


def _fill_layer(executor: Executor, layer: str, files: Mapping[str, bytes]) -> None:
    executor.calls.call("mkdirat", linux.AT_FDCWD, layer, 0o755)
    write_files(executor.calls, layer, files)


def write_files(calls: CallList, directory: str, files: Mapping[str, bytes]) -> None:
    """Write files below an existing directory of ours, by their paths in it."""
    first_paths: dict[bytes, str] = {}  # files with the same content are hard links
    existing = {directory}
    for name, content in files.items():
        path = f"{directory}/{name}"
        calls.allow_split()
        _make_parents(calls, path, existing)
        if (first_path := first_paths.setdefault(content, path)) is path:
            _write(calls, path, content)
        else:
            calls.call("linkat", linux.AT_FDCWD, first_path, linux.AT_FDCWD, path, 0)


def _mount_overlay_of(  # noqa: PLR0917
    calls: CallList, layer: str, source: str, target: str, mode: int, ignored: tuple[int, ...]
) -> Register:
    # The merged directory takes its own mode from the topmost layer.
    calls.call("fchmodat", linux.AT_FDCWD, layer, mode & 0o777)
    escaped = source.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    data = f"lowerdir={layer}:{escaped},userxattr"
    flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    return calls.get(
        "mount", "overlay", target, "overlay", flags, data, ignored=ignored, purpose=f"mount overlay on {target}"
    )


def _make_parents(calls: CallList, path: str, existing: set[str]) -> None:
    """Make the missing directories above `path`; `existing` are known to exist. No task has access to them yet."""
    parent = os.path.dirname(path)
    if parent not in existing:
        _make_parents(calls, parent, existing)
        calls.call("mkdirat", linux.AT_FDCWD, parent, 0o755, ignored=(errno.EEXIST,), purpose=f"mkdir {parent}")
        existing.add(parent)


def mount_review(calls: CallList, source: str, changes: str, target: str) -> None:
    """Mount `source` on the existing directory `target`, writable, with changes going to the directory `changes`.

    Attributes in `source` must not redirect directories or mark files as partly copied: a task that could write there
    before may have left some (Documentation/filesystems/overlayfs.rst, "Permission model").
    """
    options = f"lowerdir={source},upperdir={changes}/upper,workdir={changes}/work,userxattr"
    options += ",redirect_dir=nofollow,metacopy=off,index=off,xino=off"
    flags = linux.MS_NOSUID | linux.MS_NODEV
    calls.call("mount", "overlay", target, "overlay", flags, options, purpose=f"mount overlay on {target}")


def explain_review_error(error: OSError) -> OSError:
    """Return why a writable overlay couldn't be mounted, with the remedy."""
    if error.errno != errno.EINVAL:
        return error
    reason = "this file system can't hold the changes of an overlay, or another one is mounted inside the directory"
    return OSError(errno.EINVAL, f"{reason}; set XDG_STATE_HOME to a directory on ext4, xfs, btrfs or tmpfs")


def _write(calls: CallList, path: str, content: bytes) -> None:
    file = calls.get("openat", linux.AT_FDCWD, path, _WRITE_FLAGS, 0o644, purpose=f"open {path}")
    written_bytes = calls.register()
    if len(content) <= _INLINE_BYTES:
        calls.call("write", file, content, len(content), into=written_bytes, purpose=f"write {path}")
    else:
        source = calls.take(init.shared_file(content))
        mapping = calls.get("mmap", 0, len(content), mmap.PROT_READ, mmap.MAP_SHARED, source, 0)
        calls.call("write", file, mapping, len(content), into=written_bytes, purpose=f"write {path}")
        calls.call("munmap", mapping, len(content))
        calls.free(mapping)
        calls.close(source)
    size = calls.data(bytes(4))
    calls.store(size, written_bytes)
    calls.check(size, 0xFFFFFFFF, len(content), errno.ENOSPC, purpose=f"write {path}")
    calls.call("fchmod", file, 0o644)
    calls.free(written_bytes)
    calls.close(file)


def mounts_below(executor: Executor, source: str) -> list[tuple[str, str]]:
    """List every mount strictly below `source`, as (mount point, type); proc_pid_mountinfo(5)."""
    path = f"{OLD}/proc/self/mountinfo"
    mounts = executor.calls.get(
        "openat", linux.AT_FDCWD, path, os.O_RDONLY | os.O_CLOEXEC, purpose="look at the mounts"
    )
    with open(executor.run(mounts)[0], "rb", buffering=0) as file:
        return list(_parse_mounts_below(source, file.readall()))


def mounts_of_host(path: str) -> list[tuple[str, str]]:
    """List every mount strictly below a host directory, as (mount point, type)."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        mounts = file.readall()
    return list(_parse_mounts_below(path, mounts)) if _may_have_mounts_below(path, mounts) else []


def has_mounts_below(*paths: str) -> bool:
    """Whether anything is mounted below one of these host directories."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        mounts = file.readall()
    return any(
        _may_have_mounts_below(path, mounts) and any(True for _ in _parse_mounts_below(path, mounts)) for path in paths
    )


def _may_have_mounts_below(path: str, mountinfo: bytes) -> bool:
    """Whether mountinfo has to be parsed for this path: most paths don't occur in it.

    Some characters are in octal there (proc_pid_mountinfo(5)); a path with one of them is always looked up.
    """
    name = os.fsencode(path)
    return _NEEDS_OCTAL.search(name) is not None or b" " + name + b"/" in mountinfo


def _parse_mounts_below(path: str, mountinfo: bytes) -> Iterator[tuple[str, str]]:
    for line in mountinfo.removesuffix(b"\n").split(b"\n"):  # not splitlines(): a name may contain a carriage return
        own_fields, _, fs_fields = line.partition(b" - ")
        point = os.fsdecode(_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), own_fields.split(b" ")[4]))
        if point.startswith(path + "/"):
            yield point, os.fsdecode(fs_fields.split(b" ")[0])


def _compose(
    executor: Executor, source: str, target: str, top: Mapping[str, bytes], inner_mounts: frozenset[str]
) -> None:
    """Build `target` from the entries of `source`: overlays for directories, copies for files, nothing for the rest."""
    calls = executor.calls
    calls.call("mount", "tmpfs", target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    existing = {target}
    for name, content in top.items():
        _make_parents(calls, f"{target}/{name}", existing)
        _write(calls, f"{target}/{name}", content)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    [directory] = executor.run(calls.get("openat", linux.AT_FDCWD, source, flags, purpose=f"open {source}"))
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                path, entry_target = f"{source}/{entry.name}", f"{target}/{entry.name}"
                calls.allow_split()
                if entry.is_symlink():
                    if entry.name not in top:
                        to = os.readlink(entry.name, dir_fd=directory)
                        calls.call("symlinkat", to, linux.AT_FDCWD, entry_target, ignored=(errno.EEXIST,))
                elif entry.is_dir(follow_symlinks=False):
                    if path in inner_mounts:
                        continue  # another file system: not entered
                    calls.call(
                        "mkdirat",
                        linux.AT_FDCWD,
                        entry_target,
                        0o755,
                        ignored=(errno.EEXIST,),
                        purpose=f"mkdir {entry_target}",
                    )
                    inner_top = {k.partition("/")[2]: v for k, v in top.items() if k.startswith(entry.name + "/")}
                    mount_overlay(
                        executor,
                        path,
                        entry_target,
                        inner_top,
                        entry.stat(follow_symlinks=False).st_mode,
                        has_inner_mounts=True,
                    )
                elif entry.is_file(follow_symlinks=False) and entry.name not in top:
                    _copy(calls, path, entry.stat(follow_symlinks=False), entry_target)
    finally:
        os.close(directory)
    attributes = struct.pack("=4Q", linux.MOUNT_ATTR_RDONLY, 0, 0, 0)
    calls.call("mount_setattr", linux.AT_FDCWD, target, 0, attributes, len(attributes), purpose="mount_setattr")


def _copy(calls: CallList, source: str, status: os.stat_result, target: str) -> None:
    """Copy a file in the sandbox, with the sandbox's rights; a file that these can't read is empty there.

    The runner may be root, and could read files that the task must not.
    """
    if status.st_size > _MAX_COPIED:
        return
    unreadable = Label()
    file = calls.get("openat", linux.AT_FDCWD, target, _WRITE_FLAGS, 0o000, purpose=f"open {target}")
    # O_NONBLOCK: it may be a FIFO by now.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    source_file = calls.get(
        "openat", linux.AT_FDCWD, source, flags, ignored=_ACCESS_ERRORS, to=unreadable, purpose=f"open {source}"
    )
    for _ in range(0, status.st_size, _SENDFILE_BYTES):  # a call may copy less than requested
        calls.call("sendfile", file, source_file, 0, status.st_size, purpose=f"copy {source}")
    position, size = calls.get("lseek", file, 0, os.SEEK_CUR), calls.data(bytes(4))
    calls.store(size, position)
    calls.check(size, 0xFFFFFFFF, status.st_size, errno.EBUSY, purpose=f"copy {source}")
    calls.free(position)
    calls.call("fchmod", file, stat.S_IMODE(status.st_mode))
    calls.call("close", source_file)
    calls.place_label(unreadable)
    calls.free(source_file)
    calls.close(file)


_staging_numbers = count()


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
        has_inner_mounts = tree is not None or has_mounts_below(self.source)
        if tree is not None:
            source = _stage_mount(calls, tree)
        target = _make_staging(calls) if self.guarded else NEW + self.source
        if not self.guarded:
            calls.close(make_directory(calls, target))
        files = OwnFiles(self.top, self.own) if self.top or self.own else self.top
        mount_overlay(executor, source, target, files, status.st_mode, has_inner_mounts=has_inner_mounts)
        if self.guarded:
            _move_to_path(calls, target, NEW + self.source)


class ShowFile(NamedTuple):
    """Show a host file read-only, through an overlay of its directory: locks and watches on it are the sandbox's own.

    Where the directory can't be a layer, or the sandbox may not look into it, the file is mounted as it is.
    """

    source: str
    tree: int | None = None  # a detached mount of the file, where init can't reach it
    directory_tree: int | None = None  # a detached mount of its directory

    def describe(self) -> str:
        return f"show {self.source} read-only through an overlay of its directory"

    def execute(self, executor: Executor) -> None:
        """Mount the file if it is a regular file, now and when it is mounted."""
        if not stat.S_ISREG(os.stat(self.source if self.tree is None else self.tree).st_mode):
            raise OSError(errno.EPERM, "it is not a regular file any more")
        calls, name = executor.calls, os.path.basename(self.source)
        directory_tree = (
            clone_path(calls, OLD + os.path.dirname(self.source))
            if self.directory_tree is None
            else calls.take(self.directory_tree)
        )
        staged_directory = _stage_mount(calls, directory_tree)
        target = _make_staging(calls)
        if try_overlay(executor, staged_directory, target, f"{target}/{name}"):
            tree = clone_path(calls, f"{target}/{name}")
        else:
            tree = clone_path(calls, f"{staged_directory}/{name}") if self.tree is None else calls.take(self.tree)
        calls.is_kind(tree, stat.S_IFREG, purpose="its file type has changed")
        add_mount_attributes(calls, tree, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_RDONLY)
        target_file = make_file(calls, NEW + self.source)
        attach_mount(calls, tree, target_file)
        calls.close(target_file)


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
            _stage_mount(calls, clone_path(calls, OLD + path) if tree is None else calls.take(tree))
            for path, tree in ((self.source, self.tree), (self.changes, self.staged))
        )
        target = _make_staging(calls)
        mount_review(calls, source, changes, target)
        _move_to_path(calls, target, NEW + self.source)

    def explain(self, error: OSError) -> OSError:
        return explain_review_error(error)


def _make_staging(calls: CallList) -> str:
    """Make a staging directory for a mount, with a name that needs no escaping."""
    path = f"{STAGE}/{next(_staging_numbers)}"
    calls.call("mkdirat", linux.AT_FDCWD, path, 0o755)
    return path


def _stage_mount(calls: CallList, tree: Register) -> str:
    """Mount a detached mount in a staging directory."""
    path = _make_staging(calls)
    attach_mount(calls, tree, path)
    return path


def _move_to_path(calls: CallList, staging: str, path: str) -> None:
    """Move a staged mount to its path: mount(2) itself would look the path up later, when it may have changed."""
    tree = clone_mount(calls, staging)
    directory = make_directory(calls, path)
    attach_mount(calls, tree, directory)
    calls.close(directory)
