"""Init processes of a sandbox, seen from the runner: sends them programs of system calls, receives the results.

    exeat ── programs ──► the outermost process ── FORK ──► init ── FORK ──► the task's, until it is executed
          ◄── results, and descriptors ──────────┘            │                │     each with a channel of its own

Programs are given ahead, and results are heard when somebody has to know. One that failed has ended its process:
nothing that was given after it is done.

Programs that are the same for many sandboxes are written once (`execute_shared`), and so are the contents of files that
every view has (`shared_file`): a service gives them to each sandbox that it makes.

`SocketMaker` has the outermost process open sockets of the sandbox's network. All that can be done with them can be
done from outside, by who owns the namespace.
"""

import contextlib
import errno
import hashlib
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, NamedTuple

from enforcer.sandbox.system_calls import (
    ANY,
    CHANNEL,
    ENDED,
    REGISTERS,
    REPLY,
    CallFailedError,
    CallList,
    Packet,
    Register,
)
from enforcer.system.errors import HostError
from proxy.wire import descriptor_passing

_MOST_FILES: Final = (
    32  # files that are kept for the next sandbox; no fewer than a program that isn't sent yet can have
)
_kept: Final[dict[int, tuple[bytes, int]]] = {}  # by identity: contents never change
_for_good: Final[set[int]] = set()  # of those


def shared_file(content: bytes) -> int:
    """Return a descriptor of a file in memory with this content; it stays ours. Raises OSError."""
    if found := _kept.get(id(content)):
        return found[1]
    file = new_file(content)
    while len(_kept) - len(_for_good) >= _MOST_FILES:
        os.close(_kept.pop(next(at for at, (_, other) in _kept.items() if other not in _for_good))[1])
    _kept[id(content)] = content, file
    return file


def new_file(content: bytes) -> int:
    """Return a descriptor of a new file in memory with this content; it is the caller's. Raises OSError."""
    file = os.memfd_create("content", os.MFD_CLOEXEC)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.close(file)
        raise
    return file


def keep_files(files: Iterable[int]) -> None:
    """Have these kept for good. Raises ValueError for one that isn't of them."""
    if unknown := {*files} - kept_files():
        raise ValueError(f"{len(unknown)} descriptors are of nothing that is kept")
    _for_good.update(files)


def kept_files() -> set[int]:
    """Return what is open of them."""
    return {file for _, file in _kept.values()}


SOURCE: Final = os.path.join(os.path.dirname(__file__), "compiled", "exeat_init.c")
PROGRAM: Final = os.path.join(os.path.dirname(__file__), "compiled", "exeat-init")
_SOURCE: Final = re.compile(rb"exeat_init\.c ([0-9a-f]{64})")  # SHA-256 of the source that it was compiled from
_NAME: Final = "exeat-init"
_AHEAD: Final = 32  # programs, no more: what is said of more fits into no channel, and both ends would wait


class ChildExit(NamedTuple):
    """A process that it had begun has ended, with this wait status."""

    pid: int
    status: int


class ProcessGoneError(OSError):
    """The process is gone, and hasn't said why."""


class Executor:
    """What can be given programs. `calls` are those that are written and not given yet."""

    def __init__(self) -> None:
        self.calls = CallList()

    def send(self, packets: Sequence[Packet]) -> None:
        """Give programs that were written before."""
        raise NotImplementedError

    def hear(self) -> list[int]:
        """Wait until all that was given is done; return what the last one gives, -1 for what couldn't be opened.

        Raises CallFailed, GoneError, HostError.
        """
        raise NotImplementedError

    @property
    def registers(self) -> Sequence[int]:
        """What the registers had when it was heard last."""
        raise NotImplementedError

    def begin(self) -> None:
        """Give what is written, and wait for nothing."""
        self.send(self.calls.packets())

    def do(self, *give: Register) -> list[int]:
        """Give what is written and wait until it is done; return what these registers have, as descriptors of ours."""
        self.send(self.calls.packets(*give))
        return self.hear()

    def value(self, register: Register) -> int:
        """Return what a register had when it was heard last: a negative errno of a call that failed."""
        return self.registers[register.number]


class RemoteExecutor(Executor):
    """A process, at the other end of a channel. `ended` is whose end it has told of, once it has."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self.channel = channel
        self.ended: ChildExit | None = None
        self._given: deque[Packet] = deque()
        self._registers: tuple[int, ...] = (-1,) * REGISTERS

    @property
    def registers(self) -> Sequence[int]:
        """What the registers had when it was heard last."""
        return self._registers

    def send(self, packets: Sequence[Packet]) -> None:
        """Give programs that were written before; of a process that is gone `hear` tells, or this after very many."""
        for packet in packets:
            if len(self._given) >= _AHEAD:
                self._hear_one()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                descriptor_passing.send(self.channel, packet.data, packet.descriptors)
            self._given.append(packet)

    @property
    def waits(self) -> int:
        """How many programs it was given of which nothing is heard yet."""
        return len(self._given)

    def tell(self) -> None:
        """Give what is written, of which nothing will be heard."""
        for packet in self.calls.packets(silent=True):
            with contextlib.suppress(OSError):
                descriptor_passing.send(self.channel, packet.data, packet.descriptors)

    def hear(self) -> list[int]:
        """Wait until all that was given is done; return what the last one gives. Raises CallFailed, GoneError."""
        descriptors: list[int] = []
        while self._given:
            descriptors = self._hear_one()
        return descriptors

    def _hear_one(self) -> list[int]:
        packet = self._given[0]
        what, came = self._receive(len(packet.given))
        while isinstance(what, ChildExit):
            self.ended = what
            what, came = self._receive(len(packet.given))
        self._given.popleft()
        failed_at, error = what
        if error:
            raise call_error(packet, failed_at, error)
        return self._ordered(packet.given, came)

    def _ordered(self, given: Sequence[int], came: list[int]) -> list[int]:
        """Return a descriptor for each register, and -1 for what couldn't be opened."""
        if sum(self._registers[number] >= 0 for number in given) != len(came):
            for descriptor in came:  # the kernel passes no more than may be open here: unix(7), MSG_CTRUNC
                os.close(descriptor)
            raise HostError("too many open files", "raise `ulimit -n`")
        there = iter(came)
        return [next(there) if self._registers[number] >= 0 else -1 for number in given]

    def turn(self) -> ChildExit | None:
        """Take a word of it while nothing is awaited: the end of who it had begun. Raises GoneError."""
        what, _ = self._receive(0)
        if isinstance(what, ChildExit):
            self.ended = what
        return self.ended

    def close(self) -> None:
        """Have nothing to do with it any more: it ends, whoever was forked from us meanwhile. Idempotent."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def _receive(self, descriptors: int) -> tuple[ChildExit | tuple[int, int], list[int]]:
        for _ in range(2):  # who ends with something of ours unread leaves a reset before its last words: unix(7)
            try:
                data, came, _, _ = socket.recv_fds(self.channel, REPLY.size, descriptors, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                continue
            if data:
                what, one, two, _, *registers = REPLY.unpack(data)
                if what == ENDED:
                    return ChildExit(one, two), came
                self._registers = tuple(registers)
                return (one, two), came
            break
        raise ProcessGoneError(errno.ECHILD, "its process ended")


def call_error(packet: Packet, at: int, error: int) -> CallFailedError:
    """Return what to raise where a call of a program has failed."""
    step = next((what for first, what in reversed(packet.steps) if first <= at), None)
    return CallFailedError(error, f"{packet.named[at]}: {os.strerror(error)}", step)


def compiled() -> str:
    """Return the path of the compiled one; empty: nobody compiled it, or of another source."""
    try:
        with open(PROGRAM, "rb") as file:
            made_of = _SOURCE.search(file.read())
        ours = made_of is not None and made_of[1] == digest().encode()
        return PROGRAM if ours and os.access(PROGRAM, os.X_OK) else ""  # nothing is executed on a `noexec` mount
    except OSError:
        return ""


def digest() -> str:
    """Return what tells one source from another. Raises OSError."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


COMPILED = compiled()  # what is executed; empty: the interpreter executes


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return a channel: our end, and that of a process that executes."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def start() -> tuple[int, RemoteExecutor]:
    """Start a process that executes. Fork only from a process with one thread (KERNEL notes). Raises OSError."""
    ours, theirs = channel_pair()
    with theirs:
        if COMPILED:
            pid = _spawn(COMPILED, theirs.fileno())
        else:
            pid = os.fork()
            if pid == 0:
                from enforcer.sandbox import init_interpreter  # where nobody compiled it

                init_interpreter.run(theirs)
    return pid, RemoteExecutor(ours)


def _spawn(program: str, channel: int) -> int:
    nothing: Iterable[int] = ()
    # What is made first is closed last: the channel may be one of the numbers that the others get.
    copy = os.dup(channel)
    try:
        actions = (
            (os.POSIX_SPAWN_DUP2, copy, CHANNEL),
            *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
        )
        return os.posix_spawn(program, (_NAME,), {}, file_actions=actions, setsigmask=nothing)
    finally:
        os.close(copy)


_MOST_WRITTEN: Final = 32  # that are kept
_written: Final[dict[Hashable, list[Packet]]] = {}


class StepRecorder(Executor):
    """Records programs instead of executing them, so no step may wait for a result. `given`: all that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Packet] = []

    def send(self, packets: Sequence[Packet]) -> None:
        """Take them."""
        self.given += packets


def execute_shared(executor: Executor, what: Hashable, write: Callable[[Executor], None]) -> None:
    """Have the programs executed that `write` writes, after all that is written already.

    They are the same wherever `what` is, and none has a descriptor but of contents that are kept: others are others in
    each process.
    """
    executor.begin()
    executor.send(_shared(what, write))


def _shared(what: Hashable, write: Callable[[Executor], None]) -> list[Packet]:
    if what not in _written:
        recorder = StepRecorder()
        write(recorder)
        recorder.begin()
        for packet in recorder.given:
            if packet.given:
                raise ValueError("a program that is kept has something to give")
            keep_files(packet.descriptors)
        while len(_written) >= _MOST_WRITTEN:
            del _written[next(iter(_written))]
        _written[what] = recorder.given
    return _written[what]


type Kind = tuple[int, int, int]  # family, type and protocol: socket(2)


class SocketMaker:
    """Opens them. `ahead` are those that will be asked for: one word brings them all."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._there: list[tuple[Kind, int]] = []

    def expect(self, kinds: Iterable[Kind]) -> None:
        """Have these opened now; one that can't be is missed when it is asked for. Raises OSError."""
        wanted = tuple(kinds)
        opened = [self._open(*each) for each in wanted]
        for each, register, descriptor in zip(wanted, opened, self._executor.do(*opened), strict=True):
            self._there.append((each, self._executor.value(register) if descriptor < 0 else descriptor))

    def __call__(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return one. Raises OSError."""
        wanted = (family, kind, protocol)
        if all(each != wanted for each, _ in self._there):
            self.expect([wanted])
        at = next(number for number, (each, _) in enumerate(self._there) if each == wanted)
        _, descriptor = self._there.pop(at)
        if descriptor < 0:
            raise OSError(-descriptor, os.strerror(-descriptor))
        return socket.socket(family, kind, protocol, fileno=descriptor)

    def _open(self, family: int, kind: int, protocol: int) -> Register:
        return self._executor.calls.get("socket", family, kind | socket.SOCK_CLOEXEC, protocol, but=(ANY,))

    def close(self) -> None:
        """Close those that nobody has asked for."""
        while self._there:
            if (descriptor := self._there.pop()[1]) >= 0:
                os.close(descriptor)
