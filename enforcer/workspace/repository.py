"""Where in a workspace the repository is that Git finds there, and what that has Git run: nobody else may say it.

gitrepository-layout(5): `.git` may be a file or a link that says where the repository is, as people have it who keep
their worktrees beside a bare one, and a workspace may be a bare one itself. The common directory has the configuration
and the hooks, for a worktree as well. Looked for at a start, and as the workspace's owner.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from enforcer.workspace.beneath import TOP, Entry, Tree, What, joined
from enforcer.workspace.gitconfig import inside, named
from enforcer.workspace.gitlinks import linked
from enforcer.workspace.protected import of_git
from enforcer.workspace.sight import Hidden, Sight

# Of a directory that is no repository, so much is looked through for those in it: some 40 ms at most.
_MOST_DIRECTORIES: Final = 400
_MOST_NAMES: Final = 8000
_PACKAGES: Final = frozenset({"node_modules", "site-packages", "__pycache__"})
_NEEDED: Final = ("HEAD", "objects", "refs")  # what Git takes a directory for a repository by


def places(tree: Tree, workspace: str) -> tuple[str, ...]:
    """Return the paths, in a workspace, of its repository where that has another name than `.git`."""
    found = (inside(tree, workspace, directory) for directory in _directories(tree, workspace))
    return tuple(dict.fromkeys(path for each in found for path in each if path != ".git"))


def globs(tree: Tree, workspace: str) -> tuple[str, ...]:
    """Return what is protected in a workspace besides what is in every one."""
    found = [glob for place in places(tree, workspace) for glob in of_git(place)]
    root, directories = around(tree, workspace)
    place = directories[-1] if directories else f"{workspace}/.git"  # the user's own configuration counts without one
    found += named(tree, workspace, f"{place}/config", root or workspace)
    return tuple(found)


def submodules(workspace: str, root: str, directory: str, sight: Sight) -> list[str]:
    """Return the paths of all submodules, as the index has them; a bare repository has none. Raises Hidden.

    `root`, `directory`: of the repository that it is in, as of the start. `sight`: of the workspace, then or now.
    """
    found: list[str] = []
    if led := sight.directory(f"{workspace}/.git"):
        found += linked(workspace, led, sight)
    if root == workspace or not directory or directory == f"{workspace}/{TOP}":
        return found
    whole = (f"{root.rstrip('/')}/{each}" for each in linked(root, directory, sight))  # nothing on the way is looked at
    return [*found, *(os.path.relpath(each, workspace) for each in whole if each.startswith(f"{workspace}/"))]


def below(entries: Callable[[str], Iterable[tuple[str, Entry]]]) -> tuple[list[str], bool]:
    """Return the `.git` of each repository below the top, and each bare repository there, the nearest first.

    And whether all was looked through: of very many directories only the nearest are, those in repositories last.
    """
    found: list[str] = []
    pending, inside_one, left = deque([TOP]), deque[str](), _MOST_NAMES
    for _ in range(_MOST_DIRECTORIES):
        if not pending and not inside_one:
            return found, True
        queue = pending or inside_one
        at = queue.popleft()
        listed = dict(islice(entries(at), left + 1))
        left -= len(listed)
        if left < 0:
            return found, False
        if at != TOP and listed.keys() >= {*_NEEDED}:
            found.append(at)
            continue
        if at != TOP and ".git" in listed:
            found.append(joined(at, ".git"))
            queue = inside_one
        directories = sorted(name for name, entry in listed.items() if entry.what is What.DIRECTORY)
        queue += (joined(at, name) for name in directories if name != ".git" and name not in _PACKAGES)
    return found, not pending and not inside_one


def led_to(tree: Tree, workspace: str, dot: str, sight: Sight) -> tuple[str, ...]:
    """Return what is protected of the repository that a `.git` is, or leads to."""
    led = sight.directory(f"{workspace}/{dot}")
    return tuple(glob for place in (inside(tree, workspace, led) if led else ()) for glob in of_git(place))


def around(tree: Tree, workspace: str) -> tuple[str, list[str]]:
    """Return the top of the worktree that a workspace is, or is a part of, and its repository's directories."""
    if found := [*_directories(tree, workspace)]:
        return workspace, found
    root = os.path.dirname(workspace)
    while not os.path.lexists(f"{root}/.git"):
        if root == os.path.dirname(root):
            return "", []
        root = os.path.dirname(root)
    return root, [*_told(f"{root}/.git", as_of_now(tree, workspace))]


def as_of_now(tree: Tree, workspace: str) -> Sight:
    """Return how a workspace is looked at before a task starts."""
    return Sight(tree, workspace, None)


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
    yield from _told(f"{workspace}/.git", as_of_now(tree, workspace))


def _told(dot: str, sight: Sight) -> Iterator[str]:
    try:
        place = sight.directory(dot)
    except Hidden:
        return
    if not place:
        return
    yield place
    common = sight.text(f"{place}/commondir", place).rstrip("\n")
    led = os.path.join(place, common)
    if common:
        led = os.path.normpath(led) if sight.is_inside(place) else os.path.realpath(led)
        if not sight.is_inside(place) or sight.is_inside(led):
            yield led
