"""What can be made again, kept in a file from start to start.

It decides what a sandbox is made of, so it is read only when it is ours alone (owner, permissions, a regular file that
is no symlink), and written whole or not at all. Anything else is not repaired but made again by who asks. The directory
must be hidden from tasks (invariant 8); a task running as our uid could write what it can see.
"""

import os
import stat
from pathlib import Path


def read(path: Path, largest: int) -> bytes | None:
    """Return what is kept there; None: nothing, or nothing to be believed, or more than `largest` bytes."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
            return file.read(largest) if ours and status.st_size <= largest else None
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Keep it there, also when two starts write at once or one is killed. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
