"""Contents of files that a view has, as files in memory: what every sandbox has is not sent anew to each."""

import os
from collections.abc import Iterable
from typing import Final

_MOST: Final = 32  # files that are kept for the next sandbox; no fewer than a program that isn't sent yet can have
_kept: Final[dict[int, tuple[bytes, int]]] = {}  # by identity: contents never change
_for_good: Final[set[int]] = set()  # of those


def file_of(content: bytes) -> int:
    """Return a descriptor of a file in memory with this content; it stays ours. Raises OSError."""
    if found := _kept.get(id(content)):
        return found[1]
    file = made(content)
    while len(_kept) - len(_for_good) >= _MOST:
        os.close(_kept.pop(next(at for at, (_, other) in _kept.items() if other not in _for_good))[1])
    _kept[id(content)] = content, file
    return file


def made(content: bytes) -> int:
    """Return a descriptor of a new file in memory with this content; it is the caller's. Raises OSError."""
    file = os.memfd_create("content", os.MFD_CLOEXEC)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.close(file)
        raise
    return file


def keep(files: Iterable[int]) -> None:
    """Have these kept for good. Raises ValueError for one that isn't of them."""
    if unknown := {*files} - descriptors():
        raise ValueError(f"{len(unknown)} descriptors are of nothing that is kept")
    _for_good.update(files)


def descriptors() -> set[int]:
    """Return what is open of them."""
    return {file for _, file in _kept.values()}
