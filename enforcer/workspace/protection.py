"""Protected changes: which changes of a task need their path said before they are accepted."""

import stat
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from enforcer.workspace.change_store import Change, ChangeKind
from enforcer.workspace.name_aliases import Globs, plain
from enforcer.workspace.safe_path import Entry, What

if TYPE_CHECKING:
    from enforcer.workspace.git_changes import Found
    from enforcer.workspace.merge_inputs import Sides


class Protection:
    """Which changes need their path said.

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

    def look(self, sides: "Sides", changes: Collection[Change]) -> None:
        """See which of all changes bring protected files along in a commit or an index: those are protected, too."""
        from enforcer.workspace import git_changes  # most tasks' changes aren't of Git data

        self.git = git_changes.look(sides, changes, self.covers)

    def needs(self, change: Change) -> tuple[str, ...]:
        """Return the paths that have to be said before a change is accepted: its own, or those of what it brings."""
        found = self.git.get(change.path)
        if found is not None and not found.why and not self._covers(change):
            return tuple(dict.fromkeys(each.path for each in found.files))
        return (change.path,) if self.covers(change) else ()

    def lets(self, change: Change, said: Collection[str]) -> bool:
        """Whether all that has to be said was; who names the change itself has said it."""
        return change.path in said or {*self.needs(change)} <= {*said}

    def covers(self, change: Change) -> bool:
        """Whether a change is protected."""
        return change.path in self.git or self._covers(change)

    def _covers(self, change: Change) -> bool:
        theirs, stood = change.theirs, change.base
        if theirs is not None and theirs.what in (What.FILE, What.LINK) and _is_head(change.path):
            return True
        if _is_anybodys(theirs) and not _is_anybodys(stood):
            return self._globs.match(change.path) or self._globs.above(change.path)
        if theirs is not None and theirs.what is What.DIRECTORY and change.kind is ChangeKind.ADDED:
            return False  # does nothing by itself
        if change.leads_out or self._globs.match(change.path):
            return True
        if theirs is not None and theirs.what is What.LINK and self._globs.reach(change.path):
            return True
        either = any(side is not None and side.what is not What.DIRECTORY for side in (stood, theirs))
        return either and self._globs.above(change.path)


def _is_head(path: str) -> bool:
    *above, name = plain(path).split("/")
    return name == "head" and ".git" not in above


def _is_anybodys(entry: Entry | None) -> bool:
    return entry is not None and entry.what is What.DIRECTORY and bool(entry.mode & stat.S_IWOTH)
