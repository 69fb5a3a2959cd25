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
import sysconfig
from types import FrameType
from typing import Final

_KNOWN: Final = ((3, 12), (3, 13))


def make_all_immortal() -> int:
    """Do it, with all that can be reached, and return with how many objects: 0 where it isn't known how."""
    if not _is_known():
        return 0
    found: dict[int, object] = {}
    todo = gc.get_objects()
    own = {id(todo), id(found)}
    while todo:
        each = todo.pop()
        if id(each) not in found and id(each) not in own and not isinstance(each, FrameType):
            found[id(each)] = each
            todo.extend(gc.get_referents(each))
    mark = _count(None)
    numbers = tuple(found)
    found.clear()
    for number in numbers:
        ctypes.c_uint32.from_address(number).value = mark
    return len(numbers)


def _is_known() -> bool:
    """Whether this is an interpreter of the kind, by its name and by what it does with one object."""
    named = sys.implementation.name == "cpython" and sys.version_info[:2] in _KNOWN
    shaped = struct.calcsize("P") == 8 and sys.byteorder == "little"
    if not named or not shaped or sysconfig.get_config_var("Py_GIL_DISABLED"):
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
