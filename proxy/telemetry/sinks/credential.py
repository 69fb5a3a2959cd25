"""A secret of a sink's (a token, a key), read from a file that is nobody else's (invariant 8).

It is read anew for each use, so that it can be replaced at any time. Nothing here shows it, not even an error about it.
"""

import os
import stat
from pathlib import Path
from typing import Final

from proxy.telemetry.sinks.sink import Unavailable

_TOO_OPEN: Final = 0o077
_LONGEST: Final = 8192  # bytes


def read(path: Path) -> str:
    """Return the one line in a file: a plain one, ours or root's, closed to others. Raises Unavailable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unavailable(f"`{path}` is no plain file")
            if status.st_uid not in {0, os.geteuid()}:
                raise Unavailable(f"`{path}` belongs to uid {status.st_uid}, who could read it: make it yours")
            if status.st_mode & _TOO_OPEN:
                raise Unavailable(f"`{path}` is open to others: run `chmod 600 {path}`")
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise Unavailable(f"cannot read `{path}`: {error.strerror}") from error
    line = text.strip()
    if not line or len(text) > _LONGEST or not all(0x20 <= byte < 0x7F for byte in line):
        raise Unavailable(f"`{path}` is not one line of printable ASCII")
    return line.decode("ascii")
