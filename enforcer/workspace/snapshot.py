"""What a workspace was like when a task started: every name in it, with what tells whether it was touched since.

No content is read, so it takes a second for 100,000 files; and it is written beside the running task, which can't touch
the workspace, so no start waits for it. What somebody else did meanwhile is not mistaken for how it was at the start:
the kernel sets a file's ctime at every write, link and rename, and to no other time than its own. So what lies at a
path now lay there at the start if its own ctime and that of every directory on the way is older. What is not, is
unknown.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from enforcer.workspace.safe_path import TOP, Entry, Tree, What, joined
from proxy.wire import strict_json


class Listing(NamedTuple):
    """The names in one directory."""

    is_here: bool  # this very directory stood at this path at the start
    is_whole: bool  # and no name in it has come or gone since
    entries: dict[str, Entry]


class Known(NamedTuple):
    """What stood at a path at the start; `known` is False where that can't be said, whatever `entry` is."""

    known: bool
    entry: Entry | None


class Snapshot:
    """What was there at the start."""

    def __init__(self, start: int, lines: dict[str, str]) -> None:
        """Take a line of JSON for each directory, by path, and the ctime (ns) of a file made at the start."""
        self._start = start
        self._lines = lines
        self._listings: dict[str, Listing] = {}  # that were asked for: of a large tree few are

    def lookup(self, path: str) -> Known:
        """Return what stood at a path."""
        above, _, name = path.rpartition("/")
        listing = self._listing(above or TOP)
        if listing is None:
            known, entry = self.lookup(above) if above else Known(known=False, entry=None)
            return Known(known and (entry is None or entry.what is not What.DIRECTORY), None)
        entry = listing.entries.get(name)
        if entry is None:
            return Known(listing.is_whole, None)
        return Known(listing.is_here and entry.changed < self._start, entry)

    def below(self, path: str) -> Iterator[str]:
        """Yield the path of every name below a directory, what is in a directory after the directory."""
        pending = [path]
        while pending:
            above = pending.pop()
            listing = self._listing(above)
            for name, entry in listing.entries.items() if listing is not None else ():
                inner = joined(above, name)
                yield inner
                if entry.what is What.DIRECTORY:
                    pending.append(inner)

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in a directory."""
        listing = self._listing(path)
        return () if listing is None else tuple(listing.entries)

    def _listing(self, path: str) -> Listing | None:
        line = self._lines.pop(path, None)
        if line is not None:
            self._listings[path] = msgspec.convert(strict_json.loads(line)[1:], Listing)
        return self._listings.get(path)


def walk(tree: Tree, start: int) -> Iterator[tuple[str, Listing]]:
    """Yield every directory that can be listed."""
    pending = [(TOP, True)]
    while pending:
        path, is_here = pending.pop()
        try:
            entries = dict(tree.entries(path))
            above = tree.directory(path)
        except OSError:
            continue  # not to be listed: so nothing in it is known
        changed = os.fstat(above).st_ctime_ns  # after it was listed
        os.close(above)
        if path != TOP:
            is_here = is_here and changed < start
        yield path, Listing(is_here, is_here and changed < start, entries)
        for name, entry in entries.items():
            if entry.what is What.DIRECTORY:
                pending.append((joined(path, name), is_here))


def write(tree: Tree, start: int, to: Path) -> None:
    """Write a snapshot to a file that is there only when it is complete. Raises OSError."""
    unfinished = to.with_suffix(".unfinished")
    with open(unfinished, "w", encoding="ascii") as file:
        file.writelines(json.dumps([path, *listing]) + "\n" for path, listing in walk(tree, start))
    unfinished.rename(to)


def read(file: IO[str], start: int) -> Snapshot:
    """Read a snapshot. Raises ValueError, or OSError."""
    scan = json.JSONDecoder().raw_decode
    return Snapshot(start, {scan(line, 1)[0]: line for line in file})
