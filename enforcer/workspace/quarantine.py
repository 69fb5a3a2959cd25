"""Quarantine: moves protected files that a task made where none were out of its workspace until they are accepted.

Mounts protect existing files, but can't prevent new names (`protected_files`). So once the task has ended, its new
protected files are moved to the store of reviewed changes and accepted like them. A host process's new file is moved
as well.

A task can prevent the move by a FIFO, a great many names or a full disk. Then `rename_aside` renames the file within
the workspace, to a name that no program of the host looks for. A rename needs no space and copies nothing.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.system.errors import HostError
from enforcer.workspace import overlay_changes, safe_path
from enforcer.workspace.change_store import Meta, StoredChanges, remove
from enforcer.workspace.overlay_changes import KnownFile, Snapshot, by_path, max_path_length
from enforcer.workspace.safe_path import (
    MODE,
    Entry,
    EntryType,
    Tree,
    acting_as,
    entries,
    give_access,
    join_path,
    temporary_access,
)
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from enforcer.workspace.change_store import Change

_ACCEPTABLE: Final = frozenset({stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR})
_MOST: Final = 10_000  # names that are taken out: each is a change that somebody has to look at
_MOST_BYTES: Final = 1 << 30  # in all: others' changes are kept there, and mostly the journal
_ABOVE: Final = Entry(EntryType.DIRECTORY, 0o700, 0)  # what the directories above are in the layer
_NONE: Final = MappingProxyType[str, str]({})
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PREFIX: Final = ".exeat-aside-"


class Quarantined(NamedTuple):
    """What is kept now, and what couldn't be taken out: paths."""

    changes: "list[Change]"
    left: list[str]


class _EmptySnapshot(Snapshot):
    """A start at which nothing stood at some paths."""

    def __init__(self, paths: Collection[str]) -> None:
        super().__init__(0, {})
        self._paths = paths

    def lookup(self, path: str) -> KnownFile:
        return KnownFile(known=True, entry=_ABOVE if any(each.startswith(f"{path}/") for each in self._paths) else None)


def quarantine_files(meta: Meta, workspace: Tree, paths: Sequence[str], now: Mapping[str, str] = _NONE) -> Quarantined:
    """Take what stands at `paths`, none of which lies below another, out of a workspace. Raises HostError.

    `now`: where some of it stands by now, so that nobody finds it meanwhile. Nothing of the task runs any more.
    """
    stored = StoredChanges.create(meta)
    left = _MOST
    moved: list[str] = []
    changes: list[Change] = []
    try:
        with contextlib.closing(overlay_changes.UpperLayer(os.open(stored.upper, os.O_PATH | os.O_DIRECTORY))) as layer:
            copying = _Copying(workspace, layer, (meta.uid, meta.gid))
            for path in paths:
                # The thing itself, too: a directory that is moved has a `..` to write
                at = now.get(path, path)
                with contextlib.suppress(OSError), temporary_access(workspace, at, meta.uid):
                    left -= _names(workspace, at, meta.uid, left)
                    _move(workspace, layer, at, path, copying)
                if layer.stat(path) is not None:
                    moved.append(path)
            changes = sorted(overlay_changes.changes(layer, _EmptySnapshot(moved), max_path_length(meta)), key=by_path)
        if moved:
            stored.record(changes)
        else:
            stored.remove()
    except OSError as error:
        said = visible(error.strerror or str(error))
        raise HostError(f"cannot record the quarantined files, which are in `{stored.place}`: {said}") from error
    finally:
        stored.unlock()
    return Quarantined(changes, [path for path in paths if _stands(workspace, now.get(path, path), meta.uid)])


def _names(workspace: Tree, at: str, owner: int, most: int) -> int:
    """Count the names below a path. Raises OSError where there are more than `most`: it stays then."""
    count, pending = 1, [at]
    entry = workspace.stat(at)
    while pending and entry is not None and entry.what is EntryType.DIRECTORY:
        above = pending.pop()
        for name, inner in entries(workspace, above, owner):
            count += 1
            if count > most:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            if inner.what is EntryType.DIRECTORY:
                pending.append(join_path(above, name))
    if count > most:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return count


def _stands(workspace: Tree, path: str, owner: int) -> bool:
    try:
        with temporary_access(workspace, os.path.dirname(path), owner):
            return workspace.stat(path) is not None
    except OSError:
        return True  # for all that is known


def _move(workspace: Tree, layer: Tree, at: str, path: str, copying: "_Copying") -> None:
    """Move what stands at `at` into the layer, to `path`. Raises OSError where it stays."""
    above, name = workspace.parent(at, os.O_PATH)
    to = _room(layer, path)
    try:
        status = os.lstat(name, dir_fd=above)
        if stat.S_IFMT(status.st_mode) in _ACCEPTABLE and status.st_uid == copying.owner[0]:
            os.rename(name, os.path.basename(path), src_dir_fd=above, dst_dir_fd=to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copying.move(at, path)
    finally:
        os.close(above)
        os.close(to)


def _room(layer: Tree, path: str) -> int:
    """Make the directories above a path in the layer, which is ours; return the last one, open."""
    at = os.open(".", os.O_PATH | os.O_DIRECTORY, dir_fd=layer.descriptor)
    for part in path.split("/")[:-1]:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=at)
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        at = inner
    return at


class _Copying:
    """Where the layer is on another file system: all is copied, and only then removed, if it is what was copied."""

    def __init__(self, workspace: Tree, layer: Tree, owner: tuple[int, int]) -> None:
        self._workspace = workspace
        self._layer = layer
        self._left = _MOST_BYTES
        self.owner = owner

    def move(self, at: str, path: str) -> None:
        """Move what is at `at` to `path` there.

        Raises OSError: before anything is removed, nothing of it is in the layer; then all of it is.
        """
        done: list[tuple[str, Entry]] = []
        try:
            self._copy(at, path, done)
        except OSError:
            self._forget(path)
            raise
        for each, entry in reversed(done):
            above, name = self._workspace.parent(each, os.O_PATH)
            try:
                if entry.what is EntryType.DIRECTORY:
                    os.rmdir(name, dir_fd=above)
                elif entry.is_same_file(self._workspace.stat(each)):
                    os.unlink(name, dir_fd=above)
            finally:
                os.close(above)

    def _copy(self, at: str, path: str, done: list[tuple[str, Entry]]) -> None:
        pending = [(at, path)]
        while pending:
            at, path = pending.pop()
            if len(done) == _MOST:
                raise OSError(errno.E2BIG, f"it has more than {_MOST} names")
            with acting_as(*self.owner):
                entry = self._workspace.stat(at)
                give_access(self._workspace, at, self.owner[0])  # all of it is about to be removed
                opened = self._workspace.stat(at)
                is_directory = opened is not None and opened.what is EntryType.DIRECTORY
                inner = list(self._workspace.entries(at)) if is_directory else []
            if entry is None or opened is None:
                raise OSError(errno.ENOENT, "it no longer exists")
            self._make(at, path, entry)
            done.append((at, opened))
            pending += [(join_path(at, name), join_path(path, name)) for name, _ in inner]

    def _make(self, at: str, path: str, entry: Entry) -> None:
        name, to = os.path.basename(path), _room(self._layer, path)
        try:
            match entry.what:
                case EntryType.DIRECTORY:
                    os.mkdir(name, entry.mode & MODE | 0o700, dir_fd=to)
                case EntryType.LINK:
                    os.symlink(entry.target, name, dir_fd=to)
                case EntryType.FILE:
                    self._fill(os.open(name, _NEW, 0o600, dir_fd=to), at, entry)
                case _:
                    raise OSError(errno.EPERM, "devices, sockets and FIFOs can't be accepted")
        finally:
            os.close(to)

    def _fill(self, file: int, at: str, entry: Entry) -> None:
        try:
            with acting_as(*self.owner):
                source = self._workspace.file(at)
            try:
                self._left -= safe_path.count_data_bytes(source)
                if self._left < 0:
                    raise OSError(errno.EFBIG, "it exceeds the size limit of the quarantine")
                safe_path.copy_sparse(source, file)
            finally:
                os.close(source)
            os.fchmod(file, entry.mode & MODE)
            os.fsync(file)
        finally:
            os.close(file)

    def _forget(self, path: str) -> None:
        made = self._layer.stat(path)
        above, name = self._layer.parent(path, os.O_PATH)
        try:
            if made is not None and made.what is EntryType.DIRECTORY:
                remove(Path(f"/proc/self/fd/{above}", name))
            elif made is not None:
                os.unlink(name, dir_fd=above)
        finally:
            os.close(above)


def rename_aside(workspace: Tree, paths: Iterable[str], owner: int) -> dict[str, str]:
    """Give what stands at `paths`, if it is its owner's, another name. Returns which, by the old one."""
    found: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError), temporary_access(workspace, path, owner):
            found[path] = _rename(workspace, path, owner)
    return found


def _rename(workspace: Tree, path: str, owner: int) -> str:
    above, name = workspace.parent(path, os.O_PATH)
    try:
        if os.lstat(name, dir_fd=above).st_uid != owner:
            raise OSError(errno.EPERM, "another user owns it")
        to = _PREFIX + secrets.token_hex(8)
        try:
            os.rename(name, to, src_dir_fd=above, dst_dir_fd=workspace.descriptor)
        except OSError:  # there is no room for another name there
            os.rename(name, to, src_dir_fd=above, dst_dir_fd=above)
            return os.path.join(os.path.dirname(path), to)
        return to
    finally:
        os.close(above)
