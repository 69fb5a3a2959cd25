"""A terminal of the task's own, in front of ours: what a task does to its terminal it can't do to the caller's.

With the caller's own terminal a task could read keys typed at another program, take the terminal away from the shell,
or signal the caller's process group, which no pid namespace prevents. So the task gets a session and a pseudo-terminal
(pty(7)); two small processes of ours carry what is typed in and what is printed out.
"""

import contextlib
import fcntl
import os
import select
import signal
import termios
import time
import tty
from typing import NamedTuple

from enforcer import linux

_CHUNK = 1 << 14
_LOOK_AGAIN = 0.2  # seconds between looks at whether we are in the foreground
_PTMX = os.makedev(5, 2)


def is_terminal(descriptor: int) -> bool:
    """Whether it is a terminal that a program talks to: the other half of a pseudo-terminal is not."""
    return os.isatty(descriptor) and os.fstat(descriptor).st_rdev != _PTMX


class Terminal(NamedTuple):
    """The task's pseudo-terminal: our half, its half, and the caller's terminal behind it."""

    primary: int
    secondary: int
    real: int

    def resize(self) -> None:
        """Give it the size that the caller's has now; a change tells the task (SIGWINCH)."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.primary, termios.TIOCSWINSZ, fcntl.ioctl(self.real, termios.TIOCGWINSZ, bytes(8)))


def make(real: int, owner: int) -> Terminal:
    """Open a pseudo-terminal that looks like `real` and belongs to the kernel uid `owner`."""
    primary, secondary = os.openpty()
    terminal = Terminal(primary, secondary, real)
    termios.tcsetattr(secondary, termios.TCSANOW, termios.tcgetattr(real))
    terminal.resize()
    if os.geteuid() == 0:
        os.fchown(secondary, owner, -1)
    return terminal


def carry_in(source: int, primary: int) -> None:
    """Pass what is typed on, keys like ^C as they are: they mean what they mean at the task's own terminal.

    Runs in a process of its own, until it is ended; then the caller's terminal is as it was. While we are in the
    background nothing is read, as a program that reads nothing there would.
    """
    linux.keep_only({source, primary})
    before = termios.tcgetattr(source)

    def restore(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # from the background too
        with contextlib.suppress(termios.error):
            termios.tcsetattr(source, termios.TCSADRAIN, before)
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, restore)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    raw = False
    with contextlib.suppress(OSError, termios.error):
        while True:
            if os.tcgetpgrp(source) != os.getpgrp():
                raw = False
                time.sleep(_LOOK_AGAIN)
                continue
            if not raw:
                tty.setraw(source, termios.TCSADRAIN)
                raw = True
            if not _wait(source, select.POLLIN, _LOOK_AGAIN):
                continue
            data = os.read(source, _CHUNK)
            if not data:
                break
            _write(primary, data)
    restore(0, None)


def carry_out(primary: int, sink: int) -> None:
    """Pass on what is printed, until the task's half is closed everywhere (EIO). Runs in a process of its own."""
    linux.keep_only({primary, sink})
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        while data := os.read(primary, _CHUNK):
            _write(sink, data)
    os._exit(0)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            _wait(descriptor, select.POLLOUT)


def _wait(descriptor: int, events: int, seconds: float | None = None) -> bool:
    """Wait until it is ready; whether it is. By poll(2): select(2) knows no descriptor from 1024 on."""
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def take(descriptor: int) -> None:
    """Make a pseudo-terminal the controlling one of the calling process, which leads a session without any."""
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
