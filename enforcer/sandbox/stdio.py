"""Standard input, output and error as a task may have them.

An inherited descriptor is a way out: a socket can be reconnected in the namespace it was made in, a directory leads to
the host's tree, a file or pipe can be opened again the other way through /proc/self/fd, a terminal is the caller's. So
a task gets pipes of its own and a pseudo-terminal of its own; small processes of ours carry the bytes. In the place of
a harmless memory device (/dev/null) it opens its own node of that device (`begin`): the caller's is the host's inode.
"""

import contextlib
import functools
import os
import select
import signal
import stat
from collections.abc import Callable
from typing import NamedTuple

from enforcer import linux, signals
from enforcer.errors import UsageError
from enforcer.hangup import Terminals
from enforcer.sandbox import devices, terminal

_CHUNK = 1 << 16


class Relay(NamedTuple):
    """A process that carries bytes between one of our descriptors and the task's."""

    pid: int
    name: str
    end_with: signal.Signals | None = None  # None: it ends by itself, when the task's side is closed


class Carrying(NamedTuple):
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
        self.to_carry: list[Carrying] = []
        self.terminals = Terminals()  # before anything of the task's begins: they may go away while it starts
        self.terminal: terminal.Terminal | None = None
        self.like: terminal.Likeness | None = None  # what the task's own is to be like; None: it has none
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
            terminal.carry_out(primary, self.outward)
        self.relays.append(Relay(pid, "output"))
        if self.carry_in is not None:
            self.carry_in(primary)
            self.terminal.wait_until_raw(by_us=isinstance(self.carry_in, functools.partial))

    def close(self) -> None:
        """Close our copies of the task's ends, once the task has them. Idempotent."""
        if not self.closed:
            self.closed = True
            for descriptor in {*self.descriptors} - {0, 1, 2, terminal.OWN}:
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
    return bool(devices.name_of(descriptor))


def arrange(owner: int, carry_in: "Callable[[int], None] | None" = None, caller: int = 0) -> Stdio:
    """Look at 0, 1 and 2 and put pipes, or a terminal, in front of them. `owner` is the task's kernel uid.

    `carry_in` has somebody else pass on what is typed: only who is in the terminal's session may read it; `caller` is
    that process. Raises UsageError for a directory, which nothing sensible can be done with.
    """
    for number in range(3):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise UsageError(f"descriptor {number} is a directory, which a task cannot be given; redirect it")
    stdio = Stdio((0, 1, 2))
    terminals = [number for number in range(3) if terminal.is_terminal(number)]
    if terminals:
        _arrange_terminal(stdio, terminals, carry_in, caller or os.getpid())
    chosen: list[int] = []
    carried: dict[tuple[int, int], int] = {}  # 1 and 2 on one file share one pipe, so that their order stays
    for number in range(3):
        status = os.fstat(number)
        key = (status.st_dev, status.st_ino)
        if number in terminals:
            chosen.append(terminal.OWN)
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
    typed = terminal.with_keys(caller)
    real = terminals[0] if typed is None else typed
    stdio.terminal = terminal.Terminal(real)
    stdio.like = terminal.Likeness.of(real)._replace(has_keys=typed is not None)
    stdio.outward = next((number for number in terminals if number), terminals[0])
    if typed is not None:
        stdio.carry_in = carry_in or functools.partial(_carry_in, stdio, typed)


def _carry_in(stdio: Stdio, typed: int, primary: int) -> None:
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        terminal.carry_in(typed, primary, supervisor)
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
        stdio.to_carry.append(Carrying(ours, number, ours, f"descriptor {number}"))
    else:
        stdio.to_carry.append(Carrying(number, ours, ours, "input", signal.SIGKILL))
    return theirs


def ignored_signals() -> frozenset[int]:
    """Tell which signals our caller had set to be ignored (nohup(1)); Python itself ignores two more."""
    return signals.ignored() - {signal.SIGPIPE, signal.SIGXFSZ}


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
