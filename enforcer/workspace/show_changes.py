"""Shows a task's changes as a unified diff in git's form, with control characters escaped.

Git's own objects are only counted: a commit makes a dozen of them. With a path in their directory, or as JSON, each is
shown. Counting decides nothing.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.workspace import safe_path
from enforcer.workspace.change_store import Change, ChangeKind, mode
from enforcer.workspace.diff import Counted, counted, hunks
from enforcer.workspace.merge_decision import MergeInputs
from enforcer.workspace.protected_changes import Protection
from enforcer.workspace.safe_path import MODE, Entry, EntryType
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    from enforcer.workspace.git_changes import Found
    from enforcer.workspace.git_objects import Difference, Version

_SHOWN = 5  # paths that are named in one line
_TYPE = {EntryType.FILE: 0o100000, EntryType.LINK: 0o120000, EntryType.DIRECTORY: 0o040000}
_HASH: Final = "[0-9a-f]{40}(?:[0-9a-f]{24})?"
_LOOSE: Final = re.compile(r"[0-9a-f]{2}(?:/[0-9a-f]{38}(?:[0-9a-f]{24})?)?")  # gitrepository-layout(5)
_PACKED: Final = re.compile(rf"pack(?:/pack-{_HASH}\.(?:pack|idx|rev))?")
_EXECUTABLE: Final = 0o111  # which git makes none of them
_ITS: Final = re.compile(r"(?:^|/)\.git(?:$|/modules/)")


class ChangeTexts(NamedTuple):
    """Texts of a change before and after; `note` says which of them can't be shown, and why."""

    old: bytes | None
    new: bytes | None
    note: str = ""

    @property
    def are_text(self) -> bool:
        """Whether both texts can be shown line by line."""
        return all(side is not None and safe_path.is_text(side) for side in (self.old, self.new))


def read_texts(inputs: MergeInputs, change: Change) -> ChangeTexts:
    """Read both texts of a change. A text that can't be read is a note, never an error."""
    new, _ = _read(change.theirs, lambda: inputs.their_file(change))
    if change.copy:
        old, note = _read(change.base, lambda: inputs.base_copy(change))
        return ChangeTexts(old, new, note)
    try:
        ours = inputs.ours(change)
    except OSError as error:
        return ChangeTexts(None, new, f"what stands there now can't be read: {error.strerror}")
    if change.known and (change.base is None or change.base.is_untouched(ours)):
        old, note = _read(change.base, lambda: inputs.our_file(change))
        return ChangeTexts(old, new, note)
    old, _ = _read(ours, lambda: inputs.our_file(change))
    return ChangeTexts(
        old, new, "what it was when the task started is not known any more: shown against what it is now"
    )


def _read(entry: Entry | None, open_it: Callable[[], int]) -> tuple[bytes | None, str]:
    if entry is None or entry.what is EntryType.DIRECTORY:
        return b"", ""
    if entry.what is EntryType.LINK:
        return entry.target.encode("utf-8", "surrogateescape"), ""
    if entry.what is not EntryType.FILE:
        return None, ""
    try:
        return safe_path.read_text(open_it()), ""
    except OSError as error:
        return None, f"it can't be read: {error.strerror}"


def diff(inputs: MergeInputs, change: Change, protection: Protection) -> Iterator[str]:
    """Yield the lines of one change's diff."""
    yield from _head(change.path, list_notes(change, protection))
    if change.kind is ChangeKind.LEFT_OUT:
        return
    yield from _modes(_mode(change.base), _mode(change.theirs))
    found = read_texts(inputs, change)
    if found.note:
        yield f"# {visible(found.note)}"
    if found.are_text:
        yield from _lines(change.path, found, is_new=change.base is None, is_gone=change.theirs is None)
    else:
        yield f"Binary files differ: {_size(change.base)} before, {_size(change.theirs)} now"


def diff_brought(protection: Protection, changes: Iterable[Change]) -> Iterator[str]:
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
        texts = ChangeTexts(_content(each.was, found), _content(each.now, found))
        if texts.are_text:
            yield from _lines(each.path, texts, is_new=not each.was.mode, is_gone=not each.now.mode)
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


def _lines(path: str, texts: ChangeTexts, *, is_new: bool, is_gone: bool) -> Iterator[str]:
    old, new = texts.old or b"", texts.new or b""
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


def count_lines(inputs: MergeInputs, change: Change) -> Counted | None:
    """Count the lines that a change adds and takes away; None for what has no lines."""
    found = read_texts(inputs, change)
    return counted(found.old or b"", found.new or b"") if found.are_text else None


def list_notes(change: Change, protection: Protection) -> list[str]:
    """List the notes that a person should read before they accept a change."""
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
    if theirs is not None and theirs.what is EntryType.FILE:
        if theirs.mode & ~MODE:
            found.append("its set-id and sticky bits are not carried over")
        if base is not None and base.links > 1:
            found.append("it has other names (hard links), which keep what they have")
    return found


def _mode(entry: Entry | None) -> int:
    """Return a mode as git has it, but whole; of a link only what it is. 0: there is nothing."""
    return 0 if entry is None else _TYPE.get(entry.what, 0) | (0 if entry.what is EntryType.LINK else mode(entry))


def _size(entry: Entry | None) -> str:
    return "nothing" if entry is None else f"{entry.size:,} bytes"


class GitObjectCounter:
    """Counter of added Git objects, by their directory."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}

    def takes(self, change: Change, protection: Protection) -> bool:
        """Count a change if it is a new plain file or directory without notes; return whether it is one."""
        theirs = change.theirs
        if (
            theirs is None
            or change.kind is not ChangeKind.ADDED
            or theirs.what not in (EntryType.FILE, EntryType.DIRECTORY)
        ):
            return False
        above, _, name = change.path.rpartition("/objects/")
        if not _ITS.search(above) or not (_LOOSE.fullmatch(name) or _PACKED.fullmatch(name)):
            return False
        if list_notes(change, protection) or (theirs.what is EntryType.FILE and theirs.mode & _EXECUTABLE):
            return False
        sizes = self._found.setdefault(f"{above}/objects", [])
        if theirs.what is EntryType.FILE:
            sizes.append(theirs.size)
        return True

    def said(self) -> Iterable[tuple[str, str]]:
        """Yield each directory, and a sentence with the count."""
        for place, sizes in self._found.items():
            if sizes:
                things = "1 object" if len(sizes) == 1 else f"{len(sizes):,} objects"
                yield place, f"{things} of git, {sum(sizes):,} bytes"
