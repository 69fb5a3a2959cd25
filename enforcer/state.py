"""Where Exeat keeps what lasts: the CA, the journal, caches. Never readable in a sandbox (invariant 8)."""

import errno
import os
import stat
from pathlib import Path

from enforcer.errors import HostError


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


def remedy(error: OSError) -> str:
    """Say what to do where something can't be kept."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free some room"
    return "choose another place with XDG_STATE_HOME, for a journal with --journal"
