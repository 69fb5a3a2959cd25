"""Gather what a task changed once it has ended, while what it started from can still be told.

From here on the workspace may change as it likes. Of what the task changed, a copy of what stood there at the start is
kept if that still stands there untouched: with it, both sides' changes can be merged later.
"""

import os
from collections.abc import Callable
from typing import Final

from enforcer.changes import content, snapshot, upper
from enforcer.changes.acting import acting_as
from enforcer.changes.beneath import TOP, Entry, Tree, What
from enforcer.changes.change import Change, mode
from enforcer.changes.kept import Kept

_PATH_MAX: Final = 4096  # bytes (limits.h), with the NUL
_ROOM: Final = 256 + 32  # for a name in a directory, and for the one that it is made under (`place`)


def gather(kept: Kept, workspace: Tree, wait: Callable[[], None] = lambda: None) -> list[Change]:
    """Return every change, in the order of their paths, and keep them. `wait` is for whoever makes the snapshot.

    The caller has locked `kept`. Raises OSError, ValueError.
    """
    layer = upper.Upper(os.open(kept.upper, os.O_PATH | os.O_DIRECTORY))
    try:
        found: list[Change] = []
        if any(layer.entries(TOP)):
            wait()
            start = _snapshot(kept, workspace)
            longest = _PATH_MAX - len(os.fsencode(kept.meta.workspace)) - _ROOM
            everything = sorted(upper.changes(layer, start, longest), key=lambda change: os.fsencode(change.path))
            for change in everything:
                compared = _compared(change, kept, workspace, layer, str(len(found)))
                if compared is not None:
                    found.append(compared)
        kept.record(found)
    finally:
        layer.close()
    (kept.place / "base.jsonl").unlink(missing_ok=True)
    return found


def _snapshot(kept: Kept, workspace: Tree) -> snapshot.Snapshot:
    path = kept.place / "base.jsonl"
    if not path.exists():  # whoever made it was stopped: what was not touched since can still be told
        snapshot.write(workspace, kept.meta.start, path)
    with open(path, encoding="ascii") as file:
        return snapshot.read(file, kept.meta.start)


def _compared(change: Change, kept: Kept, workspace: Tree, layer: Tree, name: str) -> Change | None:
    """Return a change with what can be kept of what it began from; None where there is no difference to that."""
    base, theirs = change.base, change.theirs
    if base is None or theirs is None or base.what is not theirs.what or not change.known:
        return change
    if base.what is not What.FILE:
        return None if base.what is What.LINK and base.target == theirs.target else change
    is_alike = base.size == theirs.size and mode(base) == mode(theirs)
    if base.size > content.TEXT_AT_MOST:
        is_same = is_alike and _untouched(change, base, kept, workspace, content.digest) == _theirs(change, layer)
        return None if is_same else change
    old = _untouched(change, base, kept, workspace, content.whole)
    if old is None:
        return change
    digest = content.digest_of(old)
    if is_alike and digest == _theirs(change, layer):
        return None
    (kept.place / "base" / name).write_bytes(old)
    return change._replace(digest=digest, copy=name)


def _theirs(change: Change, layer: Tree) -> str:
    return content.digest(layer.file(change.path))


def _untouched[T](
    change: Change, base: Entry, kept: Kept, workspace: Tree, read: Callable[[int], T | None]
) -> T | None:
    """Read what stood at a path at the start; None where something was done to it since, or it can't be read."""
    try:
        with acting_as(kept.meta.uid, kept.meta.gid):
            before = workspace.look(change.path)
            found = read(workspace.file(change.path))
            after = workspace.look(change.path)
    except OSError:
        return None
    return found if base.is_untouched(before) and base.is_untouched(after) else None
