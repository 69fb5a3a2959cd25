"""A terminal of the task's own, in front of ours: what a task does to its terminal it can't do to the caller's.

With the caller's own terminal a task could read keys typed at another program, take the terminal away from the shell,
or signal the caller's process group, which no pid namespace prevents. So the task gets a session and a pseudo-terminal
(pty(7)); two small processes of ours carry what is typed in and what is printed out.

The sandbox's init makes it, in the sandbox's own /dev/pts: one of the host's would have no name in there, and programs
that ask what their terminal is called would hear that it is none (ttyname(3), ENODEV).
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import time
import tty
from typing import NamedTuple

from enforcer import linux
from enforcer.sandbox.player import Player

_CHUNK = 1 << 14
_LOOK_AGAIN = 0.2  # seconds between looks at whether we are in the foreground
_UNTIL_RAW, _LOOK = 0.5, 0.002  # seconds
_ENDING = frozenset(b"\x03\x1c")  # ^C and ^\, as terminals have them unless told otherwise
_LFLAG = 3  # of what tcgetattr returns
_PTMX, _TTY = os.makedev(5, 2), os.makedev(5, 0)
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441  # asm-generic/ioctls.h: x86, arm, RISC-V
OWN = -1  # in the place of a descriptor: the terminal that the sandbox makes


def is_terminal(descriptor: int) -> bool:
    """Whether it is a terminal that a program talks to: the other half of a pseudo-terminal is not."""
    return os.isatty(descriptor) and os.fstat(descriptor).st_rdev != _PTMX


def with_keys(process: int) -> int | None:
    """Return which of 0-2 is the terminal that keys for a task come from; None: no keys reach it.

    `process` has the same three. From its standard input a program reads keys whoever's terminal that is. From any
    other only if the terminal controls the session of `process`, as it opens /dev/tty for that.
    """
    terminals = [number for number in range(3) if is_terminal(number)]
    if terminals[:1] == [0]:
        return 0
    controlling = _controlling(process)
    return (
        next((number for number in terminals if os.fstat(number).st_rdev in (controlling, _TTY)), None)
        if controlling
        else None
    )


def _controlling(process: int) -> int:
    """Return the device of the terminal that controls a process; 0: none does (proc_pid_stat(5), tty_nr)."""
    try:
        with open(f"/proc/{process}/stat", "rb", buffering=0) as file:
            number = int(file.readall().rpartition(b")")[2].split()[4])
    except OSError:
        return 0
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


class Likeness(NamedTuple):
    """What a terminal is like: termios(3), and its size (ioctl_tty(2), `struct winsize`)."""

    attributes: list[int | list[bytes | int]]
    size: bytes
    has_keys: bool = True  # whether keys reach the task; otherwise it controls no session: /dev/tty can't be opened

    @classmethod
    def of(cls, real: int) -> "Likeness":
        """Look at a terminal. Raises OSError, termios.error."""
        return cls(termios.tcgetattr(real), _size(real))


class Terminal:
    """The caller's terminal, and our half of the task's once the sandbox has made that."""

    __slots__ = ("primary", "real")

    def __init__(self, real: int) -> None:
        self.real = real
        self.primary = -1

    def resize(self) -> None:
        """Give it the size that the caller's has now; a change tells the task (SIGWINCH)."""
        if self.primary < 0:
            return  # it is made with the size of that time, and has its own once it is there
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.primary, termios.TIOCSWINSZ, _size(self.real))

    def wait_until_raw(self, *, by_us: bool) -> None:
        """Wait until somebody has had the caller's pass all keys on; not for long: in the background nobody does.

        `by_us`: whoever it is can do it for a terminal of this session alone, as its process belongs to that.
        """
        with contextlib.suppress(OSError, termios.error):
            deadline = time.monotonic() + _UNTIL_RAW
            lines = termios.ISIG | termios.ICANON
            while termios.tcgetattr(self.real)[_LFLAG] & lines == lines and time.monotonic() < deadline:
                try:
                    if os.tcgetpgrp(self.real) != os.getpgrp():
                        return
                except OSError:  # it is another session's
                    if by_us:
                        return
                time.sleep(_LOOK)


def make(player: Player, like: Likeness, owner: int) -> tuple[int, int]:
    """Have one opened in the sandbox's own /dev/pts, in the view that is in use: our half, and the task's.

    That one is `owner`'s, a kernel uid. Raises OSError.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    opened = player.calls.get("openat", linux.AT_FDCWD, "/dev/pts/ptmx", flags, says="open /dev/pts/ptmx")
    [primary] = player.do(opened)
    secondary = -1
    try:
        fcntl.ioctl(primary, _TIOCSPTLCK, bytes(4))
        secondary = fcntl.ioctl(primary, _TIOCGPTPEER, flags)
        os.fchown(secondary, owner, -1)
        fcntl.ioctl(primary, termios.TIOCSWINSZ, like.size)
        termios.tcsetattr(secondary, termios.TCSANOW, like.attributes)
    except (OSError, termios.error) as error:
        for descriptor in {primary, secondary} - {-1}:
            os.close(descriptor)
        if isinstance(error, OSError):
            raise
        raise OSError(error.args[0], f"tcsetattr: {error.args[1]}") from error
    return primary, secondary


def _size(real: int) -> bytes:
    return fcntl.ioctl(real, termios.TIOCGWINSZ, bytes(8))


def carry_in(source: int, primary: int, supervisor: int = 0) -> None:
    """Pass what is typed on, keys like ^C as they are: they mean what they mean at the task's own terminal.

    Runs in a process of its own, until it is ended; then the caller's terminal is as it was. In the background it reads
    nothing, as any program. In a pipeline it reads nothing while another program of that reads keys, as less(1) does.
    `supervisor`, its parent, is sent SIGCONT behind keys that end a task, which may have stopped itself; and
    SIGHUP when the terminal goes away: the kernel signals the leader of the session, which may be another user's
    (su(1)), or none of this terminal's.
    """
    keys = _Keys(source, reads=os.isatty(0), writes=os.isatty(1))
    linux.keep_only({source, primary})

    def end(_number: int, _frame: object) -> None:
        keys.restore()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError, termios.error):
        while True:
            if not keys.take():
                time.sleep(_LOOK_AGAIN)
            elif _wait(source, select.POLLIN, _LOOK_AGAIN) and keys.take():
                data = os.read(source, _CHUNK)
                if not data:
                    break
                _write(primary, data)
                if not _ENDING.isdisjoint(data) and os.getppid() == supervisor:
                    os.kill(supervisor, signal.SIGCONT)
    if supervisor and os.getppid() == supervisor and not os.isatty(source):
        os.kill(supervisor, signal.SIGHUP)
    end(0, None)


class _Keys:
    """The modes of the caller's terminal while its keys are the task's: termios(3), "Raw mode".

    `reads`, `writes`: whether a terminal is the run's standard input, and its output. Where one isn't, other programs
    of a pipeline may read keys: modes that they set stay. Where the second isn't, they write: output is processed.
    """

    __slots__ = ("_alone", "_before", "_own", "_source", "_writes")

    def __init__(self, source: int, *, reads: bool, writes: bool) -> None:
        self._source = source
        self._alone = reads and writes
        self._writes = writes
        self._before: list[int | list[bytes | int]] | None = None
        self._own: list[int | list[bytes | int]] | None = None  # the modes set here; None: none are set

    def take(self) -> bool:
        """Set the modes where that is needed; whether keys may be read now. Raises OSError, termios.error."""
        if not _is_foreground(self._source):
            self._own = None
            return False
        now = termios.tcgetattr(self._source)
        if self._own is not None and (self._alone or now == self._own):
            return True
        if not (self._alone or now[_LFLAG] & termios.ICANON):
            return False
        self._before = self._before or now
        raw = termios.tcgetattr(self._source)
        tty.cfmakeraw(raw)
        if not self._writes:
            raw[tty.OFLAG] = now[tty.OFLAG]
        termios.tcsetattr(self._source, termios.TCSADRAIN, raw)
        self._own = termios.tcgetattr(self._source)
        return True

    def restore(self) -> None:
        """Give the terminal the modes that it had, unless another program has set its own meanwhile."""
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # from the background too
        with contextlib.suppress(termios.error):
            if self._before is not None and (self._alone or termios.tcgetattr(self._source) == self._own):
                termios.tcsetattr(self._source, termios.TCSADRAIN, self._before)


def _is_foreground(terminal: int) -> bool:
    """Whether this process may read a terminal. One that controls no session of ours, anybody may. Raises OSError."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        return True


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
