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
def open_workspace(stored: StoredChanges) -> Iterator[Tree]:
    """Open the workspace that the changes belong to. Raises HostError if it is another directory now."""
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
    """The three versions of each change: base, workspace and task. The caller closes the files that this opens."""

    def __init__(self, stored: StoredChanges, workspace: Tree | None, upper: UpperLayer) -> None:
        """Take an open workspace and upper layer."""
        self.stored = stored
        self._workspace = workspace
        self._upper = upper

    @classmethod
    @contextlib.contextmanager
    def open(cls, stored: StoredChanges, *, read_only: bool = False) -> Iterator[Self]:
        """Open them. Raises HostError; with `read_only`, the workspace may be gone."""
        with contextlib.ExitStack() as stack:
            workspace = None
            try:
                workspace = stack.enter_context(open_workspace(stored))
            except HostError:
                if not read_only:
                    raise
            upper = UpperLayer(os.open(stored.upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(upper.close)
            yield cls(stored, workspace, upper)

    @property
    def workspace(self) -> Tree:
        """The workspace as it is now. Raises OSError if it is gone."""
        if self._workspace is None:
            raise OSError(errno.ENOENT, "the workspace no longer exists")
        return self._workspace

    def acting(self) -> contextlib.AbstractContextManager[None]:
        """Read and write in the workspace as its owner."""
        return acting_as(self.stored.meta.uid, self.stored.meta.gid)

    def current(self, change: Change) -> Entry | None:
        """Return the workspace's entry at the path of a change; None if there is none. Raises OSError."""
        with self.acting():
            return self.workspace.stat(change.path)

    def open_current(self, change: Change) -> int:
        """Open the workspace's file. Raises OSError."""
        with self.acting():
            return self.workspace.file(change.path)

    def open_new(self, change: Change) -> int:
        """Open the task's file. Raises OSError."""
        return self._upper.file(change.path)

    def staged_copy(self, change: Change) -> tuple[int, str]:
        """Copy the task's file to where nobody else can write; returns the open copy and its SHA-256.

        Raises OSError.
        """
        source = self.open_new(change)
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
        """Open the copy of the file at the start. Raises OSError."""
        return os.open(self.stored.place / "base" / change.copy, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def texts(self, change: Change) -> tuple[bytes, bytes, bytes] | None:
        """Return the texts of base, workspace and task; None if one is missing or too large. Raises OSError."""
        if not change.copy:
            return None
        base = safe_path.read_text(self.base_copy(change))
        current_text, theirs = (
            safe_path.read_text(self.open_current(change)),
            safe_path.read_text(self.open_new(change)),
        )
        return None if base is None or current_text is None or theirs is None else (base, current_text, theirs)


class MergeMethod(StrEnum):
    """What a merge does with a change; the first is the default and merges nothing."""

    CONFLICT = "conflict"
    LEFT_OUT = "left out"
    ALREADY = "already in"
    TAKE = "taken"
    MERGE = "merged"


class MergeResult(NamedTuple):
    """Decision on one change, and the reason if it is not merged; `content` and `mode` are of a merged file."""

    method: MergeMethod
    reason: str = ""
    content: bytes = b""
    mode: int = 0


def decide(change: Change, current_entry: Entry | None, inputs: MergeInputs) -> MergeResult:
    """Decide on one change. `current_entry`: the workspace's entry."""
    if change.kind is ChangeKind.LEFT_OUT:
        return MergeResult(MergeMethod.LEFT_OUT, "devices, sockets and FIFOs are not carried over")
    if _is_base(change, current_entry, inputs):
        return MergeResult(MergeMethod.TAKE)
    if _is_theirs(change, current_entry, inputs):
        return MergeResult(MergeMethod.ALREADY)
    base, theirs = change.base, change.theirs
    if not change.known or base is None or current_entry is None or theirs is None:
        return MergeResult(MergeMethod.CONFLICT, _explain_conflict(change, current_entry))
    if not current_entry.what is base.what is theirs.what is EntryType.FILE:
        return MergeResult(MergeMethod.CONFLICT, "both sides changed its type")
    return _merge_texts(change, base, current_entry, theirs, inputs)


def _explain_conflict(change: Change, current_entry: Entry | None) -> str:
    if not change.known:
        return "its content at the start of the task is unknown"
    if current_entry is None:
        return "it was deleted from the workspace, and the task changed it"
    if change.theirs is None:
        return "it was changed in the workspace, and the task deleted it"
    return "the workspace and the task both created it"


def _is_base(change: Change, current_entry: Entry | None, inputs: MergeInputs) -> bool:
    base = change.base
    if not change.known or base is None or current_entry is None:
        return change.known and base is None and current_entry is None
    if base.what is not current_entry.what:
        return False
    if base.what is EntryType.DIRECTORY:
        return (
            change.theirs is None or change.theirs.what is not EntryType.DIRECTORY or mode(base) == mode(current_entry)
        )
    if base.what is EntryType.LINK:
        return base.target == current_entry.target
    if base.is_untouched(current_entry):
        return True
    may_be_same = (
        base.what is EntryType.FILE
        and change.digest
        and base.size == current_entry.size
        and mode(base) == mode(current_entry)
    )
    return bool(may_be_same) and change.digest == safe_path.digest(inputs.open_current(change))


def _is_theirs(change: Change, current_entry: Entry | None, inputs: MergeInputs) -> bool:
    theirs = change.theirs
    if current_entry is None or theirs is None:
        return current_entry is theirs
    if current_entry.what is not theirs.what:
        return False
    if current_entry.what is EntryType.DIRECTORY:
        return change.base is None or mode(current_entry) == mode(theirs)
    if current_entry.what is EntryType.LINK:
        return current_entry.target == theirs.target
    may_be_same = (
        current_entry.what is EntryType.FILE
        and current_entry.size == theirs.size
        and mode(current_entry) == mode(theirs)
    )
    return may_be_same and safe_path.digest(inputs.open_current(change)) == safe_path.digest(inputs.open_new(change))


def _merge_texts(change: Change, base: Entry, current_entry: Entry, theirs: Entry, inputs: MergeInputs) -> MergeResult:
    if mode(base) not in (mode(current_entry), mode(theirs)) and mode(current_entry) != mode(theirs):
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
    return MergeResult(
        MergeMethod.MERGE, "", content, mode(theirs) if mode(base) == mode(current_entry) else mode(current_entry)
    )


class FileState(NamedTuple):
    """State of a path; empty if nothing is there."""

    what: str = ""
    mode: int = 0
    content: str = ""  # SHA-256 of a file's, in hex; the target of a link
    size: int = 0  # bytes

    def describe(self) -> str:
        """Describe it in a few words; the target of a link is quoted."""
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
        current_entry = inputs.current(change)
        decision = decide(change, current_entry, inputs)
        if decision.method not in (MergeMethod.TAKE, MergeMethod.MERGE):
            return None
        is_file_taken = (
            decision.method is MergeMethod.TAKE and change.theirs is not None and change.theirs.what is EntryType.FILE
        )
        theirs = safe_path.digest(inputs.open_new(change)) if is_file_taken else ""
        return compute_change_digest(inputs, change, current_entry, decision, theirs)
    except OSError:
        return None  # what can't be read is not merged either


def compute_change_digest(
    inputs: MergeInputs, change: Change, current_entry: Entry | None, decision: MergeResult, theirs: str
) -> ChangeDigest:
    """Return what merging a change does; `theirs`: the SHA-256 of the file that is taken. Raises OSError."""
    was = (
        NOTHING
        if current_entry is None
        else _file_state(current_entry, lambda: safe_path.digest(inputs.open_current(change)))
    )
    if decision.method is MergeMethod.MERGE:
        now = FileState(EntryType.FILE, decision.mode, safe_path.digest_of(decision.content), len(decision.content))
    else:
        now = NOTHING if change.theirs is None else _file_state(change.theirs, lambda: theirs)
    return ChangeDigest(change.path, change.kind.value, was, now)


def compute_merge_digest(meta: "Meta", digests: Iterable[ChangeDigest]) -> str:
    """Return the SHA-256 of what would be merged, of which task and into which workspace, in hex."""
    digest = hashlib.sha256(json.dumps([meta.id, meta.workspace, meta.device, meta.inode]).encode())
    for change_digest in sorted(digests):
        digest.update(b"\n" + json.dumps(change_digest).encode())
    return digest.hexdigest()


def _file_state(entry: Entry, read: Callable[[], str]) -> FileState:
    if entry.what is EntryType.LINK:
        return FileState(EntryType.LINK, 0, entry.target)
    if entry.what is EntryType.FILE:
        return FileState(EntryType.FILE, mode(entry), read(), entry.size)
    return FileState(entry.what, mode(entry))
