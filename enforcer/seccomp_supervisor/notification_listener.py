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

    def is_waiting(self, call: Notification) -> bool:
        """Whether the call still waits. If so, everything read until now is from its process."""
        try:
            fcntl.ioctl(self.descriptor, _ID_VALID, struct.pack("=Q", call.id))
        except OSError:
            return False
        return True

    def refuse(self, call: Notification, error: int) -> bool:
        """Answer with an errno; returns whether the call still waited."""
        return self._answer(_RESPONSE.pack(call.id, 0, -error, 0))

    def allow(self, call: Notification) -> bool:
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
MAX_BYTES: Final = 64 << 10  # bytes of all arguments that are read
MAX_ARGUMENTS: Final = 4096
_PAGE: Final = 4096
_FIRST_READ: Final = 256  # bytes of the first read: most strings are shorter
_ADDRESSES: Final = 1 << 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_size_t)]


class ProgramArguments(NamedTuple):
    """The arguments of a program, with argv[0]; `is_complete`: none is missing."""

    values: tuple[bytes, ...]
    is_complete: bool


def read_memory(thread: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes, within the page of `address`. Raises OSError for unmapped memory."""
    size = min(size, _PAGE - address % _PAGE)
    buffer = ctypes.create_string_buffer(size)
    local = _Iovec(ctypes.addressof(buffer), size)
    remote = _Iovec(address % _ADDRESSES, size)
    count = _libc.process_vm_readv(thread, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if count <= 0:
        number = ctypes.get_errno()
        raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
    return buffer.raw[:count]


def read_text(thread: int, address: int, longest: int) -> bytes | None:
    """Read a zero-terminated string; None if it is longer. Raises OSError."""
    text = b""
    while len(text) < longest:
        chunk = read_memory(thread, address + len(text), _FIRST_READ if not text else _PAGE)
        end = chunk.find(0)
        if end >= 0:
            text += chunk[:end]
            return text if len(text) < longest else None
        text += chunk
    return None


def read_arguments(thread: int, address: int) -> ProgramArguments:
    """Read a null-terminated array of strings, up to a bound. Raises OSError.

    Address 0: no arguments (execve(2), NOTES).
    """
    arguments: list[bytes] = []
    if not address:
        return ProgramArguments((), is_complete=True)
    budget = MAX_BYTES
    for pointer in _pointers(thread, address):
        if not pointer:
            return ProgramArguments(tuple(arguments), is_complete=True)
        value = read_text(thread, pointer, budget) if budget > 0 else None
        if value is None or len(arguments) == MAX_ARGUMENTS:
            break
        arguments.append(value)
        budget -= len(value) + 1
    return ProgramArguments(tuple(arguments), is_complete=False)


def _pointers(thread: int, address: int) -> Iterator[int]:
    remainder = b""  # the first part of a pointer across two pages
    while True:
        chunk = read_memory(thread, address, _PAGE)
        address += len(chunk)
        chunk = remainder + chunk
        end = len(chunk) // 8 * 8
        for (pointer,) in struct.iter_unpack("=Q", chunk[:end]):
            yield pointer
        remainder = chunk[end:]


_TIMEOUT: Final = 5.0  # seconds
_PROGRAM: Final = "/nowhere"


def try_supervision() -> str:
    """Hold a program start and read its arguments.

    Raises OSError where the kernel, or a container's policy, forbids it.
    """
    channel, child_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _start_held_program(child_channel)
    child_channel.close()
    channel.settimeout(_TIMEOUT)
    message, descriptors, _, _ = socket.recv_fds(channel, 256, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        raise OSError(message.decode() or "the test process ended")
    listener = Listener(descriptors[0])
    select.select([listener.descriptor], [], [], _TIMEOUT)
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


def _start_held_program(channel: socket.socket) -> None:
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
