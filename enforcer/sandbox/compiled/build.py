"""Compiles the init process of a sandbox: `python -m enforcer.sandbox.compiled.build`.

It takes a C compiler and the headers of a C library, and is linked with none. Without a compiler the interpreter does
the same, and costs more.
"""

import sys

from enforcer.sandbox.init import PROGRAM, SOURCE, digest
from proxy.compiled.compiler import compile_c

# What a library would have brought along isn't there.
_FLAGS = ("-nostdlib", "-static", "-no-pie", "-fno-pie", "-ffreestanding", "-fno-stack-protector", "-U_FORTIFY_SOURCE")


def build() -> str:
    """Compile it; returns why that can't be, empty if it is done."""
    return compile_c([SOURCE], PROGRAM, (*_FLAGS, f'-DEXEAT_SOURCE="{digest()}"'))


if __name__ == "__main__":
    if problem := build():
        print(f"sandboxes are made by the interpreter, which costs more: {problem}", file=sys.stderr)  # noqa: T201
