"""Child processes: fork one that speaks over a channel, run one function in one, and end one."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from enforcer.system import linux
from enforcer.system.errors import HostError

_DONE = b"\0"  # no error's text; nothing at all means that the child was killed, as where memory has run out
_LONGEST = 4096  # bytes of an error's text


def fork(be: Callable[[int, socket.socket], NoReturn]) -> tuple[int, socket.socket]:
    """Fork a process that is `be`, called with its parent's pid and its end of a pair; returns its pid and our end.

    `be` must not return or raise. Raises OSError.
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
            be(parent, theirs)
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
