"""inotify(7): watches files for changes.

Without a library: the ones that exist import asyncio, which takes 0.1 s, and every process that a service forks would
carry it.
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
MOST: Final = 1 << 16  # bytes of events per read
_HEAD: Final = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, bytes of the name
_LARGEST: Final = _HEAD.size + 256  # NAME_MAX and its NUL

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event: `path` as it was watched, empty if unknown; `name` of the entry in that directory, or empty."""

    path: str
    mask: int
    name: str


class Inotify:
    """One queue of events. The caller closes it."""

    def __init__(self) -> None:
        """Open a queue. Raises OSError, EMFILE when the user has as many as `fs.inotify.max_user_instances`."""
        self.fd = check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
        self._paths: dict[int, str] = {}

    def add(self, path: str, mask: int) -> None:
        """Watch a file or directory. Raises OSError."""
        number = check(
            _libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask)), f"inotify_add_watch {path}"
        )
        self._paths[number] = path

    def clear(self) -> None:
        """Remove every watch. Earlier events may still be read."""
        for number in self._paths:
            _libc.inotify_rm_watch(self.fd, number)  # fails where the file, and with it the watch, is gone
        self._paths.clear()

    def read(self) -> tuple[list[Event], bool]:
        """Return the events of one read(2), and whether there may be more."""
        try:
            data = os.read(self.fd, MOST)
        except BlockingIOError:
            return [], False
        events, at = [], 0
        while at < len(data):
            number, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            name = os.fsdecode(data[at - length : at].rstrip(b"\0"))
            events.append(Event(self._paths.get(number, ""), mask, name))
        return events, len(data) > MOST - _LARGEST

    def close(self) -> None:
        """Close the queue. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
