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
_GIT_DIRECTORY: Final = re.compile(r"(?:^|/)\.git(?:$|/modules/)")


class ChangeTexts(NamedTuple):
    """Texts of a change before and after. `note`: which of them can't be shown, and why."""

    old: bytes | None
    new: bytes | None
    note: str = ""

    @property
    def are_text(self) -> bool:
        """Whether both texts can be shown line by line."""
        return all(side is not None and safe_path.is_text(side) for side in (self.old, self.new))


def read_texts(inputs: MergeInputs, change: Change) -> ChangeTexts:
    """Read both texts of a change. A text that can't be read is a note, never an error."""
    new, _ = _read_content(change.theirs, lambda: inputs.open_new(change))
    if change.copy:
        old, note = _read_content(change.base, lambda: inputs.base_copy(change))
        return ChangeTexts(old, new, note)
    try:
        ours = inputs.current(change)
    except OSError as error:
        return ChangeTexts(None, new, f"what stands there now can't be read: {error.strerror}")
    if change.known and (change.base is None or change.base.is_untouched(ours)):
        old, note = _read_content(change.base, lambda: inputs.open_current(change))
        return ChangeTexts(old, new, note)
    old, _ = _read_content(ours, lambda: inputs.open_current(change))
    return ChangeTexts(
        old, new, "what it was when the task started is not known any more: shown against what it is now"
    )


def _read_content(entry: Entry | None, open_it: Callable[[], int]) -> tuple[bytes | None, str]:
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
    texts = read_texts(inputs, change)
    if texts.note:
        yield f"# {visible(texts.note)}"
    if texts.are_text:
        yield from _lines(change.path, texts, is_new=change.base is None, is_deleted=change.theirs is None)
    else:
        yield f"Binary files differ: {_size(change.base)} before, {_size(change.theirs)} now"


def diff_brought(protection: Protection, changes: Iterable[Change]) -> Iterator[str]:
    """Yield the diffs of the protected files that changes to Git data bring along, each once."""
    differences: dict[Difference, tuple[Found, list[str]]] = {}
    for change in changes:
        inspected = protection.git.get(change.path)
        if inspected is None:
            continue
        for difference in inspected.files:
            differences.setdefault(difference, (inspected, []))[1].append(visible(change.path))
    for difference, (inspected, carriers) in differences.items():
        notes = (
            f"in {difference.where}, which comes with {_name_first(carriers)}",
            _protected(difference.path, protection),
        )
        yield from _head(difference.path, notes)
        yield from _modes(difference.was.mode, difference.now.mode)
        texts = ChangeTexts(_content(difference.was, inspected), _content(difference.now, inspected))
        if texts.are_text:
            yield from _lines(
                difference.path, texts, is_new=not difference.was.mode, is_deleted=not difference.now.mode
            )
        else:
            yield "Binary files differ, or are too large to show"


def _head(path: str, notes: Iterable[str]) -> Iterator[str]:
    yield f"diff --exeat a/{visible(path)} b/{visible(path)}"
    yield from (f"# {note}" for note in notes)


def _modes(was: int, now: int) -> Iterator[str]:
    """Yield the mode lines as git does; mode 0: there is no file."""
    if not was:
        yield f"new file mode {now:06o}"
    elif not now:
        yield f"deleted file mode {was:06o}"
    elif was != now:
        yield f"old mode {was:06o}"
        yield f"new mode {now:06o}"


def _lines(path: str, texts: ChangeTexts, *, is_new: bool, is_deleted: bool) -> Iterator[str]:
    old, new = texts.old or b"", texts.new or b""
    if old != new:
        yield f"--- {'/dev/null' if is_new else f'a/{visible(path)}'}"
        yield f"+++ {'/dev/null' if is_deleted else f'b/{visible(path)}'}"
        yield from hunks(old, new)


def _content(version: "Version", found: "Found") -> bytes | None:
    if version.is_gitlink:
        return f"Subproject commit {version.name}\n".encode()  # as git has it
    return found.contents.get(version.name) if version.mode else b""


def _name_first(paths: list[str]) -> str:
    suffix = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + suffix


def _protected(path: str, protection: Protection) -> str:
    return f"protected: accepted only with `--protected {visible(path)}`{protection.also}"


def count_lines(inputs: MergeInputs, change: Change) -> Counted | None:
    """Count the lines that a change adds and removes; None for anything but text."""
    texts = read_texts(inputs, change)
    return counted(texts.old or b"", texts.new or b"") if texts.are_text else None


def list_notes(change: Change, protection: Protection) -> list[str]:
    """List the notes that a reviewer needs before accepting a change."""
    notes = []
    new_entry, base = change.theirs, change.base
    if change.kind is ChangeKind.LEFT_OUT:
        notes.append("a device, socket or FIFO, or a path too long: not carried over")
    if change.leads_out:
        notes.append("a link that may lead out of the workspace")
    git = protection.git.get(change.path)
    if git is not None and git.files:
        paths = [visible(path) for path in dict.fromkeys(file.path for file in git.files)]
        notes.append(f"brings protected files along: {_name_first(paths)}")
    if git is not None and git.why:
        notes.append(visible(git.why))
    needs = protection.needs(change)
    notes += [_protected(path, protection) for path in needs if path == change.path]
    if new_entry is not None and new_entry.what is EntryType.FILE:
        if new_entry.mode & ~MODE:
            notes.append("its set-id and sticky bits are not carried over")
        if base is not None and base.links > 1:
            notes.append("it has other names (hard links), which keep what they have")
    return notes


def _mode(entry: Entry | None) -> int:
    """Return a mode in git's format, with all permission bits; of a link only its type. 0 without an entry."""
    return 0 if entry is None else _TYPE.get(entry.what, 0) | (0 if entry.what is EntryType.LINK else mode(entry))


def _size(entry: Entry | None) -> str:
    return "nothing" if entry is None else f"{entry.size:,} bytes"


class GitObjectCounter:
    """Counter of added Git objects, by their directory."""

    def __init__(self) -> None:
        self._sizes: dict[str, list[int]] = {}

    def count_change(self, change: Change, protection: Protection) -> bool:
        """Count a change if it is a new plain file or directory without notes; return whether it is one."""
        new_entry = change.theirs
        if (
            new_entry is None
            or change.kind is not ChangeKind.ADDED
            or new_entry.what not in (EntryType.FILE, EntryType.DIRECTORY)
        ):
            return False
        repository, _, name = change.path.rpartition("/objects/")
        if not _GIT_DIRECTORY.search(repository) or not (_LOOSE.fullmatch(name) or _PACKED.fullmatch(name)):
            return False
        if list_notes(change, protection) or (new_entry.what is EntryType.FILE and new_entry.mode & _EXECUTABLE):
            return False
        sizes = self._sizes.setdefault(f"{repository}/objects", [])
        if new_entry.what is EntryType.FILE:
            sizes.append(new_entry.size)
        return True

    def summaries(self) -> Iterable[tuple[str, str]]:
        """Yield each directory, and a phrase with its count."""
        for directory, sizes in self._sizes.items():
            if sizes:
                objects = "1 object" if len(sizes) == 1 else f"{len(sizes):,} objects"
                yield directory, f"{objects} of git, {sum(sizes):,} bytes"
