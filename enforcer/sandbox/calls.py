"""System calls as values: what a sandbox's processes are to do, worked out by who made them and made by those.

A program is calls in their order. An argument is a number, or bytes of the program's own (what a pointer points to), or
what a call before it has returned: its register. A call that fails ends the program and its process, but for errors
that it says matter nothing: then it goes on further down. Beside system calls there are four that are none: `CHECK`
compares what one has written, `STORE` puts a register where one will read it, `POINT` makes addresses of offsets, and
`FORK` begins another process like this.

Who plays them decides nothing (`interpreted`, and the same in C: `compiled/player.c`).
"""

import errno
import os
import struct
from typing import Final, NamedTuple

from enforcer import linux
from enforcer.sandbox.syscalls import NUMBERS

# What both players know as well; `compiled/player.c` has the same.
HEAD: Final = struct.Struct("=HBBBxxx64s")  # calls, descriptors that come and that go, silent; their registers
CALL: Final = struct.Struct("=IHBxHHHxx6Q")  # number, kinds, result, errors that matter nothing, where to then
REPLY: Final = struct.Struct("=4i64q")  # what it is (PLAYED, ENDED), and then two numbers; registers
CHECK, STORE, POINT, FORK = 0x10000, 0x10001, 0x10002, 0x10003
PLAYED, ENDED = 0, 1
PACKET: Final = 1 << 17  # bytes that a program may have
REGISTERS: Final = 64
ANY: Final = 0xFFFF  # in the place of an error: each
NUMBER, DATA, REGISTER = 0, 1, 2  # kinds of arguments, two bits each

_FIRST: Final = 8  # that a program has to itself
_TAKEN: Final = 32  # that descriptors come in
_NOWHERE: Final = REGISTERS - 1  # for what nobody asks for
_SCRATCH: Final = 256  # bytes that each program's data begins with: room for `struct statx`
_AFTER: Final = 48  # bytes that it ends with: none of its parts is at its very end
_MODE: Final = 28  # stx_mode in it, statx(2)
_WHERE: Final = struct.Struct("=H")  # where a call goes on if it fails
_WHERE_AT: Final = 12  # where in it that is
_FULL: Final = 48 << 10  # bytes, from which on a program is sent and another begun
_MOST_DESCRIPTORS: Final = 16  # that come along before the next step has a program of its own
_STATX_TYPE_MODE: Final = 0x3
_numbers: Final = NUMBERS.get(os.uname().machine, {})


class Register(NamedTuple):
    """What a call has returned."""

    number: int


# These keep what they have from one program to the next: the room that a view has, the host's /proc, the id of who was
# begun; what a task is walled in by and listened to; and by which words and variables it is executed.
ROOM, OUTSIDE, FIRST, RULES, LISTENER, ARGV, ENVIRONMENT = (Register(number) for number in range(1, 8))


class Data(NamedTuple):
    """Bytes of a program, by where they are in it."""

    at: int


class Label(list[int]):
    """Somewhere further down: the calls that go on there if they fail."""


type Argument = int | str | bytes | Data | Register


class Packet(NamedTuple):
    """A program as it is sent. `named`: what each call is for, and `steps`: from which call on it is for which step."""

    data: bytes
    descriptors: tuple[int, ...]  # that go along
    given: tuple[int, ...]  # registers of those that are sent back
    named: tuple[str, ...]
    steps: tuple[tuple[int, object], ...]


class CallFailed(OSError):  # noqa: N818  what happened
    """A call failed that mattered. `step`: what it was for, if anybody said."""

    def __init__(self, error: int, text: str, step: object = None) -> None:
        """Take the errno, what to say, and the step."""
        super().__init__(error, text)
        self.step = step


class Calls:
    """A program that is being written. It is cut in pieces where that matters nothing: between steps."""

    def __init__(self) -> None:
        self._packets: list[Packet] = []
        self._step: object = None
        self._begin()

    def _begin(self) -> None:
        self._body = bytearray()  # the calls, as they are sent
        self._labels: list[Label] = []  # that were gone on to
        self._named: list[str] = []
        self._data = bytearray(_SCRATCH)
        self._taken: list[tuple[int, int]] = []
        self._free = list(range(_TAKEN - 1, _FIRST - 1, -1))
        self._steps: list[tuple[int, object]] = [(0, self._step)]

    # --- calls ---

    def call(self, name: str, *arguments: Argument, but: tuple[int, ...] = (), to: Label | None = None, says: str = "",
             into: Register | None = None) -> None:  # fmt: skip
        """Make a system call. After an error of `but` it goes on at `to`, or with the next; `says`: what it is for."""
        self._add(_numbers[name], arguments, but, to, says or name, _NOWHERE if into is None else into.number)

    def get(
        self, name: str, *arguments: Argument, but: tuple[int, ...] = (), to: Label | None = None, says: str = ""
    ) -> Register:
        """Make one and keep what it returns."""
        into = self.register()
        self.call(name, *arguments, but=but, to=to, says=says, into=into)
        return into

    def check(self, data: Data, mask: int, value: int, error: int = errno.EPERM, *, to: Label | None = None,
              says: str = "") -> None:  # fmt: skip
        """Fail with an error unless the four bytes there are this, as far as `mask` goes; or go on at `to`."""
        but = () if to is None else (error,)
        self._add(CHECK, (data, mask, value, error), but, to, says, _NOWHERE)

    def store(self, data: Data, register: Register) -> None:
        """Put what a register has there, as four bytes."""
        self._add(STORE, (data, register), (), None, "", _NOWHERE)

    def point(self, base: Data | Register, count: int, at: int = 0) -> None:
        """Make addresses of so many offsets from `base` (8 bytes each, 0: none), which begin `at` bytes after it."""
        self._add(POINT, (base, at, count), (), None, "", _NOWHERE)

    def fork(self, channel: Register, into: Register, *, leaf: bool) -> None:
        """Have a process begin that plays what comes over its own channel; a `leaf` looks after none of its own."""
        self._add(FORK, (channel, int(leaf)), (), None, "clone", into.number)

    def skip(self, to: Label) -> None:
        """Go on there, whatever has happened."""
        self._add(CHECK, (Data(0), 0, 1, errno.EPERM), (ANY,), to, "", _NOWHERE)

    def put(self, label: Label) -> None:
        """Say that this is where `label` is."""
        for at in label:
            _WHERE.pack_into(self._body, at * CALL.size + _WHERE_AT, len(self._named))
        label.clear()

    def data(self, content: bytes) -> Data:
        """Have bytes in the program."""
        self._data += bytes(-len(self._data) % 8)
        at = len(self._data)
        self._data += content
        return Data(at)

    def within(self, data: Data, more: int) -> Data:
        """Return what begins so many bytes later."""
        return Data(data.at + more)

    def register(self) -> Register:
        """Take one that nothing is in."""
        return Register(self._free.pop())

    def take(self, descriptor: int, into: Register | None = None) -> Register:
        """Have a copy of a descriptor of ours there."""
        into = into or Register(_TAKEN + len(self._taken))
        self._taken.append((into.number, descriptor))
        return into

    def close(self, *registers: Register) -> None:
        """Close what was opened, and have its register for others."""
        for register in registers:
            self.call("close", register)
            self.let_go(register)

    def let_go(self, register: Register) -> None:
        """Have a register for others; what is in it stays as it is."""
        if register.number < _TAKEN:  # what comes along is there from the beginning on
            self._free.append(register.number)

    def is_kind(self, place: Register, kind: int, error: int = errno.EPERM, *, to: Label | None = None,
                unknown: Label | None = None, says: str = "") -> None:  # fmt: skip
        """Fail with an error unless it is of this kind (S_IFDIR, ...), or go on at `to`; `unknown`: nobody can say."""
        but = () if unknown is None else (ANY,)
        self.call("statx", place, "", linux.AT_EMPTY_PATH, _STATX_TYPE_MODE, Data(0), but=but, to=unknown, says=says)
        self.check(Data(_MODE), 0o170000, kind, error, to=to, says=says)

    # --- what was written ---

    def step(self, step: object) -> None:
        """Say what the next calls are for."""
        self._step = step
        self.may_be_cut()

    def may_be_cut(self) -> None:
        """Say that what comes next needs nothing of what was before, but for what is kept from program to program."""
        if len(self._data) + len(self._body) > _FULL or len(self._taken) >= _MOST_DESCRIPTORS:
            self._finish(())
        self._steps.append((len(self._named), self._step))

    def packets(self, *give: Register, silent: bool = False) -> list[Packet]:
        """Return all of it, and begin anew. The last sends back what these registers have, as descriptors.

        `silent`: nobody is told how it went.
        """
        if self._named or self._taken or give:
            self._finish(give, silent=silent)
        packets, self._packets = self._packets, []
        return packets

    def _finish(self, give: tuple[Register, ...], *, silent: bool = False) -> None:
        given = tuple(register.number for register in give)
        registers = bytes((*(into for into, _ in self._taken), *given))
        head = HEAD.pack(len(self._named), len(self._taken), len(give), silent, registers)
        descriptors = tuple(descriptor for _, descriptor in self._taken)
        made = b"".join((head, self._body, self._data, bytes(_AFTER)))
        if any(self._labels):
            raise ValueError("a call goes on at what is nowhere")
        if len(made) > PACKET or len(self._taken) > _NOWHERE - _TAKEN:
            raise ValueError("a step takes more than fits into one program")
        self._packets.append(Packet(made, descriptors, given, tuple(self._named), tuple(self._steps)))
        self._begin()

    def _add(  # noqa: PLR0917  what a call is
        self, number: int, arguments: tuple[Argument, ...], but: tuple[int, ...], to: Label | None, says: str, into: int
    ) -> None:
        kinds, values, at = 0, [0] * 6, len(self._named)
        for place, argument in enumerate(arguments):
            if isinstance(argument, int):
                values[place] = argument & 0xFFFFFFFFFFFFFFFF
            elif isinstance(argument, Register):
                kinds |= REGISTER << 2 * place
                values[place] = argument.number
            else:
                kinds |= DATA << 2 * place
                values[place] = self._at(argument)
        one, two = (*but, 0, 0)[:2] if but else (0, 0)
        if to is not None:
            to.append(at)
            self._labels.append(to)
        self._body += CALL.pack(number, kinds, into, one, two, at + 1, *values)
        self._named.append(says)

    def _at(self, argument: str | bytes | Data) -> int:
        if isinstance(argument, Data):
            return argument.at
        content = os.fsencode(argument) + b"\0" if isinstance(argument, str) else argument
        return self.data(content).at
