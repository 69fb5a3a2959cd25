"""What the watcher and the worker say to each other over SOCK_SEQPACKET: parts with zero bytes between.

The parts are bytes as the kernel has them, which hold no zero byte: paths and the words of commands. The watcher is
believed; what a part says of a task is the task's claim all the same.
"""

from typing import Final, NamedTuple

LONGEST: Final = 96 << 10  # bytes of a packet; a command is cut well below that


class Who(NamedTuple):
    """A process of the task, as /proc said: its id on the host, its user (-1: unknown), executable and arguments."""

    pid: int
    uid: int
    exe: bytes
    argv: tuple[bytes, ...] = ()


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


type Told = RunAsked | CallRefused | Counted | Holds | Broken


def pack(told: "Told | Answer") -> bytes:
    """Return it as a packet."""
    match told:
        case RunAsked(number, who, names, words, whole, readable):
            flags = b"%d%d" % (whole, readable)
            parts = [b"run", b"%d" % number, flags, *_who(who), b"%d" % len(names), *names, *words]
        case Answer(number, go, says):
            parts = [b"answer", b"%d" % number, b"%d" % go, says]
        case CallRefused(call, who, more):
            parts = [b"call", call, b"%d" % more, *_who(who)]
        case Counted(calls):
            parts = [b"counted", *(part for call, times in calls for part in (call, b"%d" % times))]
        case Holds():
            parts = [b"holds"]
        case Broken(why):
            parts = [b"broken", why.replace(b"\0", b" ")]
    return b"\0".join(parts)


def unpack(packet: bytes) -> "Told | Answer":
    """Read what `pack` made. Raises ValueError."""
    kind, *parts = packet.split(b"\0")
    try:
        match kind:
            case b"run":
                number, flags = int(parts[0]), parts[1]
                who, rest = _read_who(parts[2:])
                count = int(rest[0])
                names, words = tuple(rest[1 : 1 + count]), tuple(rest[1 + count :])
                return RunAsked(number, who, names, words, flags[:1] == b"1", flags[1:] == b"1")
            case b"answer":
                return Answer(int(parts[0]), parts[1] == b"1", parts[2])
            case b"call":
                who, _ = _read_who(parts[2:])
                return CallRefused(parts[0], who, int(parts[1]))
            case b"counted":
                return Counted(tuple((parts[at], int(parts[at + 1])) for at in range(0, len(parts), 2)))
            case b"holds":
                return Holds()
            case b"broken":
                return Broken(parts[0])
    except IndexError as error:
        raise ValueError("a packet that is cut off") from error
    raise ValueError("a packet of no kind that there is")


def _who(who: Who) -> list[bytes]:
    return [b"%d" % who.pid, b"%d" % who.uid, who.exe, b"%d" % len(who.argv), *who.argv]


def _read_who(parts: list[bytes]) -> tuple[Who, list[bytes]]:
    count = int(parts[3])
    return Who(int(parts[0]), int(parts[1]), parts[2], tuple(parts[4 : 4 + count])), parts[4 + count :]
