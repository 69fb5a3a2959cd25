"""What Git prints of trees and indexes, read: which files they have, and how two of them differ.

Sources: git-diff-tree(1) "RAW OUTPUT FORMAT", git-ls-tree(1), git-ls-files(1). All of it is asked for with `-z`.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.workspace.change import ChangeKind
from enforcer.workspace.git_objects import UnreadableError

if TYPE_CHECKING:
    from enforcer.workspace.git_objects import Scratch

GITLINK: Final = 0o160000
LINK: Final = 0o120000
_DEEPEST: Final = 100  # directories of an index
_WRITE: Final = "write-tree", "--missing-ok"


class Version(NamedTuple):
    """A file as a tree or an index has it: its mode, and the name of its content. Mode 0: it isn't there."""

    mode: int = 0
    name: str = ""

    @property
    def is_gitlink(self) -> bool:
        """Whether it is a commit of a submodule."""
        return self.mode == GITLINK

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode == LINK


NOTHING: Final = Version()


class Difference(NamedTuple):
    """One file that two trees have otherwise."""

    path: str
    where: str  # `commit 0123…`, `the index`
    was: Version
    now: Version

    @property
    def kind(self) -> ChangeKind:
        """What kind of change it is."""
        if not self.was.mode:
            return ChangeKind.ADDED
        return ChangeKind.CHANGED if self.now.mode else ChangeKind.DELETED


class Index(NamedTuple):
    """What an index has: files by path and stage, and the paths of which `git status` says nothing."""

    files: dict[tuple[str, str], Version]
    hidden: frozenset[str]  # skip-worktree, assume-unchanged


def differences(out: bytes) -> Iterator[Difference]:
    """Read the output of `git diff-tree --stdin -r --raw -z`. Raises ValueError."""
    where = ""
    fields = iter(out.split(b"\0")[:-1])
    for field in fields:
        if not field.startswith(b":"):
            where = f"commit {field.split()[0].decode('ascii')}"
            continue
        was_mode, mode, was, now, _ = field[1:].decode("ascii").split(" ")
        yield Difference(os.fsdecode(next(fields)), where, _version(was_mode, was), _version(mode, now))


def listing(out: bytes, where: str) -> Iterator[Difference]:
    """Read the output of `git ls-tree -r -z`, as if there were nothing before. Raises ValueError."""
    for line in out.split(b"\0")[:-1]:
        said, _, path = line.partition(b"\t")
        mode, _, name = said.decode("ascii").split(" ")
        yield Difference(os.fsdecode(path), where, NOTHING, _version(mode, name))


def index(out: bytes) -> Index:
    """Read the output of `git ls-files --stage -v -z`. Raises ValueError."""
    files: dict[tuple[str, str], Version] = {}
    hidden: set[str] = set()
    for line in out.split(b"\0")[:-1]:
        said, _, path = line.partition(b"\t")
        tag, mode, name, stage = said.decode("ascii").split(" ")
        files[os.fsdecode(path), stage] = _version(mode, name)
        if tag.islower() or tag == "S":
            hidden.add(os.fsdecode(path))
    return Index(files, frozenset(hidden))


def between(before: Index, after: Index) -> Iterator[Difference]:
    """Yield how two indexes differ."""
    for path, stage in sorted({*before.files, *after.files}):
        was, now = (each.files.get((path, stage), NOTHING) for each in (before, after))
        if was != now:
            yield Difference(path, "the index", was, now)


def _version(mode: str, name: str) -> Version:
    number = int(mode, 8)
    return Version(number, name) if number else NOTHING


def are_others(scratch: "Scratch", listed: "Index") -> bool:
    """Whether the index that lies in a scratch repository, as it was listed, remembers other trees than its files'.

    It has the names of trees that were written before (gitformat-index(5) "Cache tree"), at each directory where
    nothing was changed since, and `git commit` takes them without looking. A task may name another tree there, which
    the next commit alone has. Git reads it here too: each directory's tree is forgotten in turn, from the top, and
    what Git writes then has to stay the same. Changes the index. Raises UnreadableError.
    """
    if not listed.files:
        return False
    nobody = "0" * len(next(iter(listed.files.values())).name)
    _remove(scratch, nobody, {path for path, stage in listed.files if stage != "0"})  # of those Git writes no tree
    levels: list[set[str]] = [{""}]
    for directory in {os.path.dirname(path) for path, _ in listed.files}:
        parts = directory.split("/")
        for depth in range(1, len(parts) + 1) if directory else ():
            if depth > _DEEPEST:
                raise UnreadableError("an index has too many directories in each other")
            if depth == len(levels):
                levels.append(set())
            levels[depth].add("/".join(parts[:depth]) + "/")
    no_file = f"exeat-{os.urandom(8).hex()}"
    written = {scratch.git(*_WRITE)}
    for directories in levels:
        _remove(scratch, nobody, {f"{directory}{no_file}" for directory in directories})
        written.add(scratch.git(*_WRITE))
    return len(written) > 1


def _remove(scratch: "Scratch", nobody: str, paths: set[str]) -> None:
    """Have Git forget files, which may not be there, and the trees of all directories that they would be in."""
    if paths:
        scratch.git("update-index", "-z", "--index-info", lines=(f"0 {nobody}\t{path}" for path in paths), end=b"\0")
