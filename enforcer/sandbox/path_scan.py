"""Path scan: finds and masks paths in a sandbox being made, without following links that a task could have made."""

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence

from enforcer.sandbox.step_lists import ANY, CallList, Label, Register
from enforcer.system import linux
from rules.values.patterns import Pattern

# While a sandbox is made: the host's tree, the new root, layers of overlays, and staged mounts.
OLD, NEW, LAYERS, STAGE = "/old", "/new", "/layers", "/stage"
MAX_DEPTH = 200  # levels of directories that are searched
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_HOW_SIZE, _MOUNT_ATTR_SIZE = 24, 32  # bytes of `struct open_how` and `struct mount_attr`


def open_without_links(path: str) -> int:
    """Open `path` with O_PATH, following no symbolic link. Raises OSError.

    The look-up can trigger the host's automounter (autofs): so only paths that the caller or the rules name are opened.
    """
    try:
        return linux.openat2(linux.AT_FDCWD, f"/{path}", os.O_PATH, linux.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        raise
    except OSError:
        return _open_step_by_step(path)  # names the link in its error, and needs no openat2(2)


def _open_step_by_step(path: str) -> int:
    descriptor = os.open("/", _NOFOLLOW)
    for component in filter(None, path.split("/")):
        try:
            child = os.open(component, _NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        if stat.S_ISLNK(os.fstat(child).st_mode):
            os.close(child)
            raise OSError(errno.ELOOP, f"`{path}` is reached through a symbolic link (`{component}`)")
        descriptor = child
    return descriptor


def open_path(calls: CallList, path: str, *, ignored: tuple[int, ...] = (), to: Label | None = None) -> Register:
    """Open `path` with O_PATH in the sandbox, following no symbolic link."""
    return calls.get(
        "openat2",
        linux.AT_FDCWD,
        f"/{path}",
        _open_how_without_links(os.O_PATH),
        _OPEN_HOW_SIZE,
        ignored=ignored,
        to=to,
        purpose=_reach_purpose(path),
    )


def make_directory(calls: CallList, path: str) -> Register:
    """Open the directory `path` with O_PATH, following no symbolic link; makes missing directories."""
    exists, missing = Label(), Label()
    open_how = _open_how_without_links(os.O_PATH | os.O_DIRECTORY)
    directory = calls.get(
        "openat2",
        linux.AT_FDCWD,
        f"/{path}",
        open_how,
        _OPEN_HOW_SIZE,
        ignored=(errno.ENOENT,),
        to=missing,
        purpose=_reach_purpose(path),
    )
    calls.jump(exists)
    calls.place_label(missing)
    calls.call("openat", linux.AT_FDCWD, "/", os.O_PATH | os.O_CLOEXEC, into=directory)
    for component in filter(None, path.split("/")):
        parent = calls.get("dup", directory)
        calls.call("close", directory)
        calls.call("mkdirat", parent, component, 0o755, ignored=(errno.EEXIST,), purpose=f"mkdir {path}")
        calls.call("openat2", parent, component, open_how, _OPEN_HOW_SIZE, into=directory, purpose=_reach_purpose(path))
        calls.close(parent)
    calls.place_label(exists)
    return directory


def make_file(calls: CallList, path: str) -> Register:
    """Open the file `path` with O_PATH; makes an empty one if there is none."""
    parent = make_directory(calls, os.path.dirname(path))
    exists = Label()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = calls.get("openat", parent, os.path.basename(path), flags, 0o444, ignored=(errno.EEXIST,), to=exists)
    calls.call("close", file)
    calls.place_label(exists)
    calls.free(file)
    calls.close(parent)
    return open_path(calls, path)


def clone_mount(calls: CallList, target: Register | str, *, recursive: bool = True) -> Register:
    """Clone the mount at a descriptor or path, detached (open_tree(2))."""
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | (linux.AT_RECURSIVE if recursive else 0)
    if isinstance(target, str):
        return calls.get("open_tree", linux.AT_FDCWD, target, flags, purpose=f"open_tree {target}")
    return calls.get("open_tree", target, "", flags | linux.AT_EMPTY_PATH)


def clone_path(calls: CallList, path: str) -> Register:
    """Clone the mount at a host path, with all mounts below."""
    target = open_path(calls, path)
    tree = clone_mount(calls, target)
    calls.close(target)
    return tree


def attach_mount(calls: CallList, tree: Register, target: Register | str) -> None:
    """Attach a detached mount, and close its descriptor (move_mount(2))."""
    flags = linux.MOVE_MOUNT_F_EMPTY_PATH
    if isinstance(target, str):
        calls.call("move_mount", tree, "", linux.AT_FDCWD, target, flags, purpose=f"move_mount to {target}")
    else:
        calls.call("move_mount", tree, "", target, "", flags | linux.MOVE_MOUNT_T_EMPTY_PATH)
    calls.close(tree)


def add_mount_attributes(calls: CallList, tree: Register | str, attributes: int, *, recursive: bool = False) -> None:
    """Add attributes to a mount, given by register or path (mount_setattr(2))."""
    attribute_bytes, flags = struct.pack("=4Q", attributes, 0, 0, 0), linux.AT_RECURSIVE if recursive else 0
    if isinstance(tree, str):
        calls.call(
            "mount_setattr",
            linux.AT_FDCWD,
            tree,
            flags,
            attribute_bytes,
            _MOUNT_ATTR_SIZE,
            purpose=f"mount_setattr {tree}",
        )
    else:
        calls.call("mount_setattr", tree, "", flags | linux.AT_EMPTY_PATH, attribute_bytes, _MOUNT_ATTR_SIZE)


def pin(calls: CallList, directory: Register) -> None:
    """Mount a directory on itself, so that it can't be renamed."""
    attach_mount(calls, clone_mount(calls, directory), directory)


def mask(calls: CallList, target: Register) -> None:
    """Mount an empty, unreadable, read-only file or directory over an open one."""
    file, attach = Label(), Label()
    calls.is_kind(target, stat.S_IFDIR, to=file)
    tree = clone_mount(calls, f"{LAYERS}/nothing/directory", recursive=False)
    calls.jump(attach)
    calls.place_label(file)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
    calls.call("open_tree", linux.AT_FDCWD, f"{LAYERS}/nothing/file", flags, into=tree)
    calls.place_label(attach)
    add_mount_attributes(calls, tree, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    attach_mount(calls, tree, target)


def restore_mask(calls: CallList, path: str) -> None:
    """Pin a directory, or make a file read-only, in a sandbox that is in use.

    For a path that the host has replaced, which dropped its mask. A path that no longer exists needs none.
    """
    missing, attached, file, attach = Label(), Label(), Label(), Label()
    target = open_path(calls, path, ignored=(ANY,), to=missing)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE | linux.AT_EMPTY_PATH
    tree = calls.get("open_tree", target, "", flags, ignored=(ANY,), to=attached)
    calls.is_kind(target, stat.S_IFDIR, to=file, if_unknown=attached)
    calls.jump(attach)
    calls.place_label(file)
    attributes = struct.pack("=4Q", linux.MOUNT_ATTR_RDONLY, 0, 0, 0)
    calls.call(
        "mount_setattr", tree, "", linux.AT_EMPTY_PATH, attributes, _MOUNT_ATTR_SIZE, ignored=(ANY,), to=attached
    )
    calls.place_label(attach)
    flags_of_move = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
    calls.call("move_mount", tree, "", target, "", flags_of_move, ignored=(ANY,))
    calls.place_label(attached)
    calls.call("close", tree, ignored=(ANY,))
    calls.call("close", target, ignored=(ANY,))
    calls.place_label(missing)


def _open_how_without_links(flags: int) -> bytes:
    return struct.pack("=3Q", flags | os.O_CLOEXEC, 0, linux.RESOLVE_NO_SYMLINKS)  # struct open_how, openat2(2)


def _reach_purpose(path: str) -> str:
    return f"reach {path} through no symbolic link"


def find_sockets(directory: int, depth: int = MAX_DEPTH) -> Iterator[int]:
    """Yield an O_PATH descriptor of every socket, FIFO and unlistable directory below an open directory.

    The caller closes each.

    Raises OSError beyond 200 levels of directories: a task could have made those to hide a socket.
    """
    if not depth:
        raise OSError(errno.ELOOP, f"directories are nested more than {MAX_DEPTH} deep; a socket could be hidden there")
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    child = os.open(entry.name, _LIST_FLAGS, dir_fd=directory)
                except PermissionError:
                    # Neither we nor the task can list it, but the task could guess a name in it.
                    yield os.open(entry.name, _NOFOLLOW, dir_fd=directory)
                    continue
                try:
                    yield from find_sockets(child, depth - 1)
                finally:
                    os.close(child)
                continue
            descriptor = os.open(entry.name, _NOFOLLOW, dir_fd=directory)
            if stat.S_IFMT(os.fstat(descriptor).st_mode) in (stat.S_IFSOCK, stat.S_IFIFO):
                yield descriptor
            else:
                os.close(descriptor)


def find_names(
    directory: int, patterns: Sequence[Sequence[Pattern]], depth: int = MAX_DEPTH
) -> Iterator[tuple[int, bool]]:
    """Yield an O_PATH descriptor of each name match below an open directory, and whether it is the last of its pattern.

    A pattern is a list of globs, for names one below the other; its directories come before the last match, with False.
    A last match is not searched. A directory that can't be listed counts as a last match. The caller closes each.
    """
    yield from _find_names(directory, [tuple(pattern) for pattern in patterns], [], depth)


def _find_names(
    directory: int, patterns: list[tuple[Pattern, ...]], continued: list[tuple[Pattern, ...]], depth: int
) -> Iterator[tuple[int, bool]]:
    if not depth:
        raise OSError(errno.ELOOP, f"directories are nested more than {MAX_DEPTH} deep; a name to hide could be there")
    with os.scandir(directory) as entries:
        for entry in entries:
            matched = [pattern for pattern in (*patterns, *continued) if pattern[0].matches(entry.name)]
            is_last = any(len(pattern) == 1 for pattern in matched)
            if entry.is_symlink():
                continue  # its target has a name of its own, or isn't shown
            if matched:
                yield os.open(entry.name, _NOFOLLOW, dir_fd=directory), is_last
            if is_last or not entry.is_dir(follow_symlinks=False):
                continue
            try:
                child = os.open(entry.name, _LIST_FLAGS, dir_fd=directory)
            except PermissionError:
                # We can't list it, but the task could guess a name in it.
                yield os.open(entry.name, _NOFOLLOW, dir_fd=directory), True
                continue
            try:
                yield from _find_names(child, patterns, [pattern[1:] for pattern in matched], depth - 1)
            finally:
                os.close(child)
