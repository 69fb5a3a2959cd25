"""Messages between a sandbox's seccomp supervisor and its worker: msgpack arrays over SOCK_SEQPACKET (unix(7)).

Each message is an array: its tag, then its fields in order. The tag never changes, since a supervisor may outlive its
worker. Texts are bytes as the kernel has them: paths and argument lists. The worker trusts the supervisor, but what a
message says of a task is still the task's own claim.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

LONGEST: Final = 96 << 10  # bytes of a packet; the supervisor cuts a command well below that

type Number = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
type Seconds = Annotated[float, Meta(ge=0, lt=1e9)]


class _Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A value within messages."""


class ProcessInfo(_Part, frozen=True):
    """A process of the task as /proc describes it: pid and uid on the host, executable and arguments.

    `sandbox_uid` is its uid as the sandbox sees it. -1 means unknown.
    """

    pid: Number
    uid: Number
    exe: bytes
    argv: tuple[bytes, ...] = ()
    sandbox_uid: Number = -1


class Ancestor(_Part, frozen=True):
    """An ancestor of a process."""

    pid: Number
    exe: bytes


# From the supervisor


class StartRequest(_Part, frozen=True, tag="runasked"):
    """A process wants to start a program (execve(2)), and waits for a `StartDecision`.

    `names`: the path that it gave, the file that this leads to, and argv[0]. `words`: the arguments after it.
    `whole` is False if `words` are cut. `readable` is False if the supervisor could not read them.
    """

    number: Number  # identifies the start in later messages
    who: ProcessInfo
    names: tuple[bytes, ...]
    words: tuple[bytes, ...]
    whole: bool
    readable: bool = True


class StartGone(_Part, frozen=True, tag="gone"):
    """The process no longer waits for a decision on this start."""

    number: Number


class CheckResult(_Part, frozen=True, tag="still"):
    """Answers `CheckStart`: the process still waits. `changed` says what has changed since; empty: nothing."""

    number: Number
    changed: bytes = b""


class SyscallDenied(_Part, frozen=True, tag="callrefused"):
    """The filter denied a system call. `more`: how many like it were denied, and not reported, since the last one."""

    call: bytes
    who: ProcessInfo
    more: Number


class SyscallCounts(_Part, frozen=True, tag="counted"):
    """How many calls of each name were denied since the last message of this kind."""

    calls: tuple[tuple[bytes, Number], ...]


class HoldsPrograms(_Part, frozen=True, tag="holds"):
    """From now on the supervisor holds each program until the worker decides on it."""


class SupervisorFailed(_Part, frozen=True, tag="broken"):
    """The supervisor failed, for the reason `why`, and denies everything from now on."""

    why: bytes


class ProcessFound(_Part, frozen=True, tag="whosefound"):
    """Answers `ProcessLookup`: the only process that has the socket open, and its ancestors, parent first.

    None: the supervisor found none, or more than one.
    """

    number: Number
    who: ProcessInfo | None
    ancestors: tuple[Ancestor, ...] = ()


# From the worker


class StartDecision(_Part, frozen=True, tag="answer"):
    """Whether the program may start; if not, `says` is the line that the supervisor shows to its caller."""

    number: Number
    go: bool
    says: bytes = b""


class StartPending(_Part, frozen=True, tag="wait"):
    """The start is pending approval: the supervisor holds it for at most `seconds`."""

    number: Number
    seconds: Seconds


class CheckStart(_Part, frozen=True, tag="check"):
    """The start is approved: the supervisor checks that it still waits unchanged, and sends `CheckResult`."""

    number: Number


class NewWorker(_Part, frozen=True, tag="anew"):
    """A new worker listens: approvals that were pending under the previous one get no answer."""


class ProcessLookup(_Part, frozen=True, tag="whoseasked"):
    """Find the process that has the socket with this inode open."""

    number: Number
    inode: Number


type FromSupervisor = (
    StartRequest | StartGone | CheckResult | SyscallDenied | SyscallCounts | HoldsPrograms | SupervisorFailed
    | ProcessFound
)  # fmt: skip
type FromWorker = StartDecision | StartPending | CheckStart | NewWorker | ProcessLookup

pack: Final = msgspec.msgpack.Encoder().encode
unpack: Final = msgspec.msgpack.Decoder(FromSupervisor | FromWorker).decode  # raises ValueError
