"""Reads a named file whole. Besides such files the rules open only the list of public suffixes."""

import os
import stat
from pathlib import Path
from typing import Final

_LARGEST: Final = 64 << 20  # bytes a file
_OTHERS_WRITE: Final = 0o022


def read_file(path: Path, *, trusted: bool = False) -> bytes:
    """Read a regular file of at most 64 MiB. Raises OSError, and ValueError with the problem.

    Opened first and looked at then, so that what is looked at is what is read; without waiting, because a FIFO or
    device could keep the reader for ever. `trusted`: it must be root's or ours, and nobody else's to write.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if trusted and (status.st_uid not in {0, os.geteuid()} or status.st_mode & _OTHERS_WRITE):
            raise ValueError("others can write it; make it root's or yours, and `chmod go-w` it")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(_LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return data


def user_configuration() -> Path | None:
    """Return the caller's configuration directory (XDG Base Directory Specification); None if there is no home."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if base.startswith("/"):  # the specification: a relative path is ignored
        return Path(base, "exeat")
    try:
        return Path.home() / ".config" / "exeat"
    except RuntimeError:
        return None


def describe_error(error: Exception) -> str:
    """Describe why a file could not be read."""
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
