"""What a task has closed to its own owner with chmod(2), opened for as long as somebody looks.

A directory that can't be listed hides nothing from whoever knows a name in it, as git and editors do; and one that
can't be entered is opened again by whoever wonders. So rights that an owner has taken from itself end no search.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from enforcer.workspace.beneath import TOP, Entry, Tree

_LISTED: Final = 0o500
_WANTED: Final = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o400}


@contextlib.contextmanager
def opened_up(tree: Tree, path: str, owner: int) -> Iterator[None]:
    """Give an owner rights to the directories on the way to a path and to what is there, as far as they are its own."""
    with contextlib.ExitStack() as restored:
        at = os.dup(tree.descriptor)
        try:
            _lend(restored, at, owner)
            for part in path.split("/") if path not in ("", TOP) else ():
                inner = Tree(at).place(part)
                os.close(at)
                at = inner
                _lend(restored, at, owner)
        except OSError:
            pass  # it is not there, or reached through a link: whoever looks hears of that
        finally:
            os.close(at)
        yield


def entries(tree: Tree, path: str, owner: int) -> Iterator[tuple[str, Entry]]:
    """Yield each name in a directory as `Tree.listed` does, also where an owner has taken the rights from itself.

    Nothing of one that nobody may list, or that is gone again.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as lent:
        try:
            directory = tree.directory(path)
        except PermissionError:
            lent.enter_context(opened_up(tree, path, owner))
            directory = tree.directory(path)
        else:
            if os.fstat(directory).st_mode & _LISTED != _LISTED:
                lent.enter_context(opened_up(tree, path, owner))
        yield from tree.listed(directory)


def open_up(tree: Tree, path: str, owner: int) -> None:
    """Give an owner rights to what is at a path for good. Raises OSError."""
    place = tree.place(path)
    try:
        _give(place, owner)
    finally:
        os.close(place)


def _lend(restored: contextlib.ExitStack, place: int, owner: int) -> None:
    found = _give(place, owner)
    if found is not None:
        kept = os.dup(place)
        restored.callback(os.close, kept)
        restored.callback(_restore, kept, found)


def _give(place: int, owner: int) -> int | None:
    """Give rights, and return the mode that it had; None where there is nothing to give."""
    status = os.fstat(place)
    mode, wanted = stat.S_IMODE(status.st_mode), _WANTED.get(stat.S_IFMT(status.st_mode), 0)
    if status.st_uid != owner or mode & wanted == wanted:
        return None
    os.chmod(f"/proc/self/fd/{place}", mode | wanted)
    return mode


def _restore(place: int, mode: int) -> None:
    with contextlib.suppress(OSError):
        os.chmod(f"/proc/self/fd/{place}", mode)
