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
_MAX_FILES: Final = 10_000  # names: each is a change to review
_MAX_BYTES: Final = 1 << 30  # in all: other changes and the journal are on the same disk
_PARENT_ENTRY: Final = Entry(EntryType.DIRECTORY, 0o700, 0)  # parent directories in the layer
_NO_NEW_NAMES: Final = MappingProxyType[str, str]({})
_NEW_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PREFIX: Final = ".exeat-aside-"


class Quarantined(NamedTuple):
    """Result: the stored changes, and the paths that could not be moved."""

    changes: "list[Change]"
    not_quarantined: list[str]


class _EmptySnapshot(Snapshot):
    """Snapshot in which some paths don't exist."""

    def __init__(self, paths: Collection[str]) -> None:
        super().__init__(0, {})
        self._paths = paths

    def lookup(self, path: str) -> KnownFile:
        return KnownFile(
            known=True,
            entry=_PARENT_ENTRY if any(quarantined.startswith(f"{path}/") for quarantined in self._paths) else None,
        )


def quarantine_files(
    meta: Meta, workspace: Tree, paths: Sequence[str], new_names: Mapping[str, str] = _NO_NEW_NAMES
) -> Quarantined:
    """Move the files at `paths`, none of which lies below another, out of a workspace. Raises HostError.

    `new_names`: present names of files that were renamed to keep programs from finding them. The task has ended.
    """
    stored = StoredChanges.create(meta)
    names_left = _MAX_FILES
    moved: list[str] = []
    changes: list[Change] = []
    try:
        with contextlib.closing(overlay_changes.UpperLayer(os.open(stored.upper, os.O_PATH | os.O_DIRECTORY))) as layer:
            copy_move = _CopyMove(workspace, layer, (meta.uid, meta.gid))
            for path in paths:
                # Access to the path itself, too: moving a directory writes its `..`.
                current_path = new_names.get(path, path)
                with contextlib.suppress(OSError), temporary_access(workspace, current_path, meta.uid):
                    names_left -= _count_names(workspace, current_path, meta.uid, names_left)
                    _move(workspace, layer, current_path, path, copy_move)
                if layer.stat(path) is not None:
                    moved.append(path)
            changes = sorted(overlay_changes.changes(layer, _EmptySnapshot(moved), max_path_length(meta)), key=by_path)
        if moved:
            stored.record(changes)
        else:
            stored.remove()
    except OSError as error:
        message = visible(error.strerror or str(error))
        raise HostError(f"cannot record the quarantined files, which are in `{stored.place}`: {message}") from error
    finally:
        stored.unlock()
    return Quarantined(
        changes, [path for path in paths if _still_exists(workspace, new_names.get(path, path), meta.uid)]
    )


def _count_names(workspace: Tree, at: str, owner: int, max_count: int) -> int:
    """Count the names below a path. Raises OSError for more than `max_count`: then it is not moved."""
    count, pending = 1, [at]
    entry = workspace.stat(at)
    while pending and entry is not None and entry.what is EntryType.DIRECTORY:
        directory = pending.pop()
        for name, inner in entries(workspace, directory, owner):
            count += 1
            if count > max_count:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            if inner.what is EntryType.DIRECTORY:
                pending.append(join_path(directory, name))
    if count > max_count:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return count


def _still_exists(workspace: Tree, path: str, owner: int) -> bool:
    try:
        with temporary_access(workspace, os.path.dirname(path), owner):
            return workspace.stat(path) is not None
    except OSError:
        return True  # as far as is known


def _move(workspace: Tree, layer: Tree, at: str, path: str, copy_move: "_CopyMove") -> None:
    """Move the file at `at` into the layer, to `path`. Raises OSError if it is not moved."""
    parent, name = workspace.parent(at, os.O_PATH)
    target_parent = _make_parents(layer, path)
    try:
        status = os.lstat(name, dir_fd=parent)
        if stat.S_IFMT(status.st_mode) in _ACCEPTABLE and status.st_uid == copy_move.owner[0]:
            os.rename(name, os.path.basename(path), src_dir_fd=parent, dst_dir_fd=target_parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_move.move(at, path)
    finally:
        os.close(parent)
        os.close(target_parent)


def _make_parents(layer: Tree, path: str) -> int:
    """Make the directories above a path in the layer; returns the last one, open."""
    descriptor = os.open(".", os.O_PATH | os.O_DIRECTORY, dir_fd=layer.descriptor)
    for component in path.split("/")[:-1]:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(component, 0o700, dir_fd=descriptor)
            child = os.open(component, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = child
    return descriptor


class _CopyMove:
    """Moves to another file system: copies everything, then removes what is still the copied file."""

    def __init__(self, workspace: Tree, layer: Tree, owner: tuple[int, int]) -> None:
        self._workspace = workspace
        self._layer = layer
        self._bytes_left = _MAX_BYTES
        self.owner = owner

    def move(self, at: str, path: str) -> None:
        """Move what is at `at` to `path` there.

        Raises OSError: before anything is removed, nothing of it is in the layer; then all of it is.
        """
        copied: list[tuple[str, Entry]] = []
        try:
            self._copy(at, path, copied)
        except OSError:
            self._remove_copy(path)
            raise
        for copied_path, entry in reversed(copied):
            parent, name = self._workspace.parent(copied_path, os.O_PATH)
            try:
                if entry.what is EntryType.DIRECTORY:
                    os.rmdir(name, dir_fd=parent)
                elif entry.is_same_file(self._workspace.stat(copied_path)):
                    os.unlink(name, dir_fd=parent)
            finally:
                os.close(parent)

    def _copy(self, at: str, path: str, copied: list[tuple[str, Entry]]) -> None:
        pending = [(at, path)]
        while pending:
            at, path = pending.pop()
            if len(copied) == _MAX_FILES:
                raise OSError(errno.E2BIG, f"it has more than {_MAX_FILES} names")
            with acting_as(*self.owner):
                entry = self._workspace.stat(at)
                give_access(self._workspace, at, self.owner[0])  # all of it is about to be removed
                accessible = self._workspace.stat(at)
                is_directory = accessible is not None and accessible.what is EntryType.DIRECTORY
                children = list(self._workspace.entries(at)) if is_directory else []
            if entry is None or accessible is None:
                raise OSError(errno.ENOENT, "it no longer exists")
            self._make_entry(at, path, entry)
            copied.append((at, accessible))
            pending += [(join_path(at, name), join_path(path, name)) for name, _ in children]

    def _make_entry(self, at: str, path: str, entry: Entry) -> None:
        name, parent = os.path.basename(path), _make_parents(self._layer, path)
        try:
            match entry.what:
                case EntryType.DIRECTORY:
                    os.mkdir(name, entry.mode & MODE | 0o700, dir_fd=parent)
                case EntryType.LINK:
                    os.symlink(entry.target, name, dir_fd=parent)
                case EntryType.FILE:
                    self._copy_content(os.open(name, _NEW_FILE_FLAGS, 0o600, dir_fd=parent), at, entry)
                case _:
                    raise OSError(errno.EPERM, "devices, sockets and FIFOs can't be accepted")
        finally:
            os.close(parent)

    def _copy_content(self, file: int, at: str, entry: Entry) -> None:
        try:
            with acting_as(*self.owner):
                source = self._workspace.file(at)
            try:
                self._bytes_left -= safe_path.count_data_bytes(source)
                if self._bytes_left < 0:
                    raise OSError(errno.EFBIG, "it exceeds the size limit of the quarantine")
                safe_path.copy_sparse(source, file)
            finally:
                os.close(source)
            os.fchmod(file, entry.mode & MODE)
            os.fsync(file)
        finally:
            os.close(file)

    def _remove_copy(self, path: str) -> None:
        copied = self._layer.stat(path)
        parent, name = self._layer.parent(path, os.O_PATH)
        try:
            if copied is not None and copied.what is EntryType.DIRECTORY:
                remove(Path(f"/proc/self/fd/{parent}", name))
            elif copied is not None:
                os.unlink(name, dir_fd=parent)
        finally:
            os.close(parent)


def rename_aside(workspace: Tree, paths: Iterable[str], owner: int) -> dict[str, str]:
    """Rename the files at `paths` that belong to `owner`. Returns the new names by the old ones."""
    new_names: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError), temporary_access(workspace, path, owner):
            new_names[path] = _rename(workspace, path, owner)
    return new_names


def _rename(workspace: Tree, path: str, owner: int) -> str:
    parent, name = workspace.parent(path, os.O_PATH)
    try:
        if os.lstat(name, dir_fd=parent).st_uid != owner:
            raise OSError(errno.EPERM, "another user owns it")
        new_name = _PREFIX + secrets.token_hex(8)
        try:
            os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=workspace.descriptor)
        except OSError:  # no space for another name there
            os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=parent)
            return os.path.join(os.path.dirname(path), new_name)
        return new_name
    finally:
        os.close(parent)
