"""What the kernel starts for a program that needs another one: the interpreter of a script or of an ELF file.

A task may have written the file: whatever it holds, this ends, and gives words or none.
"""

import os
import stat
import struct
from pathlib import Path

_LONGEST_LINE = 256  # bytes, BINPRM_BUF_SIZE: execve(2), "Interpreter scripts"
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_INTERP = 3
_LONGEST_PATH = 4096  # bytes, PATH_MAX


def interpreter(path: str) -> tuple[str, ...]:
    """Return the words that the kernel puts before `path`: an interpreter and perhaps one argument, or nothing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ()
        words = _of_elf(handle) or _of_script(os.pread(handle, _LONGEST_LINE, 0))
    except (OSError, OverflowError, struct.error):
        return ()
    finally:
        os.close(handle)
    return tuple(os.fsdecode(word) for word in words)


def looked_up(words: tuple[str, ...]) -> str:
    """Return the program that these words look up in PATH in their turn (`/usr/bin/env NAME`); empty: none."""
    if len(words) != 2 or Path(words[0]).name != "env":
        return ""
    return next((word for word in words[1].split() if not word.startswith("-") and "=" not in word), "")


def _of_script(head: bytes) -> tuple[bytes, ...]:
    if not head.startswith(b"#!"):
        return ()
    line = head[2:].partition(b"\n")[0].strip(b" \t").replace(b"\t", b" ")
    name, _, argument = line.partition(b" ")
    return tuple(word for word in (name, argument.strip(b" ")) if word)


def _of_elf(handle: int) -> tuple[bytes, ...]:
    """Read the path in the program header PT_INTERP (elf(5))."""
    head = os.pread(handle, 64, 0)
    if not head.startswith(_ELF64_LITTLE):
        return ()
    start, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    for number in range(min(count, 128)):
        kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", os.pread(handle, 40, start + number * size))
        if kind == _PT_INTERP:
            name = os.pread(handle, min(length, _LONGEST_PATH), offset).partition(b"\0")[0]
            return (name,) if name else ()
    return ()
