"""Compiling the `exeat` that asks a service for runs: `python -m enforcer.compiled.build`, wherever Exeat is installed.

It takes the place of the program that pip installed, which moves to `libexec` beside `bin` and is executed for all
else. Without a C compiler that one stays where it is and does everything, as it does after pip installs Exeat anew.
"""

import hashlib
import os
import sys
from enum import IntEnum
from importlib import metadata
from typing import Final

from proxy.compiled.compiler import compile_c

SOURCE: Final = os.path.join(os.path.dirname(__file__), "exeat.c")
_NAME: Final = "exeat"
_SCRIPT: Final = b"#!"  # execve(2)


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


def moved(place: str) -> str:
    """Return where the program of Python's is that what is compiled at `place` executes."""
    return os.path.join(os.path.dirname(os.path.dirname(place)), "libexec", _NAME)


def client(place: str) -> Client:
    """Tell which program is there."""
    try:
        with open(place, "rb") as file:
            data = file.read()
    except OSError:
        return Client.NONE
    if data.startswith(_SCRIPT):
        return Client.INTERPRETED
    return Client.COMPILED if digest().encode() in data else Client.OTHER


def build(place: str) -> str:
    """Put what is compiled in its place; returns why that can't be, empty if it is done."""
    program = moved(place)
    try:
        if client(place) == Client.INTERPRETED:
            _copy(place, program)
        elif client(program) != Client.INTERPRETED:
            return "what pip installed as `exeat` is not there: install Exeat again"
        flags = (f'-DEXEAT_SOURCE="{digest()}"', f'-DEXEAT_PROGRAM="{_quoted(program)}"', "-pie", "-fPIE")
        return compile_c([SOURCE], place, flags)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _copy(place: str, program: str) -> None:
    os.makedirs(os.path.dirname(program), exist_ok=True)
    with open(place, "rb") as file:
        data = file.read()
    unfinished = f"{program}.{os.getpid()}"
    with open(unfinished, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), os.stat(place).st_mode & 0o777)
    os.rename(unfinished, program)


def _quoted(path: str) -> str:
    """Write a path as a string of C, whatever is in its name."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in os.fsencode(path))


if __name__ == "__main__":
    if problem := build(installed()):
        print(f"`exeat run` asks a service through an interpreter, which takes longer: {problem}", file=sys.stderr)  # noqa: T201
