"""One thing that a task changed, as a value: what stood at a path at the start, and what the task left there."""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from enforcer.workspace.beneath import MODE, Entry, What
from enforcer.workspace.snapshot import entry_of


class ChangeKind(StrEnum):
    """What kind of change it is."""

    LEFT_OUT = "left out"  # a device, a socket or a FIFO: shown, and never carried over
    ADDED = "added"
    CHANGED = "changed"
    MODE = "mode"
    DELETED = "deleted"


class Change(NamedTuple):
    """A change to one path. A rename is a path that is deleted and one that is added."""

    path: str  # relative to the workspace; bytes that are not UTF-8 as PEP 383 has them
    known: bool  # whether `base` is what stood there when the task started
    base: Entry | None
    theirs: Entry | None  # what the task left; None: nothing
    digest: str = ""  # SHA-256 of the base's content in hex, where it was read
    copy: str = ""  # the name of a copy of the base's content, where there is one

    @property
    def kind(self) -> ChangeKind:
        """What kind of change it is."""
        if self.theirs is None:
            return ChangeKind.DELETED
        if self.theirs.what not in _CARRIED:
            return ChangeKind.LEFT_OUT
        if self.base is None:
            return ChangeKind.ADDED
        is_mode = self.base.what is self.theirs.what is What.DIRECTORY
        return ChangeKind.MODE if is_mode else ChangeKind.CHANGED

    @property
    def leads_out(self) -> bool:
        """Whether it is a symbolic link that may lead out of the workspace: by a whole path, or up too far."""
        if self.theirs is None or self.theirs.what is not What.LINK:
            return False
        target = self.theirs.target
        if target.startswith("/"):
            return True
        # Whatever other links are on the way: a `..` behind the first name may start from anywhere.
        parts = target.split("/")
        ups = next((number for number, part in enumerate(parts) if part not in ("..", ".", "")), len(parts))
        above = sum(part == ".." for part in parts[:ups])
        return ".." in parts[ups:] or above > self.path.count("/")


_CARRIED = frozenset({What.FILE, What.LINK, What.DIRECTORY})


def mode(entry: Entry) -> int:
    """Return what of a mode counts."""
    return entry.mode & MODE if entry.what is not What.LINK else MODE


def read_change(fields: Sequence[Any]) -> Change:
    """Make a change of its fields, as JSON has them."""
    path, known, base, theirs, digest, copy = fields
    return Change(path, known, base and entry_of(base), theirs and entry_of(theirs), digest, copy)


def described(changes: Iterable[Change]) -> str:
    """Say how many changes of which kind there are."""
    counts = Counter(change.kind for change in changes)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
