"""What Git prints of trees and indexes, read: which files they have, and how two of them differ.

Sources: git-diff-tree(1) "RAW OUTPUT FORMAT", git-ls-tree(1), git-ls-files(1). All of it is asked for with `-z`.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from enforcer.changes.change import ChangeKind

GITLINK: Final = 0o160000
LINK: Final = 0o120000


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
