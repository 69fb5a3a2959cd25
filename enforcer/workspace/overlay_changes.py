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
    """Names in one directory at the start."""

    is_unmoved: bool  # this directory was at this path at the start
    is_complete: bool  # and no name in it was added or removed since
    entries: dict[str, Entry]


class KnownFile(NamedTuple):
    """Entry of a path at the start. `known` is False if that is uncertain, whatever `entry` is."""

    known: bool
    entry: Entry | None


class Snapshot:
    """Snapshot of a workspace at the start of the task."""

    def __init__(self, start: int, lines: dict[str, str]) -> None:
        """Take a line of JSON for each directory, by path, and the ctime (ns) of a file made at the start."""
        self._start = start
        self._lines = lines
        self._listings: dict[str, Listing] = {}  # decoded ones: a large tree needs few

    def lookup(self, path: str) -> KnownFile:
        """Return the entry of a path at the start."""
        parent, _, name = path.rpartition("/")
        listing = self._listing(parent or TOP)
        if listing is None:
            is_known, entry = self.lookup(parent) if parent else KnownFile(known=False, entry=None)
            return KnownFile(is_known and (entry is None or entry.what is not EntryType.DIRECTORY), None)
        entry = listing.entries.get(name)
        if entry is None:
            return KnownFile(listing.is_complete, None)
        return KnownFile(listing.is_unmoved and entry.changed < self._start, entry)

    def list_below(self, path: str) -> Iterator[str]:
        """Yield every path below a directory, each directory before its content."""
        pending = [path]
        while pending:
            directory = pending.pop()
            listing = self._listing(directory)
            for name, entry in listing.entries.items() if listing is not None else ():
                inner = join_path(directory, name)
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
        path, is_unmoved = pending.pop()
        try:
            entries = dict(tree.entries(path))
            descriptor = tree.directory(path)
        except OSError:
            continue  # can't be listed, so nothing in it is known
        changed = os.fstat(descriptor).st_ctime_ns  # after it was listed
        os.close(descriptor)
        if path != TOP:
            is_unmoved = is_unmoved and changed < start
        yield path, Listing(is_unmoved, is_unmoved and changed < start, entries)
        for name, entry in entries.items():
            if entry.what is EntryType.DIRECTORY:
                pending.append((join_path(path, name), is_unmoved))


def write_snapshot(tree: Tree, start: int, to: Path) -> None:
    """Write a snapshot to a file, which appears once it is complete. Raises OSError."""
    unfinished = to.with_suffix(".unfinished")
    with open(unfinished, "w", encoding="ascii") as file:
        file.writelines(json.dumps([path, *listing]) + "\n" for path, listing in walk(tree, start))
    unfinished.rename(to)


def read_snapshot(file: IO[str], start: int) -> Snapshot:
    """Read a snapshot. Raises ValueError, or OSError."""
    scan = json.JSONDecoder().raw_decode
    return Snapshot(start, {scan(line, 1)[0]: line for line in file})


_OPAQUE: Final = "user.overlay.opaque"
_INTERVAL: Final = 1.0  # seconds
_PAUSE_FACTOR: Final = 20  # pause after a scan, in durations of the scan
_COPIES_FILE: Final = "copies.jsonl"
_PATH_MAX: Final = 4096  # bytes (limits.h), with the NUL
_RESERVED_LENGTH: Final = 256 + 32  # bytes for a name, and for its temporary name (`atomic_replace`)


class UpperLayer(Tree):
    """An upper layer of an overlay. Its files are ours: a mode that prevents reading is changed."""

    def _open(self, path: str, flags: int) -> int:
        try:
            return super()._open(path, flags)
        except PermissionError:
            self._open_parents(path)
            return super()._open(path, flags)

    def file(self, path: str) -> int:
        """Open a regular file for reading, as any tree does."""
        try:
            return super().file(path)
        except PermissionError:
            descriptor = self._open(path, os.O_PATH)
            try:
                os.chmod(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_mode & 0o7777 | 0o400)
            finally:
                os.close(descriptor)
            return super().file(path)

    def _open_parents(self, path: str) -> None:
        components = path.split("/")
        _make_accessible(self.descriptor)  # without search permission, a lookup of `.` fails, too
        for depth in range(1, len(components) + 1):
            descriptor = super()._open("/".join(components[:depth]), os.O_PATH)
            try:
                _make_accessible(descriptor)
            finally:
                os.close(descriptor)

    def is_opaque(self, path: str) -> bool:
        """Whether a directory hides the one below it in the overlay."""
        directory = self.directory(path)
        try:
            return os.getxattr(directory, _OPAQUE) == b"y"
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise
        finally:
            os.close(directory)


def _make_accessible(descriptor: int) -> None:
    permissions = os.fstat(descriptor).st_mode & 0o7777
    if permissions & 0o700 != 0o700:
        os.chmod(f"/proc/self/fd/{descriptor}", permissions | 0o700)


def changes(upper: UpperLayer, snapshot: Snapshot, longest: int) -> Iterator[Change]:
    """Yield every change, in no order. Contents are not compared: a file that was only touched is among them.

    A directory that can't be read, or whose path has more than `longest` bytes, is a change that is left out: its
    content can't be opened.
    """
    pending = [(TOP, False)]
    while pending:
        directory, hidden = pending.pop()
        try:
            entries = dict(upper.entries(directory)) if len(os.fsencode(directory)) <= longest else None
            hidden = hidden or upper.is_opaque(directory)
        except OSError:
            entries = None
        if entries is None:
            yield Change(directory, False, None, Entry(EntryType.OTHER, 0, 0))
            continue
        for name, entry in entries.items():
            path = join_path(directory, name)
            is_known, base = snapshot.lookup(path)
            is_directory = base is not None and base.what is EntryType.DIRECTORY
            if entry.what is not EntryType.DIRECTORY:
                if is_directory:
                    yield from _deletions_below(snapshot, path)
                yield Change(path, is_known, base, None if entry.what is EntryType.WHITEOUT else entry)
                continue
            if base is None or not is_directory or mode(base) != mode(entry):
                yield Change(path, is_known, base, entry)
            pending.append((path, hidden or not is_directory))
        for name in snapshot.names(directory) if hidden else ():
            if name not in entries:
                path = join_path(directory, name)
                yield from _deletions_below(snapshot, path)
                yield Change(path, *snapshot.lookup(path), None)


def _deletions_below(snapshot: Snapshot, path: str) -> Iterator[Change]:
    for inner in snapshot.list_below(path):
        yield Change(inner, *snapshot.lookup(inner), None)


class Copy(NamedTuple):
    """A copy of a file as it was at the start: its name among the copies, and its SHA-256."""

    name: str
    digest: str


def keep(stored: StoredChanges, workspace: Tree, layer: Tree) -> None:
    """Copy files that the task changes as they were at the start, until killed. Raises OSError, ValueError."""
    with open(stored.place / "base.jsonl", encoding="ascii") as file:
        start = read_snapshot(file, stored.meta.start)
    copied: set[str] = set()
    while True:
        start_time = time.monotonic()
        for path, base in _changed_files(layer, start, copied):
            copied.add(path)
            copy_one(stored, workspace, path, base)
        time.sleep(max(_INTERVAL, _PAUSE_FACTOR * (time.monotonic() - start_time)))


def copy_one(stored: StoredChanges, workspace: Tree, path: str, base: Entry) -> Copy | None:
    """Copy a file if it is unchanged since the start. Raises OSError if the copy can't be written."""
    content = read_if_untouched(stored, workspace, path, base, safe_path.read_text)
    if content is None:
        return None
    copy = Copy(safe_path.digest_of(os.fsencode(path)), safe_path.digest_of(content))
    (stored.place / "base" / copy.name).write_bytes(content)
    with open(stored.place / _COPIES_FILE, "a", encoding="ascii") as file:
        file.write(json.dumps([path, *copy]) + "\n")
    return copy


def copies(stored: StoredChanges) -> dict[str, Copy]:
    """Return the copies, by path."""
    return {str(path): Copy(str(name), str(digest)) for path, name, digest in stored.lines(_COPIES_FILE)}


def read_if_untouched[T](
    stored: StoredChanges, workspace: Tree, path: str, base: Entry, read: Callable[[int], T | None]
) -> T | None:
    """Read a file if it is unchanged since the start; None if it changed or can't be read."""
    try:
        with acting_as(stored.meta.uid, stored.meta.gid):
            before_reading = workspace.stat(path)
            content = read(workspace.file(path))
            after_reading = workspace.stat(path)
    except OSError:
        return None
    return content if base.is_untouched(before_reading) and base.is_untouched(after_reading) else None


def _changed_files(layer: Tree, start: Snapshot, copied: set[str]) -> Iterator[tuple[str, Entry]]:
    """Yield existing files that the task has changed and that aren't copied yet or too large."""
    pending = [TOP]
    while pending:
        directory = pending.pop()
        try:
            entries = list(layer.entries(directory))
        except OSError:
            continue  # removed, or its mode prevents listing: `gather` opens it
        for name, entry in entries:
            path = join_path(directory, name)
            is_known, base = start.lookup(path)
            if not is_known or base is None:
                continue
            if entry.what is base.what is EntryType.DIRECTORY:
                pending.append(path)
            elif (
                entry.what is base.what is EntryType.FILE and path not in copied and base.size <= safe_path.TEXT_AT_MOST
            ):
                yield path, base


def gather(
    stored: StoredChanges, workspace: Tree, wait: Callable[[], None] = lambda: None, max_changes: int | None = None
) -> list[Change]:
    """Return every change, in the order of their paths, and store them.

    `wait` waits for the process that makes the snapshot.
    `max_changes`: the limit on their number. The caller has locked `stored`. Raises OSError (E2BIG beyond the limit),
    ValueError.
    """
    layer = UpperLayer(os.open(stored.upper, os.O_PATH | os.O_DIRECTORY))
    try:
        changed: list[Change] = []
        if any(layer.entries(TOP)):
            wait()
            start = _snapshot(stored, workspace)
            all_changes = changes(layer, start, max_path_length(stored.meta))
            sorted_changes = sorted(
                all_changes if max_changes is None else islice(all_changes, max_changes + 1), key=by_path
            )
            if max_changes is not None and len(sorted_changes) > max_changes:
                raise OSError(errno.E2BIG, f"they are more than {max_changes}")
            copied = copies(stored)
            compared = (_compare_with_base(change, stored, workspace, layer, copied) for change in sorted_changes)
            changed = [change for change in compared if change is not None]
        stored.record(changed)
    finally:
        layer.close()
    (stored.place / "base.jsonl").unlink(missing_ok=True)
    return changed


def max_path_length(meta: Meta) -> int:
    """Return the longest path, in bytes, of a directory in which a file can be replaced."""
    return _PATH_MAX - len(os.fsencode(meta.workspace)) - _RESERVED_LENGTH


def by_path(change: Change) -> bytes:
    """Sort key of changes: the bytes of the path."""
    return os.fsencode(change.path)


def _snapshot(stored: StoredChanges, workspace: Tree) -> Snapshot:
    path = stored.place / "base.jsonl"
    if not path.exists():  # its process was killed: unchanged files are still known
        write_snapshot(workspace, stored.meta.start, path)
    with open(path, encoding="ascii") as file:
        return read_snapshot(file, stored.meta.start)


def _compare_with_base(
    change: Change, stored: StoredChanges, workspace: Tree, layer: Tree, copied: Mapping[str, Copy]
) -> Change | None:
    """Return a change with the copy and digest of its base; None if the content is the same."""
    base, theirs = change.base, change.theirs
    if base is None or theirs is None or base.what is not theirs.what or not change.known:
        return change
    if base.what is not EntryType.FILE:
        return None if base.what is EntryType.LINK and base.target == theirs.target else change
    may_be_same = base.size == theirs.size and mode(base) == mode(theirs)
    if base.size > safe_path.TEXT_AT_MOST:
        digest = read_if_untouched(stored, workspace, change.path, base, safe_path.digest) if may_be_same else None
        return None if digest is not None and digest == safe_path.digest(layer.file(change.path)) else change
    copy = copied.get(change.path) or copy_one(stored, workspace, change.path, base)
    if copy is None:
        return change
    is_same = may_be_same and copy.digest == safe_path.digest(layer.file(change.path))
    return None if is_same else change._replace(digest=copy.digest, copy=copy.name)
