"""Globs over paths in a workspace: `*` stays within a name, `**` stands for any directories, capitals don't count.

They don't count because there are file systems on which they don't, and then `.GIT/hooks` is `.git/hooks`; nor does
anything else that some take for the same name (`lookalikes`). A glob that matches a directory covers all that is below.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from enforcer.workspace.lookalikes import plain, written

_BELOW: Final = "(?:/.*)?"


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
