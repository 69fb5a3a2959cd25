"""State directories (CA, journal, caches) and private files in them, which no sandbox may read (invariant 8)."""

import errno
import os
import stat
from pathlib import Path

from enforcer.system.errors import HostError


def state_directory() -> Path:
    """`$XDG_STATE_HOME/exeat`, by default `~/.local/state/exeat` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path is invalid and is ignored.
    if base.startswith("/"):
        return Path(base) / "exeat"
    try:
        return Path.home() / ".local" / "state" / "exeat"
    except RuntimeError as error:
        raise HostError(
            "no home directory is known to keep state in", "set HOME, or set XDG_STATE_HOME to a directory"
        ) from error


def journal_directory() -> Path:
    """Return the journal's directory without `--journal`."""
    return state_directory() / "journal"


def authority_directory() -> Path:
    """Return the directory of the CA's key and certificate."""
    return state_directory() / "ca"


def cache_directory() -> Path:
    """Return the cache directory: its files can be made again."""
    return state_directory() / "cache"


def make_private(directory: Path) -> Path:
    """Make `directory` and its missing parents, mode 0700 and ours. Raises HostError if others could change it."""
    try:
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise HostError(f"cannot make the directory `{directory}`: {error.strerror}", remedy(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise HostError(f"`{directory}` is not a directory", "move or remove it")
    if status.st_uid != os.geteuid():
        raise HostError(
            f"`{directory}` belongs to uid {status.st_uid}, not to you", "set XDG_STATE_HOME to a directory of your own"
        )
    if status.st_mode & 0o022:
        raise HostError(f"other users can write to `{directory}`", f"run `chmod go-w {directory}`")
    return directory


def read_private(path: Path, largest: int) -> bytes | None:
    """Return the content of a cache file; None: it is missing, not private, or over `largest` bytes.

    Cache files decide what a sandbox is made of. So one counts only with the owner, mode and type that `write_private`
    gives it; otherwise the caller makes it again.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
            return file.read(largest) if ours and status.st_size <= largest else None
    except OSError:
        return None


def write_private(path: Path, content: bytes) -> None:
    """Write a private file atomically, mode 0600. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def remedy(error: OSError) -> str:
    """Return what to do when a state file can't be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free space on that file system"
    return "set XDG_STATE_HOME to another directory; for a journal, name one with --journal"
