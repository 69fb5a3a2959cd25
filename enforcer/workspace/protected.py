"""Which files of a workspace need an approval to change, whatever a rule file adds to them.

Three lists, for three questions. The first: what does a host run by itself, where nobody reads it first? Git's hooks
and configuration, what editors and direnv start when a directory is opened, what other agents obey, what CI does with a
push. That is protected in both modes, where a project has it. The second: lock files and what package managers are
configured by, which say whose code is installed next time. Those are what a task is often asked to change, and a task
that may write its workspace directly couldn't add a dependency if they were read-only; so they are protected where
changes are reviewed. The third: what is the next agent told? What one was talked into writing there outlives it. People
have agents keep these, so they are protected in a review, too.

No Makefile, no source file: those are what a task is there to write, and a list that had them would have everything.
The lists are in `obeyed`, by category. The fourth, what a home has, is for what is written outside of a workspace.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from enforcer.workspace.protected_lists import HOME, INSTALLED, PROJECT, TOLD, globs_of

# `.git` may lie deeper, for a submodule or a project in a project; in a submodule or a worktree it is a file.
# `commondir` says which directory Git takes its configuration and hooks from (gitrepository-layout(5)); `remotes` and
# `branches` what it pushes to: a repository in the workspace has hooks of its own, which a push to it runs. Sapling and
# Arcanist keep their configuration in there, too.
_GIT: Final = (
    "config", "config.worktree", "hooks", "info/attributes", "commondir", "remotes", "branches",
    "objects/info/alternates", "objects/info/http-alternates", "modules/**/objects/info/alternates",
    "modules/**/objects/info/http-alternates",
    "worktrees/*/commondir", "worktrees/*/config.worktree", "modules/**/config", "modules/**/config.worktree",
    "modules/**/hooks", "modules/**/info/attributes", "modules/**/commondir", "modules/*/remotes",
    "modules/*/branches", "sl/config", "arc/config",
)  # fmt: skip
# What was begun, and whoever goes on with it does: a rebase has programs to run (`exec`), others have patches to apply.
# What changes which objects Git takes others for. What hides files: `git status` omits what `info/exclude` names.
# In review only: a task that writes directly may have to finish its owner's.
_LEFT: Final = ("rebase-merge", "rebase-apply", "sequencer")
_HIDING: Final = ("info/exclude", "info/sparse-checkout")
_GIT_LEFT: Final = (
    *_LEFT, *(f"worktrees/*/{name}" for name in _LEFT), *(f"modules/**/{name}" for name in _LEFT),
    *_HIDING, *(f"modules/**/{name}" for name in _HIDING), "worktrees/*/info/sparse-checkout",
    "rr-cache", "shallow", "info/grafts", "refs/replace", "reftable", "modules/**/shallow", "modules/**/info/grafts",
    "modules/**/refs/replace", "modules/**/reftable",
)  # fmt: skip
_RUN_BY_ITSELF: Final = globs_of(PROJECT)


def directly(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of what is protected while a task writes its workspace itself; `added` are a rule file's.

    `HEAD` is what makes a repository of any directory that has the rest (git-config(1), `safe.bareRepository`).
    """
    return (*of_git(".git"), "HEAD", *_RUN_BY_ITSELF, *added)


def of_git(place: str) -> tuple[str, ...]:
    """Return the globs of what is protected in a repository that lies there."""
    return tuple(os.path.normpath(f"{place}/{name}") for name in _GIT)


def reviewed(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of what is protected when changes are accepted: at any depth, and of all three lists."""
    git = (f"**/.git/{name}" for name in (*_GIT, *_GIT_LEFT))
    return (*git, *(f"**/{glob}" for glob in globs_of((*PROJECT, *INSTALLED, *TOLD))), *added)


class Elsewhere(NamedTuple):
    """What is protected in a directory that a task may write outside of its workspace."""

    globs: tuple[str, ...]  # relative to it
    is_covered: bool  # else a host runs or obeys all of it, so that covering it would take it back


def elsewhere(place: str, homes: Iterable[str]) -> Elsewhere:
    """Return what of a directory, by its whole real path, a host runs or obeys wherever that lies.

    It may be a project, a part of one (`.git`, `.claude`), or a part of a home.
    """
    parts = _parts(place)
    found = {*_meant(parts, homes)}
    if "" in found:
        return Elsewhere(("*",), is_covered=False)
    of_project = () if ".git" in parts else directly(())
    return Elsewhere((*sorted(found), *of_project), is_covered=True)


def is_obeyed(file: str, homes: Iterable[str]) -> bool:
    """Whether a host runs or obeys a file, by its whole real path."""
    return "" in _meant(_parts(file), homes)


def _meant(parts: Sequence[str], homes: Iterable[str]) -> Iterator[str]:
    """Yield what lists mean in a path, as `_rests` does. What lies right in a home is what that list says."""
    tops = [home.strip("/").split("/") for home in homes]
    ends = {len(top) for top in tops if [*parts[: len(top)]] == top}
    # What a task has written in its own worktree's `gitdir` would have later ones be shown this repository
    yield from _rests(parts, (*of_git(".git"), ".git/worktrees/*/gitdir"), range(len(parts)))
    yield from _rests(parts, globs_of((*PROJECT, *TOLD)), (begin for begin in range(len(parts)) if begin not in ends))
    yield from _rests(parts, globs_of(HOME), ends)
    for top in tops:
        if len(parts) < len(top) and top[: len(parts)] == [*parts]:
            yield from ("/".join((*top[len(parts) :], glob)) for glob in globs_of(HOME))


def _parts(place: str) -> list[str]:
    """Split a path; a repository in it is called `.git`, whatever it is called."""
    parts = place.strip("/").split("/")
    for end in range(1, len(parts) + 1):
        at = "/" + "/".join(place.strip("/").split("/")[:end])
        if all(os.path.exists(f"{at}/{name}") for name in ("HEAD", "objects", "refs")):
            parts[end - 1] = ".git"
    return parts


def _rests(parts: Sequence[str], globs: Iterable[str], begins: Iterable[int]) -> Iterator[str]:
    """Yield what globs mean in a path that ends as they begin; empty: they mean the path, or what it lies in.

    `begins`: at which parts of the path they may begin.
    """
    starts = [*begins]
    for glob in globs:
        wanted = glob.split("/")
        for inner in (parts[begin:] for begin in starts):
            if all(each == "**" or fnmatchcase(part, each) for part, each in zip(inner, wanted, strict=False)):
                rest = wanted[len(inner) :]
                yield "/".join(["**", *rest] if rest and wanted[len(inner) - 1] == "**" else rest)
