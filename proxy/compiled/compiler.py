"""Runs the C compiler with the flags that all C code of Exeat shares."""

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
    """Compile C sources to the file `made`, atomically; returns the problem, empty if it worked. Raises OSError."""
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
