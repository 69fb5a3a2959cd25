"""Scan of a workspace's Git repositories: which files Git executes or reads settings from.

- Of each repository (`repository`), by its own or another name; a workspace may be a bare one itself.
- What its configuration names (git-config(1)): `core.hooksPath`, files that are included, and commands, which Git runs
  without being asked to (filters, `core.fsmonitor`, `diff.*.textconv`).
- Submodules, as the index has them. What the index may hide, as it is sparse or makes no sense, counts as if it were
  any directory.

All of it is read at a start, as the workspace's owner.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from enforcer.workspace.repository import OF_REPOSITORY, Repository, RepositoryReader, Setting, parse_settings
from enforcer.workspace.safe_path import TOP, Entry, EntryType, Tree, join_path, read, read_beneath

_MOST_FILES: Final = 100  # files
_INCLUDED: Final = frozenset({"include.path", "includeif.path"})
_HOOKS: Final = "core.hookspath"
_COMMANDS: Final = frozenset({
    "alternaterefscommand", "askpass", "clean", "cmd", "command", "difffilter", "driver", "editor", "external",
    "fsmonitor", "gitproxy", "helper", "pager", "process", "program", "receivepack", "smudge", "sshcommand", "textconv",
    "uploadpack",
})  # fmt: skip
# Of a directory that is no repository, so much is looked through for those in it: some 40 ms at most.
_MOST_DIRECTORIES: Final = 400
_MOST_NAMES: Final = 8000
_PACKAGES: Final = frozenset({"node_modules", "site-packages", "__pycache__"})
# `.git` may lie deeper, for a submodule or a project in a project; in a submodule or a worktree it is a file.
# `commondir` says which directory Git takes its configuration and hooks from (gitrepository-layout(5)); `remotes` and
# `branches` what it pushes to: a repository in the workspace has hooks of its own, which a push to it runs. Sapling and
# Arcanist keep their configuration in there, too.
GIT: Final = (
    "config", "config.worktree", "hooks", "info/attributes", "commondir", "remotes", "branches",
    "objects/info/alternates", "objects/info/http-alternates", "modules/**/objects/info/alternates",
    "modules/**/objects/info/http-alternates",
    "worktrees/*/commondir", "worktrees/*/config.worktree", "modules/**/config", "modules/**/config.worktree",
    "modules/**/hooks", "modules/**/info/attributes", "modules/**/commondir", "modules/*/remotes",
    "modules/*/branches", "sl/config", "arc/config",
)  # fmt: skip


def list_user_git_files() -> frozenset[str]:
    """Return the whole real paths of what the user's configuration has Git read or run in every repository."""
    said = _said(_of_user(), read, lambda _at, _path: True)
    paths = (path for at, setting in said for path in _paths(at, setting, "") if os.path.isabs(path))
    return frozenset(map(os.path.realpath, paths))


def _of_user() -> list[str]:
    return ["/etc/gitconfig", *map(os.path.expanduser, ("~/.gitconfig", "~/.config/git/config"))]


def _said(
    files: Iterable[str], read_one: Callable[[str], str], may_include: Callable[[str, str], bool]
) -> Iterator[tuple[str, Setting]]:
    """Yield what configurations and those that they include say, each with the path that it stands at."""
    pending = [*files]
    seen = {*pending}
    while pending:
        at = pending.pop()
        for setting in parse_settings(read_one(at)):
            yield at, setting
            path = _whole(setting.value, os.path.dirname(at)) if setting.name in _INCLUDED else at
            if path not in seen and len(seen) < _MOST_FILES:
                seen.add(path)
                pending += [path] if may_include(at, path) else []


def _paths(at: str, setting: Setting, root: str) -> list[str]:
    """Return the paths that a setting has Git read or run: of a configuration `at` a path, in a worktree at `root`."""
    if setting.name in _INCLUDED:
        return [_whole(setting.value, os.path.dirname(at))]
    if setting.name == _HOOKS:
        return [_whole(setting.value, root)]
    is_command = setting.name.partition(".")[2] in _COMMANDS
    return [_whole(word, root) for word in _words(setting.value)] if is_command else []


def _words(command: str) -> list[str]:
    """Split a command, roughly; what is quoted may be one word as well."""
    plain = command.removeprefix("!").replace('"', " ").replace("'", " ")
    return [plain.strip(), *plain.split()]


def _whole(path: str, above: str) -> str:
    return os.path.join(above, os.path.expanduser(path))


class RepositoryScan:
    """Repositories of a workspace before its task starts. Make and use it as the workspace's owner."""

    def __init__(self, tree: Tree, workspace: str) -> None:
        """Find the repository that the workspace has, or is a part of."""
        self._tree = tree
        self._workspace = workspace
        self.reader = RepositoryReader(tree, workspace, None)
        own = self._own()
        # The top of the worktree that the workspace is, or is a part of; empty: there is none
        self.root, self._repository = (workspace, own) if own is not None else self._above()
        found = () if own is None else (*self._inside(own.directory), *self._inside(own.common))
        # Paths of the workspace's repository where that has another name than `.git`
        self.other_names = tuple(dict.fromkeys(path for path in found if path != ".git"))

    def _own(self) -> Repository | None:
        try:
            if self._tree.stat(".git") is not None:
                return self.reader.repository(f"{self._workspace}/.git")
            is_bare = all(self._tree.stat(name) is not None for name in OF_REPOSITORY)
        except OSError:
            return None  # nobody reaches it
        return Repository(*[f"{self._workspace}/{TOP}"] * 2) if is_bare else None

    def _above(self) -> tuple[str, Repository | None]:
        root = os.path.dirname(self._workspace)
        while not os.path.lexists(f"{root}/.git"):
            if root == os.path.dirname(root):
                return "", None
            root = os.path.dirname(root)
        return root, self.reader.repository(f"{root}/.git")

    def protected_globs(self) -> tuple[str, ...]:
        """Return what is protected in the workspace besides what is in every one."""
        # The user's own configuration counts without a repository
        found = self._repository or Repository(f"{self._workspace}/.git", "")
        named = self._named(f"{found.common or found.directory}/config")
        return (*(glob for place in self.other_names for glob in repository_globs(place)), *named)

    def globs_of(self, dot: str) -> tuple[str, ...]:
        """Return what is protected of the repository that a `.git` in the workspace is, or leads to. Raises Hidden."""
        led = self.reader.directory(f"{self._workspace}/{dot}")
        return tuple(glob for place in (self._inside(led) if led else ()) for glob in repository_globs(place))

    def submodules(self, reader: RepositoryReader) -> list[str]:
        """Return the paths of all submodules, as the index has them; a bare repository has none. Raises Hidden.

        `reader`: of the workspace, then or now.
        """
        found: list[str] = []
        if led := reader.directory(f"{self._workspace}/.git"):
            found += reader.submodules(self._workspace, led)
        if self.root == self._workspace or self._repository is None:
            return found
        paths = reader.submodules(self.root, self._repository.directory)
        whole = (f"{self.root.rstrip('/')}/{each}" for each in paths)  # nothing on the way is looked at
        above = f"{self._workspace}/"
        return [*found, *(os.path.relpath(each, self._workspace) for each in whole if each.startswith(above))]

    def _named(self, configuration: str) -> tuple[str, ...]:
        """Return the paths in the workspace that the configuration of its repository and of its user names."""
        found: dict[str, None] = {}

        def read_one(at: str) -> str:
            own = _relative_to_workspace(self._workspace, at)
            return read(at) if own is None else read_beneath(self._tree, own)

        def may_name(at: str, path: str) -> bool:
            return (
                _relative_to_workspace(self._workspace, at) is None
                or _relative_to_workspace(self._workspace, path) is not None
            )

        of_repository = (configuration, f"{os.path.dirname(configuration)}/config.worktree")
        for at, setting in _said((*_of_user(), *of_repository), read_one, may_name):
            is_command = setting.name not in _INCLUDED and setting.name != _HOOKS
            if is_command and setting.name.startswith("alias."):
                continue
            for path in _paths(at, setting, self.root or self._workspace):
                inside = self._inside(path) if may_name(at, path) else ()
                found.update((each, None) for each in inside if each != TOP and (self._is_file(each) or not is_command))
        return tuple(found)

    def _inside(self, path: str) -> tuple[str, ...]:
        """Return a whole path relative to the workspace, if it lies in there: by its name, and where that leads to."""
        if not path:
            return ()
        name = _relative_to_workspace(self._workspace, path)
        leads = (
            _relative_to_workspace(self._workspace, os.path.realpath(path))
            if name is None
            else self._tree.resolve(name)
        )
        return tuple(dict.fromkeys(each for each in (name, leads) if each is not None))

    def _is_file(self, path: str) -> bool:
        try:
            entry = self._tree.stat(path)
        except OSError:
            return False
        return entry is not None and entry.what is EntryType.FILE


def _relative_to_workspace(workspace: str, path: str) -> str | None:
    """Return a whole path relative to a workspace, if it is said to lie in there: nothing is looked at."""
    name = os.path.relpath(path, workspace)
    return None if name == ".." or name.startswith("../") else name


def find_repositories(entries: Callable[[str], Iterable[tuple[str, Entry]]]) -> tuple[list[str], bool]:
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
        if at != TOP and listed.keys() >= {*OF_REPOSITORY}:
            found.append(at)
            continue
        if at != TOP and ".git" in listed:
            found.append(join_path(at, ".git"))
            queue = inside_one
        directories = sorted(name for name, entry in listed.items() if entry.what is EntryType.DIRECTORY)
        queue += (join_path(at, name) for name in directories if name != ".git" and name not in _PACKAGES)
    return found, not pending and not inside_one


def repository_globs(place: str) -> tuple[str, ...]:
    """Return the globs of what is protected in a repository that lies there."""
    return tuple(os.path.normpath(f"{place}/{name}") for name in GIT)
