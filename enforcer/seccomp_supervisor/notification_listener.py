"""Receives seccomp notifications, and reads memory of the calling process: seccomp_unotify(2).

When the supervisor dies or closes the listener, every waiting call returns ENOSYS. The other process chooses its
memory, and may change it while it is read (process_vm_readv(2)): what is read is only a claim.
"""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from enforcer.sandbox.seccomp import watched_filter
from enforcer.system import linux

_RECEIVE, _SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")


class Notification(NamedTuple):
    """A call that waits for its answer. `thread`: an id in our own pid namespace."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class Listener:
    """The listener of a seccomp filter (`linux.load_seccomp_with_listener`). For one thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def receive(self) -> Notification | None:
        """Receive a waiting call; None if there is none, or its process was killed. Doesn't block."""
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
        """Whether the call still waits, so that what was read until now was its process's."""
        try:
            fcntl.ioctl(self.descriptor, _ID_VALID, struct.pack("=Q", call.id))
        except OSError:
            return False
        return True

    def refuse(self, call: Notification, error: int) -> bool:
        """Answer with an errno; returns whether the call still waited."""
        return self._answer(_RESPONSE.pack(call.id, 0, -error, 0))

    def let_go_on(self, call: Notification) -> bool:
        """Have the kernel make the call, with arguments and memory as they are *now*; returns whether it waited."""
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
        """Close the listener: waiting and later calls return ENOSYS."""
        os.close(self.descriptor)


PATH_MAX: Final = 4096  # limits.h: a longer path fails with ENAMETOOLONG
MOST_BYTES: Final = 64 << 10  # bytes of all arguments that are read
MOST_WORDS: Final = 4096
_PAGE: Final = 4096
_FIRST: Final = 256  # bytes of the first read: most strings are shorter
_ADDRESSES: Final = 1 << 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_size_t)]


class Words(NamedTuple):
    """The arguments of a program, with argv[0]; `whole`: none is missing."""

    words: tuple[bytes, ...]
    whole: bool


def read_memory(thread: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes, within the page of `address`. Raises OSError for unmapped memory."""
    size = min(size, _PAGE - address % _PAGE)
    buffer = ctypes.create_string_buffer(size)
    local = _Iovec(ctypes.addressof(buffer), size)
    remote = _Iovec(address % _ADDRESSES, size)
    got = _libc.process_vm_readv(thread, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if got <= 0:
        number = ctypes.get_errno()
        raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
    return buffer.raw[:got]


def read_text(thread: int, address: int, longest: int) -> bytes | None:
    """Read a zero-terminated string; None if it is longer. Raises OSError."""
    found = b""
    while len(found) < longest:
        piece = read_memory(thread, address + len(found), _FIRST if not found else _PAGE)
        end = piece.find(0)
        if end >= 0:
            found += piece[:end]
            return found if len(found) < longest else None
        found += piece
    return None


def read_words(thread: int, address: int) -> Words:
    """Read a null-terminated array of strings, up to a bound. Raises OSError.

    Address 0: no arguments (execve(2), NOTES).
    """
    found: list[bytes] = []
    if not address:
        return Words((), whole=True)
    room = MOST_BYTES
    for pointer in _pointers(thread, address):
        if not pointer:
            return Words(tuple(found), whole=True)
        one = read_text(thread, pointer, room) if room > 0 else None
        if one is None or len(found) == MOST_WORDS:
            break
        found.append(one)
        room -= len(one) + 1
    return Words(tuple(found), whole=False)


def _pointers(thread: int, address: int) -> Iterator[int]:
    left = b""  # the first part of a pointer across two pages
    while True:
        piece = read_memory(thread, address, _PAGE)
        address += len(piece)
        piece = left + piece
        end = len(piece) // 8 * 8
        for (pointer,) in struct.iter_unpack("=Q", piece[:end]):
            yield pointer
        left = piece[end:]


_PATIENCE: Final = 5.0  # seconds
_PROGRAM: Final = "/nowhere"


def try_supervision() -> str:
    """Hold a program start and read its arguments.

    Raises OSError where the kernel, or a container's policy, forbids it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_held(theirs)
    theirs.close()
    ours.settimeout(_PATIENCE)
    said, descriptors, _, _ = socket.recv_fds(ours, 256, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        raise OSError(said.decode() or "the test process ended")
    listener = Listener(descriptors[0])
    select.select([listener.descriptor], [], [], _PATIENCE)
    try:
        call = listener.receive()
        if call is None:
            raise OSError("the kernel sends no notification")
        path = read_text(call.thread, call.arguments[0], PATH_MAX)
        listener.refuse(call, errno.EACCES)
    finally:
        listener.close()  # a waiting call returns ENOSYS
        _, status = os.waitpid(pid, 0)
    if path != os.fsencode(_PROGRAM) or os.waitstatus_to_exitcode(status) != errno.EACCES:
        raise OSError("the path read, or the answer, is wrong")
    return "program starts can be held, and their arguments read"


def _be_held(channel: socket.socket) -> None:
    try:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        listener = linux.load_seccomp_with_listener(watched_filter(commands=True).program)
    except OSError as error:
        channel.send(str(error.strerror).encode())
        os._exit(0)
    socket.send_fds(channel, [b"l"], [listener])
    os.close(listener)
    try:
        os.execv(_PROGRAM, [_PROGRAM])
    except OSError as error:
        os._exit(error.errno or 0)
