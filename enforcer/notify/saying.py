"""A line on the standard error of a process of the task: why what it wanted to start doesn't.

Written through a copy of the process's own descriptor (pidfd_getfd(2)), never one that we open: we can't write where it
could not. What has no room now isn't written.
"""

import contextlib
import ctypes
import os
import select
import socket
import stat
from typing import Final

from enforcer import linux
from enforcer.sandbox.syscalls import NUMBERS

_STDERR: Final = 2
_AT_MOST: Final = 512  # bytes: PIPE_BUF at the least, so that a pipe with any room has room for it

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def say(pid: int, line: bytes) -> None:
    """Write one line, if it can be. Never raises."""
    text = line[: _AT_MOST - 1] + b"\n"
    with contextlib.suppress(OSError):
        descriptor = _copied(pid, _STDERR)
        try:
            _write(descriptor, text)
        finally:
            os.close(descriptor)


def _copied(pid: int, number: int) -> int:
    process = os.pidfd_open(pid)
    try:
        found = _libc.syscall(NUMBERS[linux.platform_machine()]["pidfd_getfd"], process, number, 0)
        if found < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return int(found)
    finally:
        os.close(process)


def _write(descriptor: int, text: bytes) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            sock.send(text, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or os.isatty(descriptor)):
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if any(events & select.POLLOUT for _, events in poll.poll(0)):
        os.write(descriptor, text)
