"""Compiles the relay: `python -m proxy.compiled.build`.

It needs a C compiler and no Python headers, since ctypes loads the result. Without a compiler the interpreter relays
the bytes, at a higher cost.
"""

import sys

from proxy.compiled.compiler import compile_c
from proxy.compiled.library import LIBRARY, SOURCE, digest

_FLAGS = ("-shared", "-fPIC", "-fvisibility=hidden")


def build() -> str:
    """Compile the relay; returns the problem, empty if it worked."""
    return compile_c([SOURCE], LIBRARY, (*_FLAGS, f'-DEXEAT_SOURCE="{digest()}"'))


if __name__ == "__main__":
    if problem := build():
        print(f"bytes are passed on by the interpreter, which costs more: {problem}", file=sys.stderr)  # noqa: T201
