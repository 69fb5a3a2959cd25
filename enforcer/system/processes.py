"""Child processes (fork with a channel, run a function, end one) and signals as readable events.

`_signal` is what the signal module wraps, whose enumerations are made anew for each call and number: three times a
start something is done about all signals.
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

_DONE = b"\0"  # no error's text; nothing at all means that the child was killed, as where memory has run out
_LONGEST = 4096  # bytes of an error's text
FORWARDED = frozenset({
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT,
})  # fmt: skip
WATCHED = FORWARDED | {signal.SIGWINCH}
_INFO = 128  # sizeof(struct signalfd_siginfo)
_SI_KERNEL = 0x80  # siginfo(7): sent by the kernel, which for these signals means the terminal
_SFD_CLOEXEC = os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def fork(be: Callable[[int, socket.socket], object]) -> tuple[int, socket.socket]:
    """Fork a process that is `be`, called with its parent's pid and its end of a pair; returns its pid and our end.

    It ends when that returns. When that raises it sends `{"failed": text}` first. Raises OSError.
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
                be(parent, theirs)
            except BaseException as error:  # noqa: BLE001 - nothing gets from here to where the parent goes on
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                with contextlib.suppress(OSError):
                    message.send(theirs, {"failed": text or type(error).__name__})
                os._exit(1)
            finally:
                os._exit(0)
    return pid, ours


def end(pid: int) -> None:
    """Kill a child of ours and wait for it; one that is gone is none. 0: there is none."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def detach(keep: set[int], metrics: socket.socket | None) -> None:
    """Leave the terminal and every descriptor that isn't needed behind."""
    os.setsid()  # ^C is the task's
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    linux.keep_only({0, 1, 2, *keep, *([metrics.fileno()] if metrics else [])})


def run_in_child(what: Callable[[], None]) -> None:
    """Run a function in a child and wait: what it reads and imports is never in a process that a task descends from.

    Raises HostError with the text of its error, also when the child was killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(what, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as answer:
            said = answer.read()
    finally:
        end(pid)
    if said != _DONE:
        raise HostError(said.decode("utf-8", "replace") or "a process that was to read or make a file ended in it")


def _be_child(what: Callable[[], None], writer: int) -> NoReturn:
    """Run it and report how it went. Whatever goes wrong, nothing gets from here to where the parent goes on."""
    try:
        said = _DONE
        try:
            what()
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            said = (str(error) or type(error).__name__).encode("utf-8", "replace")[:_LONGEST]
        os.write(writer, said)
    finally:
        os._exit(0)


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
    return linux.check(_libc.signalfd(-1, ctypes.byref(mask), _SFD_CLOEXEC), "signalfd")


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
