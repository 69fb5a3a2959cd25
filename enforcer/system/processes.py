"""Child processes (fork with a channel, run a function, kill and wait) and signals as readable events.

Uses `_signal`, which the signal module wraps: the wrapper builds enumerations for each call, and a start handles all
signals three times.
"""

import _signal
import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
from collections.abc import Callable, Container
from typing import NamedTuple, NoReturn

from enforcer.system import linux
from enforcer.system.errors import HostError
from proxy.wire import message

_DONE = b"\0"  # reports success; no bytes at all mean that the child was killed, as the OOM killer does
_LONGEST = 4096  # bytes of an error's text
FORWARDED = frozenset({
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT,
})  # fmt: skip
WATCHED = FORWARDED | {signal.SIGWINCH}
_INFO = 128  # sizeof(struct signalfd_siginfo)
_SI_KERNEL = 0x80  # siginfo(7): sent by the kernel; these signals it sends for the terminal
_SFD_CLOEXEC = os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def fork(main: Callable[[int, socket.socket], object]) -> tuple[int, socket.socket]:
    """Fork a process that calls `main` with the parent's pid and its end of a socket pair; returns its pid and our end.

    The process ends when `main` returns. If `main` raises, it sends `{"failed": text}` first. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid == 0:
            try:
                main(parent, theirs)
            except BaseException as error:  # noqa: BLE001 - the child must never run the parent's code
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                with contextlib.suppress(OSError):
                    message.send(theirs, {"failed": text or type(error).__name__})
                os._exit(1)
            finally:
                os._exit(0)
    return pid, ours


def kill_and_wait(pid: int) -> None:
    """Kill a child and wait for it; ignores one that has ended. 0: there is no child."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def detach(keep: set[int], metrics: socket.socket | None) -> None:
    """Leave the terminal, and close every descriptor except `keep` and the metrics listener."""
    os.setsid()  # ^C is for the task
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    linux.keep_only({0, 1, 2, *keep, *([metrics.fileno()] if metrics else [])})


def run_in_child(function: Callable[[], None]) -> None:
    """Run a function in a child and wait: no process above a task holds what it reads and imports.

    Raises HostError with the text of its error, or if the child was killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_and_report(function, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as answer:
            result = answer.read()
    finally:
        kill_and_wait(pid)
    if result != _DONE:
        raise HostError(result.decode("utf-8", "replace") or "a helper process of the start ended early")


def _run_and_report(function: Callable[[], None], writer: int) -> NoReturn:
    """Run the function, and write `_DONE` or the text of its error to the pipe; never returns to the parent's code."""
    try:
        result = _DONE
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            result = (str(error) or type(error).__name__).encode("utf-8", "replace")[:_LONGEST]
        os.write(writer, result)
    finally:
        os._exit(0)


class ReceivedSignal(NamedTuple):
    """One signal; `from_terminal`: the terminal sent it, to its whole foreground group."""

    number: int
    from_terminal: bool


def open_signals() -> int:
    """Block the `WATCHED` signals, and return a descriptor to read them from (signalfd(2))."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    mask = (ctypes.c_uint64 * 16)()
    for number in WATCHED:
        mask[0] |= 1 << (number - 1)
    return linux.check(_libc.signalfd(-1, ctypes.byref(mask), _SFD_CLOEXEC), "signalfd")


def read_signal(descriptor: int) -> ReceivedSignal:
    """Read one signal; blocks until one arrives."""
    number, _, code = struct.unpack_from("=Iii", os.read(descriptor, _INFO))
    return ReceivedSignal(number, code == _SI_KERNEL)


def close_signals(descriptor: int) -> None:
    """Unblock the signals again, after dropping those that arrived and weren't read."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, _INFO):
            pass
    os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def ignored_signals() -> frozenset[int]:
    """Return the signals that this process ignores."""
    return frozenset(number for number in _signal.valid_signals() if _signal.getsignal(number) == _signal.SIG_IGN)


def reset_signals(ignoring: Container[int]) -> None:
    """Ignore these signals, and set every other to its default action (signal(7))."""
    for number in _signal.valid_signals():
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            try:
                _signal.signal(number, _signal.SIG_IGN if number in ignoring else _signal.SIG_DFL)
            except OSError as error:
                if error.errno != errno.EINVAL:  # glibc reserves some real-time signals
                    raise
