"""Guard of protected files: which files of a workspace need an approval to change, and which differ at a task's end.

Three lists (`protected_files.json`: by category, with where each is documented), for three questions. No Makefile, no
source file: those are what a task is to write. In a list `*` stays within a name, and a directory means all below it.

- What does a host run by itself, where nobody reads it first? Git's hooks and configuration, what editors and direnv
  start when a directory is opened, what other agents obey, what CI does with a push. Protected in both modes.
- Whose code is installed next time? Lock files and configurations of package managers. A task that may write its
  workspace directly couldn't add a dependency if they were read-only, so they are protected in a review only.
- What is the next agent told? People have agents keep these, so they are protected in a review only, too.

A fourth, what a home has, is for what is written outside of a workspace. `repository_scan` has Git's own files.

Where a task writes directly, existing protected files are masked read-only (`sandbox.mount_plan`). What mounts can't
prevent is detected afterwards: a protected file that the task makes where there was none, which is quarantined
(`quarantine`), a link or file in the place of a protected directory, and one whose mask went as the host replaced it.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from enforcer.sandbox.system_paths import outermost
from enforcer.system.errors import UsageError
from enforcer.workspace.repository import OF_REPOSITORY, HiddenRepositoryError, RepositoryReader
from enforcer.workspace.repository_scan import GIT, RepositoryScan, find_repositories, repository_globs
from enforcer.workspace.safe_path import (
    TOP,
    Entry,
    EntryType,
    Tree,
    acting_as,
    entries,
    join_path,
    read_beneath,
    temporary_access,
)
from proxy.wire import strict_json

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
# The globs of each list, relative to a project, or to a home directory
PROJECT, INSTALLED, TOLD, HOME = (
    tuple(dict.fromkeys(glob for category in categories for glob in category["globs"]))
    for categories in strict_json.loads(Path(__file__).with_name("protected_files.json").read_bytes()).values()
)
_MOST: Final = 1000  # paths that globs match, each of which is a mount
_MOST_NESTED: Final = 500  # repositories below a directory that are guarded
# However many names a task makes, no more of them are in memory: names below what is protected, and paths that match.
_MOST_BELOW: Final = 50_000
_MOST_MATCHED: Final = 10_000
_MANY: Final = -1  # the size of a directory that has more names below it than are looked at
_DEEPEST: Final = 100  # levels of directories that `**` is looked for in
# What every module or worktree has that is protected: it was there if one of these was.
_OF_GIT: Final = ("config", "commondir")
_AS_GIT_ADDS: Final = ("../..\n", "../..")  # git-worktree(1)
_ANY: Final = ("*", "**")


def globs_when_direct(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of what is protected while a task writes its workspace itself; `added` are a rule file's.

    `HEAD` is what makes a repository of any directory that has the rest (git-config(1), `safe.bareRepository`).
    """
    return (*repository_globs(".git"), "HEAD", *PROJECT, *added)


def globs_when_reviewed(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of what is protected when changes are accepted: at any depth, and of all three lists."""
    git = (f"**/.git/{name}" for name in (*GIT, *_GIT_LEFT))
    return (*git, *(f"**/{glob}" for glob in (*PROJECT, *INSTALLED, *TOLD)), *added)


class OutsideProtection(NamedTuple):
    """What is protected in a directory that a task may write outside of its workspace."""

    globs: tuple[str, ...]  # relative to it
    is_covered: bool  # else a host runs or obeys all of it, so that covering it would take it back


def protect_outside(place: str, homes: Iterable[str]) -> OutsideProtection:
    """Return what of a directory, by its whole real path, a host runs or obeys wherever that lies.

    It may be a project, a part of one (`.git`, `.claude`), or a part of a home.
    """
    parts = _split_path(place)
    found = {*_remaining_globs_of(parts, homes)}
    if "" in found:
        return OutsideProtection(("*",), is_covered=False)
    of_project = () if ".git" in parts else globs_when_direct(())
    return OutsideProtection((*sorted(found), *of_project), is_covered=True)


def is_obeyed(file: str, homes: Iterable[str]) -> bool:
    """Whether a host runs or obeys a file, by its whole real path."""
    return "" in _remaining_globs_of(_split_path(file), homes)


def _remaining_globs_of(parts: Sequence[str], homes: Iterable[str]) -> Iterator[str]:
    """Yield what lists mean in a path, as `_remaining_globs` does. What lies right in a home is what that list says."""
    tops = [home.strip("/").split("/") for home in homes]
    ends = {len(top) for top in tops if [*parts[: len(top)]] == top}
    # What a task has written in its own worktree's `gitdir` would have later ones be shown this repository
    yield from _remaining_globs(parts, (*repository_globs(".git"), ".git/worktrees/*/gitdir"), range(len(parts)))
    yield from _remaining_globs(parts, (*PROJECT, *TOLD), (begin for begin in range(len(parts)) if begin not in ends))
    yield from _remaining_globs(parts, HOME, ends)
    for top in tops:
        if len(parts) < len(top) and top[: len(parts)] == [*parts]:
            yield from ("/".join((*top[len(parts) :], glob)) for glob in HOME)


def _split_path(place: str) -> list[str]:
    """Split a path; a repository in it is called `.git`, whatever it is called."""
    parts = place.strip("/").split("/")
    for end in range(1, len(parts) + 1):
        at = "/" + "/".join(place.strip("/").split("/")[:end])
        if all(os.path.exists(f"{at}/{name}") for name in OF_REPOSITORY):
            parts[end - 1] = ".git"
    return parts


def _remaining_globs(parts: Sequence[str], globs: Iterable[str], begins: Iterable[int]) -> Iterator[str]:
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


class Guard:
    """The protected files of one workspace. Close it."""

    def __init__(self, workspace: str, globs: Iterable[str]) -> None:
        """Look at what is there now. Raises OSError, and UsageError where that is too much to cover."""
        self._tree = Tree.open(workspace)
        self._workspace = workspace
        status = os.fstat(self._tree.descriptor)
        self._owner = status.st_uid, status.st_gid
        with acting_as(*self._owner):
            self._scan = RepositoryScan(self._tree, workspace)
            self._reader = self._scan.reader
            places, also = self._scan.other_names, self._scan.protected_globs()
            self._repositories = {path for path in (".git", *places) if self._is_directory(path)}
            self._nested: tuple[str, ...] = ()
            submodules = self._git_paths()
            found, self.is_searched = find_repositories(self._entries) if self._scan.root != workspace else ([], True)
            nested = [dot for dot in found if dot not in submodules]
            self._nested = tuple(nested[:_MOST_NESTED])
            self.unguarded = len(nested) - len(self._nested)  # repositories below that nobody looks at
            dots = [*submodules, *self._nested]
            there = {dot: entry for dot in dots if (entry := self._entry(dot)) is not None}
            led = {dot: self._scan.globs_of(dot) for dot in there}
            known = {
                dot: (entry, self._reader.directory(f"{workspace}/{dot}"))
                for dot in (".git", *there)
                if (entry := self._entry(dot)) is not None and entry.what is not EntryType.DIRECTORY
            }
        for dot, entry in there.items():
            also = (*also, *(() if entry.what is EntryType.DIRECTORY else (dot,)), *led[dot])
        inner = {join_path(place, name) for place in (*places, *self._nested) for name in ("worktrees", "modules")}
        self._git = tuple(f"{path}/" for path in (".git", *inner))
        self._globs: dict[str, list[list[str]]] = {}  # what follows, by their first part: few of those are there
        for glob in (*globs, *also):
            first, *rest = glob.rstrip("/").split("/")
            self._globs.setdefault(first, []).append(rest)
        self._starred = frozenset(first for first in self._globs if "*" in first and first not in _ANY)
        self._submodules: dict[str, Entry] | None = None
        self._before: dict[str, Entry] = {}
        self.is_cut = False  # whether more paths match than the last look has found
        self._found, self._before = self._scan_files()
        if self.is_cut:
            raise self._too_much()
        self._submodules = there
        self._reader = RepositoryReader(self._tree, workspace, known)
        self._directories: dict[str, Entry] = {}  # that are covered

    def close(self) -> None:
        """Release it."""
        self._tree.close()

    def paths(self) -> tuple[str, ...]:
        """Return the whole paths of what is to be covered, the outermost of each; links can't be.

        Of repositories below, as many as there is room for: what changes in the others is reported.
        """
        found = [path for path in self._found if self._before[path].what in (EntryType.FILE, EntryType.DIRECTORY)]
        nested = tuple(f"{dot}/" for dot in self._nested)
        found.sort(key=lambda path: f"{path}/".startswith(nested))
        if len(found) > _MOST and not f"{found[_MOST]}/".startswith(nested):
            raise self._too_much()
        found = sorted(found[:_MOST])
        outer = [path for path in found if not any(path.startswith(other + "/") for other in found)]
        entries = {path: self._before.get(path) for path in outer}
        self._directories = {
            path: entry for path, entry in entries.items() if entry and entry.what is EntryType.DIRECTORY
        }
        return tuple(f"{self._workspace.rstrip('/')}/{path}" for path in outer)

    def _too_much(self) -> UsageError:
        return UsageError(
            f"`protected` means more than {_MOST} files in `{self._workspace}`, each of which has to be covered; "
            "name directories, or review the task's changes (`--review`)"
        )

    def find_changed(self) -> list[str]:
        """Return the paths, relative to the workspace, that are not what they were.

        Of very many that the task has made, only some (`is_cut`): the others are found once those are elsewhere.
        """
        _, now = self._scan_files()
        differing = {path for path in {*self._before, *now} if not _is_same(self._before.get(path), now.get(path))}
        with acting_as(*self._owner):
            plain = {path for path in differing if path not in self._before and self._is_plain_worktree(path)}
        return sorted(path for path in differing - plain if not self._was_covered(path, now))

    def find_new(self, changed: Sequence[str]) -> list[str]:
        """Return which of the `changed` paths are new, the outermost of each.

        A repository, submodule or worktree that is new as a whole is left out: without its configuration it is none.
        """
        return [
            path for path in outermost(path for path in changed if path not in self._before) if not self._is_new(path)
        ]

    def find_new_quickly(self) -> list[str]:
        """Return the new paths that need no search of a whole tree, whose duration the task controls."""
        with acting_as(*self._owner):
            return self.find_new(self._matching_paths(deep=False))

    @property
    def tree(self) -> Tree:
        """The workspace."""
        return self._tree

    def _is_new(self, path: str) -> bool:
        """Whether a path is protected as part of a repository, a module or a worktree that wasn't there."""
        if not path.startswith(self._git):
            return False
        above, name = os.path.split(path)
        if name == "attributes" and os.path.basename(above) == "info":
            above = os.path.dirname(above)
        return above not in self._repositories and not any(f"{above}/{one}" in self._before for one in _OF_GIT)

    def _is_plain_worktree(self, path: str) -> bool:
        """Whether a file is what `git worktree add` makes: it says that the repository is the one that it lies in."""
        above, _, name = path.rpartition("/")
        is_one = name == "commondir" and os.path.basename(os.path.dirname(above)) == "worktrees"
        return is_one and path.startswith(self._git) and read_beneath(self._tree, path) in _AS_GIT_ADDS

    def _is_directory(self, path: str) -> bool:
        entry = self._entry(path)
        return entry is not None and entry.what is EntryType.DIRECTORY

    def _was_covered(self, path: str, now: Mapping[str, Entry]) -> bool:
        """Whether a path lies in a directory that was read-only for the task all the time: then it wasn't the task.

        Editors write such directories all day. A file with other names could have been written under one of those.
        """
        for above, directory in self._directories.items():
            there = now.get(above)
            if path.startswith(above + "/") and there is not None and there.inode == directory.inode:
                entries = (self._before.get(path), now.get(path))
                return all(entry is None or entry.what is EntryType.DIRECTORY or entry.links == 1 for entry in entries)
        return False

    def _scan_files(self) -> tuple[list[str], dict[str, Entry]]:
        """Return the paths that globs match, and with what lies below them what each is.

        It looks as the workspace's owner: what that can't reach, the task can't either, and no cover could lie on it.
        What the owner has closed to itself, the task may have.
        """
        matched: list[str] = []
        found: dict[str, Entry] = {}
        left = _MOST_BELOW
        with acting_as(*self._owner):
            for path in self._matching_paths():
                entry = self._entry(path)
                if entry is None:
                    continue
                matched.append(path)
                below = dict(islice(self._walk(path), left + 1)) if entry.what is EntryType.DIRECTORY else {}
                if len(below) > left:  # then only that there are so many is known of it
                    below, entry = {}, entry._replace(size=_MANY)
                left -= len(below)
                found[path] = entry
                found.update(below)
        return matched, found

    def _matching_paths(self, *, deep: bool = True) -> list[str]:
        found: set[str] = set()
        known = 0  # of those, as part of a repository that is new: what is said of it needs no more of them
        self.is_cut = False
        for path in self._all_matches(deep=deep):
            if path in found:
                continue
            if self._submodules is not None and path not in self._before and self._is_new(path):
                known += 1
                if known > _MOST:
                    continue
            found.add(path)
            if len(found) > _MOST_MATCHED:
                self.is_cut = True
                break
        return sorted(found)

    def _all_matches(self, *, deep: bool) -> Iterator[str]:
        """Yield every path that a glob matches, and every repository that wasn't there; some more than once."""
        for first, name, entry in self._top_matches():
            for rest in self._globs[first]:
                if not deep and "**" in {first, *rest}:
                    continue
                if entry is None:
                    yield from self._expand(TOP, [first, *rest], _DEEPEST)
                else:
                    yield from self._expand_entry((name, first), entry, rest)
        if self._submodules is not None:
            for dot in self._git_paths(deep=deep):
                before, now = self._submodules.get(dot), self._entry(dot)
                if now is not None and (before is None or before.inode != now.inode):
                    yield dot

    def _top_matches(self) -> Iterator[tuple[str, str, Entry | None]]:
        """Yield the first part of each glob with what is at the top that it matches; None: that is to be looked for.

        Each plain one is looked up by its name: a file system may not list all that it has, or call it otherwise.
        """
        for first in self._globs:
            if first in _ANY:
                yield first, "", None
            elif first not in self._starred and (entry := self._entry(first)) is not None:
                yield first, first, entry
        for name, entry in self._entries(TOP) if self._starred else ():
            if _matching(self._starred).fullmatch(name):
                matched = (first for first in self._starred if _matching(frozenset([first])).fullmatch(name))
                yield from ((first, name, entry) for first in matched)

    def _git_paths(self, *, deep: bool = True) -> list[str]:
        """Return where repositories are that Git goes into by itself, and those below as of the start."""
        try:
            found = [f"{path}/.git" for path in self._scan.submodules(self._reader)]
        except HiddenRepositoryError:
            every = self._expand(TOP, ["**", ".git"], _DEEPEST) if deep else ()
            found = [path for path in every if not f"{path}/".startswith(".git/")]
        return [*found, *(path for path in self._nested if path not in found)]

    def _expand(self, at: str, parts: Sequence[str], depth: int) -> Iterator[str]:
        """Yield every path that a glob matches; symbolic links are matched and not followed."""
        if not parts:
            yield at
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            if rest:
                yield from self._expand(at, rest, depth)
            for name, inner in self._entries(at) if depth else ():
                if not rest:
                    yield join_path(at, name)
                if inner.what is EntryType.DIRECTORY:
                    yield from self._expand(join_path(at, name), parts, depth - 1)
            return
        for name, inner in self._matching_names(at, part):
            yield from self._expand_entry((join_path(at, name), part), inner, rest, depth)

    def _expand_entry(
        self, found: tuple[str, str], entry: Entry, rest: Sequence[str], depth: int = _DEEPEST
    ) -> Iterator[str]:
        """Go on from a path, and the part of a glob that it matches.

        A link leads to what the rest of the glob means, and a file may say where that is: `.git` does.
        """
        path, part = found
        if not rest or entry.what is EntryType.DIRECTORY:
            yield from self._expand(path, rest, depth)
        elif entry.what is EntryType.LINK or (entry.what is EntryType.FILE and "*" not in part):
            yield path

    def _matching_names(self, at: str, part: str) -> Iterator[tuple[str, Entry]]:
        """Yield the names in a directory that one part of a glob matches."""
        if part == "*":
            yield from self._entries(at)
        elif "*" in part:
            matching = _matching(frozenset([part]))
            yield from ((name, entry) for name, entry in self._entries(at) if matching.fullmatch(name))
        elif (entry := self._entry(join_path(at, part))) is not None:
            yield part, entry

    def _walk(self, path: str) -> Iterator[tuple[str, Entry]]:
        pending = [path]
        while pending:
            above = pending.pop()
            for name, entry in self._entries(above):
                inner = join_path(above, name)
                yield inner, entry
                if entry.what is EntryType.DIRECTORY:
                    pending.append(inner)

    def _entries(self, path: str) -> Iterator[tuple[str, Entry]]:
        return entries(self._tree, path, self._owner[0])

    def _entry(self, path: str) -> Entry | None:
        try:
            try:
                return self._tree.stat(path)
            except PermissionError:
                with temporary_access(self._tree, os.path.dirname(path), self._owner[0]):
                    return self._tree.stat(path)
        except OSError:
            return None  # reached through a link or a mount: nothing that could be covered


@cache
def _matching(parts: frozenset[str]) -> re.Pattern[str]:
    """Return what matches a name that any of some parts of globs means."""
    wanted = sorted(".*".join(map(re.escape, part.split("*"))) for part in parts)
    return re.compile("|".join(wanted), re.DOTALL | re.IGNORECASE)


def _is_same(before: Entry | None, now: Entry | None) -> bool:
    if before is None or now is None:
        return before is now
    if before.what is EntryType.DIRECTORY:
        return now.what is EntryType.DIRECTORY and (before.mode, before.size) == (now.mode, now.size)
    return before.is_untouched(now)
