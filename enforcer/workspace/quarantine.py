"""Quarantine: moves protected files that a task made where none were out of its workspace until they are accepted.

Mounts keep what is there from being changed, and no name from being made (`guard`). So once nothing of the task runs
any more, what it has made there is moved to where the changes of reviewed tasks are kept, and is accepted as those are.
If it was somebody on the host who made it, they find it there, too.

What can't be taken out, `renamed` leaves in the workspace under another name, where nothing that a host runs looks: a
task can prevent the move by a FIFO or a great many names, by a full disk, or where changes are kept on another file
system. A name takes no room and isn't copied.
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
from enforcer.workspace import file_content, overlay_changes
from enforcer.workspace.change_store import Kept, Meta, remove
from enforcer.workspace.overlay_changes import Known, Snapshot, by_path, longest
from enforcer.workspace.safe_path import MODE, Entry, Tree, What, acting_as, entries, joined, open_up, opened_up
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from enforcer.workspace.change_store import Change

_ACCEPTABLE: Final = frozenset({stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR})
_MOST: Final = 10_000  # names that are taken out: each is a change that somebody has to look at
_MOST_BYTES: Final = 1 << 30  # in all: others' changes are kept there, and mostly the journal
_ABOVE: Final = Entry(What.DIRECTORY, 0o700, 0)  # what the directories above are in the layer
_NONE: Final = MappingProxyType[str, str]({})
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PREFIX: Final = ".exeat-aside-"


class Aside(NamedTuple):
    """What is kept now, and what couldn't be taken out: paths."""

    changes: "list[Change]"
    left: list[str]


class _Nothing(Snapshot):
    """A start at which nothing stood at some paths."""

    def __init__(self, paths: Collection[str]) -> None:
        super().__init__(0, {})
        self._paths = paths

    def lookup(self, path: str) -> Known:
        return Known(known=True, entry=_ABOVE if any(each.startswith(f"{path}/") for each in self._paths) else None)


def put_aside(meta: Meta, workspace: Tree, paths: Sequence[str], now: Mapping[str, str] = _NONE) -> Aside:
    """Take what stands at `paths`, none of which lies below another, out of a workspace. Raises HostError.

    `now`: where some of it stands by now, so that nobody finds it meanwhile. Nothing of the task runs any more.
    """
    kept = Kept.create(meta)
    left = _MOST
    moved: list[str] = []
    changes: list[Change] = []
    try:
        with contextlib.closing(overlay_changes.Upper(os.open(kept.upper, os.O_PATH | os.O_DIRECTORY))) as layer:
            copying = _Copying(workspace, layer, (meta.uid, meta.gid))
            for path in paths:
                # The thing itself, too: a directory that is moved has a `..` to write
                at = now.get(path, path)
                with contextlib.suppress(OSError), opened_up(workspace, at, meta.uid):
                    left -= _names(workspace, at, meta.uid, left)
                    _move(workspace, layer, at, path, copying)
                if layer.look(path) is not None:
                    moved.append(path)
            changes = sorted(overlay_changes.changes(layer, _Nothing(moved), longest(meta)), key=by_path)
        if moved:
            kept.record(changes)
        else:
            kept.remove()
    except OSError as error:
        said = visible(error.strerror or str(error))
        raise HostError(
            f"what was made of protected files is in `{kept.place}`, and couldn't be noted: {said}"
        ) from error
    finally:
        kept.unlock()
    return Aside(changes, [path for path in paths if _stands(workspace, now.get(path, path), meta.uid)])


def _names(workspace: Tree, at: str, owner: int, most: int) -> int:
    """Count the names below a path. Raises OSError where there are more than `most`: it stays then."""
    count, pending = 1, [at]
    entry = workspace.look(at)
    while pending and entry is not None and entry.what is What.DIRECTORY:
        above = pending.pop()
        for name, inner in entries(workspace, above, owner):
            count += 1
            if count > most:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            if inner.what is What.DIRECTORY:
                pending.append(joined(above, name))
    if count > most:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return count


def _stands(workspace: Tree, path: str, owner: int) -> bool:
    try:
        with opened_up(workspace, os.path.dirname(path), owner):
            return workspace.look(path) is not None
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
                if entry.what is What.DIRECTORY:
                    os.rmdir(name, dir_fd=above)
                elif entry.is_same_file(self._workspace.look(each)):
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
                entry = self._workspace.look(at)
                open_up(self._workspace, at, self.owner[0])  # all of it is about to be removed
                opened = self._workspace.look(at)
                is_directory = opened is not None and opened.what is What.DIRECTORY
                inner = list(self._workspace.entries(at)) if is_directory else []
            if entry is None or opened is None:
                raise OSError(errno.ENOENT, "it is gone again")
            self._make(at, path, entry)
            done.append((at, opened))
            pending += [(joined(at, name), joined(path, name)) for name, _ in inner]

    def _make(self, at: str, path: str, entry: Entry) -> None:
        name, to = os.path.basename(path), _room(self._layer, path)
        try:
            match entry.what:
                case What.DIRECTORY:
                    os.mkdir(name, entry.mode & MODE | 0o700, dir_fd=to)
                case What.LINK:
                    os.symlink(entry.target, name, dir_fd=to)
                case What.FILE:
                    self._fill(os.open(name, _NEW, 0o600, dir_fd=to), at, entry)
                case _:
                    raise OSError(errno.EPERM, "it is nothing that could be accepted")
        finally:
            os.close(to)

    def _fill(self, file: int, at: str, entry: Entry) -> None:
        try:
            with acting_as(*self.owner):
                source = self._workspace.file(at)
            try:
                self._left -= file_content.filled(source)
                if self._left < 0:
                    raise OSError(errno.EFBIG, "it is larger than what is copied")
                file_content.pour(source, file)
            finally:
                os.close(source)
            os.fchmod(file, entry.mode & MODE)
            os.fsync(file)
        finally:
            os.close(file)

    def _forget(self, path: str) -> None:
        made = self._layer.look(path)
        above, name = self._layer.parent(path, os.O_PATH)
        try:
            if made is not None and made.what is What.DIRECTORY:
                remove(Path(f"/proc/self/fd/{above}", name))
            elif made is not None:
                os.unlink(name, dir_fd=above)
        finally:
            os.close(above)


def renamed(workspace: Tree, paths: Iterable[str], owner: int) -> dict[str, str]:
    """Give what stands at `paths`, if it is its owner's, another name. Returns which, by the old one."""
    found: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError), opened_up(workspace, path, owner):
            found[path] = _rename(workspace, path, owner)
    return found


def _rename(workspace: Tree, path: str, owner: int) -> str:
    above, name = workspace.parent(path, os.O_PATH)
    try:
        if os.lstat(name, dir_fd=above).st_uid != owner:
            raise OSError(errno.EPERM, "it is somebody else's")
        to = _PREFIX + secrets.token_hex(8)
        try:
            os.rename(name, to, src_dir_fd=above, dst_dir_fd=workspace.descriptor)
        except OSError:  # there is no room for another name there
            os.rename(name, to, src_dir_fd=above, dst_dir_fd=above)
            return os.path.join(os.path.dirname(path), to)
        return to
    finally:
        os.close(above)
