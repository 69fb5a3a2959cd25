"""File of the CA: opened only if it belongs to this user and no other user can read it.

Implements invariant 8 for the CA key: the file has mode 0600, its directory 0700, and both belong to this user. Key and
certificate are one file, so that a crash or a race never leaves a pair that doesn't match. This module only handles
bytes: the process that opens the file for the signer neither reads it nor imports cryptography.

It must never read another tool's CA (`~/.mitmproxy`), and never write the key anywhere else.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

FILE = "ca.pem"
UNFINISHED = ".ca.pem.new"
TOO_OPEN = 0o077
LONGEST = 1 << 16  # bytes; a key and a certificate have about 1,000


class AuthorityError(Exception):
    """The CA can't be used safely; the text says what is wrong and what to do."""


def load(directory: Path) -> bytes:
    """Return the CA's key and certificate (PEM): a secret. Raises AuthorityError, also when there is none."""
    file = open_key(directory)
    try:
        return os.read(file, LONGEST)
    finally:
        os.close(file)


def open_key(directory: Path) -> int:
    """Open the CA's file without reading it. Raises AuthorityError, also if there is none.

    The descriptor stays on this file, even if the directory entry is replaced.
    """
    try:
        with locked(directory) as folder:
            return _open(folder, directory / FILE)
    except FileNotFoundError as error:
        raise AuthorityError(f"there is no CA in `{directory}`") from error
    except OSError as error:
        raise unusable(directory, error) from error


def unusable(directory: Path, error: OSError, use: str = "used") -> AuthorityError:
    """Return the error for a CA that can't be read or written, with a remedy if there is one."""
    remedy = "; free some room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return AuthorityError(f"the CA in `{directory}` can't be {use}: {error.strerror or error}{remedy}")


def fingerprint(status: os.stat_result) -> list[int]:
    """Return the numbers that identify a file and its content."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Open the directory, check that only this user can access it, and lock it (flock(2))."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_private(os.fstat(folder), directory, "700")
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def read(folder: int, path: Path) -> bytes | None:
    """Return key and certificate (PEM) from an open directory; None: there is no CA yet. Raises AuthorityError."""
    try:
        file = _open(folder, path)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, LONGEST)
    finally:
        os.close(file)


def _open(folder: int, path: Path) -> int:
    file = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    try:
        _check_plain_file(os.fstat(file), path)
    except BaseException:
        os.close(file)
        raise
    return file


def write(folder: int, data: bytes) -> None:
    """Replace the file atomically: write a new one and rename it (rename(2)); the lock excludes other writers."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(UNFINISHED, dir_fd=folder)  # left by a writer that was killed
    file = os.open(UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(file)
        os.rename(UNFINISHED, FILE, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(UNFINISHED, dir_fd=folder)
        raise
    os.fsync(folder)


def _check_plain_file(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise AuthorityError(f"`{path}` is not a plain file of its own; move it away and start again")
    _check_private(status, path, "600")


def _check_private(status: os.stat_result, path: Path, mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise AuthorityError(
            f"`{path}` holds the CA and belongs to uid {status.st_uid}, not to uid {os.geteuid()} that runs this; "
            f"run as that user or remove it"
        )
    if status.st_mode & TOO_OPEN:
        raise AuthorityError(
            f"`{path}` holds the CA and is open to others (mode {stat.S_IMODE(status.st_mode):o}); "
            f"if nobody else can have read it, run `chmod {mode} {path}`, else remove it"
        )
