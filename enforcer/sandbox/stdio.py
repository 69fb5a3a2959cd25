"""Standard streams of a task: pipes and a pseudo-terminal of its own.

An inherited descriptor can be a way out of the sandbox: a socket can be reconnected in the namespace that it was made
in, a directory leads to the host's tree, and a file or pipe can be opened again the other way through /proc/self/fd.
With the caller's own terminal a task could read keys for another program, take the terminal from the shell, or signal
the caller's process group, which no pid namespace prevents. So the task gets pipes, or a session and a pseudo-terminal
(pty(7)) of its own; small processes relay the bytes. A memory device (/dev/null) is replaced by the sandbox's own node
of it (`task_start`): the caller's has the host's inode.

The sandbox's init makes the terminal, in the sandbox's own /dev/pts: one of the host's has no name in there, so
ttyname(3) would fail (ENODEV).
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
_FOREGROUND_INTERVAL = 0.2  # seconds between looks at whether we are in the foreground
_RAW_TIMEOUT, _RAW_INTERVAL = 0.5, 0.002  # seconds
_END_KEYS = frozenset(b"\x03\x1c")  # ^C and ^\, the defaults of terminals
_LFLAG = 3  # of what tcgetattr returns
_PTMX, _TTY = os.makedev(5, 2), os.makedev(5, 0)
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441  # asm-generic/ioctls.h: x86, arm, RISC-V
SANDBOX_TERMINAL = -1  # stands for the terminal that the sandbox makes


def is_terminal(descriptor: int) -> bool:
    """Whether a descriptor is a terminal that a program talks to, and not the primary side of a pseudo-terminal."""
    return os.isatty(descriptor) and os.fstat(descriptor).st_rdev != _PTMX


def keyboard_terminal(process: int) -> int | None:
    """Return which of 0-2 is the terminal whose keys a task gets; None if it gets none.

    `process` has the same three descriptors. Keys come from standard input, whichever terminal that is; from another
    descriptor only if it is the controlling terminal of `process`, which programs open as /dev/tty.
    """
    terminals = [number for number in range(3) if is_terminal(number)]
    if terminals[:1] == [0]:
        return 0
    controlling = _controlling_terminal(process)
    return (
        next((number for number in terminals if os.fstat(number).st_rdev in (controlling, _TTY)), None)
        if controlling
        else None
    )


def _controlling_terminal(process: int) -> int:
    """Return the device number of the controlling terminal of a process; 0 without one (proc_pid_stat(5), tty_nr)."""
    try:
        with open(f"/proc/{process}/stat", "rb", buffering=0) as file:
            number = int(file.readall().rpartition(b")")[2].split()[4])
    except OSError:
        return 0
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


class TerminalSettings(NamedTuple):
    """Settings of a terminal: attributes (termios(3)) and size (ioctl_tty(2), `struct winsize`)."""

    attributes: list[int | list[bytes | int]]
    size: bytes
    has_keys: bool = (
        True  # keys reach the task; otherwise the terminal controls no session, and /dev/tty can't be opened
    )

    @classmethod
    def of(cls, real: int) -> "TerminalSettings":
        """Read the settings of a terminal. Raises OSError, termios.error."""
        return cls(termios.tcgetattr(real), _size(real))


class Terminal:
    """The caller's terminal, and the primary side of the task's, once the sandbox has made it."""

    __slots__ = ("primary", "real")

    def __init__(self, real: int) -> None:
        self.real = real
        self.primary = -1

    def resize(self) -> None:
        """Give the task's terminal the size of the caller's; a change sends SIGWINCH to the task."""
        if self.primary < 0:
            return  # it is made with the right size
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.primary, termios.TIOCSWINSZ, _size(self.real))

    def wait_until_raw(self, *, is_ours: bool) -> None:
        """Wait up to 0.5 s until the caller's terminal passes all keys on; in the background nothing sets that.

        `is_ours`: this run sets it, which works only for a terminal of this session.
        """
        with contextlib.suppress(OSError, termios.error):
            deadline = time.monotonic() + _RAW_TIMEOUT
            cooked = termios.ISIG | termios.ICANON
            while termios.tcgetattr(self.real)[_LFLAG] & cooked == cooked and time.monotonic() < deadline:
                try:
                    if os.tcgetpgrp(self.real) != os.getpgrp():
                        return
                except OSError:  # the terminal of another session
                    if is_ours:
                        return
                time.sleep(_RAW_INTERVAL)


def make_terminal(executor: Executor, settings: TerminalSettings, owner: int) -> tuple[int, int]:
    """Open a pseudo-terminal in the sandbox's own /dev/pts; returns the primary side and the task's.

    The task's side belongs to `owner`, a kernel uid. Raises OSError.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    ptmx = executor.calls.get("openat", linux.AT_FDCWD, "/dev/pts/ptmx", flags, purpose="open /dev/pts/ptmx")
    [primary] = executor.run(ptmx)
    secondary = -1
    try:
        fcntl.ioctl(primary, _TIOCSPTLCK, bytes(4))
        secondary = fcntl.ioctl(primary, _TIOCGPTPEER, flags)
        os.fchown(secondary, owner, -1)
        fcntl.ioctl(primary, termios.TIOCSWINSZ, settings.size)
        termios.tcsetattr(secondary, termios.TCSANOW, settings.attributes)
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
    """Relay typed keys to the task's terminal unprocessed: a key like ^C has its meaning there.

    Runs in a process of its own, until it is ended; then it restores the caller's terminal. In the background it reads
    nothing, nor while another program of its pipeline reads keys, as less(1) does.

    `supervisor`, its parent, gets SIGCONT after keys that end a task, since it may have stopped itself. It gets SIGHUP
    when the terminal is closed: the kernel signals only the session leader, which may be another user's process
    (su(1)).
    """
    modes = _KeyModes(source, reads=os.isatty(0), writes=os.isatty(1))
    linux.keep_only({source, primary})

    def stop(_number: int, _frame: object) -> None:
        modes.restore()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError, termios.error):
        while True:
            if not modes.set_modes():
                time.sleep(_FOREGROUND_INTERVAL)
            elif _wait(source, select.POLLIN, _FOREGROUND_INTERVAL) and modes.set_modes():
                data = os.read(source, _TERMINAL_CHUNK)
                if not data:
                    break
                _write(primary, data)
                if not _END_KEYS.isdisjoint(data) and os.getppid() == supervisor:
                    os.kill(supervisor, signal.SIGCONT)
    if supervisor and os.getppid() == supervisor and not os.isatty(source):
        os.kill(supervisor, signal.SIGHUP)
    stop(0, None)


class _KeyModes:
    """Modes of the caller's terminal while keys go to the task: termios(3), "Raw mode".

    `reads`, `writes`: whether the run's standard input, and its output, is a terminal. Otherwise other programs of a
    pipeline may read keys, so modes that they set stay; or they print, so output processing stays.
    """

    __slots__ = ("_is_exclusive", "_original_modes", "_output_is_terminal", "_own_modes", "_source")

    def __init__(self, source: int, *, reads: bool, writes: bool) -> None:
        self._source = source
        self._is_exclusive = reads and writes
        self._output_is_terminal = writes
        self._original_modes: list[int | list[bytes | int]] | None = None
        self._own_modes: list[int | list[bytes | int]] | None = None  # the modes set here; None: none

    def set_modes(self) -> bool:
        """Set the modes if needed; returns whether keys may be read now. Raises OSError, termios.error."""
        if not _is_foreground(self._source):
            self._own_modes = None
            return False
        modes = termios.tcgetattr(self._source)
        if self._own_modes is not None and (self._is_exclusive or modes == self._own_modes):
            return True
        if not (self._is_exclusive or modes[_LFLAG] & termios.ICANON):
            return False
        self._original_modes = self._original_modes or modes
        raw = termios.tcgetattr(self._source)
        tty.cfmakeraw(raw)
        if not self._output_is_terminal:
            raw[tty.OFLAG] = modes[tty.OFLAG]
        termios.tcsetattr(self._source, termios.TCSADRAIN, raw)
        self._own_modes = termios.tcgetattr(self._source)
        return True

    def restore(self) -> None:
        """Restore the modes of the terminal, unless another program has changed them."""
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # from the background too
        with contextlib.suppress(termios.error):
            if self._original_modes is not None and (
                self._is_exclusive or termios.tcgetattr(self._source) == self._own_modes
            ):
                termios.tcsetattr(self._source, termios.TCSADRAIN, self._original_modes)


def _is_foreground(terminal: int) -> bool:
    """Whether this process may read a terminal; True for one that controls no session. Raises OSError."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        return True


def relay_output(primary: int, sink: int) -> None:
    """Relay the task's terminal output until its side is closed everywhere (EIO). Runs in a process of its own."""
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
    """Wait until a descriptor is ready; returns whether it is.

    Uses poll(2): select(2) fails from descriptor 1024 on.
    """
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


_CHUNK = 1 << 16


class Relay(NamedTuple):
    """A process that relays bytes between one of our descriptors and the task's."""

    pid: int
    name: str
    end_signal: signal.Signals | None = None  # None: it ends when the task's side is closed


class PendingRelay(NamedTuple):
    """A relay that isn't started yet. `our_end`: our end of the task's pipe."""

    source: int
    sink: int
    our_end: int
    name: str
    end_signal: signal.Signals | None = None


class Stdio:
    """The task's standard streams, and the relays behind them."""

    __slots__ = (
        "closed",
        "descriptors",
        "key_relay",
        "output_descriptor",
        "pending",
        "relays",
        "settings",
        "terminal",
        "terminals",
    )

    def __init__(self, descriptors: tuple[int, int, int]) -> None:
        self.descriptors = descriptors
        self.relays: list[Relay] = []
        self.pending: list[PendingRelay] = []
        self.terminals = Terminals()  # now: they may be closed while the task starts
        self.terminal: Terminal | None = None
        self.settings: TerminalSettings | None = None  # settings of the task's terminal; None: it has none
        self.output_descriptor = -1  # our descriptor for the terminal's output
        self.key_relay: Callable[[int], None] | None = None  # starts the relay of keys; None: none
        self.closed = False

    def start_relays(self) -> None:
        """Start the relays of the pipes. The task may be starting meanwhile."""
        while self.pending:
            relay = self.pending[0]
            pid = os.fork()
            if pid == 0:
                _copy_bytes(relay.source, relay.sink)
            self.relays.append(Relay(pid, relay.name, relay.end_signal))
            os.close(self.pending.pop(0).our_end)

    def start_terminal(self, primary: int) -> None:
        """Start relaying the terminal that the sandbox has made, and take over its primary side.

        Returns once keys go to the task.
        """
        if self.terminal is None or self.terminal.primary >= 0:
            os.close(primary)
            return
        self.terminal.primary = primary
        self.terminal.resize()  # it may have another size by now
        pid = os.fork()
        if pid == 0:
            relay_output(primary, self.output_descriptor)
        self.relays.append(Relay(pid, "output"))
        if self.key_relay is not None:
            self.key_relay(primary)
            self.terminal.wait_until_raw(is_ours=isinstance(self.key_relay, functools.partial))

    def close(self) -> None:
        """Close our copies of the task's ends, once the task has them. Idempotent."""
        if not self.closed:
            self.closed = True
            for descriptor in {*self.descriptors} - {0, 1, 2, SANDBOX_TERMINAL}:
                os.close(descriptor)

    def finish(self) -> list[str]:
        """Wait until the task's output is relayed, end the input relays, and return what failed.

        Idempotent.
        """
        self.close()
        while self.pending:
            os.close(self.pending.pop().our_end)
        problems = []
        while self.relays:
            relay = self.relays.pop()
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if relay.end_signal is not None:
                    os.kill(relay.pid, relay.end_signal)
                _, status = os.waitpid(relay.pid, 0)
                number = os.waitstatus_to_exitcode(status)
                if number > 0:
                    problems.append(f"{relay.name} could not be passed on: {os.strerror(number)}")
        return problems


def can_pass_unchanged(descriptor: int) -> bool:
    """Whether a descriptor can be given to a task unchanged: only memory devices, which lead nowhere."""
    return bool(devices.memory_device(descriptor))


def arrange(owner: int, key_relay: "Callable[[int], None] | None" = None, caller: int = 0) -> Stdio:
    """Put pipes, or a terminal, in front of the descriptors 0, 1 and 2. `owner`: the task's kernel uid.

    `key_relay` has another process, `caller`, relay typed keys: only a process of the terminal's session may read them.
    Raises UsageError for a directory.
    """
    for number in range(3):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise UsageError(f"descriptor {number} is a directory, which no task can have; redirect it")
    stdio = Stdio((0, 1, 2))
    terminals = [number for number in range(3) if is_terminal(number)]
    if terminals:
        _arrange_terminal(stdio, terminals, key_relay, caller or os.getpid())
    task_ends: list[int] = []
    pipes: dict[tuple[int, int], int] = {}  # 1 and 2 on one file share a pipe, which keeps their order
    for number in range(3):
        status = os.fstat(number)
        key = (status.st_dev, status.st_ino)
        if number in terminals:
            task_ends.append(SANDBOX_TERMINAL)
        elif can_pass_unchanged(number):
            task_ends.append(number)
        elif number and key in pipes:
            task_ends.append(os.dup(pipes[key]))
        else:
            task_ends.append(_pipe(stdio, number, owner))
            if number:
                pipes[key] = task_ends[-1]
    stdio.descriptors = (task_ends[0], task_ends[1], task_ends[2])
    return stdio


def _arrange_terminal(stdio: Stdio, terminals: list[int], key_relay: Callable[[int], None] | None, caller: int) -> None:
    typed = keyboard_terminal(caller)
    real = terminals[0] if typed is None else typed
    stdio.terminal = Terminal(real)
    stdio.settings = TerminalSettings.of(real)._replace(has_keys=typed is not None)
    stdio.output_descriptor = next((number for number in terminals if number), terminals[0])
    if typed is not None:
        stdio.key_relay = key_relay or functools.partial(_start_key_relay, stdio, typed)


def _start_key_relay(stdio: Stdio, typed: int, primary: int) -> None:
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        relay_keys(typed, primary, supervisor)
    stdio.relays.append(Relay(pid, "input", signal.SIGTERM))


def _pipe(stdio: Stdio, number: int, owner: int) -> int:
    """Put a pipe in front of a descriptor, and queue its relay; returns the task's end.

    The writing end belongs to the task, so that it can be opened by name: `/dev/stderr`.
    """
    reader, writer = os.pipe()
    if number and os.geteuid() == 0:
        os.fchown(writer, owner, -1)
    task_end, our_end = (writer, reader) if number else (reader, writer)
    if number:
        stdio.pending.append(PendingRelay(our_end, number, our_end, f"descriptor {number}"))
    else:
        stdio.pending.append(PendingRelay(number, our_end, our_end, "input", signal.SIGKILL))
    return task_end


def ignored_signals() -> frozenset[int]:
    """Return the signals that our caller ignores (nohup(1)), without the two that Python ignores."""
    return processes.ignored_signals() - {signal.SIGPIPE, signal.SIGXFSZ}


def _copy_bytes(source: int, sink: int) -> None:
    """Copy until the end, in a process of its own; never returns. Its exit status is the errno that stopped it."""
    # Only these two: with the other end of its pipe open, the relay would never see the end of its input.
    linux.keep_only({source, sink})
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        while data := _retry_when_ready(source, select.POLLIN, lambda: os.read(source, _CHUNK)):
            view = memoryview(data)
            while view:
                view = view[_retry_when_ready(sink, select.POLLOUT, lambda: os.write(sink, view)) :]  # noqa: B023
    except BrokenPipeError:
        pass  # the reader has closed: the task gets EPIPE in turn
    except ConnectionResetError:
        pass
    except OSError as error:
        os._exit(error.errno or 1)
    os._exit(0)


def _retry_when_ready[T](descriptor: int, event: int, act: Callable[[], T]) -> T:
    """Call `act`, waiting while the descriptor would block."""
    while True:
        try:
            return act()
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, event)
            poll.poll()
