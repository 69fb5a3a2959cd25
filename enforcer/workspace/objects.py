"""Which changes are git's own objects: what a commit or a file is kept as, by its hash, which nobody reads one by one.

A commit makes a dozen of them, and what a task wrote into the files stands behind them. So they are counted where
everything is shown; nothing is decided by it, and who names their directory, or reads JSON, is shown each.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from enforcer.workspace.beneath import What
from enforcer.workspace.change import ChangeKind
from enforcer.workspace.show import notes

if TYPE_CHECKING:
    from enforcer.workspace.accept import Protection
    from enforcer.workspace.change import Change

_HASH: Final = "[0-9a-f]{40}(?:[0-9a-f]{24})?"
_LOOSE: Final = re.compile(r"[0-9a-f]{2}(?:/[0-9a-f]{38}(?:[0-9a-f]{24})?)?")  # gitrepository-layout(5)
_PACKED: Final = re.compile(rf"pack(?:/pack-{_HASH}\.(?:pack|idx|rev))?")
_EXECUTABLE: Final = 0o111  # which git makes none of them
_ITS: Final = re.compile(r"(?:^|/)\.git(?:$|/modules/)")


class Objects:
    """Objects of git that were added, by the directory that they are in."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}

    def takes(self, change: "Change", protection: "Protection") -> bool:
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
