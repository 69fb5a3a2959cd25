"""Runs the C compiler with the same flags for all our C code, and says why where it can't."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

_FLAGS: Final = (
    "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now",
)  # fmt: skip


def compile_c(sources: Sequence[str], made: str, flags: Sequence[str]) -> str:
    """Make a file of C sources, whole or not at all; returns why that can't be, empty if it is done. Raises OSError."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return "there is no C compiler: install gcc or clang"
    unfinished = f"{made}.{os.getpid()}"
    command = [compiler, *_FLAGS, *flags, "-o", unfinished, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{' '.join(command)}: {done.stderr.strip()}"
    os.rename(unfinished, made)  # whoever has the old one open keeps it
    return ""
