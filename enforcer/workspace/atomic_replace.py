"""Replaces files of a workspace atomically, one name at a time: either the old or the new one is there, whole.

The new file is made beside its place under a random name, synced, and exchanged with the old one in one step
(renameat2(2)). Then the old one is compared with what was decided on; if another process was quicker, the two are
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
from enforcer.workspace import file_content
from enforcer.workspace.change_store import Kept
from enforcer.workspace.safe_path import MODE, Entry, Tree, What, look_in, of_status

_PREFIX: Final = ".exeat-"
_KEPT: Final = ("user.", "system.posix_acl_access")  # attributes of the file that is replaced which its successor gets


class New(NamedTuple):
    """What is to stand at a path: a file of a content or of what an open file has, a directory, or a link."""

    what: What
    mode: int = 0
    content: bytes = b""
    source: int = -1
    target: str = ""


class _Intent(NamedTuple):
    """What is about to be done at a path, under which name beside it, with what is made, instead of what."""

    how: str
    path: str
    temporary: str
    made: Entry | None
    old: Entry | None


class MeanwhileError(OSError):
    """Somebody else was quicker: what was decided on is not there any more. Nothing was changed."""


class Place:
    """A workspace that is written to. Every call is made as its owner (`acting_as`)."""

    def __init__(self, tree: Tree, kept: Kept) -> None:
        """Take the workspace, and where to say what is being done."""
        self._tree = tree
        self._intents = kept.open_intents()
        self._before = msgspec.convert(kept.intents(), list[_Intent])

    def close(self) -> None:
        """Write no more."""
        os.close(self._intents)

    def put(self, path: str, expected: Entry | None, new: New) -> None:
        """Let `new` stand at a path where `expected` does. Raises OSError, MeanwhileError."""
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
                    raise MeanwhileError(error.errno, _MEANWHILE) from error
                raise
            if expected is not None:
                _finish_put(above, name, temporary, made, expected)
            os.fsync(above)
        finally:
            os.close(above)

    def remove(self, path: str, expected: Entry) -> None:
        """Let nothing stand at a path where `expected` does. Raises OSError, ENOTEMPTY too, and MeanwhileError."""
        above, name = self._tree.parent(path)
        try:
            if expected.what is What.DIRECTORY:
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
        """Give a directory another mode. Raises OSError, MeanwhileError."""
        directory = self._tree.directory(path)
        try:
            status = os.fstat(directory)
            if status.st_ino != expected.inode or (status.st_mode ^ expected.mode) & MODE:
                raise MeanwhileError(errno.EBUSY, _MEANWHILE)
            os.fchmod(directory, status.st_mode & ~MODE & 0o7777 | mode & MODE)
        finally:
            os.close(directory)

    def recover(self) -> list[str]:
        """Finish, or take back, what somebody was stopped over. Returns what of it could be neither, in words."""
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
            found = look_in(above, temporary)
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
                raise OSError(errno.EBUSY, f"it is not what was there; see whether `{path}` is right, and move it away")
        except MeanwhileError:
            return  # it was put back
        finally:
            os.close(above)

    def _intend(self, *intent: Any) -> None:
        """Say what is about to be done. It survives this process, which is all that it is for."""
        os.write(self._intents, (json.dumps(_Intent(*intent)) + "\n").encode("ascii"))

    def _make(self, above: int, temporary: str, new: New, like: str) -> Entry:
        if new.what is What.LINK:
            os.symlink(new.target, temporary, dir_fd=above)
        elif new.what is What.DIRECTORY:
            os.mkdir(temporary, 0o700 | new.mode & MODE, dir_fd=above)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=above)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                if new.source >= 0:
                    file_content.pour(new.source, descriptor)
                else:
                    file.write(new.content)
                if like:
                    self._keep_attributes(like, descriptor)
                os.fchmod(descriptor, new.mode & MODE)
                os.fsync(descriptor)
                return of_status(os.fstat(descriptor), What.FILE)
        made = look_in(above, temporary)
        if made is None:
            raise MeanwhileError(errno.ENOENT, _MEANWHILE)
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


_MEANWHILE: Final = "it was changed in the workspace at this very moment; try again"


def _finish_put(above: int, name: str, temporary: str, made: Entry, expected: Entry) -> None:
    """Take away what was exchanged, or exchange it back where it is not what was expected."""
    found = look_in(above, temporary)
    if found is not None and expected.is_same_file(found):
        with contextlib.suppress(OSError) if found.what is What.DIRECTORY else contextlib.nullcontext():
            _take_away(above, temporary, found)
            return
    if made.is_same_file(look_in(above, name)):
        linux.renameat2(above, temporary, name, linux.RENAME_EXCHANGE)
        found = look_in(above, temporary)
        if found is not None and made.is_same_file(found):
            _take_away(above, temporary, found)
            raise MeanwhileError(errno.EBUSY, _MEANWHILE)
    raise MeanwhileError(errno.EBUSY, f"it changed faster than it could be put back: what it was lies in `{temporary}`")


def _finish_remove(above: int, name: str, temporary: str, expected: Entry) -> None:
    """Take away what was moved aside, or put it back where it is not what was expected."""
    found = look_in(above, temporary)
    if found is not None and expected.is_same_file(found):
        _take_away(above, temporary, found)
        return
    linux.renameat2(above, temporary, name, linux.RENAME_NOREPLACE)
    raise MeanwhileError(errno.EBUSY, _MEANWHILE)


def _take_away(above: int, name: str, entry: Entry) -> None:
    if entry.what is What.DIRECTORY:
        os.rmdir(name, dir_fd=above)
    else:
        os.unlink(name, dir_fd=above)


def _take_back(above: int, temporary: str) -> None:
    """Remove what was being made."""
    with contextlib.suppress(OSError):
        found = look_in(above, temporary)
        if found is not None:
            _take_away(above, temporary, found)
