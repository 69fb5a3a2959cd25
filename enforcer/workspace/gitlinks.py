"""Which directories of a workspace Git takes for submodules: it goes into each of them by itself, as for `git status`.

There it does what the configuration of the repository in that directory says, and a task can make any directory one: by
a link in the index (gitformat-index(5), mode 160000), without a `.gitmodules`. What the index may hide, as it is sparse
or makes no sense, counts as if it were any directory.
"""

import os
import struct
from collections.abc import Iterator
from typing import Final

from enforcer.workspace.gitconfig import settings
from enforcer.workspace.sight import Hidden, Sight

_LARGEST: Final = 256 << 20  # bytes of all indexes that are read
_DEEPEST: Final = 10  # submodules of submodules
_MOST: Final = 1000
_HEAD: Final = struct.Struct(">4sII")
_FIXED: Final = 40  # bytes before the hash
_LONGEST: Final = 4096  # bytes of a path: there is none that is longer (PATH_MAX), and each is made of the one before
_KIND, _LINK, _TREE = 0xF000, 0xE000, 0x4000  # of a mode
_AS_GIT_WRITES: Final = (b"\0\0\xe0\0", b"\0\0\x40\0")
_EXTENDED, _LENGTH = 0x4000, 0xFFF  # of flags


def linked(workspace: str, repository: str, sight: Sight | None = None) -> list[str]:
    """Return the paths of all submodules, relative to the workspace. Raises Hidden.

    `sight`: as far as one can look where a task may have written; None: it is nobody's but the host's.
    """
    found: list[str] = []
    sight = sight or Sight()
    pending = [("", repository, 0)]
    seen = set[str]()
    while pending:
        above, directory, depth = pending.pop()
        for path in _links(directory, sight):
            inner = os.path.join(above, path)
            if os.path.isabs(path) or ".." in path.split("/") or inner in seen:
                continue  # Git takes none that lead out
            seen.add(inner)
            if len(seen) > _MOST or depth == _DEEPEST:
                raise Hidden
            found.append(inner)
            dot = f"{workspace}/{inner}/.git"
            if led := sight.directory(dot):
                pending.append((inner, led, depth + 1))
    return found


def _links(directory: str, sight: Sight) -> Iterator[str]:
    left = _LARGEST
    for name in ("index", *sight.names(directory, "sharedindex.")):
        try:
            with open(sight.file(f"{directory}/{name}"), "rb") as file:
                data = file.read(left + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Hidden from error
        left -= len(data)
        if left < 0:
            raise Hidden
        if sight.is_first and not any(mode in data for mode in _AS_GIT_WRITES):
            continue
        try:
            yield from _entries(data, _hash_size(directory, sight))
        except (struct.error, IndexError, ValueError) as error:
            raise Hidden from error


def _hash_size(directory: str, sight: Sight) -> int:
    said = sight.text(f"{directory}/commondir", directory).rstrip("\n")
    config = sight.text(os.path.join(directory, said, "config"), directory)
    formats = [setting.value for setting in settings(config) if setting.name == "extensions.objectformat"]
    return 32 if "sha256" in formats else 20


def _entries(data: bytes, size: int) -> Iterator[str]:
    """Yield the paths of links. Raises Hidden for a directory that isn't written out."""
    mark, version, count = _HEAD.unpack_from(data)
    if mark != b"DIRC" or version not in {2, 3, 4}:
        raise ValueError
    if version == 4 and b"IEOT" in data:
        raise Hidden  # names don't all go on from the one before
    at, name = _HEAD.size, b""
    for _ in range(count):
        mode = int.from_bytes(data[at + 24 : at + 28]) & _KIND
        flags = int.from_bytes(data[at + _FIXED + size : at + _FIXED + size + 2])
        begin = at + _FIXED + size + (4 if flags & _EXTENDED and version > 2 else 2)
        if version == 4:
            cut, begin = _number(data, begin)
            end = data.index(0, begin)
            if cut > len(name) or end - begin > _LONGEST or len(name) - cut > _LONGEST:
                raise ValueError
            name = name[: len(name) - cut] + data[begin:end]
            at = end + 1
        else:
            end = begin + (flags & _LENGTH) if flags & _LENGTH < _LENGTH else data.index(0, begin)
            name = data[begin:end]
            at += (end - at + 8) & ~7
        if at > len(data):
            raise ValueError
        if mode == _TREE:
            raise Hidden
        if mode == _LINK:
            yield os.fsdecode(name).rstrip("/")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of variable length, as varint.c has it; return where it ends, too."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 0x7F)
        if value > 2 * _LONGEST:
            raise ValueError  # before it takes long to count on
    return value, at + 1
