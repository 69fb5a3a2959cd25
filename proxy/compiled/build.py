"""Compiling what passes bytes on: `python -m proxy.compiled.build`, wherever Exeat is installed.

It takes a C compiler and nothing else: no headers of Python's, for it is called through ctypes. Without one everything
works as it does with it, and costs more.
"""

import os
import shutil
import subprocess
import sys

from proxy.compiled.library import LIBRARY, SOURCES, digest

_FLAGS = (
    "-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
    "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now",
)  # fmt: skip


def build() -> str:
    """Compile it; returns why that can't be, empty if it is done."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return "there is no C compiler: install gcc or clang"
    made = f"{LIBRARY}.{os.getpid()}"
    command = [compiler, *_FLAGS, f'-DEXEAT_SOURCE="{digest()}"', "-o", made]
    command += [source for source in SOURCES if source.endswith(".c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{' '.join(command)}: {done.stderr.strip()}"
    os.rename(made, LIBRARY)  # whoever has the old one open keeps it
    return ""


if __name__ == "__main__":
    if problem := build():
        print(f"bytes are passed on by the interpreter, which costs more: {problem}", file=sys.stderr)  # noqa: T201
