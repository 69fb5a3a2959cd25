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

_MAX_FILES: Final = 32  # files kept for the next sandbox; at least as many as an unsent call list can have
_shared_files: Final[dict[int, tuple[bytes, int]]] = {}  # by id() of the content, which never changes
_permanent_files: Final[set[int]] = set()  # of those, the ones never closed


def shared_file(content: bytes) -> int:
    """Return a memory file with this content, kept for later sandboxes; it stays ours. Raises OSError."""
    if cached := _shared_files.get(id(content)):
        return cached[1]
    file = new_file(content)
    while len(_shared_files) - len(_permanent_files) >= _MAX_FILES:
        os.close(
            _shared_files.pop(
                next(at for at, (_, descriptor) in _shared_files.items() if descriptor not in _permanent_files)
            )[1]
        )
    _shared_files[id(content)] = content, file
    return file


def new_file(content: bytes) -> int:
    """Return a new memory file with this content; it is the caller's. Raises OSError."""
    file = os.memfd_create("content", os.MFD_CLOEXEC)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(file, remaining) :]
    except BaseException:
        os.close(file)
        raise
    return file


def keep_permanently(files: Iterable[int]) -> None:
    """Keep these shared files for good. Raises ValueError for a descriptor that isn't one."""
    if unknown := {*files} - shared_descriptors():
        raise ValueError(f"{len(unknown)} descriptors are of no shared file")
    _permanent_files.update(files)


def shared_descriptors() -> set[int]:
    """Return the descriptors of all shared files."""
    return {file for _, file in _shared_files.values()}


SOURCE: Final = os.path.join(os.path.dirname(__file__), "compiled", "exeat_init.c")
PROGRAM: Final = os.path.join(os.path.dirname(__file__), "compiled", "exeat-init")
_SOURCE: Final = re.compile(rb"exeat_init\.c ([0-9a-f]{64})")  # SHA-256 of the source that it was compiled from
_NAME: Final = "exeat-init"
_MAX_UNANSWERED: Final = 32  # lists: the replies to more don't fit into the channel, and both ends would wait


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

    def receive(self) -> list[int]:
        """Wait for the results of all lists sent; returns the descriptors of the last, -1 for one that wasn't opened.

        Raises CallFailedError, ProcessGoneError, HostError.
        """
        raise NotImplementedError

    @property
    def registers(self) -> Sequence[int]:
        """The registers in the last reply."""
        raise NotImplementedError

    def submit(self) -> None:
        """Send the list in `calls`, without waiting."""
        self.send(self.calls.packets())

    def run(self, *give: Register) -> list[int]:
        """Send the list in `calls` and wait for it; returns copies of the descriptors in these registers."""
        self.send(self.calls.packets(*give))
        return self.receive()

    def value(self, register: Register) -> int:
        """Return a register of the last reply: a result, or a negative errno."""
        return self.registers[register.number]


class RemoteExecutor(Executor):
    """An init process at the other end of a channel. `ended`: the exit of its child, once reported."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self.channel = channel
        self.ended: ChildExit | None = None
        self._unanswered: deque[Packet] = deque()
        self._registers: tuple[int, ...] = (-1,) * REGISTERS

    @property
    def registers(self) -> Sequence[int]:
        """The registers in the last reply."""
        return self._registers

    def send(self, packets: Sequence[Packet]) -> None:
        """Send call lists; `receive` reports a process that is gone. Waits for a reply after 32 unanswered lists."""
        for packet in packets:
            if len(self._unanswered) >= _MAX_UNANSWERED:
                self._receive_reply()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                message.send_packet(self.channel, packet.data, packet.descriptors)
            self._unanswered.append(packet)

    @property
    def unanswered(self) -> int:
        """The number of lists sent and not answered yet."""
        return len(self._unanswered)

    def submit_silently(self) -> None:
        """Send the list in `calls`, to which no reply is sent."""
        for packet in self.calls.packets(silent=True):
            with contextlib.suppress(OSError):
                message.send_packet(self.channel, packet.data, packet.descriptors)

    def receive(self) -> list[int]:
        """Wait for all replies; returns the descriptors of the last. Raises CallFailedError, ProcessGoneError."""
        descriptors: list[int] = []
        while self._unanswered:
            descriptors = self._receive_reply()
        return descriptors

    def _receive_reply(self) -> list[int]:
        packet = self._unanswered[0]
        reply, descriptors = self._receive(len(packet.returned_registers))
        while isinstance(reply, ChildExit):
            self.ended = reply
            reply, descriptors = self._receive(len(packet.returned_registers))
        self._unanswered.popleft()
        failed_at, error = reply
        if error:
            raise call_error(packet, failed_at, error)
        return self._match_descriptors(packet.returned_registers, descriptors)

    def _match_descriptors(self, requested: Sequence[int], received: list[int]) -> list[int]:
        """Return a descriptor for each register, -1 for one that couldn't be opened."""
        if sum(self._registers[number] >= 0 for number in requested) != len(received):
            for descriptor in received:  # at our limit of open files the kernel drops descriptors: unix(7), MSG_CTRUNC
                os.close(descriptor)
            raise HostError("too many open files", "raise `ulimit -n`")
        iterator = iter(received)
        return [next(iterator) if self._registers[number] >= 0 else -1 for number in requested]

    def turn(self) -> ChildExit | None:
        """Read a message that answers no list: the exit of its child. Raises ProcessGoneError."""
        reply, _ = self._receive(0)
        if isinstance(reply, ChildExit):
            self.ended = reply
        return self.ended

    def close(self) -> None:
        """Close the channel, so that the process ends. Idempotent."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def _receive(self, descriptors: int) -> tuple[ChildExit | tuple[int, int], list[int]]:
        for _ in range(2):  # a peer that ends with unread data causes ECONNRESET before its last message: unix(7)
            try:
                data, received, _, _ = socket.recv_fds(self.channel, REPLY.size, descriptors, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                continue
            if data:
                kind, first, second, _, *registers = REPLY.unpack(data)
                if kind == ENDED:
                    return ChildExit(first, second), received
                self._registers = tuple(registers)
                return (first, second), received
            break
        raise ProcessGoneError(errno.ECHILD, "its process ended")


def call_error(packet: Packet, at: int, error: int) -> CallFailedError:
    """Return the exception for a failed call of a list."""
    step = next((name for start, name in reversed(packet.steps) if start <= at), None)
    return CallFailedError(error, f"{packet.purposes[at]}: {os.strerror(error)}", step)


def compiled() -> str:
    """Return the path of the compiled program; empty if it is missing or compiled from another source."""
    try:
        with open(PROGRAM, "rb") as file:
            match = _SOURCE.search(file.read())
        is_current = match is not None and match[1] == digest().encode()
        return PROGRAM if is_current and os.access(PROGRAM, os.X_OK) else ""  # nothing is executed on a `noexec` mount
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
    channel, child_channel = channel_pair()
    with child_channel:
        if COMPILED:
            pid = _spawn(COMPILED, child_channel.fileno())
        else:
            pid = os.fork()
            if pid == 0:
                from enforcer.sandbox import init_interpreter  # only without a compiled program

                init_interpreter.run(child_channel)
    return pid, RemoteExecutor(channel)


def _spawn(program: str, channel: int) -> int:
    empty: Iterable[int] = ()
    # File actions run in order: the copy keeps the channel from being one of the numbers 0 to 2.
    copy = os.dup(channel)
    try:
        actions = (
            (os.POSIX_SPAWN_DUP2, copy, CHANNEL),
            *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
        )
        return os.posix_spawn(program, (_NAME,), {}, file_actions=actions, setsigmask=empty)
    finally:
        os.close(copy)


_MAX_SHARED_LISTS: Final = 32  # shared lists that are kept
_shared_lists: Final[dict[Hashable, list[Packet]]] = {}


class StepRecorder(Executor):
    """Records call lists instead of executing them, in `packets`; no step may wait for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[Packet] = []

    def send(self, packets: Sequence[Packet]) -> None:
        """Record the lists."""
        self.packets += packets


def execute_shared(executor: Executor, key: Hashable, write: Callable[[Executor], None]) -> None:
    """Execute the lists that `write` writes, after those already written; they are written once for each `key`.

    They may contain no descriptor except those of shared files: other descriptors differ between processes.
    """
    executor.submit()
    executor.send(_get_shared(key, write))


def _get_shared(key: Hashable, write: Callable[[Executor], None]) -> list[Packet]:
    if key not in _shared_lists:
        recorder = StepRecorder()
        write(recorder)
        recorder.submit()
        for packet in recorder.packets:
            if packet.returned_registers:
                raise ValueError("a shared call list returns a descriptor")
            keep_permanently(packet.descriptors)
        while len(_shared_lists) >= _MAX_SHARED_LISTS:
            del _shared_lists[next(iter(_shared_lists))]
        _shared_lists[key] = recorder.packets
    return _shared_lists[key]


type Kind = tuple[int, int, int]  # family, type and protocol: socket(2)


class SocketMaker:
    """Opens sockets in the sandbox's network namespace. `open_all` opens several with one list."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._open_sockets: list[tuple[Kind, int]] = []

    def open_all(self, kinds: Iterable[Kind]) -> None:
        """Open these sockets now; a failure is raised when the socket is taken. Raises OSError."""
        kinds_to_open = tuple(kinds)
        registers = [self._open(*socket_kind) for socket_kind in kinds_to_open]
        for socket_kind, register, descriptor in zip(
            kinds_to_open, registers, self._executor.run(*registers), strict=True
        ):
            self._open_sockets.append((socket_kind, self._executor.value(register) if descriptor < 0 else descriptor))

    def __call__(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket. Raises OSError."""
        socket_kind = (family, kind, protocol)
        if all(opened_kind != socket_kind for opened_kind, _ in self._open_sockets):
            self.open_all([socket_kind])
        index = next(number for number, (opened_kind, _) in enumerate(self._open_sockets) if opened_kind == socket_kind)
        _, descriptor = self._open_sockets.pop(index)
        if descriptor < 0:
            raise OSError(-descriptor, os.strerror(-descriptor))
        return socket.socket(family, kind, protocol, fileno=descriptor)

    def _open(self, family: int, kind: int, protocol: int) -> Register:
        return self._executor.calls.get("socket", family, kind | socket.SOCK_CLOEXEC, protocol, ignored=(ANY,))

    def close(self) -> None:
        """Close the sockets that were not taken."""
        while self._open_sockets:
            if (descriptor := self._open_sockets.pop()[1]) >= 0:
                os.close(descriptor)
