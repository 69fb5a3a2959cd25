"""Whether a task's change can go into the workspace as that is now: three versions of one path, and what comes of them.

    what stands there now is      the task's change is
    what the task started from    taken
    what the task made            already in
    something else                merged where both are texts and the lines differ, else a conflict

A conflict changes nothing: both versions stay. What the task started from is sometimes not known (`snapshot`); then it
counts as something else.
"""

from enum import StrEnum
from typing import NamedTuple, Protocol

from enforcer.workspace.beneath import Entry, What
from enforcer.workspace.change import Change, ChangeKind, mode
from enforcer.workspace.content import is_text
from enforcer.workspace.lines import merge


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


class Versions(Protocol):
    """The three versions of a file, read only when they are needed. Each may raise OSError."""

    def our_digest(self) -> str:
        """Return the SHA-256 of what stands there now."""

    def their_digest(self) -> str:
        """Return the SHA-256 of what the task left."""

    def texts(self) -> tuple[bytes, bytes, bytes] | None:
        """Return base, ours and theirs; None where one of them is not there or too large."""


def decide(change: Change, ours: Entry | None, versions: Versions) -> Settled:
    """Decide on one change. `ours` is what stands there now."""
    if change.kind is ChangeKind.LEFT_OUT:
        return Settled(Way.LEFT_OUT, "devices, sockets and FIFOs are not carried over")
    if _is_base(change, ours, versions):
        return Settled(Way.TAKE)
    if _is_theirs(change, ours, versions):
        return Settled(Way.ALREADY)
    base, theirs = change.base, change.theirs
    if not change.known or base is None or ours is None or theirs is None:
        return Settled(Way.CONFLICT, _one_sided(change, ours))
    if not ours.what is base.what is theirs.what is What.FILE:
        return Settled(Way.CONFLICT, "both sides made something else of it")
    return _merged(change, base, ours, theirs, versions)


def _one_sided(change: Change, ours: Entry | None) -> str:
    if not change.known:
        return "it can't be told what stood there when the task started"
    if ours is None:
        return "it is gone from the workspace, and the task changed it"
    if change.theirs is None:
        return "it was changed in the workspace, and the task deleted it"
    return "it is in the workspace by now, and the task made another"


def _is_base(change: Change, ours: Entry | None, versions: Versions) -> bool:
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
    return bool(alike) and change.digest == versions.our_digest()


def _is_theirs(change: Change, ours: Entry | None, versions: Versions) -> bool:
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
    return alike and versions.our_digest() == versions.their_digest()


def _merged(change: Change, base: Entry, ours: Entry, theirs: Entry, versions: Versions) -> Settled:
    if mode(base) not in (mode(ours), mode(theirs)) and mode(ours) != mode(theirs):
        return Settled(Way.CONFLICT, "both sides changed its mode")
    if not change.copy:
        return Settled(Way.CONFLICT, "both sides changed it, and there is no copy of what it was at the start")
    texts = versions.texts()
    if texts is None or not all(map(is_text, texts)):
        return Settled(Way.CONFLICT, "both sides changed it, and it can't be merged line by line")
    content = merge(*texts)
    if content is None:
        return Settled(Way.CONFLICT, "both sides changed the same lines")
    return Settled(Way.MERGE, "", content, mode(theirs) if mode(base) == mode(ours) else mode(ours))
