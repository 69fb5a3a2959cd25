r"""Protected paths: changes there are accepted only when named, in any spelling that a file system equates.

In a glob `*` stays within a name and `**` stands for any directories. A glob that matches a directory covers all below.
A workspace may lie on a file system that has aliases, or be copied there. Git refuses such names in what it checks out
(`core.protectHFS`, `core.protectNTFS` in git-config(1)); here they count as the name that they could be.

    case, ways to write a letter, characters       HFS+, APFS, ext4 and f2fs with casefold: Linux's NFDICF
      that nobody sees                             (Documentation/filesystems/ext4: utf8data, Unicode's
                                                   Default_Ignorable_Code_Point)
    dots and spaces at the end, `:` and what       NTFS, FAT ("Naming Files, Paths, and Namespaces" in Windows' manual)
      follows it, `\` for `/`
    names of 8.3 characters                        NTFS and FAT, by their prefix (`GITMOD~1`) or by a hash (`GI7EBA~1`)

Too much counts rather than too little: what counts is only asked about.
"""

import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from enforcer.workspace.change_store import Change, ChangeKind
from enforcer.workspace.safe_path import Entry, EntryType

if TYPE_CHECKING:
    from enforcer.workspace.git_changes import Found
    from enforcer.workspace.merge_decision import MergeInputs


_BELOW: Final = "(?:/.*)?"
_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_TAIL: Final = re.compile(r"(?:[. ]+|:[^/]*)(?![^/])")  # of a name, and no part of it
_SHORT_BASE, _SHORT_END, _HASHED = 8, 3, 2  # characters
_MOST_DIGITS: Final = 6
_NOT_SHORT: Final = re.compile(r"[^a-z0-9!#$%&'()@^_`{}~.*-]")  # what stands as `_` in a name of 8.3 characters
_STARS: Final = re.compile(r"\*+")


class Globs:
    """Several globs, as one."""

    def __init__(self, globs: Iterable[str]) -> None:
        """Take globs relative to the workspace."""
        split = [plain(glob.rstrip("/")).split("/") for glob in globs]
        self._pattern = _compiled(_translated(parts) + _BELOW for parts in split)
        self._above = _compiled(
            _translated(parts[:depth]) for parts in split for depth in range(1, len(parts)) if parts[depth - 1] != "**"
        )
        self._reach = _compiled(
            _translated(parts[:depth])
            for parts in split
            for depth in range(2, len(parts))
            if parts[depth - 1] == "**" and any(part != "**" for part in parts[:depth])
        )

    def match(self, path: str) -> bool:
        """Whether a path, or a directory above it, is meant."""
        return self._pattern.fullmatch(plain(path)) is not None

    def above(self, path: str) -> bool:
        """Whether something is meant that would lie below this path."""
        return self._above.fullmatch(plain(path)) is not None

    def reach(self, path: str) -> bool:
        """Whether a link at this path would let what is meant lie where no glob matches.

        In `a/**/b` that is one anywhere below `a`. What begins with `**` is meant wherever such a link leads.
        """
        return self.above(path) or self._reach.fullmatch(plain(path)) is not None


def _compiled(expressions: Iterable[str]) -> re.Pattern[str]:
    text = "|".join(f"(?:{expression})" for expression in dict.fromkeys(expressions))
    return re.compile(text or "(?!)", re.DOTALL)


def _translated(parts: Sequence[str]) -> str:
    """Write a glob as an expression."""
    text = ""
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            text += ".*" if is_last else "(?:.*/)?"
        else:
            text += written(part) + ("" if is_last else "/")
    return text


def plain(path: str) -> str:
    """Bring a path, or a glob, to the form in which what some file system takes for the same is the same."""
    text = _folded(path).replace("\\", "/")
    return "/".join(_TAIL.sub("", name) or name for name in text.split("/")) if _TAIL.search(text) else text


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", _UNSEEN.sub("", unicodedata.normalize("NFD", text)).casefold())
    return _UNSEEN.sub("", decomposed)


def written(name: str) -> str:
    """Write a name in that form, in which `*` is any text, as an expression: as it is, or as a short name has it."""
    text = "[^/]*".join(re.escape(piece) for piece in _STARS.split(name))
    short = _short(name)
    return f"(?:{text}|{short})" if short else text


def _short(name: str) -> str:
    """Write the names of 8.3 characters that a name may get beside its own; nothing where it is one of them itself."""
    if not name.strip("*"):
        return ""  # any name
    base, dot, end = name.lstrip(".").rpartition(".")
    if not dot:
        base, end = end, ""
    base = _NOT_SHORT.sub("_", base.replace(" ", "").replace(".", ""))
    end = _NOT_SHORT.sub("_", end.replace(" ", ""))[:_SHORT_END]
    if "*" not in name and len(base) <= _SHORT_BASE and (base + dot + end) == name:
        return ""
    ending = "(?:[.][^/]{0,3})?" if "*" in end or ("*" in name and not dot) else re.escape("." + end) if end else ""
    known, star, _ = base.partition("*")
    if star:
        known, ways = known[:_HASHED], [re.escape(known[:_HASHED]) + f"[^/.]{{0,6}}~[0-9]{{1,{_MOST_DIGITS}}}"]
    else:
        ways = [f"{re.escape(known[: 7 - n])}~[0-9]{{{n}}}" for n in range(1, _MOST_DIGITS + 1)]
        ways.append(f"{re.escape(known[:_HASHED])}[0-9a-f]{{4}}~[0-9]")
    return f"(?:{'|'.join(ways)}){ending}"


class Protection:
    """Decides which changes need `--protected` with their path.

    What the globs match, and what could stand in for it: a file or link where they mean a directory (`.git`,
    `.vscode`), also one that goes, links where they mean any directories (below `.git/modules`), links that may lead
    out of the workspace, and directories in and above what they mean that anybody may write from then on.
    """

    def __init__(self, globs: Iterable[str], groups: Collection[str | None] = ()) -> None:
        """Take the globs that were in force when the task ran, or are now, and whose approval merges take besides."""
        self._globs = Globs(globs)
        self.git: Mapping[str, Found] = {}  # what is to be known of changes to Git data, once somebody has looked
        named = " and ".join(sorted({group for group in groups if group is not None}))
        self.also = "" if not groups else f", and an approval{' of ' if named else ''}{named}"

    def inspect_git(self, inputs: "MergeInputs", changes: Collection[Change]) -> None:
        """Find the changes that bring protected files in a commit or an index: they are protected, too."""
        from enforcer.workspace import git_changes  # most tasks' changes aren't of Git data

        self.git = git_changes.inspect(inputs, changes, self.covers)

    def needs(self, change: Change) -> tuple[str, ...]:
        """Return the paths that the user must name to accept a change: its own, or those of the files it brings."""
        found = self.git.get(change.path)
        if found is not None and not found.why and not self._covers(change):
            return tuple(dict.fromkeys(each.path for each in found.files))
        return (change.path,) if self.covers(change) else ()

    def lets(self, change: Change, said: Collection[str]) -> bool:
        """Whether the user named every path that `needs` returns, or the change itself."""
        return change.path in said or {*self.needs(change)} <= {*said}

    def covers(self, change: Change) -> bool:
        """Whether a change is protected."""
        return change.path in self.git or self._covers(change)

    def _covers(self, change: Change) -> bool:
        theirs, stood = change.theirs, change.base
        if theirs is not None and theirs.what in (EntryType.FILE, EntryType.LINK) and _is_head(change.path):
            return True
        if _is_anybodys(theirs) and not _is_anybodys(stood):
            return self._globs.match(change.path) or self._globs.above(change.path)
        if theirs is not None and theirs.what is EntryType.DIRECTORY and change.kind is ChangeKind.ADDED:
            return False  # does nothing by itself
        if change.leads_out or self._globs.match(change.path):
            return True
        if theirs is not None and theirs.what is EntryType.LINK and self._globs.reach(change.path):
            return True
        either = any(side is not None and side.what is not EntryType.DIRECTORY for side in (stood, theirs))
        return either and self._globs.above(change.path)


def _is_head(path: str) -> bool:
    *above, name = plain(path).split("/")
    return name == "head" and ".git" not in above


def _is_anybodys(entry: Entry | None) -> bool:
    return entry is not None and entry.what is EntryType.DIRECTORY and bool(entry.mode & stat.S_IWOTH)
