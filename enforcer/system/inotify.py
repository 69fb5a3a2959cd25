"""inotify(7): watches files for changes, under the kernel's own names.

By hand, because a library for it brings asyncio along: every process that a service forks would carry that, and a tenth
of a second would go into importing it.
"""

import ctypes
import os
import struct
from typing import Final, NamedTuple

from enforcer.system.linux import check

# linux/inotify.h
IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_IGNORED = 0x400, 0x800, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW = 0x01000000, 0x02000000
IN_MOVE = IN_MOVED_FROM | IN_MOVED_TO
MOST: Final = 1 << 16  # bytes of events that are read at a time
_HEAD: Final = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, bytes of the name
_LARGEST: Final = _HEAD.size + 256  # NAME_MAX and its NUL

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """What happened where: `place` as it was watched, empty where that isn't known; `name` is of what is in it."""

    place: str
    mask: int
    name: str


class Inotify:
    """One queue of events. Close it."""

    def __init__(self) -> None:
        """Watch nothing yet. Raises OSError: a user may have so many, and no more."""
        self.fd = check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
        self._places: dict[int, str] = {}

    def add(self, place: str, mask: int) -> None:
        """Watch a file or directory. Raises OSError."""
        number = check(
            _libc.inotify_add_watch(self.fd, os.fsencode(place), ctypes.c_uint32(mask)), f"inotify_add_watch {place}"
        )
        self._places[number] = place

    def clear(self) -> None:
        """Watch nothing any more. What happened before may still be told."""
        for number in self._places:
            _libc.inotify_rm_watch(self.fd, number)  # or it is gone, and its watch with it
        self._places.clear()

    def read(self) -> tuple[list[Event], bool]:
        """Return what has happened, as far as one read tells, and whether there may be more."""
        try:
            data = os.read(self.fd, MOST)
        except BlockingIOError:
            return [], False
        events, at = [], 0
        while at < len(data):
            number, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            name = os.fsdecode(data[at - length : at].rstrip(b"\0"))
            events.append(Event(self._places.get(number, ""), mask, name))
        return events, len(data) > MOST - _LARGEST

    def close(self) -> None:
        """Watch nothing any more, and tell of nothing. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
