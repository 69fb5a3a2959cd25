"""What an overlay's upper layer says that a task changed.

The kernel writes it (Documentation/filesystems/overlayfs.rst): a character device 0/0 is a *whiteout*, a name that is
gone; a directory with the attribute `user.overlay.opaque` shows nothing of the one below. A task can forge neither:
mknod(2) of that device and RENAME_WHITEOUT are refused on an overlay, and its attributes of that name are kept under
another (or refused, before Linux 6.7).
"""

import errno
import os
from collections.abc import Iterator
from typing import Final

from enforcer.workspace.beneath import TOP, Entry, Tree, What, joined
from enforcer.workspace.change import Change, mode
from enforcer.workspace.snapshot import Snapshot

_OPAQUE: Final = "user.overlay.opaque"


class Upper(Tree):
    """An upper layer. Its files are ours: what can't be opened for the mode a task gave it is given another."""

    def _open(self, path: str, flags: int) -> int:
        try:
            return super()._open(path, flags)
        except PermissionError:
            self._unlock(path)
            return super()._open(path, flags)

    def _reopened(self, place: int) -> int:
        try:
            return super()._reopened(place)
        except PermissionError:
            os.chmod(f"/proc/self/fd/{place}", os.fstat(place).st_mode & 0o7777 | 0o400)
            return super()._reopened(place)

    def _unlock(self, path: str) -> None:
        parts = path.split("/")
        _open_up(self.descriptor)  # a lookup of `.` is refused as well where it can't be searched
        for depth in range(1, len(parts) + 1):
            place = super()._open("/".join(parts[:depth]), os.O_PATH)
            try:
                _open_up(place)
            finally:
                os.close(place)

    def is_opaque(self, path: str) -> bool:
        """Whether a directory shows nothing of the one below."""
        directory = self.directory(path)
        try:
            return os.getxattr(directory, _OPAQUE) == b"y"
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise
        finally:
            os.close(directory)


def _open_up(place: int) -> None:
    found = os.fstat(place).st_mode & 0o7777
    if found & 0o700 != 0o700:
        os.chmod(f"/proc/self/fd/{place}", found | 0o700)


def changes(upper: Upper, snapshot: Snapshot, longest: int) -> Iterator[Change]:
    """Yield every change, in no order. Contents are not compared: a file that was only touched is among them.

    A directory that can't be read, or whose path has more than `longest` bytes, is a change that is left out: nobody
    could open what is in it.
    """
    pending = [(TOP, False)]
    while pending:
        above, hidden = pending.pop()
        try:
            entries = dict(upper.entries(above)) if len(os.fsencode(above)) <= longest else None
            hidden = hidden or upper.is_opaque(above)
        except OSError:
            entries = None
        if entries is None:
            yield Change(above, False, None, Entry(What.OTHER, 0, 0))
            continue
        for name, entry in entries.items():
            path = joined(above, name)
            known, base = snapshot.lookup(path)
            is_directory = base is not None and base.what is What.DIRECTORY
            if entry.what is not What.DIRECTORY:
                if is_directory:
                    yield from _all_gone(snapshot, path)
                yield Change(path, known, base, None if entry.what is What.WHITEOUT else entry)
                continue
            if base is None or not is_directory or mode(base) != mode(entry):
                yield Change(path, known, base, entry)
            pending.append((path, hidden or not is_directory))
        for name in snapshot.names(above) if hidden else ():
            if name not in entries:
                path = joined(above, name)
                yield from _all_gone(snapshot, path)
                yield Change(path, *snapshot.lookup(path), None)


def _all_gone(snapshot: Snapshot, path: str) -> Iterator[Change]:
    for inner in snapshot.below(path):
        yield Change(inner, *snapshot.lookup(inner), None)
