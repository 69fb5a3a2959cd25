"""Requests of a client to the service: one packet with descriptors; long data is in a memory file.

Every `exeat run` imports this, so it imports no module of ours. Arguments are bytes, as for execve(2).
"""

import os
import sys

VERSION = 1
_HELLO = b"exeat %d " % VERSION
RUN, ASK = b"run", b"ask"
LARGEST_PACKET = 1 << 16  # bytes
_LARGEST_REQUEST = 8 << 20  # bytes: more than execve(2) accepts
DESCRIPTORS = 5  # of a run: 0, 1, 2, the directory, the request
MOST_DESCRIPTORS = 16  # of anything


class Run:
    """The request of `exeat run`: its arguments, and the settings of its caller that the task gets.

    `ignored`: a bit mask of signals, bit 0 for signal 1 (proc_pid_status(5), SigIgn); `limits`: soft and hard rlimits
    by number, -1 for none (getrlimit(2)). A plain class: importing `typing` takes longer than everything here.
    """

    __slots__ = ("environment", "ignored", "limits", "nice", "umask", "words")

    def __init__(  # noqa: PLR0917  what a process has
        self,
        words: tuple[str, ...],
        environment: dict[str, str],
        umask: int,
        ignored: int,
        nice: int,
        limits: tuple[tuple[int, int], ...],
    ) -> None:
        self.words = words
        self.environment = environment
        self.umask = umask
        self.ignored = ignored
        self.nice = nice
        self.limits = limits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and all(getattr(self, name) == getattr(other, name) for name in Run.__slots__)

    __hash__ = None  # type: ignore[assignment]


class MalformedRequestError(Exception):
    """The request is not valid in this version."""


def packet_head(what: bytes) -> bytes:
    """Return the first bytes of a packet with this request."""
    return _HELLO + what


def packet_request(packet: bytes) -> bytes:
    """Return the request in a packet. Raises MalformedRequestError."""
    if not packet.startswith(_HELLO):
        raise MalformedRequestError(
            f"the service uses protocol version {VERSION}, the client another one; restart the service after an upgrade"
        )
    return packet[len(_HELLO) :]


def pack(run: Run) -> bytes:
    """Encode a request."""
    limits = b",".join(b"%d:%d" % pair for pair in run.limits)
    head = b"%d %d %d %d %d %s\n" % (len(run.words), run.umask, run.ignored, run.nice, len(run.environment), limits)
    words = map(os.fsencode, run.words)
    variables = (os.fsencode(name) + b"=" + os.fsencode(value) for name, value in run.environment.items())
    return head + b"".join(word + b"\0" for word in (*words, *variables))


def unpack(file: int) -> Run:
    """Decode a request from a memory file. Raises MalformedRequestError."""
    size = os.fstat(file).st_size
    if size > _LARGEST_REQUEST:
        raise MalformedRequestError(f"the request has over {_LARGEST_REQUEST >> 20} MiB of arguments and variables")
    data = os.pread(file, size, 0)
    head, newline, rest = data.partition(b"\n")
    try:
        *numbers, limits = head.split(b" ")
        words, umask, ignored, nice, variables = map(int, numbers)
        pairs = tuple(
            (int(soft), int(hard)) for soft, hard in (pair.split(b":") for pair in limits.split(b",") if pair)
        )
    except ValueError as error:
        raise MalformedRequestError("the head of the request is invalid") from error
    strings = rest.split(b"\0")
    if not newline or len(data) != size or len(strings) != words + variables + 1 or strings[-1]:
        raise MalformedRequestError("the request is truncated")
    environment: dict[str, str] = {}
    for name, _, value in (string.partition(b"=") for string in strings[words:-1]):
        if name:  # as setenv(3) requires; the first of two counts, as in getenv(3)
            environment.setdefault(os.fsdecode(name), os.fsdecode(value))
    return Run(tuple(map(os.fsdecode, strings[:words])), environment, umask, ignored, nice, pairs)


def descriptors(numbers: tuple[int, ...]) -> bytes:
    """Encode descriptors for SCM_RIGHTS (unix(7)): an array of C ints."""
    return b"".join(number.to_bytes(4, sys.byteorder) for number in numbers)
