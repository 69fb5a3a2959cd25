"""Where in a workspace the repository is that Git finds there, and what that has Git run: nobody else may say it.

gitrepository-layout(5): `.git` may be a file or a link that says where the repository is, as people have it who keep
their worktrees beside a bare one, and a workspace may be a bare one itself. The common directory has the configuration
and the hooks, for a worktree as well. Looked for at a start, and as the workspace's owner.
"""

import os
from collections.abc import Iterator
from typing import Final

from enforcer.changes.beneath import TOP, Tree
from enforcer.changes.gitconfig import inside, named, read
from enforcer.changes.gitlinks import directory_of, linked
from enforcer.changes.protected import of_git

_NEEDED: Final = ("HEAD", "objects", "refs")  # what Git takes a directory for a repository by


def places(tree: Tree, workspace: str) -> tuple[str, ...]:
    """Return the paths, in a workspace, of its repository where that has another name than `.git`."""
    found = (inside(workspace, directory) for directory in _directories(tree, workspace))
    return tuple(dict.fromkeys(path for each in found for path in each if path != ".git"))


def globs(tree: Tree, workspace: str) -> tuple[str, ...]:
    """Return what is protected in a workspace besides what is in every one."""
    found = [glob for place in places(tree, workspace) for glob in of_git(place)]
    root, directories = _around(tree, workspace)
    if directories:
        found += named(workspace, f"{directories[-1]}/config", root)
    return tuple(found)


def submodules(tree: Tree, workspace: str, *, trusted: bool = False) -> list[str]:
    """Return the paths of all submodules, as the index has them; a bare repository has none. Raises Hidden."""
    root, directories = _around(tree, workspace)
    if not directories or directories[0] == f"{workspace}/{TOP}":
        return []
    found = linked(root, directories[0], trusted=trusted)
    if root != workspace:
        found = [path for each in found for path in inside(workspace, f"{root}/{each}") if path != TOP]
    return found


def led_to(workspace: str, dot: str) -> tuple[str, ...]:
    """Return what is protected of the repository that a `.git` is, or leads to."""
    places = inside(workspace, directory_of(f"{workspace}/{dot}"))
    return tuple(glob for place in places for glob in of_git(place))


def _around(tree: Tree, workspace: str) -> tuple[str, list[str]]:
    """Return the top of the worktree that a workspace is, or is a part of, and its repository's directories."""
    if found := [*_directories(tree, workspace)]:
        return workspace, found
    root = os.path.dirname(workspace)
    while not os.path.lexists(f"{root}/.git"):
        if root == os.path.dirname(root):
            return "", []
        root = os.path.dirname(root)
    return root, [*_told(f"{root}/.git")]


def _directories(tree: Tree, workspace: str) -> Iterator[str]:
    """Yield the whole path of the repository, and of its common directory where that is another."""
    try:
        dot = tree.look(".git")
        if dot is None:
            if all(tree.look(name) is not None for name in _NEEDED):
                yield f"{workspace}/{TOP}"
            return
    except OSError:
        return  # nobody reaches it
    yield from _told(f"{workspace}/.git")


def _told(dot: str) -> Iterator[str]:
    place = directory_of(dot)
    yield place
    common = read(f"{place}/commondir").rstrip("\n")
    if common:
        yield os.path.realpath(os.path.join(place, common))
