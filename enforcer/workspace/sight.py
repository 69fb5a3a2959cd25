"""Where git repositories of a workspace are looked at, when a task may have written what leads there.

What a task has said is followed no further than into the workspace, over no link and into no mount: a look at
`/net/HOST` has autofs(8) ask for that host, past every rule, and one at somebody's FUSE mount may never end.
"""

import errno
import os
import stat
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from enforcer.workspace.beneath import Entry, Tree, What
from enforcer.workspace.gitconfig import read, read_beneath

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING: Final = MappingProxyType[str, "tuple[Entry, str]"]({})


class Hidden(Exception):  # noqa: N818  what they may be
    """What is linked can't be told."""


def directory_of(dot: str) -> str:
    """Return the directory that a `.git` is, or says that it is."""
    said = "" if os.path.isdir(dot) else read(dot).removeprefix("gitdir:").strip()
    return os.path.join(os.path.dirname(dot), said) if said else dot


class Sight:
    """As far as one can look: in all of the host, or in a workspace as it is after a task. Paths are whole ones."""

    def __init__(
        self,
        tree: Tree | None = None,
        workspace: str = "",
        known: "Mapping[str, tuple[Entry, str]] | None" = _NOTHING,
    ) -> None:
        """`known`: which `.git` in the workspace were links and files when it was whose it is, and where they led.

        None: it is whose it is now. But an earlier task may have made a repository in it, with all that this says.
        """
        self._tree = tree
        self._workspace = workspace
        self._known = known

    def directory(self, dot: str) -> str:
        """Return the directory that a `.git` is, or leads to; empty: to none. Raises Hidden for one that is changed."""
        path = self._inside(dot)
        if self._tree is None or path is None:
            return directory_of(dot)
        try:
            entry, known = self._tree.look(path), (self._known or _NOTHING).get(path)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return ""  # Git goes over no link
            raise Hidden from error
        if entry is None or entry.what is What.DIRECTORY:
            return "" if entry is None else dot
        if self._known is None:
            return self._led(dot, path, entry)
        if known is None:
            return ""  # nothing goes there once it is put aside
        if not known[0].is_same_file(entry):
            raise Hidden
        return known[1]

    def _led(self, dot: str, path: str, entry: Entry) -> str:
        """Return where a link or a file says that a repository is: elsewhere only by the workspace's own `.git`."""
        assert self._tree is not None, "all of the host is seen"
        said = entry.target
        if entry.what is What.FILE:
            said = read_beneath(self._tree, path).removeprefix("gitdir:").strip()
        led = os.path.normpath(os.path.join(os.path.dirname(dot), said)) if said else ""
        return led if led and (path == ".git" or self._inside(led) is not None) else ""

    @property
    def is_first(self) -> bool:
        """Whether no task has written there since: an index of very many files needs no second look then."""
        return self._known is None

    def is_inside(self, path: str) -> bool:
        """Whether a path is said to lie in the workspace."""
        return self._inside(path) is not None

    def names(self, directory: str, beginning: str) -> list[str]:
        """Return the names in a directory that begin so; none where it can't be listed, or isn't there."""
        path = self._inside(directory)
        try:
            if self._tree is None or path is None:
                found = os.listdir(directory)
            else:
                place = self._tree.directory(path)
                try:
                    found = os.listdir(place)
                finally:
                    os.close(place)
        except OSError:
            return []
        return [name for name in found if name.startswith(beginning)]

    def file(self, path: str) -> int:
        """Open a regular file to read it. Raises OSError."""
        inside = self._inside(path)
        if self._tree is not None and inside is not None:
            return self._tree.file(inside)
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise IsADirectoryError(path)
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)

    def text(self, path: str, by: str) -> str:
        """Read a small file of which something in the directory `by` has said; empty where it is none."""
        if self._tree is None or self._inside(by) is None:
            return read(path)
        path = os.path.normpath(path)
        inside = self._inside(path)
        return "" if inside is None else read_beneath(self._tree, inside)

    def _inside(self, path: str) -> str | None:
        """Return a path relative to the workspace, if it is said to lie in there."""
        above = f"{self._workspace.rstrip('/')}/"
        return path[len(above) :] or "." if path.startswith(above) else None
