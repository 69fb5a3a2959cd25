"""Path scan: finds and masks paths in a sandbox being made, without following links that a task could have made."""

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence

from enforcer.sandbox.step_lists import ANY, CallList, Label, Register
from enforcer.system import linux
from rules.patterns import Pattern

# While a sandbox is made: the host's tree, the new root, layers of overlays, and staged mounts.
OLD, NEW, LAYERS, STAGE = "/old", "/new", "/layers", "/stage"
DEEPEST = 200  # levels of directories that are searched
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOW, _ATTRIBUTES = 24, 32  # bytes of `struct open_how` and `struct mount_attr`


def open_without_links(path: str) -> int:
    """Open `path` with O_PATH, following no symbolic link. Raises OSError.

    The look-up can trigger the host's automounter (autofs): so only paths that the caller or the rules name are opened.
    """
    try:
        return linux.openat2(linux.AT_FDCWD, f"/{path}", os.O_PATH, linux.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        raise
    except OSError:
        return _walk(path)  # names the link in its error, and needs no openat2(2)


def _walk(path: str) -> int:
    at = os.open("/", _NOFOLLOW)
    for part in filter(None, path.split("/")):
        try:
            below = os.open(part, _NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        if stat.S_ISLNK(os.fstat(below).st_mode):
            os.close(below)
            raise OSError(errno.ELOOP, f"`{path}` is reached through a symbolic link (`{part}`)")
        at = below
    return at


def open_path(calls: CallList, path: str, *, but: tuple[int, ...] = (), to: Label | None = None) -> Register:
    """Open `path` with O_PATH in the sandbox, following no symbolic link."""
    return calls.get(
        "openat2", linux.AT_FDCWD, f"/{path}", _no_links(os.O_PATH), _HOW, but=but, to=to, says=_reach(path)
    )


def make_directory(calls: CallList, path: str) -> Register:
    """Open the directory `path` so, and make what is missing of it."""
    there, missing = Label(), Label()
    how = _no_links(os.O_PATH | os.O_DIRECTORY)
    place = calls.get(
        "openat2", linux.AT_FDCWD, f"/{path}", how, _HOW, but=(errno.ENOENT,), to=missing, says=_reach(path)
    )
    calls.skip(there)
    calls.put(missing)
    calls.call("openat", linux.AT_FDCWD, "/", os.O_PATH | os.O_CLOEXEC, into=place)
    for part in filter(None, path.split("/")):
        above = calls.get("dup", place)
        calls.call("close", place)
        calls.call("mkdirat", above, part, 0o755, but=(errno.EEXIST,), says=f"mkdir {path}")
        calls.call("openat2", above, part, how, _HOW, into=place, says=_reach(path))
        calls.close(above)
    calls.put(there)
    return place


def make_file(calls: CallList, path: str) -> Register:
    """Open the file `path` with O_PATH; makes an empty one if there is none."""
    above = make_directory(calls, os.path.dirname(path))
    there = Label()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = calls.get("openat", above, os.path.basename(path), flags, 0o444, but=(errno.EEXIST,), to=there)
    calls.call("close", file)
    calls.put(there)
    calls.let_go(file)
    calls.close(above)
    return open_path(calls, path)


def clone_mount(calls: CallList, place: Register | str, *, recursive: bool = True) -> Register:
    """Clone the mount at a place, detached (open_tree(2))."""
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | (linux.AT_RECURSIVE if recursive else 0)
    if isinstance(place, str):
        return calls.get("open_tree", linux.AT_FDCWD, place, flags, says=f"open_tree {place}")
    return calls.get("open_tree", place, "", flags | linux.AT_EMPTY_PATH)


def clone_path(calls: CallList, path: str) -> Register:
    """Clone the mount at a host path, with all mounts below."""
    place = open_path(calls, path)
    tree = clone_mount(calls, place)
    calls.close(place)
    return tree


def attach_mount(calls: CallList, tree: Register, target: Register | str) -> None:
    """Attach a detached mount, and close its descriptor (move_mount(2))."""
    flags = linux.MOVE_MOUNT_F_EMPTY_PATH
    if isinstance(target, str):
        calls.call("move_mount", tree, "", linux.AT_FDCWD, target, flags, says=f"move_mount to {target}")
    else:
        calls.call("move_mount", tree, "", target, "", flags | linux.MOVE_MOUNT_T_EMPTY_PATH)
    calls.close(tree)


def add_mount_attributes(calls: CallList, tree: Register | str, attributes: int, *, recursive: bool = False) -> None:
    """Add attributes to a mount, given by register or path (mount_setattr(2))."""
    wanted, flags = struct.pack("=4Q", attributes, 0, 0, 0), linux.AT_RECURSIVE if recursive else 0
    if isinstance(tree, str):
        calls.call("mount_setattr", linux.AT_FDCWD, tree, flags, wanted, _ATTRIBUTES, says=f"mount_setattr {tree}")
    else:
        calls.call("mount_setattr", tree, "", flags | linux.AT_EMPTY_PATH, wanted, _ATTRIBUTES)


def pin(calls: CallList, place: Register) -> None:
    """Mount a directory on itself, so that it can't be renamed."""
    attach_mount(calls, clone_mount(calls, place), place)


def mask(calls: CallList, place: Register) -> None:
    """Mount an empty, unreadable, read-only file or directory over an open one."""
    file, over = Label(), Label()
    calls.is_kind(place, stat.S_IFDIR, to=file)
    tree = clone_mount(calls, f"{LAYERS}/nothing/directory", recursive=False)
    calls.skip(over)
    calls.put(file)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
    calls.call("open_tree", linux.AT_FDCWD, f"{LAYERS}/nothing/file", flags, into=tree)
    calls.put(over)
    add_mount_attributes(calls, tree, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    attach_mount(calls, tree, place)


def mask_again(calls: CallList, path: str) -> None:
    """Pin a directory, or make a file read-only, in a sandbox that is in use.

    For a path that the host has replaced, which dropped its mask. One that is gone needs none.
    """
    gone, attached, file, over = Label(), Label(), Label(), Label()
    place = open_path(calls, path, but=(ANY,), to=gone)
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE | linux.AT_EMPTY_PATH
    tree = calls.get("open_tree", place, "", flags, but=(ANY,), to=attached)
    calls.is_kind(place, stat.S_IFDIR, to=file, unknown=attached)
    calls.skip(over)
    calls.put(file)
    attributes = struct.pack("=4Q", linux.MOUNT_ATTR_RDONLY, 0, 0, 0)
    calls.call("mount_setattr", tree, "", linux.AT_EMPTY_PATH, attributes, _ATTRIBUTES, but=(ANY,), to=attached)
    calls.put(over)
    both = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
    calls.call("move_mount", tree, "", place, "", both, but=(ANY,))
    calls.put(attached)
    calls.call("close", tree, but=(ANY,))
    calls.call("close", place, but=(ANY,))
    calls.put(gone)


def _no_links(flags: int) -> bytes:
    return struct.pack("=3Q", flags | os.O_CLOEXEC, 0, linux.RESOLVE_NO_SYMLINKS)  # struct open_how, openat2(2)


def _reach(path: str) -> str:
    return f"reach {path} through no symbolic link"


def find_sockets(directory: int, depth: int = DEEPEST) -> Iterator[int]:
    """Yield an O_PATH descriptor of every socket, FIFO and unlistable directory below an open directory.

    The caller closes each.

    Raises OSError beyond 200 levels of directories: a task could have made those to hide a socket.
    """
    if not depth:
        raise OSError(errno.ELOOP, f"directories are nested more than {DEEPEST} deep; a socket could be hidden there")
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    below = os.open(entry.name, _LISTED, dir_fd=directory)
                except PermissionError:
                    # Neither we nor the task can list it, but the task could guess a name in it.
                    yield os.open(entry.name, _NOFOLLOW, dir_fd=directory)
                    continue
                try:
                    yield from find_sockets(below, depth - 1)
                finally:
                    os.close(below)
                continue
            place = os.open(entry.name, _NOFOLLOW, dir_fd=directory)
            if stat.S_IFMT(os.fstat(place).st_mode) in (stat.S_IFSOCK, stat.S_IFIFO):
                yield place
            else:
                os.close(place)


def find_names(
    directory: int, patterns: Sequence[Sequence[Pattern]], depth: int = DEEPEST
) -> Iterator[tuple[int, bool]]:
    """Yield an O_PATH descriptor of each name match below an open directory, and whether it is the last of its pattern.

    A pattern is a list of globs, for names one below the other; its directories come before the last match, with False.
    A last match is not searched. A directory that can't be listed counts as a last match. The caller closes each.
    """
    yield from _named(directory, [tuple(pattern) for pattern in patterns], [], depth)


def _named(
    directory: int, whole: list[tuple[Pattern, ...]], begun: list[tuple[Pattern, ...]], depth: int
) -> Iterator[tuple[int, bool]]:
    if not depth:
        raise OSError(errno.ELOOP, f"directories are nested more than {DEEPEST} deep; a name to hide could be there")
    with os.scandir(directory) as entries:
        for entry in entries:
            met = [pattern for pattern in (*whole, *begun) if pattern[0].matches(entry.name)]
            last = any(len(pattern) == 1 for pattern in met)
            if entry.is_symlink():
                continue  # its target has a name of its own, or isn't shown
            if met:
                yield os.open(entry.name, _NOFOLLOW, dir_fd=directory), last
            if last or not entry.is_dir(follow_symlinks=False):
                continue
            try:
                below = os.open(entry.name, _LISTED, dir_fd=directory)
            except PermissionError:
                # We can't list it, but the task could guess a name in it.
                yield os.open(entry.name, _NOFOLLOW, dir_fd=directory), True
                continue
            try:
                yield from _named(below, whole, [pattern[1:] for pattern in met], depth - 1)
            finally:
                os.close(below)
