"""Gather what a task changed once it has ended, while what it started from can still be told.

From here on the workspace may change as it likes. Of what the task changed, a copy of what stood there at the start is
kept if that still stands there untouched, or was copied in time (`copying`): with it, both sides can be merged.
"""

import errno
import os
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from enforcer.workspace import content, snapshot, upper
from enforcer.workspace.beneath import TOP, Tree, What
from enforcer.workspace.change import Change, mode
from enforcer.workspace.copying import Copy, copies, copy_one, untouched
from enforcer.workspace.kept import Kept, Meta

_PATH_MAX: Final = 4096  # bytes (limits.h), with the NUL
_ROOM: Final = 256 + 32  # for a name in a directory, and for the one that it is made under (`place`)


def gather(
    kept: Kept, workspace: Tree, wait: Callable[[], None] = lambda: None, most: int | None = None
) -> list[Change]:
    """Return every change, in the order of their paths, and keep them. `wait` waits for whoever makes the snapshot.

    `most`: how many the caller has memory for. The caller has locked `kept`. Raises OSError, ValueError, and E2BIG for
    more than that.
    """
    layer = upper.Upper(os.open(kept.upper, os.O_PATH | os.O_DIRECTORY))
    try:
        found: list[Change] = []
        if any(layer.entries(TOP)):
            wait()
            start = _snapshot(kept, workspace)
            every = upper.changes(layer, start, longest(kept.meta))
            everything = sorted(every if most is None else islice(every, most + 1), key=by_path)
            if most is not None and len(everything) > most:
                raise OSError(errno.E2BIG, f"they are more than {most}")
            early = copies(kept)
            compared = (_compared(change, kept, workspace, layer, early) for change in everything)
            found = [change for change in compared if change is not None]
        kept.record(found)
    finally:
        layer.close()
    (kept.place / "base.jsonl").unlink(missing_ok=True)
    return found


def longest(meta: Meta) -> int:
    """Return how many bytes the path of a directory may have in which something can be put in place."""
    return _PATH_MAX - len(os.fsencode(meta.workspace)) - _ROOM


def by_path(change: Change) -> bytes:
    """Return what changes are sorted by."""
    return os.fsencode(change.path)


def _snapshot(kept: Kept, workspace: Tree) -> snapshot.Snapshot:
    path = kept.place / "base.jsonl"
    if not path.exists():  # whoever made it was stopped: what was not touched since can still be told
        snapshot.write(workspace, kept.meta.start, path)
    with open(path, encoding="ascii") as file:
        return snapshot.read(file, kept.meta.start)


def _compared(change: Change, kept: Kept, workspace: Tree, layer: Tree, early: Mapping[str, Copy]) -> Change | None:
    """Return a change with what can be kept of what it began from; None where there is no difference to that."""
    base, theirs = change.base, change.theirs
    if base is None or theirs is None or base.what is not theirs.what or not change.known:
        return change
    if base.what is not What.FILE:
        return None if base.what is What.LINK and base.target == theirs.target else change
    is_alike = base.size == theirs.size and mode(base) == mode(theirs)
    if base.size > content.TEXT_AT_MOST:
        digest = untouched(kept, workspace, change.path, base, content.digest) if is_alike else None
        return None if digest is not None and digest == content.digest(layer.file(change.path)) else change
    copy = early.get(change.path) or copy_one(kept, workspace, change.path, base)
    if copy is None:
        return change
    is_same = is_alike and copy.digest == content.digest(layer.file(change.path))
    return None if is_same else change._replace(digest=copy.digest, copy=copy.name)
