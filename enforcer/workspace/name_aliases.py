r"""Globs over paths in a workspace, and the other names that a file system may take for the same: `.GIT`, `GIT~1`.

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
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

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
