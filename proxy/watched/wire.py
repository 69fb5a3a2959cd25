"""What the watcher and the worker say to each other over SOCK_SEQPACKET: parts with zero bytes between.

The parts are bytes as the kernel has them, which hold no zero byte: paths and the words of commands. The watcher is
believed; what a part says of a task is the task's claim all the same.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST: Final = 96 << 10  # bytes of a packet; a command is cut well below that
_NUMBER: Final = re.compile(rb"-?[0-9]{1,19}")
_SECONDS: Final = re.compile(rb"[0-9]{1,9}\.[0-9]{3}")


class Who(NamedTuple):
    """A process of the task, as /proc said: its id and its user's on the host, executable and arguments.

    `sandbox_uid`: its user as the sandbox sees it. -1: unknown.
    """

    pid: int
    uid: int
    exe: bytes
    argv: tuple[bytes, ...] = ()
    sandbox_uid: int = -1


class RunAsked(NamedTuple):
    """A program is about to be run, and waits. `names` are what it goes by; no `readable`: its words are unknown."""

    number: int
    who: Who
    names: tuple[bytes, ...]
    words: tuple[bytes, ...]
    whole: bool
    readable: bool = True


class Answer(NamedTuple):
    """Whether the run of that number may go on, and what its caller is to read if not."""

    number: int
    go: bool
    says: bytes = b""


class Wait(NamedTuple):
    """People are asked about the run of that number: it waits on, for so many seconds at most."""

    number: int
    seconds: float


class Check(NamedTuple):
    """People have approved the run of that number: whether it still waits, and is what it was, is said next."""

    number: int


class Anew(NamedTuple):
    """Another worker hears from here on: whatever people were asked about by the one before gets no answer."""


class Gone(NamedTuple):
    """The run of that number waits no more."""

    number: int


class Still(NamedTuple):
    """The run of that number still waits; `changed` says how it is not what was asked about, and is empty if it is."""

    number: int
    changed: bytes = b""


class CallRefused(NamedTuple):
    """A call that was refused, with how many like it were not told since."""

    call: bytes
    who: Who
    more: int


class Counted(NamedTuple):
    """How often calls were refused, by name, since this was last said."""

    calls: tuple[tuple[bytes, int], ...]


class Holds(NamedTuple):
    """From here on programs are held until they are answered for."""


class Broken(NamedTuple):
    """The watcher can't go on, and why: from here on everything that it is asked is refused."""

    why: bytes


class WhoseAsked(NamedTuple):
    """The worker asks who has the socket of that inode open."""

    number: int
    inode: int


class Ancestor(NamedTuple):
    """A process that another descends from."""

    pid: int
    exe: bytes


class WhoseFound(NamedTuple):
    """Who alone has it, and what that descends from, parent first; None: that isn't known."""

    number: int
    who: Who | None
    ancestors: tuple[Ancestor, ...] = ()


type Told = RunAsked | Gone | Still | CallRefused | Counted | Holds | Broken | WhoseFound
type Said = Answer | Wait | Check | Anew | WhoseAsked  # by the worker


def pack(told: "Told | Said") -> bytes:
    """Return it as a packet."""
    match told:
        case Answer() | Wait() | Check() | Anew() | WhoseAsked():
            parts = _said(told)
        case RunAsked(number, who, names, words, whole, readable):
            flags = b"%d%d" % (whole, readable)
            parts = [b"run", b"%d" % number, flags, *_who(who), b"%d" % len(names), *names, *words]
        case Gone(number):
            parts = [b"gone", b"%d" % number]
        case Still(number, changed):
            parts = [b"still", b"%d" % number, changed]
        case CallRefused(call, who, more):
            parts = [b"call", call, b"%d" % more, *_who(who)]
        case Counted(calls):
            parts = [b"counted", *(part for call, times in calls for part in (call, b"%d" % times))]
        case Holds():
            parts = [b"holds"]
        case Broken(why):
            parts = [b"broken", why.replace(b"\0", b" ")]
        case WhoseFound(number, who, ancestors):
            parts = [b"found", b"%d" % number, *([] if who is None else [*_who(who), *_above(ancestors)])]
    return b"\0".join(parts)


def _said(said: "Said") -> list[bytes]:
    match said:
        case Answer(number, go, says):
            return [b"answer", b"%d" % number, b"%d" % go, says]
        case Wait(number, seconds):
            return [b"wait", b"%d" % number, b"%.3f" % seconds]
        case Check(number):
            return [b"check", b"%d" % number]
        case Anew():
            return [b"anew"]
        case WhoseAsked(number, inode):
            return [b"whose", b"%d" % number, b"%d" % inode]


def unpack(packet: bytes) -> "Told | Said":
    """Read what `pack` made. Raises ValueError."""
    kind, *parts = packet.split(b"\0")
    read = _READERS.get(kind)
    if read is None:
        raise ValueError("a packet of no kind that there is")
    try:
        return read(parts)
    except IndexError as error:
        raise ValueError("a packet that is cut off") from error


def _run(parts: list[bytes]) -> RunAsked:
    number, flags = _number(parts[0]), parts[1]
    who, rest = _read_who(parts[2:])
    count = _number(rest[0])
    names, words = tuple(rest[1 : 1 + count]), tuple(rest[1 + count :])
    return RunAsked(number, who, names, words, flags[:1] == b"1", flags[1:] == b"1")


def _number(part: bytes) -> int:
    """Read a number of at most 64 bits. Raises ValueError for anything else, as for spaces or underscores."""
    number = int(part) if _NUMBER.fullmatch(part) else None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise ValueError("a part that is no number")
    return number


def _seconds(part: bytes) -> float:
    if not _SECONDS.fullmatch(part):
        raise ValueError("a part that is no time")
    return float(part)


def _found(parts: list[bytes]) -> WhoseFound:
    if not parts[1:]:
        return WhoseFound(_number(parts[0]), None)
    who, above = _read_who(parts[1:])
    ancestors = (Ancestor(_number(pid), exe) for pid, exe in zip(above[::2], above[1::2], strict=True))
    return WhoseFound(_number(parts[0]), who, tuple(ancestors))


def _counted(parts: list[bytes]) -> Counted:
    return Counted(tuple((parts[at], _number(parts[at + 1])) for at in range(0, len(parts), 2)))


def _who(who: Who) -> list[bytes]:
    ids = (b"%d" % each for each in (who.pid, who.uid, who.sandbox_uid))
    return [*ids, who.exe, b"%d" % len(who.argv), *who.argv]


def _above(ancestors: tuple[Ancestor, ...]) -> "Iterator[bytes]":
    for each in ancestors:
        yield b"%d" % each.pid
        yield each.exe


def _read_who(parts: list[bytes]) -> tuple[Who, list[bytes]]:
    pid, uid, sandbox_uid, count = (_number(parts[at]) for at in (0, 1, 2, 4))
    return Who(pid, uid, parts[3], tuple(parts[5 : 5 + count]), sandbox_uid), parts[5 + count :]


_READERS: "Final[dict[bytes, Callable[[list[bytes]], Told | Said]]]" = {
    b"run": _run,
    b"answer": lambda parts: Answer(_number(parts[0]), parts[1] == b"1", parts[2]),
    b"wait": lambda parts: Wait(_number(parts[0]), _seconds(parts[1])),
    b"check": lambda parts: Check(_number(parts[0])),
    b"anew": lambda _: Anew(),
    b"gone": lambda parts: Gone(_number(parts[0])),
    b"still": lambda parts: Still(_number(parts[0]), parts[1]),
    b"call": lambda parts: CallRefused(parts[0], _read_who(parts[2:])[0], _number(parts[1])),
    b"counted": _counted,
    b"holds": lambda _: Holds(),
    b"broken": lambda parts: Broken(parts[0]),
    b"whose": lambda parts: WhoseAsked(_number(parts[0]), _number(parts[1])),
    b"found": _found,
}
