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
from enforcer.workspace import file_content
from enforcer.workspace.change_store import Change, ChangeKind, Kept, mode
from enforcer.workspace.diff import merge
from enforcer.workspace.file_content import is_text
from enforcer.workspace.overlay_changes import Upper
from enforcer.workspace.safe_path import Entry, Tree, What, acting_as

if TYPE_CHECKING:
    from enforcer.workspace.change_store import Meta


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


class Way(StrEnum):
    """What is to be done about a change; the first is the closed one."""

    CONFLICT = "conflict"
    LEFT_OUT = "left out"
    ALREADY = "already in"
    TAKE = "taken"
    MERGE = "merged"


class Settled(NamedTuple):
    """What is to be done, and why nothing is; `content` and `mode` are of a merged file."""

    way: Way
    why: str = ""
    content: bytes = b""
    mode: int = 0


def decide(change: Change, ours: Entry | None, sides: Sides) -> Settled:
    """Decide on one change. `ours` is what stands there now."""
    if change.kind is ChangeKind.LEFT_OUT:
        return Settled(Way.LEFT_OUT, "devices, sockets and FIFOs are not carried over")
    if _is_base(change, ours, sides):
        return Settled(Way.TAKE)
    if _is_theirs(change, ours, sides):
        return Settled(Way.ALREADY)
    base, theirs = change.base, change.theirs
    if not change.known or base is None or ours is None or theirs is None:
        return Settled(Way.CONFLICT, _one_sided(change, ours))
    if not ours.what is base.what is theirs.what is What.FILE:
        return Settled(Way.CONFLICT, "both sides made something else of it")
    return _merged(change, base, ours, theirs, sides)


def _one_sided(change: Change, ours: Entry | None) -> str:
    if not change.known:
        return "it can't be told what stood there when the task started"
    if ours is None:
        return "it is gone from the workspace, and the task changed it"
    if change.theirs is None:
        return "it was changed in the workspace, and the task deleted it"
    return "it is in the workspace by now, and the task made another"


def _is_base(change: Change, ours: Entry | None, sides: Sides) -> bool:
    base = change.base
    if not change.known or base is None or ours is None:
        return change.known and base is None and ours is None
    if base.what is not ours.what:
        return False
    if base.what is What.DIRECTORY:
        return change.theirs is None or change.theirs.what is not What.DIRECTORY or mode(base) == mode(ours)
    if base.what is What.LINK:
        return base.target == ours.target
    if base.is_untouched(ours):
        return True
    alike = base.what is What.FILE and change.digest and base.size == ours.size and mode(base) == mode(ours)
    return bool(alike) and change.digest == file_content.digest(sides.our_file(change))


def _is_theirs(change: Change, ours: Entry | None, sides: Sides) -> bool:
    theirs = change.theirs
    if ours is None or theirs is None:
        return ours is theirs
    if ours.what is not theirs.what:
        return False
    if ours.what is What.DIRECTORY:
        return change.base is None or mode(ours) == mode(theirs)
    if ours.what is What.LINK:
        return ours.target == theirs.target
    alike = ours.what is What.FILE and ours.size == theirs.size and mode(ours) == mode(theirs)
    return alike and file_content.digest(sides.our_file(change)) == file_content.digest(sides.their_file(change))


def _merged(change: Change, base: Entry, ours: Entry, theirs: Entry, sides: Sides) -> Settled:
    if mode(base) not in (mode(ours), mode(theirs)) and mode(ours) != mode(theirs):
        return Settled(Way.CONFLICT, "both sides changed its mode")
    if not change.copy:
        return Settled(Way.CONFLICT, "both sides changed it, and there is no copy of what it was at the start")
    texts = sides.texts(change)
    if texts is None or not all(map(is_text, texts)):
        return Settled(Way.CONFLICT, "both sides changed it, and it can't be merged line by line")
    content = merge(*texts)
    if content is None:
        return Settled(Way.CONFLICT, "both sides changed the same lines")
    return Settled(Way.MERGE, "", content, mode(theirs) if mode(base) == mode(ours) else mode(ours))


class Thing(NamedTuple):
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
            case What.LINK:
                return f"link to {shlex.quote(self.content)}"
            case What.FILE:
                return f"file {self.mode:04o}, {self.size} {'byte' if self.size == 1 else 'bytes'}"
            case _:
                return f"{self.what} {self.mode:04o}"


NOTHING = Thing()


class Print(NamedTuple):
    """What merging one change does."""

    path: str
    kind: str
    was: Thing  # in the workspace
    now: Thing  # once it is merged


def print_now(sides: Sides, change: Change) -> Print | None:
    """Return what merging a change would do at this moment; None: nothing would be merged."""
    try:
        ours = sides.ours(change)
        settled = decide(change, ours, sides)
        if settled.way not in (Way.TAKE, Way.MERGE):
            return None
        taken = settled.way is Way.TAKE and change.theirs is not None and change.theirs.what is What.FILE
        theirs = file_content.digest(sides.their_file(change)) if taken else ""
        return print_of(sides, change, ours, settled, theirs)
    except OSError:
        return None  # what can't be read is not merged either


def print_of(sides: Sides, change: Change, ours: Entry | None, settled: Settled, theirs: str) -> Print:
    """Return what is about to be done; `theirs` is the SHA-256 of the file that is taken. Raises OSError."""
    was = NOTHING if ours is None else _thing(ours, lambda: file_content.digest(sides.our_file(change)))
    if settled.way is Way.MERGE:
        now = Thing(What.FILE, settled.mode, file_content.digest_of(settled.content), len(settled.content))
    else:
        now = NOTHING if change.theirs is None else _thing(change.theirs, lambda: theirs)
    return Print(change.path, change.kind.value, was, now)


def digest_of(meta: "Meta", prints: Iterable[Print]) -> str:
    """Return the SHA-256 of what would be merged, of which task and into which workspace, in hex."""
    found = hashlib.sha256(json.dumps([meta.id, meta.workspace, meta.device, meta.inode]).encode())
    for each in sorted(prints):
        found.update(b"\n" + json.dumps(each).encode())
    return found.hexdigest()


def _thing(entry: Entry, read: Callable[[], str]) -> Thing:
    if entry.what is What.LINK:
        return Thing(What.LINK, 0, entry.target)
    if entry.what is What.FILE:
        return Thing(What.FILE, mode(entry), read(), entry.size)
    return Thing(entry.what, mode(entry))
