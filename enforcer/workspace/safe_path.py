"""Safe paths below an open directory: no rename or link on the way can lead out of it.

- `Tree` looks up every path anew from the open directory; the kernel refuses symbolic links, `..`, magic links and
  other mounts on it (openat2(2)).
- `acting_as` does so with the rights of the workspace's owner alone.
- `temporary_access` gives an owner temporary access to a directory that it closed to itself with chmod(2). A program
  that knows a name in such a directory can still use it.
- Content of files: read in pieces, compared, and hashed.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple, Self

from enforcer.system import linux

_RESOLVE: Final = (
    linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
)
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
MODE: Final = 0o777  # what of a mode is ever carried over: no set-id bit, no sticky bit
TOP: Final = "."  # a tree itself
_LISTED: Final = 0o500
_WANTED: Final = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o400}
LARGEST: Final = 1 << 20  # bytes of a file that is read


class EntryType(StrEnum):
    """Type of the entry at a path."""

    OTHER = "other"  # a device, a socket or a FIFO: nothing that is ever carried over
    WHITEOUT = "whiteout"  # the character device 0/0: in an overlay's upper layer, that a name is gone
    FILE = "file"
    LINK = "link"
    DIRECTORY = "directory"


_WHAT: Final = {stat.S_IFREG: EntryType.FILE, stat.S_IFLNK: EntryType.LINK, stat.S_IFDIR: EntryType.DIRECTORY}


class Entry(NamedTuple):
    """One name in a directory, as lstat(2) has it. Sizes in bytes, times in ns since 1970."""

    what: EntryType
    mode: int
    inode: int
    size: int = 0
    modified: int = 0
    changed: int = 0  # set by the kernel alone
    links: int = 1
    target: str = ""  # of a symbolic link

    def is_same_file(self, other: "Entry | None") -> bool:
        """Whether it is the very file, not written since. Renaming it and linking to it make no difference."""
        return other is not None and self[:5] == other[:5] and self.target == other.target

    def is_untouched(self, other: "Entry | None") -> bool:
        """Whether it is the very file, and nothing at all was done to it since."""
        return other is not None and self.is_same_file(other) and self.changed == other.changed


class Tree:
    """An open directory. Every path is relative to it; `.` is itself."""

    def __init__(self, descriptor: int) -> None:
        """Take an open directory, which `close` closes."""
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.device = status.st_dev
        self.inode = status.st_ino

    @classmethod
    def open(cls, path: str) -> Self:
        """Open a directory by a real path: no symbolic link is followed. Raises OSError."""
        how = os.O_PATH | os.O_DIRECTORY
        return cls(linux.openat2(linux.AT_FDCWD, path, how, linux.RESOLVE_NO_SYMLINKS))

    def close(self) -> None:
        """Close the directory."""
        os.close(self.descriptor)

    def directory(self, path: str) -> int:
        """Open a directory to list it. Raises OSError."""
        return self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)

    def open_path(self, path: str) -> int:
        """Open a path of any type with O_PATH, neither to read nor to write it. Raises OSError."""
        return self._open(path, os.O_PATH)

    def parent(self, path: str, how: int = os.O_RDONLY) -> tuple[int, str]:
        """Open the directory that a path's last name is in, and return that name too. Raises OSError.

        With O_PATH it needn't be one that can be listed.
        """
        above, _, name = path.rpartition("/")
        return self._open(above or ".", how | os.O_DIRECTORY), name

    def file(self, path: str) -> int:
        """Open a regular file for reading: nothing else is opened. Raises OSError, ELOOP where it is something else."""
        return open_regular(self._open(path, os.O_PATH), path)

    def resolve(self, path: str) -> str | None:
        """Resolve a path over links that stay below this directory; None if it leads elsewhere, or nowhere."""
        how = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
        try:
            place = linux.openat2(self.descriptor, path, os.O_PATH, how)
        except OSError:
            return None
        try:
            at, top = (os.readlink(f"/proc/self/fd/{each}") for each in (place, self.descriptor))
        finally:
            os.close(place)
        return TOP if at == top else at[len(top.rstrip("/")) + 1 :]

    def stat(self, path: str) -> Entry | None:
        """Return the entry at a path, without following links; None if there is none. Raises OSError."""
        if "/" not in path:
            return stat_name(self.descriptor, path)
        try:
            try:
                above, name = self.parent(path)
            except PermissionError:  # what can't be listed can be known for all that
                above, name = self.parent(path, os.O_PATH)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        try:
            return stat_name(above, name)
        finally:
            os.close(above)

    def entries(self, path: str) -> Iterator[tuple[str, Entry]]:
        """Yield every name in a directory with what it is; what is mounted there stands for nothing. Raises OSError."""
        descriptor = self.directory(path)
        try:
            for name in sorted(os.listdir(descriptor)):
                entry = stat_name(descriptor, name, self.device)
                if entry is not None:
                    yield name, entry
        finally:
            os.close(descriptor)

    def scan(self, directory: int) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of an open directory unsorted, one by one, and close it at the end.

        However many names there are, they are never all in memory.
        """
        try:
            with os.scandir(directory) as names:
                for each in names:
                    entry = stat_name(directory, each.name, self.device)
                    if entry is not None:
                        yield each.name, entry
        finally:
            os.close(directory)

    def _open(self, path: str, flags: int) -> int:
        return linux.openat2(self.descriptor, path, flags | os.O_NOFOLLOW, _RESOLVE)


def open_regular(place: int, path: str) -> int:
    """Open for reading what is opened with O_PATH; closes that. Raises OSError, ELOOP for no regular file.

    Opening anything else may do something, or wait.
    """
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.ELOOP, f"`{path}` is no regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)


def stat_name(directory: int, name: str, device: int | None = None) -> Entry | None:
    """Return what a name in an open directory is; None: nothing, or nothing on `device`. Raises OSError."""
    try:
        status = os.lstat(name, dir_fd=directory)
        what = _WHAT.get(stat.S_IFMT(status.st_mode), EntryType.OTHER)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            what = EntryType.WHITEOUT
        target = os.readlink(name, dir_fd=directory) if what is EntryType.LINK else ""
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    if device is not None and status.st_dev != device:
        return None
    return entry_from_status(status, what, target)


def entry_from_status(status: os.stat_result, what: EntryType, target: str = "") -> Entry:
    """Make an entry of what stat(2) says."""
    return Entry(
        what,
        stat.S_IMODE(status.st_mode),
        status.st_ino,
        0 if what is EntryType.DIRECTORY else status.st_size,
        0 if what is EntryType.DIRECTORY else status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_nlink,
        target,
    )


def join_path(above: str, name: str) -> str:
    """Return the path of a name in a directory."""
    return name if above == TOP else f"{above}/{name}"


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Look, read and write as this user and in this group alone; for an ordinary user, as that one.

    Only the effective ids change (seteuid(2)), so no other process of that user may trace or signal this one.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    groups, own = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(groups)


@contextlib.contextmanager
def temporary_access(tree: Tree, path: str, owner: int) -> Iterator[None]:
    """Give an owner rights to the directories on the way to a path and to what is there, as far as they are its own."""
    with contextlib.ExitStack() as restored:
        at = os.dup(tree.descriptor)
        try:
            _lend(restored, at, owner)
            for part in path.split("/") if path not in ("", TOP) else ():
                inner = Tree(at).open_path(part)
                os.close(at)
                at = inner
                _lend(restored, at, owner)
        except OSError:
            pass  # it is not there, or reached through a link: whoever looks hears of that
        finally:
            os.close(at)
        yield


def entries(tree: Tree, path: str, owner: int) -> Iterator[tuple[str, Entry]]:
    """Yield each name in a directory as `Tree.scan` does, also where an owner has taken the rights from itself.

    Nothing of one that nobody may list, or that is gone again.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as lent:
        try:
            directory = tree.directory(path)
        except PermissionError:
            lent.enter_context(temporary_access(tree, path, owner))
            directory = tree.directory(path)
        else:
            if os.fstat(directory).st_mode & _LISTED != _LISTED:
                lent.enter_context(temporary_access(tree, path, owner))
        yield from tree.scan(directory)


def give_access(tree: Tree, path: str, owner: int) -> None:
    """Give an owner rights to what is at a path for good. Raises OSError."""
    place = tree.open_path(path)
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


def read(path: str) -> str:
    """Read a small file up to a NUL, which no path has in it; empty where it is none."""
    try:
        return _until_nul(open_regular(os.open(path, os.O_PATH | os.O_CLOEXEC), path))
    except OSError:
        return ""


def read_beneath(tree: Tree, path: str) -> str:
    """Read so a file of a workspace, reached over no link."""
    try:
        return _until_nul(tree.file(path))
    except OSError:
        return ""


def _until_nul(file: int) -> str:
    with open(file, "rb", buffering=0) as opened:
        return until_nul(opened.read(LARGEST))


def until_nul(content: bytes) -> str:
    """Return what a file says up to a NUL."""
    return os.fsdecode(content.partition(b"\0")[0])


TEXT_AT_MOST: Final = 4 << 20  # bytes: what is larger is neither merged nor shown line by line
_LOOKED_AT: Final = 8000  # bytes in which a NUL means that it is no text, as for git
_CHUNK: Final = 1 << 20


def digest(descriptor: int) -> str:
    """Return the SHA-256 of an open file in hex; closes it."""
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(content).hexdigest()


def read_text(descriptor: int) -> bytes | None:
    """Read an open file; None if it is larger than a text may be. Closes it."""
    with os.fdopen(descriptor, "rb") as file:
        found = file.read(TEXT_AT_MOST + 1)
    return found if len(found) <= TEXT_AT_MOST else None


def is_text(content: bytes) -> bool:
    """Whether bytes can be shown and merged line by line."""
    return b"\0" not in content[:_LOOKED_AT]


def count_data_bytes(file: int) -> int:
    """Return how many bytes of an open file are data, not holes. Raises OSError."""
    return sum(end - at for at, end in _data(file, os.fstat(file).st_size))


def copy_sparse(source: int, to: int) -> None:
    """Copy an open file into another, and keep its holes. Raises OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(to, size)
    for begin, end in _data(source, size):
        at = os.lseek(source, begin, os.SEEK_SET)
        os.lseek(to, at, os.SEEK_SET)
        while at < end:
            chunk = os.read(source, min(_CHUNK, end - at))
            if not chunk:
                return
            view = memoryview(chunk)
            while view:
                view = view[os.write(to, view) :]
            at += len(chunk)


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each range of data."""
    end = 0
    while end < size:
        try:
            at = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(file, at, os.SEEK_HOLE)
        yield at, end
