"""Being asked by the kernel about another process's system calls: seccomp_unotify(2), linux/seccomp.h.

Whoever is asked and dies, or closes the listener, has every call that waits answered with ENOSYS: closed when broken.
"""

import errno
import fcntl
import os
import select
import struct
from typing import Final, NamedTuple

_RECEIVE, _SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")


class Notification(NamedTuple):
    """A call that waits for its answer. `thread` is an id in our own pid namespace."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class Listener:
    """The descriptor of a filter that somebody listens to (`linux.load_seccomp_with_listener`). For one thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def receive(self) -> Notification | None:
        """Take a call that waits; None where none does, or its process was killed meanwhile. Doesn't block."""
        if not any(events & select.POLLIN for _, events in self._poll.poll(0)):
            return None
        buffer = bytearray(_NOTIFICATION.size)  # the kernel wants zeroes
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number_of, thread, _flags, number, _architecture, _ip, *arguments = _NOTIFICATION.unpack(buffer)
        return Notification(number_of, thread, number, tuple(arguments))

    def waits(self, call: Notification) -> bool:
        """Whether the call still waits: what was read of its process until now was of that process."""
        try:
            fcntl.ioctl(self.descriptor, _ID_VALID, struct.pack("=Q", call.id))
        except OSError:
            return False
        return True

    def refuse(self, call: Notification, error: int) -> bool:
        """Answer with an errno; whether anybody was there to be answered."""
        return self._answer(_RESPONSE.pack(call.id, 0, -error, 0))

    def let_go_on(self, call: Notification) -> bool:
        """Have the kernel make the call, with what its arguments and what they point to are *now*."""
        return self._answer(_RESPONSE.pack(call.id, 0, 0, _CONTINUE))

    def _answer(self, response: bytes) -> bool:
        try:
            fcntl.ioctl(self.descriptor, _SEND, response)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def close(self) -> None:
        """Be asked no more: what waits, and all that comes, is answered with ENOSYS."""
        os.close(self.descriptor)
