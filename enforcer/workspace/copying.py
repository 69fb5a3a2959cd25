"""Copy what a task is about to make another of, while it runs: what somebody edits later can be merged all the same.

A look every second or so at what the task has changed by then; whatever of that still stands in the workspace as it was
at the start is copied. What was edited before the look stays without a copy, and is a conflict: never a guess.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from enforcer.workspace import content, snapshot
from enforcer.workspace.acting import acting_as
from enforcer.workspace.beneath import TOP, Entry, Tree, What, joined
from enforcer.workspace.kept import Kept

_EVERY: Final = 1.0  # seconds
_SHARE: Final = 20  # a look takes no more than this part of the time
_FILE: Final = "copies.jsonl"


class Copy(NamedTuple):
    """A copy of a file as it was at the start: its name among the copies, and its SHA-256."""

    name: str
    digest: str


def keep(kept: Kept, workspace: Tree, layer: Tree) -> None:
    """Copy until killed. Raises OSError, ValueError."""
    with open(kept.place / "base.jsonl", encoding="ascii") as file:
        start = snapshot.read(file, kept.meta.start)
    seen: set[str] = set()
    while True:
        began = time.monotonic()
        for path, base in _changed(layer, start, seen):
            seen.add(path)
            copy_one(kept, workspace, path, base)
        time.sleep(max(_EVERY, _SHARE * (time.monotonic() - began)))


def copy_one(kept: Kept, workspace: Tree, path: str, base: Entry) -> Copy | None:
    """Copy what stands at a path if it is what stood there at the start. Raises OSError where it can't be kept."""
    old = untouched(kept, workspace, path, base, content.whole)
    if old is None:
        return None
    copy = Copy(content.digest_of(os.fsencode(path)), content.digest_of(old))
    (kept.place / "base" / copy.name).write_bytes(old)
    with open(kept.place / _FILE, "a", encoding="ascii") as file:
        file.write(json.dumps([path, *copy]) + "\n")
    return copy


def copies(kept: Kept) -> dict[str, Copy]:
    """Return what was copied, by path."""
    return {str(path): Copy(str(name), str(digest)) for path, name, digest in kept.lines(_FILE)}


def untouched[T](kept: Kept, workspace: Tree, path: str, base: Entry, read: Callable[[int], T | None]) -> T | None:
    """Read what stood at a path at the start; None where something was done to it since, or it can't be read."""
    try:
        with acting_as(kept.meta.uid, kept.meta.gid):
            before = workspace.look(path)
            found = read(workspace.file(path))
            after = workspace.look(path)
    except OSError:
        return None
    return found if base.is_untouched(before) and base.is_untouched(after) else None


def _changed(layer: Tree, start: snapshot.Snapshot, seen: set[str]) -> Iterator[tuple[str, Entry]]:
    """Yield what the task has changed of files that were there and aren't too large; not twice."""
    pending = [TOP]
    while pending:
        above = pending.pop()
        try:
            entries = list(layer.entries(above))
        except OSError:
            continue  # gone again, or closed by the task: at the end it is opened
        for name, entry in entries:
            path = joined(above, name)
            known, base = start.lookup(path)
            if not known or base is None:
                continue
            if entry.what is base.what is What.DIRECTORY:
                pending.append(path)
            elif entry.what is base.what is What.FILE and path not in seen and base.size <= content.TEXT_AT_MOST:
                yield path, base
