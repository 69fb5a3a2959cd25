"""Init processes of a sandbox, as the runner sees them: sends them call lists, and receives the results.

    exeat ── call lists ──► the outermost process ── FORK ──► init ── FORK ──► the task, until it is executed
          ◄── results, and descriptors ──────────┘            │                │     each with a channel of its own

The runner sends lists in advance, and reads results when it needs them. A list that fails ends its process, which
executes no later list.

Lists that are the same for many sandboxes are written once (`execute_shared`), and so is the content of common files
(`shared_file`): a service sends them to each sandbox.

`SocketMaker` has the outermost process open sockets in the sandbox's network namespace; the runner does the rest with
them.
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

from enforcer.sandbox.step_lists import (
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
from proxy.wire import message

_MOST_FILES: Final = 32  # files kept for the next sandbox; at least as many as an unsent call list can have
_kept: Final[dict[int, tuple[bytes, int]]] = {}  # by id() of the content, which never changes
_for_good: Final[set[int]] = set()  # of those, the ones never closed


def shared_file(content: bytes) -> int:
    """Return a memory file with this content, kept for later sandboxes; it stays ours. Raises OSError."""
    if found := _kept.get(id(content)):
        return found[1]
    file = new_file(content)
    while len(_kept) - len(_for_good) >= _MOST_FILES:
        os.close(_kept.pop(next(at for at, (_, other) in _kept.items() if other not in _for_good))[1])
    _kept[id(content)] = content, file
    return file


def new_file(content: bytes) -> int:
    """Return a new memory file with this content; it is the caller's. Raises OSError."""
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
    """Keep these shared files for good. Raises ValueError for a descriptor that isn't one."""
    if unknown := {*files} - kept_files():
        raise ValueError(f"{len(unknown)} descriptors are of no shared file")
    _for_good.update(files)


def kept_files() -> set[int]:
    """Return the descriptors of all shared files."""
    return {file for _, file in _kept.values()}


SOURCE: Final = os.path.join(os.path.dirname(__file__), "compiled", "exeat_init.c")
PROGRAM: Final = os.path.join(os.path.dirname(__file__), "compiled", "exeat-init")
_SOURCE: Final = re.compile(rb"exeat_init\.c ([0-9a-f]{64})")  # SHA-256 of the source that it was compiled from
_NAME: Final = "exeat-init"
_AHEAD: Final = 32  # lists: the replies to more don't fit into the channel, and both ends would wait


class ChildExit(NamedTuple):
    """A child of an init process has ended with this wait status."""

    pid: int
    status: int


class ProcessGoneError(OSError):
    """The init process has ended without a reply."""


class Executor:
    """Executes call lists. `calls`: the list that is being written."""

    def __init__(self) -> None:
        self.calls = CallList()

    def send(self, packets: Sequence[Packet]) -> None:
        """Send call lists."""
        raise NotImplementedError

    def hear(self) -> list[int]:
        """Wait for the results of all lists sent; returns the descriptors of the last, -1 for one that wasn't opened.

        Raises CallFailedError, ProcessGoneError, HostError.
        """
        raise NotImplementedError

    @property
    def registers(self) -> Sequence[int]:
        """The registers in the last reply."""
        raise NotImplementedError

    def begin(self) -> None:
        """Send the list in `calls`, without waiting."""
        self.send(self.calls.packets())

    def do(self, *give: Register) -> list[int]:
        """Send the list in `calls` and wait for it; returns copies of the descriptors in these registers."""
        self.send(self.calls.packets(*give))
        return self.hear()

    def value(self, register: Register) -> int:
        """Return a register of the last reply: a result, or a negative errno."""
        return self.registers[register.number]


class RemoteExecutor(Executor):
    """An init process at the other end of a channel. `ended`: the exit of its child, once reported."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self.channel = channel
        self.ended: ChildExit | None = None
        self._given: deque[Packet] = deque()
        self._registers: tuple[int, ...] = (-1,) * REGISTERS

    @property
    def registers(self) -> Sequence[int]:
        """The registers in the last reply."""
        return self._registers

    def send(self, packets: Sequence[Packet]) -> None:
        """Send call lists; `hear` reports a process that is gone. Waits for a reply after 32 unanswered lists."""
        for packet in packets:
            if len(self._given) >= _AHEAD:
                self._hear_one()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                message.send_packet(self.channel, packet.data, packet.descriptors)
            self._given.append(packet)

    @property
    def waits(self) -> int:
        """The number of lists sent and not answered yet."""
        return len(self._given)

    def tell(self) -> None:
        """Send the list in `calls`, to which no reply is sent."""
        for packet in self.calls.packets(silent=True):
            with contextlib.suppress(OSError):
                message.send_packet(self.channel, packet.data, packet.descriptors)

    def hear(self) -> list[int]:
        """Wait for all replies; returns the descriptors of the last. Raises CallFailedError, ProcessGoneError."""
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
        """Return a descriptor for each register, -1 for one that couldn't be opened."""
        if sum(self._registers[number] >= 0 for number in given) != len(came):
            for descriptor in came:  # at our limit of open files the kernel drops descriptors: unix(7), MSG_CTRUNC
                os.close(descriptor)
            raise HostError("too many open files", "raise `ulimit -n`")
        there = iter(came)
        return [next(there) if self._registers[number] >= 0 else -1 for number in given]

    def turn(self) -> ChildExit | None:
        """Read a message that answers no list: the exit of its child. Raises ProcessGoneError."""
        what, _ = self._receive(0)
        if isinstance(what, ChildExit):
            self.ended = what
        return self.ended

    def close(self) -> None:
        """Close the channel, so that the process ends. Idempotent."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def _receive(self, descriptors: int) -> tuple[ChildExit | tuple[int, int], list[int]]:
        for _ in range(2):  # a peer that ends with unread data causes ECONNRESET before its last message: unix(7)
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
    """Return the exception for a failed call of a list."""
    step = next((what for first, what in reversed(packet.steps) if first <= at), None)
    return CallFailedError(error, f"{packet.named[at]}: {os.strerror(error)}", step)


def compiled() -> str:
    """Return the path of the compiled program; empty if it is missing or compiled from another source."""
    try:
        with open(PROGRAM, "rb") as file:
            made_of = _SOURCE.search(file.read())
        ours = made_of is not None and made_of[1] == digest().encode()
        return PROGRAM if ours and os.access(PROGRAM, os.X_OK) else ""  # nothing is executed on a `noexec` mount
    except OSError:
        return ""


def digest() -> str:
    """Return the SHA-256 of the C source. Raises OSError."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


COMPILED = compiled()  # empty: `init_interpreter` executes call lists


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return a channel: our end, and the init process's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def start() -> tuple[int, RemoteExecutor]:
    """Start an init process. Fork only from a process with one thread. Raises OSError."""
    ours, theirs = channel_pair()
    with theirs:
        if COMPILED:
            pid = _spawn(COMPILED, theirs.fileno())
        else:
            pid = os.fork()
            if pid == 0:
                from enforcer.sandbox import init_interpreter  # only without a compiled program

                init_interpreter.run(theirs)
    return pid, RemoteExecutor(ours)


def _spawn(program: str, channel: int) -> int:
    nothing: Iterable[int] = ()
    # File actions run in order: the copy keeps the channel from being one of the numbers 0 to 2.
    copy = os.dup(channel)
    try:
        actions = (
            (os.POSIX_SPAWN_DUP2, copy, CHANNEL),
            *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
        )
        return os.posix_spawn(program, (_NAME,), {}, file_actions=actions, setsigmask=nothing)
    finally:
        os.close(copy)


_MOST_WRITTEN: Final = 32  # shared lists that are kept
_written: Final[dict[Hashable, list[Packet]]] = {}


class StepRecorder(Executor):
    """Records call lists instead of executing them, in `given`; no step may wait for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Packet] = []

    def send(self, packets: Sequence[Packet]) -> None:
        """Record the lists."""
        self.given += packets


def execute_shared(executor: Executor, what: Hashable, write: Callable[[Executor], None]) -> None:
    """Execute the lists that `write` writes, after those already written; they are written once for each `what`.

    They may contain no descriptor except those of shared files: other descriptors differ between processes.
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
                raise ValueError("a shared call list returns a descriptor")
            keep_files(packet.descriptors)
        while len(_written) >= _MOST_WRITTEN:
            del _written[next(iter(_written))]
        _written[what] = recorder.given
    return _written[what]


type Kind = tuple[int, int, int]  # family, type and protocol: socket(2)


class SocketMaker:
    """Opens sockets in the sandbox's network namespace. `expect` opens several with one list."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._there: list[tuple[Kind, int]] = []

    def expect(self, kinds: Iterable[Kind]) -> None:
        """Open these sockets now; a failure is raised when the socket is taken. Raises OSError."""
        wanted = tuple(kinds)
        opened = [self._open(*each) for each in wanted]
        for each, register, descriptor in zip(wanted, opened, self._executor.do(*opened), strict=True):
            self._there.append((each, self._executor.value(register) if descriptor < 0 else descriptor))

    def __call__(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket. Raises OSError."""
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
        """Close the sockets that were not taken."""
        while self._there:
            if (descriptor := self._there.pop()[1]) >= 0:
                os.close(descriptor)
