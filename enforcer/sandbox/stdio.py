"""Standard input, output and error as a task may have them.

An inherited descriptor is a way out: a socket can be reconnected in the namespace it was made in, a directory leads to
the host's tree, a regular file can be opened again for writing through /proc/self/fd. So a task gets terminals, pipes
and the harmless memory devices as they are; everything else is carried through a pipe by a small process of ours.
"""

import contextlib
import os
import signal
import stat
from dataclasses import dataclass

from enforcer import linux
from enforcer.errors import UsageError

_MEMORY_MAJOR = 1
_HARMLESS_MINORS = frozenset({3, 5, 7, 8, 9})  # null, zero, full, random, urandom (devices.txt)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Relay:
    """A process that carries bytes between one of our descriptors and the task's pipe."""

    pid: int
    descriptor: int
    inward: bool


@dataclass(slots=True)
class Stdio:
    """What becomes the task's 0, 1 and 2, and the relays that stand behind them."""

    descriptors: tuple[int, int, int]
    relays: list[Relay]
    closed: bool = False

    def close(self) -> None:
        """Close our copies of the task's ends, once the task has them. Idempotent."""
        if not self.closed:
            self.closed = True
            for number, descriptor in enumerate(self.descriptors):
                if descriptor != number:
                    os.close(descriptor)

    def finish(self) -> None:
        """Wait until what the task wrote has been carried on, and end what would still be read for it. Idempotent."""
        self.close()
        while self.relays:
            relay = self.relays.pop()
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if relay.inward:
                    os.kill(relay.pid, signal.SIGKILL)
                os.waitpid(relay.pid, 0)


def passes_as_it_is(descriptor: int) -> bool:
    """Whether a descriptor can be handed to a task: a terminal, a pipe, or a harmless memory device."""
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode):
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        return os.isatty(descriptor) or (major == _MEMORY_MAJOR and minor in _HARMLESS_MINORS)
    return stat.S_ISFIFO(status.st_mode)


def arrange() -> Stdio:
    """Look at 0, 1 and 2 and put relays where they are needed. A closed one becomes /dev/null.

    Raises UsageError for a directory, which nothing sensible can be done with.
    """
    chosen: list[int] = []
    relays: list[Relay] = []
    carried: dict[tuple[int, int], int] = {}  # 1 and 2 on one file share one pipe, so that their order stays
    for number in range(3):
        try:
            status = os.fstat(number)
        except OSError:
            chosen.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            continue
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"descriptor {number} is a directory, which a task cannot be given; redirect it")
        key = (status.st_dev, status.st_ino)
        if passes_as_it_is(number):
            chosen.append(number)
        elif number and key in carried:
            chosen.append(os.dup(carried[key]))
        else:
            reader, writer = os.pipe()
            inward = number == 0
            theirs, ours = (reader, writer) if inward else (writer, reader)
            pid = os.fork()
            if pid == 0:
                os.close(theirs)
                _carry(number if inward else ours, ours if inward else number)
            os.close(ours)
            relays.append(Relay(pid, number, inward))
            chosen.append(theirs)
            if not inward:
                carried[key] = theirs
    return Stdio((chosen[0], chosen[1], chosen[2]), relays)


def ignored_signals() -> frozenset[int]:
    """Tell which signals our caller had set to be ignored (nohup(1)); Python itself ignores two more."""
    own = (signal.SIGPIPE, signal.SIGXFSZ)
    valid = signal.valid_signals()
    return frozenset(number for number in valid if number not in own and signal.getsignal(number) is signal.SIG_IGN)


def _carry(source: int, sink: int) -> None:
    """Copy until the end, in a process of its own; it never returns."""
    # Only these two stay open: a relay that kept the other end of a pipe would keep its own input from ending.
    linux.keep_only({source, sink})
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        while data := os.read(source, _CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]
    os._exit(0)
