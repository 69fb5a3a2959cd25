"""Changes of a reviewed task, gathered from its overlay's upper layer, with copies of what they began from.

The kernel writes the layer (Documentation/filesystems/overlayfs.rst): a character device 0/0 is a *whiteout*, a name
that is gone; a directory with the attribute `user.overlay.opaque` shows nothing of the one below. A task can forge
neither: mknod(2) of that device and RENAME_WHITEOUT are refused on an overlay, and its attributes of that name are kept
under another (or refused, before Linux 6.7).

While the task runs, `keep` looks every second or so at what it has changed by then, and copies whatever of that still
stands in the workspace as it was at the start. With a copy both sides can be merged. What was edited before that look
has none, and is a conflict: never a guess. From `gather` on, the workspace may change as it likes.

A `Snapshot` has what the workspace was like at the start: no content is read, so it takes a second for 100,000 files;
and it is written beside the running task, which can't touch the workspace, so no start waits for it. What somebody else
did meanwhile is not mistaken for how it was at the start: the kernel sets a file's ctime at every write, link and
rename, and to no other time than its own. So what lies at a path now lay there at the start if its own ctime and that
of every directory on the way is older. What is not, is unknown.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from enforcer.workspace import safe_path
from enforcer.workspace.change_store import Change, Meta, StoredChanges, mode
from enforcer.workspace.safe_path import TOP, Entry, EntryType, Tree, acting_as, join_path
from proxy.wire import strict_json


class Listing(NamedTuple):
    """The names in one directory."""

    is_here: bool  # this very directory stood at this path at the start
    is_whole: bool  # and no name in it has come or gone since
    entries: dict[str, Entry]


class KnownFile(NamedTuple):
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

    def lookup(self, path: str) -> KnownFile:
        """Return what stood at a path."""
        above, _, name = path.rpartition("/")
        listing = self._listing(above or TOP)
        if listing is None:
            known, entry = self.lookup(above) if above else KnownFile(known=False, entry=None)
            return KnownFile(known and (entry is None or entry.what is not EntryType.DIRECTORY), None)
        entry = listing.entries.get(name)
        if entry is None:
            return KnownFile(listing.is_whole, None)
        return KnownFile(listing.is_here and entry.changed < self._start, entry)

    def below(self, path: str) -> Iterator[str]:
        """Yield the path of every name below a directory, what is in a directory after the directory."""
        pending = [path]
        while pending:
            above = pending.pop()
            listing = self._listing(above)
            for name, entry in listing.entries.items() if listing is not None else ():
                inner = join_path(above, name)
                yield inner
                if entry.what is EntryType.DIRECTORY:
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
            if entry.what is EntryType.DIRECTORY:
                pending.append((join_path(path, name), is_here))


def write_snapshot(tree: Tree, start: int, to: Path) -> None:
    """Write a snapshot to a file that is there only when it is complete. Raises OSError."""
    unfinished = to.with_suffix(".unfinished")
    with open(unfinished, "w", encoding="ascii") as file:
        file.writelines(json.dumps([path, *listing]) + "\n" for path, listing in walk(tree, start))
    unfinished.rename(to)


def read_snapshot(file: IO[str], start: int) -> Snapshot:
    """Read a snapshot. Raises ValueError, or OSError."""
    scan = json.JSONDecoder().raw_decode
    return Snapshot(start, {scan(line, 1)[0]: line for line in file})


_OPAQUE: Final = "user.overlay.opaque"
_EVERY: Final = 1.0  # seconds
_SHARE: Final = 20  # a look takes no more than this part of the time
_FILE: Final = "copies.jsonl"
_PATH_MAX: Final = 4096  # bytes (limits.h), with the NUL
_ROOM: Final = 256 + 32  # for a name in a directory, and for the one that it is made under (`place`)


class UpperLayer(Tree):
    """An upper layer. Its files are ours: what can't be opened for the mode a task gave it is given another."""

    def _open(self, path: str, flags: int) -> int:
        try:
            return super()._open(path, flags)
        except PermissionError:
            self._unlock(path)
            return super()._open(path, flags)

    def file(self, path: str) -> int:
        """Open a regular file for reading, as any tree does."""
        try:
            return super().file(path)
        except PermissionError:
            place = self._open(path, os.O_PATH)
            try:
                os.chmod(f"/proc/self/fd/{place}", os.fstat(place).st_mode & 0o7777 | 0o400)
            finally:
                os.close(place)
            return super().file(path)

    def _unlock(self, path: str) -> None:
        parts = path.split("/")
        _open_up(self.descriptor)  # a lookup of `.` is refused as well where it can't be searched
        for depth in range(1, len(parts) + 1):
            place = super()._open("/".join(parts[:depth]), os.O_PATH)
            try:
                _open_up(place)
            finally:
                os.close(place)

    def is_opaque(self, path: str) -> bool:
        """Whether a directory shows nothing of the one below."""
        directory = self.directory(path)
        try:
            return os.getxattr(directory, _OPAQUE) == b"y"
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise
        finally:
            os.close(directory)


def _open_up(place: int) -> None:
    found = os.fstat(place).st_mode & 0o7777
    if found & 0o700 != 0o700:
        os.chmod(f"/proc/self/fd/{place}", found | 0o700)


def changes(upper: UpperLayer, snapshot: Snapshot, longest: int) -> Iterator[Change]:
    """Yield every change, in no order. Contents are not compared: a file that was only touched is among them.

    A directory that can't be read, or whose path has more than `longest` bytes, is a change that is left out: its
    content can't be opened.
    """
    pending = [(TOP, False)]
    while pending:
        above, hidden = pending.pop()
        try:
            entries = dict(upper.entries(above)) if len(os.fsencode(above)) <= longest else None
            hidden = hidden or upper.is_opaque(above)
        except OSError:
            entries = None
        if entries is None:
            yield Change(above, False, None, Entry(EntryType.OTHER, 0, 0))
            continue
        for name, entry in entries.items():
            path = join_path(above, name)
            known, base = snapshot.lookup(path)
            is_directory = base is not None and base.what is EntryType.DIRECTORY
            if entry.what is not EntryType.DIRECTORY:
                if is_directory:
                    yield from _all_gone(snapshot, path)
                yield Change(path, known, base, None if entry.what is EntryType.WHITEOUT else entry)
                continue
            if base is None or not is_directory or mode(base) != mode(entry):
                yield Change(path, known, base, entry)
            pending.append((path, hidden or not is_directory))
        for name in snapshot.names(above) if hidden else ():
            if name not in entries:
                path = join_path(above, name)
                yield from _all_gone(snapshot, path)
                yield Change(path, *snapshot.lookup(path), None)


def _all_gone(snapshot: Snapshot, path: str) -> Iterator[Change]:
    for inner in snapshot.below(path):
        yield Change(inner, *snapshot.lookup(inner), None)


class Copy(NamedTuple):
    """A copy of a file as it was at the start: its name among the copies, and its SHA-256."""

    name: str
    digest: str


def keep(stored: StoredChanges, workspace: Tree, layer: Tree) -> None:
    """Copy until killed. Raises OSError, ValueError."""
    with open(stored.place / "base.jsonl", encoding="ascii") as file:
        start = read_snapshot(file, stored.meta.start)
    seen: set[str] = set()
    while True:
        began = time.monotonic()
        for path, base in _changed(layer, start, seen):
            seen.add(path)
            copy_one(stored, workspace, path, base)
        time.sleep(max(_EVERY, _SHARE * (time.monotonic() - began)))


def copy_one(stored: StoredChanges, workspace: Tree, path: str, base: Entry) -> Copy | None:
    """Copy what stands at a path if it is what stood there at the start. Raises OSError where it can't be kept."""
    old = read_if_untouched(stored, workspace, path, base, safe_path.read_text)
    if old is None:
        return None
    copy = Copy(safe_path.digest_of(os.fsencode(path)), safe_path.digest_of(old))
    (stored.place / "base" / copy.name).write_bytes(old)
    with open(stored.place / _FILE, "a", encoding="ascii") as file:
        file.write(json.dumps([path, *copy]) + "\n")
    return copy


def copies(stored: StoredChanges) -> dict[str, Copy]:
    """Return what was copied, by path."""
    return {str(path): Copy(str(name), str(digest)) for path, name, digest in stored.lines(_FILE)}


def read_if_untouched[T](
    stored: StoredChanges, workspace: Tree, path: str, base: Entry, read: Callable[[int], T | None]
) -> T | None:
    """Read what stood at a path at the start; None where something was done to it since, or it can't be read."""
    try:
        with acting_as(stored.meta.uid, stored.meta.gid):
            before = workspace.stat(path)
            found = read(workspace.file(path))
            after = workspace.stat(path)
    except OSError:
        return None
    return found if base.is_untouched(before) and base.is_untouched(after) else None


def _changed(layer: Tree, start: Snapshot, seen: set[str]) -> Iterator[tuple[str, Entry]]:
    """Yield what the task has changed of files that were there and aren't too large; not twice."""
    pending = [TOP]
    while pending:
        above = pending.pop()
        try:
            entries = list(layer.entries(above))
        except OSError:
            continue  # gone again, or closed by the task: at the end it is opened
        for name, entry in entries:
            path = join_path(above, name)
            known, base = start.lookup(path)
            if not known or base is None:
                continue
            if entry.what is base.what is EntryType.DIRECTORY:
                pending.append(path)
            elif entry.what is base.what is EntryType.FILE and path not in seen and base.size <= safe_path.TEXT_AT_MOST:
                yield path, base


def gather(
    stored: StoredChanges, workspace: Tree, wait: Callable[[], None] = lambda: None, most: int | None = None
) -> list[Change]:
    """Return every change, in the order of their paths, and store them.

    `wait` waits for the process that makes the snapshot.
    `most`: the limit on their number. The caller has locked `stored`. Raises OSError (E2BIG beyond `most`), ValueError.
    """
    layer = UpperLayer(os.open(stored.upper, os.O_PATH | os.O_DIRECTORY))
    try:
        found: list[Change] = []
        if any(layer.entries(TOP)):
            wait()
            start = _snapshot(stored, workspace)
            every = changes(layer, start, max_path_length(stored.meta))
            everything = sorted(every if most is None else islice(every, most + 1), key=by_path)
            if most is not None and len(everything) > most:
                raise OSError(errno.E2BIG, f"they are more than {most}")
            early = copies(stored)
            compared = (_compared(change, stored, workspace, layer, early) for change in everything)
            found = [change for change in compared if change is not None]
        stored.record(found)
    finally:
        layer.close()
    (stored.place / "base.jsonl").unlink(missing_ok=True)
    return found


def max_path_length(meta: Meta) -> int:
    """Return how many bytes the path of a directory may have in which something can be put in place."""
    return _PATH_MAX - len(os.fsencode(meta.workspace)) - _ROOM


def by_path(change: Change) -> bytes:
    """Return what changes are sorted by."""
    return os.fsencode(change.path)


def _snapshot(stored: StoredChanges, workspace: Tree) -> Snapshot:
    path = stored.place / "base.jsonl"
    if not path.exists():  # whoever made it was stopped: what was not touched since can still be told
        write_snapshot(workspace, stored.meta.start, path)
    with open(path, encoding="ascii") as file:
        return read_snapshot(file, stored.meta.start)


def _compared(
    change: Change, stored: StoredChanges, workspace: Tree, layer: Tree, early: Mapping[str, Copy]
) -> Change | None:
    """Return a change with what can be kept of what it began from; None where there is no difference to that."""
    base, theirs = change.base, change.theirs
    if base is None or theirs is None or base.what is not theirs.what or not change.known:
        return change
    if base.what is not EntryType.FILE:
        return None if base.what is EntryType.LINK and base.target == theirs.target else change
    is_alike = base.size == theirs.size and mode(base) == mode(theirs)
    if base.size > safe_path.TEXT_AT_MOST:
        digest = read_if_untouched(stored, workspace, change.path, base, safe_path.digest) if is_alike else None
        return None if digest is not None and digest == safe_path.digest(layer.file(change.path)) else change
    copy = early.get(change.path) or copy_one(stored, workspace, change.path, base)
    if copy is None:
        return change
    is_same = is_alike and copy.digest == safe_path.digest(layer.file(change.path))
    return None if is_same else change._replace(digest=copy.digest, copy=copy.name)
