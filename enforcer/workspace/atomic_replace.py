"""Replaces files of a workspace atomically: either the whole old or the whole new file is there.

The new file is made beside its place under a random name, synced, and exchanged with the old one in one step
(renameat2(2)). Then the old one is compared with the expected one; if another process changed it, the two are
exchanged again. So nothing is written through a link, and nothing is lost to a race. An interrupted merge leaves a line
that says what it was doing, and the next one finishes that.
"""

import contextlib
import errno
import json
import os
import secrets
from typing import Any, Final, NamedTuple

import msgspec

from enforcer.system import linux
from enforcer.workspace import safe_path
from enforcer.workspace.change_store import StoredChanges
from enforcer.workspace.safe_path import MODE, Entry, EntryType, Tree, entry_from_status, stat_name

_PREFIX: Final = ".exeat-"
_KEPT: Final = ("user.", "system.posix_acl_access")  # attributes of the file that is replaced which its successor gets


class NewEntry(NamedTuple):
    """New entry for a path: a directory, a link, or a file with `content` or the content of the open file `source`."""

    what: EntryType
    mode: int = 0
    content: bytes = b""
    source: int = -1
    target: str = ""


class _Intent(NamedTuple):
    """Intent record: operation, path, temporary name beside it, the entry that was made, and the one it replaces."""

    how: str
    path: str
    temporary: str
    made: Entry | None
    old: Entry | None


class ConcurrentChangeError(OSError):
    """Another process changed the path since the decision. Nothing was changed."""


class AtomicReplacer:
    """Writer of a workspace, atomic for each name. The caller acts as the owner (`acting_as`). Close it."""

    def __init__(self, tree: Tree, stored: StoredChanges) -> None:
        """Take the workspace, and the store for the intent records."""
        self._tree = tree
        self._intents = stored.open_intents()
        self._before = msgspec.convert(stored.intents(), list[_Intent])

    def close(self) -> None:
        """Release the workspace."""
        os.close(self._intents)

    def put(self, path: str, expected: Entry | None, new: NewEntry) -> None:
        """Replace `expected` at a path by `new`. Raises OSError, ConcurrentChangeError."""
        above, name = self._tree.parent(path)
        try:
            temporary = _PREFIX + secrets.token_hex(8)
            self._intend("make", path, temporary, None, None)
            try:
                made = self._make(above, temporary, new, path if expected is not None else "")
                self._intend("put", path, temporary, made, expected)
                flags = linux.RENAME_NOREPLACE if expected is None else linux.RENAME_EXCHANGE
                linux.renameat2(above, temporary, name, flags)
            except OSError as error:
                _take_back(above, temporary)
                if error.errno in (errno.EEXIST, errno.ENOENT):
                    raise ConcurrentChangeError(error.errno, _CONCURRENT_CHANGE) from error
                raise
            if expected is not None:
                _finish_put(above, name, temporary, made, expected)
            os.fsync(above)
        finally:
            os.close(above)

    def remove(self, path: str, expected: Entry) -> None:
        """Remove `expected` at a path. Raises OSError, also with ENOTEMPTY, and ConcurrentChangeError."""
        above, name = self._tree.parent(path)
        try:
            if expected.what is EntryType.DIRECTORY:
                os.rmdir(name, dir_fd=above)
            else:
                temporary = _PREFIX + secrets.token_hex(8)
                self._intend("remove", path, temporary, None, expected)
                linux.renameat2(above, name, temporary, linux.RENAME_NOREPLACE)
                _finish_remove(above, name, temporary, expected)
            os.fsync(above)
        finally:
            os.close(above)

    def change_mode(self, path: str, expected: Entry, mode: int) -> None:
        """Change the mode of a directory. Raises OSError, ConcurrentChangeError."""
        directory = self._tree.directory(path)
        try:
            status = os.fstat(directory)
            if status.st_ino != expected.inode or (status.st_mode ^ expected.mode) & MODE:
                raise ConcurrentChangeError(errno.EBUSY, _CONCURRENT_CHANGE)
            os.fchmod(directory, status.st_mode & ~MODE & 0o7777 | mode & MODE)
        finally:
            os.close(directory)

    def recover(self) -> list[str]:
        """Finish or undo interrupted operations. Return a sentence for each that could be neither."""
        last = {each.temporary: each for each in self._before}
        problems = []
        for each in last.values():
            try:
                self._recover(each)
            except OSError as error:
                problems.append(f"`{each.temporary}` was left beside `{each.path}`: {error.strerror or error}")
        return problems

    def _recover(self, intent: "_Intent") -> None:
        how, path, temporary, made, old = intent
        try:
            above, name = self._tree.parent(path)
        except FileNotFoundError:
            return
        try:
            found = stat_name(above, temporary)
            if found is None:
                return
            if how == "remove" and old is not None:
                _finish_remove(above, name, temporary, old)
            elif made is None or old is None or found.inode == made.inode:
                _take_away(above, temporary, found)
            elif old.is_same_file(found):
                _finish_put(above, name, temporary, made, old)
            else:
                # Somebody's who saved it at that very moment, or who has put it there since: a task can have
                raise OSError(errno.EBUSY, f"it is not the replaced file; check `{path}`, and move it away")
        except ConcurrentChangeError:
            return  # it was put back
        finally:
            os.close(above)

    def _intend(self, *intent: Any) -> None:
        """Write the intent record, which survives this process."""
        os.write(self._intents, (json.dumps(_Intent(*intent)) + "\n").encode("ascii"))

    def _make(self, above: int, temporary: str, new: NewEntry, like: str) -> Entry:
        if new.what is EntryType.LINK:
            os.symlink(new.target, temporary, dir_fd=above)
        elif new.what is EntryType.DIRECTORY:
            os.mkdir(temporary, 0o700 | new.mode & MODE, dir_fd=above)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=above)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                if new.source >= 0:
                    safe_path.copy_sparse(new.source, descriptor)
                else:
                    file.write(new.content)
                if like:
                    self._keep_attributes(like, descriptor)
                os.fchmod(descriptor, new.mode & MODE)
                os.fsync(descriptor)
                return entry_from_status(os.fstat(descriptor), EntryType.FILE)
        made = stat_name(above, temporary)
        if made is None:
            raise ConcurrentChangeError(errno.ENOENT, _CONCURRENT_CHANGE)
        return made

    def _keep_attributes(self, path: str, to: int) -> None:
        with contextlib.suppress(OSError):  # what can't be read, or not be had here, is not kept
            source = self._tree.file(path)
            try:
                for name in os.listxattr(source):
                    if name.startswith(_KEPT):
                        os.setxattr(to, name, os.getxattr(source, name))
            finally:
                os.close(source)


_CONCURRENT_CHANGE: Final = "it changed in the workspace during the merge; try again"


def _finish_put(above: int, name: str, temporary: str, made: Entry, expected: Entry) -> None:
    """Remove the exchanged old entry, or exchange it back if it is not the expected one."""
    found = stat_name(above, temporary)
    if found is not None and expected.is_same_file(found):
        with contextlib.suppress(OSError) if found.what is EntryType.DIRECTORY else contextlib.nullcontext():
            _take_away(above, temporary, found)
            return
    if made.is_same_file(stat_name(above, name)):
        linux.renameat2(above, temporary, name, linux.RENAME_EXCHANGE)
        found = stat_name(above, temporary)
        if found is not None and made.is_same_file(found):
            _take_away(above, temporary, found)
            raise ConcurrentChangeError(errno.EBUSY, _CONCURRENT_CHANGE)
    raise ConcurrentChangeError(
        errno.EBUSY, f"it changed faster than it could be put back: what it was lies in `{temporary}`"
    )


def _finish_remove(above: int, name: str, temporary: str, expected: Entry) -> None:
    """Remove the entry that was moved aside, or put it back if it is not the expected one."""
    found = stat_name(above, temporary)
    if found is not None and expected.is_same_file(found):
        _take_away(above, temporary, found)
        return
    linux.renameat2(above, temporary, name, linux.RENAME_NOREPLACE)
    raise ConcurrentChangeError(errno.EBUSY, _CONCURRENT_CHANGE)


def _take_away(above: int, name: str, entry: Entry) -> None:
    if entry.what is EntryType.DIRECTORY:
        os.rmdir(name, dir_fd=above)
    else:
        os.unlink(name, dir_fd=above)


def _take_back(above: int, temporary: str) -> None:
    """Remove the unfinished new entry."""
    with contextlib.suppress(OSError):
        found = stat_name(above, temporary)
        if found is not None:
            _take_away(above, temporary, found)
