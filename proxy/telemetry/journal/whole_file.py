"""Replaces a file as a whole: after a crash or a power cut either the old or the new one is there."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def replace(path: "Path", data: bytes) -> None:
    """Write a file that only its owner can read, in the place of the one that is there. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as whole:
        whole.write(data)
        whole.flush()
        os.fsync(file)
    part.replace(path)
