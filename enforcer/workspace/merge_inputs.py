"""The sides of a merge, opened: the workspace as it is now, what the task left, and copies of what it started from."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from typing import Self

from enforcer.system.errors import HostError
from enforcer.workspace import file_content
from enforcer.workspace.change_store import Change, Kept
from enforcer.workspace.overlay_changes import Upper
from enforcer.workspace.safe_path import Entry, Tree, acting_as


@contextlib.contextmanager
def opened(kept: Kept) -> Iterator[Tree]:
    """Open the workspace that the changes belong to. Raises HostError where another stands there now."""
    meta = kept.meta
    try:
        tree = Tree.open(meta.workspace)
    except OSError as error:
        raise HostError(f"the workspace `{meta.workspace}` cannot be opened: {error.strerror or error}") from error
    try:
        if (tree.device, tree.inode) != (meta.device, meta.inode):
            raise HostError(f"`{meta.workspace}` is another directory than the one that the task worked in")
        yield tree
    finally:
        tree.close()


class Sides:
    """All of them. What is opened is the caller's to close."""

    def __init__(self, kept: Kept, workspace: Tree | None, upper: Upper) -> None:
        """Take what `opened` opened."""
        self.kept = kept
        self._workspace = workspace
        self._upper = upper

    @classmethod
    @contextlib.contextmanager
    def opened(cls, kept: Kept, *, to_look: bool = False) -> Iterator[Self]:
        """Open them. Raises HostError; where there is only something `to_look` at, the workspace may be gone."""
        with contextlib.ExitStack() as made:
            workspace = None
            try:
                workspace = made.enter_context(opened(kept))
            except HostError:
                if not to_look:
                    raise
            upper = Upper(os.open(kept.upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            made.callback(upper.close)
            yield cls(kept, workspace, upper)

    @property
    def workspace(self) -> Tree:
        """The workspace as it is now. Raises OSError where it is gone."""
        if self._workspace is None:
            raise OSError(errno.ENOENT, "the workspace is not there any more")
        return self._workspace

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Look and write in the workspace as its owner."""
        return acting_as(self.kept.meta.uid, self.kept.meta.gid)

    def ours(self, change: Change) -> Entry | None:
        """Return what stands at a path now. Raises OSError."""
        with self.acting():
            return self.workspace.look(change.path)

    def our_file(self, change: Change) -> int:
        """Open what stands at a path now. Raises OSError."""
        with self.acting():
            return self.workspace.file(change.path)

    def their_file(self, change: Change) -> int:
        """Open what the task left at a path. Raises OSError."""
        return self._upper.file(change.path)

    def staged(self, change: Change) -> tuple[int, str]:
        """Copy what the task left at a path to where nobody else can write; return it, open, and its SHA-256.

        Raises OSError.
        """
        source = self.their_file(change)
        try:
            with tempfile.TemporaryFile(dir=self.kept.place, buffering=0) as file:
                file_content.pour(source, file.fileno())
                copy = os.dup(file.fileno())
        finally:
            os.close(source)
        try:
            os.lseek(copy, 0, os.SEEK_SET)
            return copy, file_content.digest(os.dup(copy))
        except OSError:
            os.close(copy)
            raise

    def base_copy(self, change: Change) -> int:
        """Open a copy of what stood at a path at the start. Raises OSError."""
        return os.open(self.kept.place / "base" / change.copy, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def texts(self, change: Change) -> tuple[bytes, bytes, bytes] | None:
        """Return base, ours and theirs; None where one of them is not there or too large. Raises OSError."""
        if not change.copy:
            return None
        base = file_content.whole(self.base_copy(change))
        ours, theirs = file_content.whole(self.our_file(change)), file_content.whole(self.their_file(change))
        return None if base is None or ours is None or theirs is None else (base, ours, theirs)
