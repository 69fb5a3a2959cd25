"""Compiles C code: the relay, with `python -m proxy.compiled.build`, and `compile_c` for all C code of Exeat.

The relay needs a C compiler and no Python headers, since ctypes loads the result. Without a compiler Python relays the
bytes, at a higher cost.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from proxy.compiled.library import LIBRARY, SOURCE, digest

_COMMON_FLAGS: Final = (
    "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now",
)  # fmt: skip
_LIBRARY_FLAGS: Final = ("-shared", "-fPIC", "-fvisibility=hidden")


def build() -> str:
    """Compile the relay; returns the problem, empty if it worked."""
    return compile_c([SOURCE], LIBRARY, (*_LIBRARY_FLAGS, f'-DEXEAT_SOURCE="{digest()}"'))


def compile_c(sources: Sequence[str], output: str, flags: Sequence[str]) -> str:
    """Compile C sources to the file `output`, atomically; returns the problem, empty if it worked. Raises OSError."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return "there is no C compiler: install gcc or clang"
    temporary = f"{output}.{os.getpid()}"
    command = [compiler, *_COMMON_FLAGS, *flags, "-o", temporary, *sources]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return f"{' '.join(command)}: {result.stderr.strip()}"
    os.rename(temporary, output)  # a process that has the old file open keeps it
    return ""


if __name__ == "__main__":
    if problem := build():
        print(f"Python relays the bytes, which costs more: {problem}", file=sys.stderr)  # noqa: T201
