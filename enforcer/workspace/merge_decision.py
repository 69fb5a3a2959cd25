"""Decides whether one change can be merged into the workspace as it is now, and computes the digest of the merge.

    what stands there now is      the task's change is
    what the task started from    taken
    what the task made            already in
    something else                merged where both are texts and the lines differ, else a conflict

A conflict changes nothing: both versions stay. What the task started from is sometimes not known (`Snapshot`); then it
counts as something else.

An approval is for a digest and for nothing else. It covers where the changes go, and of every path what stands there
now and what is to: one byte of either, another mode or target makes another digest, and so another question.
"""

import contextlib
import errno
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from enforcer.system.errors import HostError
from enforcer.workspace import safe_path
from enforcer.workspace.change_store import Change, ChangeKind, StoredChanges, mode
from enforcer.workspace.diff import merge
from enforcer.workspace.overlay_changes import UpperLayer
from enforcer.workspace.safe_path import Entry, EntryType, Tree, acting_as, is_text

if TYPE_CHECKING:
    from enforcer.workspace.change_store import Meta


@contextlib.contextmanager
def opened(stored: StoredChanges) -> Iterator[Tree]:
    """Open the workspace that the changes belong to. Raises HostError where another stands there now."""
    meta = stored.meta
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


class MergeInputs:
    """All of them. What is opened is the caller's to close."""

    def __init__(self, stored: StoredChanges, workspace: Tree | None, upper: UpperLayer) -> None:
        """Take what `opened` opened."""
        self.stored = stored
        self._workspace = workspace
        self._upper = upper

    @classmethod
    @contextlib.contextmanager
    def opened(cls, stored: StoredChanges, *, to_look: bool = False) -> Iterator[Self]:
        """Open them. Raises HostError; where there is only something `to_look` at, the workspace may be gone."""
        with contextlib.ExitStack() as made:
            workspace = None
            try:
                workspace = made.enter_context(opened(stored))
            except HostError:
                if not to_look:
                    raise
            upper = UpperLayer(os.open(stored.upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            made.callback(upper.close)
            yield cls(stored, workspace, upper)

    @property
    def workspace(self) -> Tree:
        """The workspace as it is now. Raises OSError where it is gone."""
        if self._workspace is None:
            raise OSError(errno.ENOENT, "the workspace no longer exists")
        return self._workspace

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Look and write in the workspace as its owner."""
        return acting_as(self.stored.meta.uid, self.stored.meta.gid)

    def ours(self, change: Change) -> Entry | None:
        """Return what stands at a path now. Raises OSError."""
        with self.acting():
            return self.workspace.stat(change.path)

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
            with tempfile.TemporaryFile(dir=self.stored.place, buffering=0) as file:
                safe_path.copy_sparse(source, file.fileno())
                copy = os.dup(file.fileno())
        finally:
            os.close(source)
        try:
            os.lseek(copy, 0, os.SEEK_SET)
            return copy, safe_path.digest(os.dup(copy))
        except OSError:
            os.close(copy)
            raise

    def base_copy(self, change: Change) -> int:
        """Open a copy of what stood at a path at the start. Raises OSError."""
        return os.open(self.stored.place / "base" / change.copy, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def texts(self, change: Change) -> tuple[bytes, bytes, bytes] | None:
        """Return base, ours and theirs; None where one of them is not there or too large. Raises OSError."""
        if not change.copy:
            return None
        base = safe_path.read_text(self.base_copy(change))
        ours, theirs = safe_path.read_text(self.our_file(change)), safe_path.read_text(self.their_file(change))
        return None if base is None or ours is None or theirs is None else (base, ours, theirs)


class MergeMethod(StrEnum):
    """What is to be done about a change; the first is the closed one."""

    CONFLICT = "conflict"
    LEFT_OUT = "left out"
    ALREADY = "already in"
    TAKE = "taken"
    MERGE = "merged"


class MergeResult(NamedTuple):
    """What is to be done, and why nothing is; `content` and `mode` are of a merged file."""

    way: MergeMethod
    why: str = ""
    content: bytes = b""
    mode: int = 0


def decide(change: Change, ours: Entry | None, inputs: MergeInputs) -> MergeResult:
    """Decide on one change. `ours` is what stands there now."""
    if change.kind is ChangeKind.LEFT_OUT:
        return MergeResult(MergeMethod.LEFT_OUT, "devices, sockets and FIFOs are not carried over")
    if _is_base(change, ours, inputs):
        return MergeResult(MergeMethod.TAKE)
    if _is_theirs(change, ours, inputs):
        return MergeResult(MergeMethod.ALREADY)
    base, theirs = change.base, change.theirs
    if not change.known or base is None or ours is None or theirs is None:
        return MergeResult(MergeMethod.CONFLICT, _one_sided(change, ours))
    if not ours.what is base.what is theirs.what is EntryType.FILE:
        return MergeResult(MergeMethod.CONFLICT, "both sides changed its type")
    return _merged(change, base, ours, theirs, inputs)


def _one_sided(change: Change, ours: Entry | None) -> str:
    if not change.known:
        return "its content at the start of the task is unknown"
    if ours is None:
        return "it was deleted from the workspace, and the task changed it"
    if change.theirs is None:
        return "it was changed in the workspace, and the task deleted it"
    return "the workspace and the task both created it"


def _is_base(change: Change, ours: Entry | None, inputs: MergeInputs) -> bool:
    base = change.base
    if not change.known or base is None or ours is None:
        return change.known and base is None and ours is None
    if base.what is not ours.what:
        return False
    if base.what is EntryType.DIRECTORY:
        return change.theirs is None or change.theirs.what is not EntryType.DIRECTORY or mode(base) == mode(ours)
    if base.what is EntryType.LINK:
        return base.target == ours.target
    if base.is_untouched(ours):
        return True
    alike = base.what is EntryType.FILE and change.digest and base.size == ours.size and mode(base) == mode(ours)
    return bool(alike) and change.digest == safe_path.digest(inputs.our_file(change))


def _is_theirs(change: Change, ours: Entry | None, inputs: MergeInputs) -> bool:
    theirs = change.theirs
    if ours is None or theirs is None:
        return ours is theirs
    if ours.what is not theirs.what:
        return False
    if ours.what is EntryType.DIRECTORY:
        return change.base is None or mode(ours) == mode(theirs)
    if ours.what is EntryType.LINK:
        return ours.target == theirs.target
    alike = ours.what is EntryType.FILE and ours.size == theirs.size and mode(ours) == mode(theirs)
    return alike and safe_path.digest(inputs.our_file(change)) == safe_path.digest(inputs.their_file(change))


def _merged(change: Change, base: Entry, ours: Entry, theirs: Entry, inputs: MergeInputs) -> MergeResult:
    if mode(base) not in (mode(ours), mode(theirs)) and mode(ours) != mode(theirs):
        return MergeResult(MergeMethod.CONFLICT, "both sides changed its mode")
    if not change.copy:
        return MergeResult(
            MergeMethod.CONFLICT, "both sides changed it, and there is no copy of what it was at the start"
        )
    texts = inputs.texts(change)
    if texts is None or not all(map(is_text, texts)):
        return MergeResult(MergeMethod.CONFLICT, "both sides changed it, and it can't be merged line by line")
    content = merge(*texts)
    if content is None:
        return MergeResult(MergeMethod.CONFLICT, "both sides changed the same lines")
    return MergeResult(MergeMethod.MERGE, "", content, mode(theirs) if mode(base) == mode(ours) else mode(ours))


class FileState(NamedTuple):
    """What stands at a path; empty: nothing does."""

    what: str = ""
    mode: int = 0
    content: str = ""  # SHA-256 of a file's, in hex; the target of a link
    size: int = 0  # bytes

    def said(self) -> str:
        """Say it in a few words, in which a link's target is quoted."""
        match self.what:
            case "":
                return ""
            case EntryType.LINK:
                return f"link to {shlex.quote(self.content)}"
            case EntryType.FILE:
                return f"file {self.mode:04o}, {self.size} {'byte' if self.size == 1 else 'bytes'}"
            case _:
                return f"{self.what} {self.mode:04o}"


NOTHING = FileState()


class ChangeDigest(NamedTuple):
    """What merging one change does."""

    path: str
    kind: str
    was: FileState  # in the workspace
    now: FileState  # once it is merged


def compute_current_digest(inputs: MergeInputs, change: Change) -> ChangeDigest | None:
    """Return what merging a change would do at this moment; None: nothing would be merged."""
    try:
        ours = inputs.ours(change)
        settled = decide(change, ours, inputs)
        if settled.way not in (MergeMethod.TAKE, MergeMethod.MERGE):
            return None
        taken = settled.way is MergeMethod.TAKE and change.theirs is not None and change.theirs.what is EntryType.FILE
        theirs = safe_path.digest(inputs.their_file(change)) if taken else ""
        return compute_change_digest(inputs, change, ours, settled, theirs)
    except OSError:
        return None  # what can't be read is not merged either


def compute_change_digest(
    inputs: MergeInputs, change: Change, ours: Entry | None, settled: MergeResult, theirs: str
) -> ChangeDigest:
    """Return what is about to be done; `theirs` is the SHA-256 of the file that is taken. Raises OSError."""
    was = NOTHING if ours is None else _thing(ours, lambda: safe_path.digest(inputs.our_file(change)))
    if settled.way is MergeMethod.MERGE:
        now = FileState(EntryType.FILE, settled.mode, safe_path.digest_of(settled.content), len(settled.content))
    else:
        now = NOTHING if change.theirs is None else _thing(change.theirs, lambda: theirs)
    return ChangeDigest(change.path, change.kind.value, was, now)


def compute_merge_digest(meta: "Meta", prints: Iterable[ChangeDigest]) -> str:
    """Return the SHA-256 of what would be merged, of which task and into which workspace, in hex."""
    found = hashlib.sha256(json.dumps([meta.id, meta.workspace, meta.device, meta.inode]).encode())
    for each in sorted(prints):
        found.update(b"\n" + json.dumps(each).encode())
    return found.hexdigest()


def _thing(entry: Entry, read: Callable[[], str]) -> FileState:
    if entry.what is EntryType.LINK:
        return FileState(EntryType.LINK, 0, entry.target)
    if entry.what is EntryType.FILE:
        return FileState(EntryType.FILE, mode(entry), read(), entry.size)
    return FileState(entry.what, mode(entry))
