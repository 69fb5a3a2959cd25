"""Shows a task's changes as a unified diff in git's form, with control characters escaped.

Git's own objects, which nobody reads one by one, are counted: a commit makes a dozen of them, and what a task wrote
into the files stands behind them. Nothing is decided by it; who names their directory, or reads JSON, is shown each.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.workspace import file_content
from enforcer.workspace.change_store import Change, ChangeKind, mode
from enforcer.workspace.diff import Counted, counted, hunks
from enforcer.workspace.merge_decision import Sides
from enforcer.workspace.protection import Protection
from enforcer.workspace.safe_path import MODE, Entry, What
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from enforcer.workspace.git_changes import Found
    from enforcer.workspace.git_objects import Difference, Version

_SHOWN = 5  # paths that are named in one line
_TYPE = {What.FILE: 0o100000, What.LINK: 0o120000, What.DIRECTORY: 0o040000}
_HASH: Final = "[0-9a-f]{40}(?:[0-9a-f]{24})?"
_LOOSE: Final = re.compile(r"[0-9a-f]{2}(?:/[0-9a-f]{38}(?:[0-9a-f]{24})?)?")  # gitrepository-layout(5)
_PACKED: Final = re.compile(rf"pack(?:/pack-{_HASH}\.(?:pack|idx|rev))?")
_EXECUTABLE: Final = 0o111  # which git makes none of them
_ITS: Final = re.compile(r"(?:^|/)\.git(?:$|/modules/)")


class Texts(NamedTuple):
    """What a change began from and what came of it, as far as both can be shown; `note` says what can't, and why."""

    old: bytes | None
    new: bytes | None
    note: str = ""

    @property
    def are_text(self) -> bool:
        """Whether both can be shown line by line."""
        return all(side is not None and file_content.is_text(side) for side in (self.old, self.new))


def texts(sides: Sides, change: Change) -> Texts:
    """Read both sides of a change. What can't be read is told, and never an error."""
    new, _ = _read(change.theirs, lambda: sides.their_file(change))
    if change.copy:
        old, note = _read(change.base, lambda: sides.base_copy(change))
        return Texts(old, new, note)
    try:
        ours = sides.ours(change)
    except OSError as error:
        return Texts(None, new, f"what stands there now can't be read: {error.strerror}")
    if change.known and (change.base is None or change.base.is_untouched(ours)):
        old, note = _read(change.base, lambda: sides.our_file(change))
        return Texts(old, new, note)
    old, _ = _read(ours, lambda: sides.our_file(change))
    return Texts(old, new, "what it was when the task started is not known any more: shown against what it is now")


def _read(entry: Entry | None, open_it: Callable[[], int]) -> tuple[bytes | None, str]:
    if entry is None or entry.what is What.DIRECTORY:
        return b"", ""
    if entry.what is What.LINK:
        return entry.target.encode("utf-8", "surrogateescape"), ""
    if entry.what is not What.FILE:
        return None, ""
    try:
        return file_content.whole(open_it()), ""
    except OSError as error:
        return None, f"it can't be read: {error.strerror}"


def diff(sides: Sides, change: Change, protection: Protection) -> Iterator[str]:
    """Yield the lines of one change's diff."""
    yield from _head(change.path, notes(change, protection))
    if change.kind is ChangeKind.LEFT_OUT:
        return
    yield from _modes(_mode(change.base), _mode(change.theirs))
    found = texts(sides, change)
    if found.note:
        yield f"# {visible(found.note)}"
    if found.are_text:
        yield from _lines(change.path, found, is_new=change.base is None, is_gone=change.theirs is None)
    else:
        yield f"Binary files differ: {_size(change.base)} before, {_size(change.theirs)} now"


def brought(protection: Protection, changes: Iterable[Change]) -> Iterator[str]:
    """Yield the diffs of the protected files that changes to Git data bring along, each once."""
    told: dict[Difference, tuple[Found, list[str]]] = {}
    for change in changes:
        found = protection.git.get(change.path)
        if found is None:
            continue
        for each in found.files:
            told.setdefault(each, (found, []))[1].append(visible(change.path))
    for each, (found, by) in told.items():
        said = f"in {each.where}, which comes with {_some(by)}", _protected(each.path, protection)
        yield from _head(each.path, said)
        yield from _modes(each.was.mode, each.now.mode)
        sides = Texts(_content(each.was, found), _content(each.now, found))
        if sides.are_text:
            yield from _lines(each.path, sides, is_new=not each.was.mode, is_gone=not each.now.mode)
        else:
            yield "Binary files differ, or are too large to show"


def _head(path: str, said: Iterable[str]) -> Iterator[str]:
    yield f"diff --exeat a/{visible(path)} b/{visible(path)}"
    yield from (f"# {note}" for note in said)


def _modes(was: int, now: int) -> Iterator[str]:
    """Write modes as git does; 0: there is no such file."""
    if not was:
        yield f"new file mode {now:06o}"
    elif not now:
        yield f"deleted file mode {was:06o}"
    elif was != now:
        yield f"old mode {was:06o}"
        yield f"new mode {now:06o}"


def _lines(path: str, sides: Texts, *, is_new: bool, is_gone: bool) -> Iterator[str]:
    old, new = sides.old or b"", sides.new or b""
    if old != new:
        yield f"--- {'/dev/null' if is_new else f'a/{visible(path)}'}"
        yield f"+++ {'/dev/null' if is_gone else f'b/{visible(path)}'}"
        yield from hunks(old, new)


def _content(version: "Version", found: "Found") -> bytes | None:
    if version.is_gitlink:
        return f"Subproject commit {version.name}\n".encode()  # as git has it
    return found.contents.get(version.name) if version.mode else b""


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _protected(path: str, protection: Protection) -> str:
    return f"protected: accepted only with `--protected {visible(path)}`{protection.also}"


def count(sides: Sides, change: Change) -> Counted | None:
    """Count the lines that a change adds and takes away; None for what has no lines."""
    found = texts(sides, change)
    return counted(found.old or b"", found.new or b"") if found.are_text else None


def notes(change: Change, protection: Protection) -> list[str]:
    """Say what whoever accepts a change should know of it."""
    found = []
    theirs, base = change.theirs, change.base
    if change.kind is ChangeKind.LEFT_OUT:
        found.append("a device, socket or FIFO, or a path too long: not carried over")
    if change.leads_out:
        found.append("a link that may lead out of the workspace")
    git = protection.git.get(change.path)
    if git is not None and git.files:
        paths = [visible(path) for path in dict.fromkeys(each.path for each in git.files)]
        found.append(f"brings protected files along: {_some(paths)}")
    if git is not None and git.why:
        found.append(visible(git.why))
    needs = protection.needs(change)
    found += [_protected(path, protection) for path in needs if path == change.path]
    if theirs is not None and theirs.what is What.FILE:
        if theirs.mode & ~MODE:
            found.append("its set-id and sticky bits are not carried over")
        if base is not None and base.links > 1:
            found.append("it has other names (hard links), which keep what they have")
    return found


def _mode(entry: Entry | None) -> int:
    """Return a mode as git has it, but whole; of a link only what it is. 0: there is nothing."""
    return 0 if entry is None else _TYPE.get(entry.what, 0) | (0 if entry.what is What.LINK else mode(entry))


def _size(entry: Entry | None) -> str:
    return "nothing" if entry is None else f"{entry.size:,} bytes"


class Objects:
    """Objects of git that were added, by the directory that they are in."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}

    def takes(self, change: Change, protection: Protection) -> bool:
        """Count a change if it is one: a plain file or directory that is new, of which there is nothing to say."""
        theirs = change.theirs
        if theirs is None or change.kind is not ChangeKind.ADDED or theirs.what not in (What.FILE, What.DIRECTORY):
            return False
        above, _, name = change.path.rpartition("/objects/")
        if not _ITS.search(above) or not (_LOOSE.fullmatch(name) or _PACKED.fullmatch(name)):
            return False
        if notes(change, protection) or (theirs.what is What.FILE and theirs.mode & _EXECUTABLE):
            return False
        sizes = self._found.setdefault(f"{above}/objects", [])
        if theirs.what is What.FILE:
            sizes.append(theirs.size)
        return True

    def said(self) -> Iterable[tuple[str, str]]:
        """Give each directory, and how many there are."""
        for place, sizes in self._found.items():
            if sizes:
                things = "1 object" if len(sizes) == 1 else f"{len(sizes):,} objects"
                yield place, f"{things} of git, {sum(sizes):,} bytes"
