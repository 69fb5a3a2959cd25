"""Processes that are forked to do one thing and speak over a channel: how each begins, and how it is ended."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn


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
