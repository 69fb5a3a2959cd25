"""Signals as readable events, so that one loop can wait for them, for processes and for messages (signalfd(2)).

And what is done about all of them at once, three times a start: `_signal` is what the signal module wraps, whose
enumerations are made anew for each call and number.
"""

import _signal
import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Container
from typing import NamedTuple

FORWARDED = frozenset({
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT,
})  # fmt: skip
WATCHED = FORWARDED | {signal.SIGWINCH}
_INFO = 128  # sizeof(struct signalfd_siginfo)
_SI_KERNEL = 0x80  # siginfo(7): sent by the kernel, which for these signals means the terminal
_SFD_CLOEXEC = os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Arrived(NamedTuple):
    """One signal, and whether the terminal sent it, which means it for the whole foreground group."""

    number: int
    from_terminal: bool


def open_signals() -> int:
    """Block the watched signals and return a descriptor that they are read from."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    mask = (ctypes.c_uint64 * 16)()
    for number in WATCHED:
        mask[0] |= 1 << (number - 1)
    descriptor = int(_libc.signalfd(-1, ctypes.byref(mask), _SFD_CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"signalfd: {os.strerror(ctypes.get_errno())}")
    return descriptor


def read_signal(descriptor: int) -> Arrived:
    """Read one signal; blocks until there is one."""
    number, _, code = struct.unpack_from("=Iii", os.read(descriptor, _INFO))
    return Arrived(number, code == _SI_KERNEL)


def close_signals(descriptor: int) -> None:
    """Let signals end us again, but for those that came while they were still being read."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, _INFO):
            pass
    os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def ignored() -> frozenset[int]:
    """Return which signals are ignored."""
    return frozenset(number for number in _signal.valid_signals() if _signal.getsignal(number) == _signal.SIG_IGN)


def dispose(ignoring: Container[int]) -> None:
    """Ignore these signals, and have every other do what it does where nobody has said anything (signal(7))."""
    for number in _signal.valid_signals():
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            try:
                _signal.signal(number, _signal.SIG_IGN if number in ignoring else _signal.SIG_DFL)
            except OSError as error:
                if error.errno != errno.EINVAL:  # glibc keeps some real-time signals to itself
                    raise
