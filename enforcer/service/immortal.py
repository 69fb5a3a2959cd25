"""What a service has in memory before it forks: of no object is the reference count written any more.

Whoever uses an object writes its count, and the first write to a page after a fork copies the page: of what a run and
its sandbox took, in processor time and in memory, a third was that. CPython has had objects without a count since
PEP 683, which names this very use; how others become like them is in no API, so it is done where it is known to hold:
the count's lower half, as `None` has it, in an interpreter with its lock. Elsewhere a service does without.

They are never let go of, as nothing is that a service has from its start; what comes later is as ever.
"""

import ctypes
import gc
import struct
import sys
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Final

_KNOWN: Final = ((3, 12), (3, 13))


def make_all_immortal() -> int:
    """Do it, with all that can be reached, and return with how many objects: 0 where it isn't known how."""
    if not _is_known():
        return 0
    todo = gc.get_objects()
    met: dict[int, bytearray] = {}  # a set of numbers would be left as holes in the memory that each run is forked with
    mark, marked = _count(None), 0
    while todo:
        each = todo.pop()
        if not isinstance(each, FrameType) and _is_new(id(each), met):
            todo.extend(gc.get_referents(each))
            todo.extend(_untraversed(each))
            ctypes.c_uint32.from_address(id(each)).value = mark
            marked += 1
    return marked


def _is_new(address: int, met: dict[int, bytearray]) -> bool:
    """Whether an object's address is met for the first time: each has a bit, for they are multiples of 8."""
    block = met.get(address >> 16)
    if block is None:
        block = met[address >> 16] = bytearray(1 << 10)
    at, bit = (address & 0xFFFF) >> 6, 1 << (address >> 3 & 7)
    if block[at] & bit:
        return False
    block[at] |= bit
    return True


def _untraversed(each: object) -> Iterable[object]:
    """Return what an object refers to and doesn't tell a collector of, because it can be in no cycle."""
    if isinstance(each, CodeType):
        return each.co_consts, each.co_names
    return tuple(each) if isinstance(each, dict) else ()


def _is_known() -> bool:
    """Whether this is an interpreter of the kind, by its name and by what it does with one object."""
    named = sys.implementation.name == "cpython" and sys.version_info[:2] in _KNOWN
    shaped = struct.calcsize("P") == 8 and sys.byteorder == "little"
    if not named or not shaped or "t" in sys.abiflags:  # that one is without a lock (PEP 703)
        return False
    sample = object()
    if _count(sample) >= 1 << 31 or _count(None) < 1 << 31:
        return False
    ctypes.c_uint32.from_address(id(sample)).value = _count(None)
    before = _count(sample)
    others = [sample] * 100
    return _count(others[0]) == before == _count(None)


def _count(of: object) -> int:
    return int(ctypes.c_uint32.from_address(id(of)).value)
