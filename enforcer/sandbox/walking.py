"""Finding things in a view while it is made, and covering them. No link that a task could have planted is followed."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from enforcer import linux
from enforcer.sandbox import layers
from rules.selectors import Pattern

DEEPEST = 200  # levels of directories that are searched
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def walk(path: str) -> int:
    """Open `path`, from the root on, with O_PATH, following no symbolic link. Raises OSError.

    The host's automounter hears of it as of any look-up (autofs): what is walked the caller and the rules have named,
    and no task.
    """
    try:
        return linux.openat2(linux.AT_FDCWD, f"/{path}", os.O_PATH, linux.RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        raise
    except OSError:
        return _walk(path)  # which says where there is a link, and needs no openat2(2)


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


def made(path: str) -> int:
    """Open the directory `path` as `walk` does, and make what is missing of it. Raises OSError."""
    with contextlib.suppress(OSError):  # most are there
        return linux.openat2(linux.AT_FDCWD, f"/{path}", os.O_PATH | os.O_DIRECTORY, linux.RESOLVE_NO_SYMLINKS)
    at = os.open("/", _NOFOLLOW)
    for part in filter(None, path.split("/")):
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=at)
            below = os.open(part, _NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        if not stat.S_ISDIR(os.fstat(below).st_mode):
            os.close(below)
            raise OSError(errno.ELOOP, f"`{path}` is reached through something that is no directory (`{part}`)")
        at = below
    return at


def made_file(path: str) -> int:
    """Open with O_PATH the file `path`, an empty one that is made if there is none. Raises OSError."""
    above = made(os.path.dirname(path))
    name = os.path.basename(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=above))
    finally:
        os.close(above)
    return walk(path)


def cover_again(path: str) -> None:
    """Pin a directory, or make a file read-only, in the view that is in use. Raises OSError.

    For what the host has put in the place of something covered: with that, its cover went.
    """
    place = walk(path)
    try:
        is_directory = stat.S_ISDIR(os.fstat(place).st_mode)
        tree = linux.open_tree("", directory=place, recursive=True)
        try:
            if not is_directory:
                linux.mount_setattr(tree, linux.MOUNT_ATTR_RDONLY)
            linux.move_mount(tree, place)
        finally:
            os.close(tree)
    finally:
        os.close(place)


def doors(directory: int, depth: int = DEEPEST) -> Iterator[int]:
    """Yield an O_PATH descriptor of every socket, FIFO and unlistable directory below an open directory.

    The caller closes each.

    Raises OSError for directories nested deeper than anybody nests them: a task could have made those to hide a door.
    """
    if not depth:
        raise OSError(errno.ELOOP, f"directories are nested more than {DEEPEST} deep; a socket could hide there")
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    below = os.open(entry.name, _LISTED, dir_fd=directory)
                except PermissionError:
                    # Not to be listed, by us or by the task; but a task that guesses a name in it could get through.
                    yield os.open(entry.name, _NOFOLLOW, dir_fd=directory)
                    continue
                try:
                    yield from doors(below, depth - 1)
                finally:
                    os.close(below)
                continue
            place = os.open(entry.name, _NOFOLLOW, dir_fd=directory)
            if stat.S_IFMT(os.fstat(place).st_mode) in (stat.S_IFSOCK, stat.S_IFIFO):
                yield place
            else:
                os.close(place)


def pin(place: int) -> None:
    """Mount a directory, named by an O_PATH descriptor, on itself: it can't be renamed away then."""
    tree = linux.open_tree("", directory=place, recursive=True)
    linux.move_mount(tree, place)
    os.close(tree)


def mask(place: int) -> None:
    """Put an empty, unreadable, read-only file or directory over what `place` (an O_PATH descriptor) names."""
    kind = "directory" if stat.S_ISDIR(os.fstat(place).st_mode) else "file"
    tree = linux.open_tree(f"{layers.LAYERS}/nothing/{kind}")
    linux.mount_setattr(tree, linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    linux.move_mount(tree, place)
    os.close(tree)


def named(directory: int, patterns: Sequence[Sequence[Pattern]], depth: int = DEEPEST) -> Iterator[tuple[int, bool]]:
    """Yield an O_PATH descriptor of all below an open directory that has one of some names, and whether it is the last.

    A pattern is globs of names one below the other; of one with several, the directories above what it is about come
    first, with False. What is matched as the last is not searched. What can't be listed counts as matched. The caller
    closes each.
    """
    yield from _named(directory, [tuple(pattern) for pattern in patterns], [], depth)


def _named(
    directory: int, whole: list[tuple[Pattern, ...]], begun: list[tuple[Pattern, ...]], depth: int
) -> Iterator[tuple[int, bool]]:
    if not depth:
        raise OSError(errno.ELOOP, f"directories are nested more than {DEEPEST} deep; a hidden name could lie there")
    with os.scandir(directory) as entries:
        for entry in entries:
            met = [pattern for pattern in (*whole, *begun) if pattern[0].matches(entry.name)]
            last = any(len(pattern) == 1 for pattern in met)
            if entry.is_symlink():
                continue  # what it leads to has a name of its own, or isn't shown
            if met:
                yield os.open(entry.name, _NOFOLLOW, dir_fd=directory), last
            if last or not entry.is_dir(follow_symlinks=False):
                continue
            try:
                below = os.open(entry.name, _LISTED, dir_fd=directory)
            except PermissionError:
                # Nobody knows what is in it; but a task that guesses a name in it could get through.
                yield os.open(entry.name, _NOFOLLOW, dir_fd=directory), True
                continue
            try:
                yield from _named(below, whole, [pattern[1:] for pattern in met], depth - 1)
            finally:
                os.close(below)
