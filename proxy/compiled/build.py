"""Compiles the relay: `python -m proxy.compiled.build`, wherever Exeat is installed.

It takes a C compiler and nothing else: no headers of Python's, for it is called through ctypes. Without one everything
works as it does with it, and costs more.
"""

import sys

from proxy.compiled.compiler import compile_c
from proxy.compiled.library import LIBRARY, SOURCE, digest

_FLAGS = ("-shared", "-fPIC", "-fvisibility=hidden")


def build() -> str:
    """Compile it; returns why that can't be, empty if it is done."""
    return compile_c([SOURCE], LIBRARY, (*_FLAGS, f'-DEXEAT_SOURCE="{digest()}"'))


if __name__ == "__main__":
    if problem := build():
        print(f"bytes are passed on by the interpreter, which costs more: {problem}", file=sys.stderr)  # noqa: T201
