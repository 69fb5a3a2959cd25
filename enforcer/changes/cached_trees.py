"""Whether the trees that an index remembers are those of its files: `git commit` takes them without looking.

An index has the names of trees that were written before (gitformat-index(5) "Cache tree"), at each directory where
nothing was changed since. A task may name another tree there, and nothing but the next commit has its files. Git reads
it here too: each directory's tree is forgotten in turn, from the top, and what Git writes then has to stay the same.
"""

import os
from typing import TYPE_CHECKING, Final

from enforcer.changes.git_objects import UnreadableError

if TYPE_CHECKING:
    from enforcer.changes.git_objects import Scratch
    from enforcer.changes.git_trees import Index

_DEEPEST: Final = 100  # directories
_WRITE: Final = "write-tree", "--missing-ok"


def are_others(scratch: "Scratch", listed: "Index") -> bool:
    """Whether the index that lies in a scratch repository, as it was listed, remembers other trees than its files'.

    Changes it. Raises UnreadableError.
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
