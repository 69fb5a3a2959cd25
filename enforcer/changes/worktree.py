"""A workspace whose repository lies elsewhere: a linked worktree, or a submodule's. What of that a task needs is found.

Its `.git` is a file that names the repository's directory (gitrepository-layout(5), git-worktree(1)). Whoever writes
a workspace could write one, so the repository has to say the same: a worktree's `gitdir` file, or `core.worktree` of a
submodule's configuration, which no task can write. A repository that doesn't isn't shown.
"""

import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from enforcer.changes.acting import acting_as
from enforcer.changes.gitconfig import read, settings
from enforcer.errors import UsageError
from enforcer.sandbox.places import contains, refuse_write

# What a task in a worktree writes of the common directory: no configuration, no hook, no other worktree
_WRITTEN: Final = ("objects", "refs", "logs", "lfs", "reftable")


class Linked(NamedTuple):
    """The parts of a repository elsewhere that a task is shown, as real paths."""

    shown: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


NOTHING: Final = Linked()


def linked(workspace: str, lets: Callable[[str, str], bool]) -> Linked:
    """Return what of the repository that a workspace's `.git` names a task needs.

    `lets`: whether layers let a path be shown (`read`), or written (`write`).
    """
    dot = f"{workspace}/.git"
    try:
        if not stat.S_ISREG(os.lstat(dot).st_mode):
            return NOTHING
        owner = os.stat(workspace)
        with acting_as(owner.st_uid, owner.st_gid):
            found = _found(workspace, dot)
            top, written = found if found is not None else ("", ())
            if not top or os.stat(top).st_uid != owner.st_uid or not os.access(top, os.R_OK | os.X_OK):
                return NOTHING
            written = tuple(path for path in written if os.path.isdir(path) and not os.path.islink(path))
        for path in (top, *written):
            refuse_write(path, "/nonexistent", ())
    except (OSError, UsageError):
        return NOTHING
    if not lets("read", top):
        return NOTHING
    return Linked((top,), tuple(path for path in written if lets("write", path)))


def _found(workspace: str, dot: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the directory to show and those to write; None where there is none that names this workspace."""
    said = read(dot)
    if not said.startswith("gitdir:"):
        return None
    directory = os.path.realpath(os.path.join(workspace, said.removeprefix("gitdir:").strip()))
    common = os.path.realpath(os.path.join(directory, read(f"{directory}/commondir").strip() or "."))
    if contains(workspace, directory) or contains(workspace, common) or contains(common, workspace):
        return None
    if common == directory:
        tops = [each.value for each in settings(read(f"{directory}/config")) if each.name == "core.worktree"]
        is_its = bool(tops) and os.path.realpath(os.path.join(directory, tops[-1])) == workspace
        return (directory, (directory,)) if is_its else None
    back = read(f"{directory}/gitdir").strip()
    is_its = os.path.realpath(os.path.join(directory, back)) == dot and contains(f"{common}/worktrees", directory)
    return (common, (directory, *(f"{common}/{name}" for name in _WRITTEN))) if back and is_its else None
