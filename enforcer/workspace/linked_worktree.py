"""Workspace whose repository lies elsewhere (linked worktree, submodule): finds what of that a task needs.

Its `.git` is a file that names the repository's directory (gitrepository-layout(5), git-worktree(1)). Whoever writes
a workspace could write one, so the repository has to say the same: a worktree's `gitdir` file, or `core.worktree` of a
submodule's configuration, which no task can write. A repository that doesn't isn't shown.
"""

import os
import shlex
import stat
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from enforcer.sandbox.system_paths import contains, refuse_write
from enforcer.system.errors import UsageError
from enforcer.workspace.repository import Repository, RepositoryReader, parse_gitdir, parse_settings
from enforcer.workspace.safe_path import acting_as, read

# What of the common directory is of the main worktree alone, or of all: a task in another has no business there
_OF_OTHERS: Final = ("HEAD", "index", "info", "modules", "config.worktree", "rebase-merge", "rebase-apply", "sequencer")


class LinkedRepository(NamedTuple):
    """The parts of a repository elsewhere that a task is shown, as real paths."""

    shown: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


NOTHING: Final = LinkedRepository()


def find_linked_repository(workspace: str, lets: Callable[[str, str], bool]) -> LinkedRepository:
    """Return what of the repository that a workspace's `.git` names a task needs.

    `lets`: whether layers let a path be shown (`read`), or written (`write`).
    """
    dot = f"{workspace}/.git"
    try:
        if not stat.S_ISREG(os.lstat(dot).st_mode):
            return NOTHING
        owner = os.stat(workspace)
        with acting_as(owner.st_uid, owner.st_gid):
            found = _find_common_directory(workspace, dot)
            if found is None or os.stat(found).st_uid != owner.st_uid or not os.access(found, os.R_OK | os.X_OK):
                return NOTHING
        refuse_write(found, "/nonexistent", ())
    except (OSError, UsageError):
        return NOTHING
    if not lets("read", found):
        return NOTHING
    return LinkedRepository((found,), (found,) if lets("write", found) else ())


def list_other_worktrees(workspace: str, common: str) -> tuple[str, ...]:
    """Return what in a common directory isn't this worktree's, relative to it; nothing where it isn't its common one.

    Raises OSError.
    """
    dot = f"{workspace}/.git"
    if not os.path.isfile(dot):
        return ()
    owner = os.stat(workspace)
    with acting_as(owner.st_uid, owner.st_gid):
        own = os.path.realpath(parse_gitdir(dot, read(dot)))
    if os.path.dirname(own) != f"{common}/worktrees":
        return ()
    others = (name for name in sorted(os.listdir(f"{common}/worktrees")) if name != os.path.basename(own))
    return (*_OF_OTHERS, *(f"worktrees/{name}" for name in others))


def explain_hidden(workspace: str, shown: Iterable[str]) -> str:
    """Say that the repository of a workspace isn't shown to a task, and what helps; empty: it is, or there is none."""
    found = _find_repository(workspace)
    if found is None or any(contains(place, found.directory) for place in shown):
        return ""
    directory = shlex.quote(found.common)
    return (
        "`.git` leads to a repository elsewhere that the task isn't shown: "
        f"`--read {directory}` shows it, and `--write {directory}` lets the task commit"
    )


def explain_read_only(workspace: str, shown: Iterable[str], written: Iterable[str]) -> str:
    """Say that a reviewed task can't commit, as its repository is outside of the workspace; empty: it can."""
    found = _find_repository(workspace)
    if found is None or any(contains(place, found.directory) for place in (workspace, *written)):
        return ""
    if not any(contains(place, found.directory) for place in shown):
        return ""  # that is said otherwise (`explain_hidden`)
    return (
        f"the task can't commit: a review shows the repository of this workspace, `{found.directory}`, read-only. "
        "Review the main worktree, or let the task commit with `--direct`"
    )


def _find_repository(workspace: str) -> Repository | None:
    """Return the repository that a workspace's `.git` names, as a file or a link.

    An earlier task may have written it: a directory that is no repository is not named to the reader.
    """
    dot = f"{workspace}/.git"
    try:
        if stat.S_ISDIR(os.lstat(dot).st_mode):
            return None
        owner = os.stat(workspace)
        with acting_as(owner.st_uid, owner.st_gid):
            led = os.path.realpath(dot) if os.path.islink(dot) else parse_gitdir(dot, read(dot))
            directory = os.path.normpath(led)
            if not led or not os.path.isfile(f"{directory}/HEAD"):
                return None
            common = RepositoryReader().common(directory)
            return Repository(directory, common if os.path.isfile(f"{common}/HEAD") else directory)
    except OSError:
        return None


def _find_common_directory(workspace: str, dot: str) -> str | None:
    """Return the repository's common directory; None where there is none that names this workspace."""
    led = parse_gitdir(dot, read(dot))
    if not led:
        return None
    directory = os.path.realpath(led)
    common = RepositoryReader().common(directory)
    if contains(workspace, directory) or contains(workspace, common) or contains(common, workspace):
        return None
    if common == directory:
        tops = [each.value for each in parse_settings(read(f"{directory}/config")) if each.name == "core.worktree"]
        is_its = bool(tops) and os.path.realpath(os.path.join(directory, tops[-1])) == workspace
        return directory if is_its else None
    back = read(f"{directory}/gitdir").strip()
    is_its = os.path.realpath(os.path.join(directory, back)) == dot and contains(f"{common}/worktrees", directory)
    return common if back and is_its else None
