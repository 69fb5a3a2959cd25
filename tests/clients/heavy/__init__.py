"""Clients that are large or need a toolchain: run by `make clients`, which installs them and says where."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support import harness

HOME = Path(os.environ.get("EXEAT_CLIENTS", "/nonexistent"))  # where `make clients` has put what it installed


def program(name: str) -> str:
    """Where a program is: of those that were installed for this, else on PATH."""
    own = HOME / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        harness.missing(name)
    return found


def asked(*words: str) -> str:
    """What a program says of itself."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
