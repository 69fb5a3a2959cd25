"""What merging one change does, exactly, as a value: an approval is for these and for nothing else.

Home of what a digest of changes covers: where they go, and of every path what stands there now and what is to. One byte
of either, a mode or a target that is another makes another digest, and so another question.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from enforcer.workspace import content
from enforcer.workspace.beneath import Entry, What
from enforcer.workspace.change import mode
from enforcer.workspace.decide import Settled, Way, decide
from enforcer.workspace.sides import Sides, Versions

if TYPE_CHECKING:
    from enforcer.workspace.change import Change
    from enforcer.workspace.kept import Meta


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


def look(sides: Sides, change: "Change") -> Print | None:
    """Return what merging a change would do at this moment; None: nothing would be merged."""
    try:
        ours = sides.ours(change)
        settled = decide(change, ours, Versions(sides, change))
        if settled.way not in (Way.TAKE, Way.MERGE):
            return None
        taken = settled.way is Way.TAKE and change.theirs is not None and change.theirs.what is What.FILE
        theirs = content.digest(sides.their_file(change)) if taken else ""
        return of(sides, change, ours, settled, theirs)
    except OSError:
        return None  # what can't be read is not merged either


def of(sides: Sides, change: "Change", ours: Entry | None, settled: Settled, theirs: str) -> Print:
    """Return what is about to be done; `theirs` is the SHA-256 of the file that is taken. Raises OSError."""
    was = NOTHING if ours is None else _thing(ours, lambda: content.digest(sides.our_file(change)))
    if settled.way is Way.MERGE:
        now = Thing(What.FILE, settled.mode, content.digest_of(settled.content), len(settled.content))
    else:
        now = NOTHING if change.theirs is None else _thing(change.theirs, lambda: theirs)
    return Print(change.path, change.kind.value, was, now)


def digest(meta: "Meta", prints: Iterable[Print]) -> str:
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
