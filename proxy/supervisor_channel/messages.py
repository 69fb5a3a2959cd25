"""Messages between a sandbox's seccomp supervisor and its worker: msgpack arrays over SOCK_SEQPACKET.

Texts are bytes as the kernel has them: paths and the words of commands. The supervisor is believed; what a message says
of a task is the task's claim all the same.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

LONGEST: Final = 96 << 10  # bytes of a packet; a command is cut well below that

type Number = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
type Seconds = Annotated[float, Meta(ge=0, lt=1e9)]


class _Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value within messages."""


class _Message(_Part, frozen=True, tag=str.lower):
    """Tagged with its class's name."""


class Who(_Part, frozen=True):
    """A process of the task, as /proc said: its id and its user's on the host, executable and arguments.

    `sandbox_uid`: its user as the sandbox sees it. -1: unknown.
    """

    pid: Number
    uid: Number
    exe: bytes
    argv: tuple[bytes, ...] = ()
    sandbox_uid: Number = -1


class Ancestor(_Part, frozen=True):
    """A process that another descends from."""

    pid: Number
    exe: bytes


class RunAsked(_Message, frozen=True):
    """A program is about to be run, and waits. `names` are what it goes by; no `readable`: its words are unknown."""

    number: Number
    who: Who
    names: tuple[bytes, ...]
    words: tuple[bytes, ...]
    whole: bool
    readable: bool = True


class Answer(_Message, frozen=True):
    """Whether the run of that number may go on, and what its caller is to read if not."""

    number: Number
    go: bool
    says: bytes = b""


class Wait(_Message, frozen=True):
    """People are asked about the run of that number: it waits on, for so many seconds at most."""

    number: Number
    seconds: Seconds


class Check(_Message, frozen=True):
    """People have approved the run of that number: whether it still waits, and is what it was, is said next."""

    number: Number


class Anew(_Message, frozen=True):
    """Another worker hears from here on: whatever people were asked about by the one before gets no answer."""


class Gone(_Message, frozen=True):
    """The run of that number waits no more."""

    number: Number


class Still(_Message, frozen=True):
    """The run of that number still waits; `changed` says how it is not what was asked about, and is empty if it is."""

    number: Number
    changed: bytes = b""


class CallRefused(_Message, frozen=True):
    """A call that was refused, with how many like it were not told since."""

    call: bytes
    who: Who
    more: Number


class Counted(_Message, frozen=True):
    """How often calls were refused, by name, since this was last said."""

    calls: tuple[tuple[bytes, Number], ...]


class Holds(_Message, frozen=True):
    """From here on programs are held until they are answered for."""


class Broken(_Message, frozen=True):
    """The supervisor can't go on, and why: from here on everything that it is asked is refused."""

    why: bytes


class WhoseAsked(_Message, frozen=True):
    """The worker asks who has the socket of that inode open."""

    number: Number
    inode: Number


class WhoseFound(_Message, frozen=True):
    """Who alone has it, and what that descends from, parent first; None: that isn't known."""

    number: Number
    who: Who | None
    ancestors: tuple[Ancestor, ...] = ()


type Told = RunAsked | Gone | Still | CallRefused | Counted | Holds | Broken | WhoseFound  # by the supervisor
type Said = Answer | Wait | Check | Anew | WhoseAsked  # by the worker

pack: Final = msgspec.msgpack.Encoder().encode
unpack: Final = msgspec.msgpack.Decoder(Told | Said).decode  # raises ValueError
