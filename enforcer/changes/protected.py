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

from enforcer.changes.obeyed import HOME, INSTALLED, PROJECT, TOLD, globs_of
from enforcer.sandbox.places import contains

# `.git` may lie deeper, for a submodule or a project in a project; in a submodule or a worktree it is a file.
# `commondir` says which directory Git takes its configuration and hooks from (gitrepository-layout(5)); `remotes` and
# `branches` what it pushes to: a repository in the workspace has hooks of its own, which a push to it runs.
_GIT: Final = (
    "config", "config.worktree", "hooks", "info/attributes", "commondir", "remotes", "branches",
    "objects/info/alternates", "objects/info/http-alternates", "modules/**/objects/info/alternates",
    "modules/**/objects/info/http-alternates",
    "worktrees/*/commondir", "worktrees/*/config.worktree", "modules/**/config", "modules/**/config.worktree",
    "modules/**/hooks", "modules/**/info/attributes", "modules/**/commondir", "modules/*/remotes",
    "modules/*/branches",
)  # fmt: skip
# What was begun, and whoever goes on with it does: a rebase has programs to run (`exec`), others have patches to apply.
# What changes which objects Git takes others for. In review only: a task that writes directly may have to finish its
# owner's.
_LEFT: Final = ("rebase-merge", "rebase-apply", "sequencer")
_GIT_LEFT: Final = (
    *_LEFT, *(f"worktrees/*/{name}" for name in _LEFT), *(f"modules/**/{name}" for name in _LEFT),
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
    """What is protected in something that a task may write outside of its workspace."""

    globs: tuple[str, ...]  # relative to it
    itself: bool  # whether a host runs or obeys all of it, so that nothing of it could be covered


def elsewhere(place: str, homes: Iterable[str]) -> Elsewhere:
    """Return what of a file or directory, by its whole real path, a host runs or obeys wherever that lies.

    It may be a project, a part of one (`.git`, `.claude`), or a part of a home.
    """
    found: dict[str, None] = {}
    itself = False
    parts = _parts(place)
    for glob in (*of_git(".git"), *globs_of((*PROJECT, *TOLD))):
        for rest in _rests(parts, glob.split("/")):
            found.update({"/".join(rest): None} if rest else {})
            itself = itself or not rest
    for home in homes:
        for glob in globs_of(HOME) if contains(home, place) or contains(place, home) else ():
            whole = [*home.strip("/").split("/"), *glob.split("/")]
            if len(parts) < len(whole) and _meets(parts, whole[: len(parts)]):
                found["/".join(whole[len(parts) :])] = None
            itself = itself or (len(parts) >= len(whole) and _meets(parts[: len(whole)], whole))
    if ".git" not in parts:
        found.update(dict.fromkeys(directly(())))
    return Elsewhere(tuple(found), itself)


def _parts(place: str) -> list[str]:
    """Split a path; a repository in it is called `.git`, whatever it is called."""
    parts = place.strip("/").split("/")
    for end in range(1, len(parts) + 1):
        at = "/" + "/".join(place.strip("/").split("/")[:end])
        if all(os.path.exists(f"{at}/{name}") for name in ("HEAD", "objects", "refs")):
            parts[end - 1] = ".git"
    return parts


def _rests(parts: Sequence[str], glob: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield what a glob says of what is in a path that ends in its beginning; nothing: it means the path, or above."""
    for begin in range(len(parts)):
        inner = parts[begin:]
        if len(inner) < len(glob) and _meets(inner, glob[: len(inner)]):
            yield ["**", *glob[len(inner) :]] if glob[len(inner) - 1] == "**" else glob[len(inner) :]
        elif len(inner) >= len(glob) and _meets(inner[: len(glob)], glob):
            yield ()


def _meets(parts: Sequence[str], globs: Sequence[str]) -> bool:
    return all(glob == "**" or fnmatchcase(part, glob) for part, glob in zip(parts, globs, strict=True))
