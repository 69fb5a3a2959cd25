"""Showing a host directory through a read-only overlay, with files of ours standing before the host's.

Where an overlay can't be made because other file systems are mounted inside the directory and locked there (a
container's /etc/resolv.conf, seen by an ordinary user), the directory is composed entry by entry around those mounts.
Sources: Documentation/filesystems/overlayfs.rst; mount_namespaces(7) on locked mounts.
"""

import errno
import os
import re
import stat
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from enforcer import linux

LAYERS = "/layers"
_WRITTEN = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_FILES_AT_MOST = 1 << 20  # bytes of a mounted single file that is copied rather than shown
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes space, tab, newline and backslash
_number = count()


def prepare() -> None:
    """Make the directory of layers, and the nothing that masks are made of."""
    os.mkdir(f"{LAYERS}/nothing")
    os.mkdir(f"{LAYERS}/nothing/directory", 0o000)
    os.close(os.open(f"{LAYERS}/nothing/file", _WRITTEN, 0o000))


def show(source: str, target: str, top: Mapping[str, bytes]) -> None:
    """Mount `source` on the existing directory `target`, read-only. `top` maps relative paths to contents."""
    try:
        _overlay(source, target, top)
    except OSError as error:
        # EINVAL: has_locked_children() in the kernel's clone_private_mount().
        mounted = frozenset(point for point, _ in mounts_below(source))
        if error.errno != errno.EINVAL or not mounted:
            raise
        _compose(source, target, top, mounted)


def _overlay(source: str, target: str, top: Mapping[str, bytes]) -> None:
    layer = f"{LAYERS}/{next(_number)}"
    os.makedirs(layer)
    written: dict[int, str] = {}  # what is the same is in memory once, under all its names
    for name, content in top.items():
        path = f"{layer}/{name}"
        if (same := written.setdefault(id(content), path)) is path:
            _write(path, content)
        else:
            _link(same, path)
    # The merged directory takes its own mode from the topmost layer.
    os.chmod(layer, stat.S_IMODE(os.stat(source).st_mode) & 0o777)
    escaped = source.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("overlay", target, "overlay", flags, f"lowerdir={layer}:{escaped},userxattr")


def review(source: str, changes: str, target: str) -> None:
    """Mount `source` on the existing directory `target`, writable: what is written goes to `changes`, a directory.

    Whether a directory is redirected, or a file only half copied, is nothing that an attribute in `source` can say: a
    task that could write there once may have left some (Documentation/filesystems/overlayfs.rst, "Permission model").
    """
    options = f"lowerdir={source},upperdir={changes}/upper,workdir={changes}/work,userxattr"
    options += ",redirect_dir=nofollow,metacopy=off,index=off,xino=off"
    try:
        linux.mount("overlay", target, "overlay", linux.MS_NOSUID | linux.MS_NODEV, options)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        why = "an overlay can't be written on this file system, or something is mounted inside the directory"
        raise OSError(errno.EINVAL, f"{why}; set XDG_STATE_HOME to a directory on ext4, xfs, btrfs or tmpfs") from error


def _write(path: str, content: bytes) -> None:
    try:
        file = os.open(path, _WRITTEN, 0o644)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(path, _WRITTEN, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fchmod(file, 0o644)
    finally:
        os.close(file)


def _link(written: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.link(written, path)


def mounts_below(source: str) -> list[tuple[str, str]]:
    """List every mount strictly below `source`, as (mount point, kind); proc_pid_mountinfo(5)."""
    with open("/old/proc/self/mountinfo", "rb", buffering=0) as file:
        lines = file.readall().splitlines()
    found = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        point = os.fsdecode(_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), before.split(b" ")[4]))
        if point.startswith(source + "/"):
            found.append((point, os.fsdecode(after.split(b" ")[0])))
    return found


def _compose(source: str, target: str, top: Mapping[str, bytes], mounted: frozenset[str]) -> None:
    """Build `target` from the entries of `source`: overlays for directories, copies for files, nothing for the rest."""
    linux.mount("tmpfs", target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for name, content in top.items():
        _write(f"{target}/{name}", content)
    with os.scandir(source) as entries:
        for entry in entries:
            path, place = f"{source}/{entry.name}", f"{target}/{entry.name}"
            if entry.is_symlink():
                if not os.path.lexists(place):
                    os.symlink(os.readlink(path), place)
            elif entry.is_dir(follow_symlinks=False):
                if path in mounted:
                    continue  # another file system: not entered
                os.makedirs(place, exist_ok=True)
                inside = {k.partition("/")[2]: v for k, v in top.items() if k.startswith(entry.name + "/")}
                show(path, place, inside)
            elif entry.is_file(follow_symlinks=False) and not os.path.lexists(place):
                _copy(path, place)
    linux.mount_setattr(linux.AT_FDCWD, linux.MOUNT_ATTR_RDONLY, path=target)


def _copy(path: str, place: str) -> None:
    try:
        if os.stat(path).st_size > _FILES_AT_MOST:
            return
        with open(path, "rb") as source, open(place, "wb") as made:
            made.write(source.read())
            os.fchmod(made.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))
    except PermissionError:
        Path(place).touch(0o000)
