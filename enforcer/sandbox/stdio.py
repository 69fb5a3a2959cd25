"""Standard streams of a task: pipes and a pseudo-terminal of its own.

An inherited descriptor is a way out: a socket can be reconnected in the namespace it was made in, a directory leads to
the host's tree, a file or pipe can be opened again the other way through /proc/self/fd. With the caller's own terminal
a task could read keys typed at another program, take the terminal away from the shell, or signal the caller's process
group, which no pid namespace prevents. So the task gets pipes, or a session and a pseudo-terminal (pty(7)), of its own;
small processes of ours carry the bytes. In the place of a harmless memory device (/dev/null) it opens its own node of
that device (`task_start`): the caller's is the host's inode.

The sandbox's init makes the terminal, in the sandbox's own /dev/pts: one of the host's would have no name in there, and
programs that ask what their terminal is called would hear that it is none (ttyname(3), ENODEV).
"""

import contextlib
import errno
import fcntl
import functools
import os
import select
import signal
import stat
import termios
import time
import tty
from collections.abc import Callable
from typing import NamedTuple

from enforcer.sandbox import devices
from enforcer.sandbox.init import Executor
from enforcer.system import linux, processes
from enforcer.system.errors import UsageError
from enforcer.system.terminals import Terminals

_TERMINAL_CHUNK = 1 << 14
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


def keyboard_terminal(process: int) -> int | None:
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


class TerminalSettings(NamedTuple):
    """What a terminal is like: termios(3), and its size (ioctl_tty(2), `struct winsize`)."""

    attributes: list[int | list[bytes | int]]
    size: bytes
    has_keys: bool = True  # whether keys reach the task; otherwise it controls no session: /dev/tty can't be opened

    @classmethod
    def of(cls, real: int) -> "TerminalSettings":
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


def make_terminal(executor: Executor, like: TerminalSettings, owner: int) -> tuple[int, int]:
    """Have one opened in the sandbox's own /dev/pts, in the view that is in use: our half, and the task's.

    That one is `owner`'s, a kernel uid. Raises OSError.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    opened = executor.calls.get("openat", linux.AT_FDCWD, "/dev/pts/ptmx", flags, says="open /dev/pts/ptmx")
    [primary] = executor.do(opened)
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


def relay_keys(source: int, primary: int, supervisor: int = 0) -> None:
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
                data = os.read(source, _TERMINAL_CHUNK)
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


def relay_output(primary: int, sink: int) -> None:
    """Pass on what is printed, until the task's half is closed everywhere (EIO). Runs in a process of its own."""
    linux.keep_only({primary, sink})
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        while data := os.read(primary, _TERMINAL_CHUNK):
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


_CHUNK = 1 << 16


class Relay(NamedTuple):
    """A process that carries bytes between one of our descriptors and the task's."""

    pid: int
    name: str
    end_with: signal.Signals | None = None  # None: it ends by itself, when the task's side is closed


class PendingRelay(NamedTuple):
    """What a relay is to do that isn't there yet. `ours` is our end of the task's pipe."""

    source: int
    sink: int
    ours: int
    name: str
    end_with: signal.Signals | None = None


class Stdio:
    """What becomes the task's 0, 1 and 2, and the relays that stand behind them."""

    __slots__ = ("carry_in", "closed", "descriptors", "like", "outward", "relays", "terminal", "terminals", "to_carry")

    def __init__(self, descriptors: tuple[int, int, int]) -> None:
        self.descriptors = descriptors
        self.relays: list[Relay] = []
        self.to_carry: list[PendingRelay] = []
        self.terminals = Terminals()  # before anything of the task's begins: they may go away while it starts
        self.terminal: Terminal | None = None
        self.like: TerminalSettings | None = None  # what the task's own is to be like; None: it has none
        self.outward = -1  # which of ours shows what is printed there
        self.carry_in: Callable[[int], None] | None = None  # has passed on what is typed at ours; None: nothing is
        self.closed = False

    def begin(self) -> None:
        """Have bytes carried through the pipes. Meanwhile the task may be starting: no start waits for this."""
        while self.to_carry:
            each = self.to_carry[0]
            pid = os.fork()
            if pid == 0:
                _carry(each.source, each.sink)
            self.relays.append(Relay(pid, each.name, each.end_with))
            os.close(self.to_carry.pop(0).ours)

    def has_terminal(self, primary: int) -> None:
        """Have carried what passes through the terminal that the sandbox has made: our half of it is taken over.

        Returns when keys go there, and mean nothing to ours any more.
        """
        if self.terminal is None or self.terminal.primary >= 0:
            os.close(primary)
            return
        self.terminal.primary = primary
        self.terminal.resize()  # it may have another size by now
        pid = os.fork()
        if pid == 0:
            relay_output(primary, self.outward)
        self.relays.append(Relay(pid, "output"))
        if self.carry_in is not None:
            self.carry_in(primary)
            self.terminal.wait_until_raw(by_us=isinstance(self.carry_in, functools.partial))

    def close(self) -> None:
        """Close our copies of the task's ends, once the task has them. Idempotent."""
        if not self.closed:
            self.closed = True
            for descriptor in {*self.descriptors} - {0, 1, 2, OWN}:
                os.close(descriptor)

    def finish(self) -> list[str]:
        """Wait until what the task wrote has been carried on, end what would still be read for it, and say what failed.

        Idempotent.
        """
        self.close()
        while self.to_carry:
            os.close(self.to_carry.pop().ours)
        problems = []
        while self.relays:
            relay = self.relays.pop()
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if relay.end_with is not None:
                    os.kill(relay.pid, relay.end_with)
                _, status = os.waitpid(relay.pid, 0)
                number = os.waitstatus_to_exitcode(status)
                if number > 0:
                    problems.append(f"{relay.name} could not be passed on: {os.strerror(number)}")
        return problems


def passes_as_it_is(descriptor: int) -> bool:
    """Whether a descriptor can be handed to a task: only the memory devices, which lead nowhere."""
    return bool(devices.memory_device(descriptor))


def arrange(owner: int, carry_in: "Callable[[int], None] | None" = None, caller: int = 0) -> Stdio:
    """Look at 0, 1 and 2 and put pipes, or a terminal, in front of them. `owner` is the task's kernel uid.

    `carry_in` has somebody else pass on what is typed: only who is in the terminal's session may read it; `caller` is
    that process. Raises UsageError for a directory, which nothing sensible can be done with.
    """
    for number in range(3):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise UsageError(f"descriptor {number} is a directory, which a task cannot be given; redirect it")
    stdio = Stdio((0, 1, 2))
    terminals = [number for number in range(3) if is_terminal(number)]
    if terminals:
        _arrange_terminal(stdio, terminals, carry_in, caller or os.getpid())
    chosen: list[int] = []
    carried: dict[tuple[int, int], int] = {}  # 1 and 2 on one file share one pipe, so that their order stays
    for number in range(3):
        status = os.fstat(number)
        key = (status.st_dev, status.st_ino)
        if number in terminals:
            chosen.append(OWN)
        elif passes_as_it_is(number):
            chosen.append(number)
        elif number and key in carried:
            chosen.append(os.dup(carried[key]))
        else:
            chosen.append(_pipe(stdio, number, owner))
            if number:
                carried[key] = chosen[-1]
    stdio.descriptors = (chosen[0], chosen[1], chosen[2])
    return stdio


def _arrange_terminal(stdio: Stdio, terminals: list[int], carry_in: Callable[[int], None] | None, caller: int) -> None:
    typed = keyboard_terminal(caller)
    real = terminals[0] if typed is None else typed
    stdio.terminal = Terminal(real)
    stdio.like = TerminalSettings.of(real)._replace(has_keys=typed is not None)
    stdio.outward = next((number for number in terminals if number), terminals[0])
    if typed is not None:
        stdio.carry_in = carry_in or functools.partial(_carry_in, stdio, typed)


def _carry_in(stdio: Stdio, typed: int, primary: int) -> None:
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        relay_keys(typed, primary, supervisor)
    stdio.relays.append(Relay(pid, "input", signal.SIGTERM))


def _pipe(stdio: Stdio, number: int, owner: int) -> int:
    """Put a pipe in front of a descriptor of ours, for a process to carry what passes; returns the task's end.

    What it writes to is its own, so that it can be opened by name: `/dev/stderr`.
    """
    reader, writer = os.pipe()
    if number and os.geteuid() == 0:
        os.fchown(writer, owner, -1)
    theirs, ours = (writer, reader) if number else (reader, writer)
    if number:
        stdio.to_carry.append(PendingRelay(ours, number, ours, f"descriptor {number}"))
    else:
        stdio.to_carry.append(PendingRelay(number, ours, ours, "input", signal.SIGKILL))
    return theirs


def ignored_signals() -> frozenset[int]:
    """Tell which signals our caller had set to be ignored (nohup(1)); Python itself ignores two more."""
    return processes.ignored_signals() - {signal.SIGPIPE, signal.SIGXFSZ}


def _carry(source: int, sink: int) -> None:
    """Copy until the end, in a process of its own; it never returns. Its status is the errno that stopped it."""
    # Only these two stay open: a relay that kept the other end of a pipe would keep its own input from ending.
    linux.keep_only({source, sink})
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        while data := _patient(source, select.POLLIN, lambda: os.read(source, _CHUNK)):
            view = memoryview(data)
            while view:
                view = view[_patient(sink, select.POLLOUT, lambda: os.write(sink, view)) :]  # noqa: B023
    except BrokenPipeError:
        pass  # whoever read has enough: the task learns of it as it would have without us
    except ConnectionResetError:
        pass
    except OSError as error:
        os._exit(error.errno or 1)
    os._exit(0)


def _patient[T](descriptor: int, event: int, act: Callable[[], T]) -> T:
    """Do it, waiting where somebody has made the descriptor one that doesn't."""
    while True:
        try:
            return act()
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, event)
            poll.poll()
