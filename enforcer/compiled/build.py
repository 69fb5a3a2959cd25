"""Compiling the `exeat` that asks a service for runs: `python -m enforcer.compiled.build`, wherever Exeat is installed.

It takes the place of the program that pip installed, and has Python do all else as that one did: it leaves nothing that
pip doesn't take away again. Without a C compiler that one stays and does everything, as it does after pip installs
Exeat anew.
"""

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from enum import IntEnum
from importlib import metadata
from typing import Final

from proxy.compiled.compiler import compile_c

SOURCE: Final = os.path.join(os.path.dirname(__file__), "exeat.c")
_NAME: Final = "exeat"
_SCRIPT: Final = b"#!"  # execve(2)
_SOURCE: Final = re.compile(rb"exeat\.c ([0-9a-f]{64})")  # what it says that it was compiled of


class Client(IntEnum):
    """Which program `exeat` is."""

    NONE = 0
    INTERPRETED = 1
    OTHER = 2  # compiled, of another source
    COMPILED = 3


def digest() -> str:
    """Return what tells one source from another. Raises OSError."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def installed() -> str:
    """Return the path of `exeat` as pip installed it; empty: it didn't."""
    try:
        found = metadata.files(_NAME) or ()
    except metadata.PackageNotFoundError:
        return ""
    places = (os.path.realpath(str(file.locate())) for file in found if file.parts[-2:] == ("bin", _NAME))
    return next(places, "")


def program() -> tuple[str, ...]:
    """Return how the Python program is executed, with an interpreter that imports nothing from where it is (`-P`)."""
    return sys.executable, "-P", os.path.join(os.path.dirname(os.path.dirname(__file__)), "__main__.py")


def client(place: str) -> Client:
    """Tell which program is there."""
    try:
        with open(place, "rb") as file:
            data = file.read()
    except OSError:
        return Client.NONE
    if data.startswith(_SCRIPT):
        return Client.INTERPRETED
    found = _SOURCE.search(data)
    if found is None:
        return Client.NONE
    return Client.COMPILED if found[1] == digest().encode() else Client.OTHER


def build(place: str, executed: Sequence[str] = ()) -> str:
    """Put what is compiled in its place; returns why that can't be, empty if it is done.

    `executed`: what it executes for all else, in place of `program`.
    """
    words = executed or program()
    if not words[0]:
        return "which Python this is, is unknown"
    try:
        if client(place) == Client.NONE:
            return "what pip installed as `exeat` is not there: install Exeat again"
        strings = ",".join(f'"{_quoted(word)}"' for word in words)
        flags = (
            f'-DEXEAT_SOURCE="{digest()}"',
            f"-DEXEAT_PROGRAM={strings}",
            f'-DEXEAT_PLACE="{_quoted(os.path.realpath(place))}"',
            "-pie",
            "-fPIE",
        )
        return compile_c([SOURCE], place, flags)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _quoted(path: str) -> str:
    """Write a path as a string of C, whatever is in its name."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in os.fsencode(path))


if __name__ == "__main__":
    if problem := build(installed()):
        print(f"`exeat run` asks a service through an interpreter, which takes longer: {problem}", file=sys.stderr)  # noqa: T201
