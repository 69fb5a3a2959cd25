"""State directories (CA, journal, caches) and private files in them. Never readable in a sandbox (invariant 8)."""

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
        raise HostError("there is no home to keep state in", "set HOME, or XDG_STATE_HOME to a directory") from error


def journal_directory() -> Path:
    """Where the journal goes unless `--journal` says otherwise."""
    return state_directory() / "journal"


def authority_directory() -> Path:
    """Where the installation's CA key and certificate lie."""
    return state_directory() / "ca"


def cache_directory() -> Path:
    """Where what can be made again lies."""
    return state_directory() / "cache"


def make_private(directory: Path) -> Path:
    """Make `directory` (and what is missing above it) 0700 and ours, or refuse: others could swap what is in it."""
    try:
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise HostError(f"cannot make the directory `{directory}`: {error.strerror}", remedy(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise HostError(f"`{directory}` is not a directory", "move it away")
    if status.st_uid != os.geteuid():
        raise HostError(f"`{directory}` belongs to uid {status.st_uid}, not to you", "use another with XDG_STATE_HOME")
    if status.st_mode & 0o022:
        raise HostError(f"`{directory}` can be written by others", f"run `chmod go-w {directory}`")
    return directory


def read_private(path: Path, largest: int) -> bytes | None:
    """Return what a file of the cache has; None: it isn't there, is not ours alone, or is over `largest` bytes.

    It decides what a sandbox is made of, so it counts only when owner, permissions and kind are as `write_private` left
    them. Anything else is made again, not repaired.
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
    """Write a file whole or not at all, also when two starts write at once or one is killed. Raises OSError."""
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
    """Say what to do where something can't be kept."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free some room"
    return "choose another place with XDG_STATE_HOME, for a journal with --journal"
