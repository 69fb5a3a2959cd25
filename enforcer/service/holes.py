"""What a service has in memory before it forks: no holes any more, which what is made later would be put into.

Importing leaves free blocks of all sizes between what stays, and whoever makes an object is given one of those: in a
page that is shared since the fork, and has to be copied for it. Of the pages that runs and their sandboxes copied a
fifth were for that. Once the holes are filled, what is made later lies side by side, in pages that have nothing else.

Nothing depends on it: where an allocator gives blocks out in another way, some are taken and kept for nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

_SIDE_BY_SIDE: Final = 3 << 12  # bytes: most of what CPython has in a row for small objects (Objects/obmalloc.c)
_AT_LEAST: Final = 4  # blocks
_MOST: Final = 20_000
_LARGE: Final = (32768, 16384, 8192, 4096, 2048, 1536, 1024, 768, 640)  # bytes: malloc(3)'s, and then the interpreter's
_SMALL: Final = range(512, 32, -16)
_EMPTY: Final = b"".__sizeof__()
_filled: Final[list[list[object]]] = []  # for good


def fill() -> int:
    """Fill them, the large ones first; returns with how many objects."""
    for size in (*_LARGE, *_SMALL):
        _filled.append(_fill(size, partial(bytes, size - _EMPTY)))
    _filled.append(_fill(32, lambda: float("0.5")))
    _filled.append(_fill(16, object))
    return sum(map(len, _filled))


def _fill(size: int, make: Callable[[], object]) -> list[object]:
    """Make objects of a size until many of them lie side by side; returns those before these."""
    made, row, last = list[object](), 0, 0
    wanted = max(_SIDE_BY_SIDE // size, _AT_LEAST)
    while row < wanted and len(made) < _MOST:
        made.append(make())
        at = id(made[-1])
        row = row + 1 if abs(at - last) <= 2 * size else 0
        last = at
    return made[: len(made) - row]
