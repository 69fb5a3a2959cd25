"""Compiles the init process of a sandbox: `python -m enforcer.sandbox.compiled.build`.

It takes a C compiler and the headers of a C library, but links no library. Without a compiler `init_interpreter` does
the same, more slowly.
"""

import sys

from enforcer.sandbox.init import PROGRAM, SOURCE, digest
from proxy.compiled.build import compile_c

# No start-up code, stack protector or fortified functions, which need a C library.
_FLAGS = ("-nostdlib", "-static", "-no-pie", "-fno-pie", "-ffreestanding", "-fno-stack-protector", "-U_FORTIFY_SOURCE")


def build() -> str:
    """Compile the program; returns why that failed, or an empty text."""
    return compile_c([SOURCE], PROGRAM, (*_FLAGS, f'-DEXEAT_SOURCE="{digest()}"'))


if __name__ == "__main__":
    if problem := build():
        print(f"exeat-init is not compiled, so Python makes sandboxes, more slowly: {problem}", file=sys.stderr)  # noqa: T201
