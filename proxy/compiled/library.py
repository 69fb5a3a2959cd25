"""Loads the compiled relay through ctypes, if it exists and was built from the current `relay.c`."""

import ctypes
import hashlib
import os
from array import array
from enum import IntEnum
from typing import Final, NamedTuple

SOURCE: Final = os.path.join(os.path.dirname(__file__), "relay.c")
LIBRARY: Final = os.path.join(os.path.dirname(__file__), "relay.so")
AT_ONCE: Final = 256  # answers


class PairState(IntEnum):
    """State of a relayed pair: open, or how it ended."""

    OPEN = 0
    ENDED = 1 << 16
    CLIENT_BROKE = 2 << 16
    SERVER_BROKE = 3 << 16
    FAILED = 4 << 16


class Side(NamedTuple):
    """State of one side of a pair: the events it waits for, whether it has ended, and its unsent bytes."""

    waits_for: int
    has_ended: bool
    unsent: bytes


def digest() -> str:
    """Return the SHA-256 of `relay.c`, which the library must have been built from. Raises OSError."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Compiled:
    """The loaded relay. For one thread. A pair is identified by a number, its address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._answers = array("I", bytes(8 * AT_ONCE))
        self._answers_address = self._answers.buffer_info()[0]
        self._counts = (ctypes.c_uint64 * 2)()
        self._serve = _function(library.exeat_serve, ctypes.c_int, "iipi")
        self._adopt = _function(library.exeat_adopt, ctypes.c_void_p, "iiipn")
        self._start = _function(library.exeat_start, ctypes.c_uint32, "ppn")
        self.state = _function(library.exeat_over, ctypes.c_uint32, "p")  # (pair) -> PairState
        self.release = _function(library.exeat_release, None, "p")  # (pair)
        self.leave = _function(library.exeat_leave, None, "i")  # (set): forget one that is about to be closed
        self._count = _function(library.exeat_count, None, "pp")
        self._side = _function(library.exeat_side, ctypes.c_void_p, "pippp")

    def serve(self, number: int, wait: float, most: int) -> list[int]:
        """Wait as epoll.poll(wait, most) does, relay bytes, and return the other events: descriptor, events, and so on.

        The client descriptor stands for a pair that has ended. Raises OSError.
        """
        count = self._serve(number, -1 if wait < 0 else int(wait * 1e3 + 0.5), self._answers_address, most)
        if count > 0:
            return self._answers[: 2 * count].tolist()
        if count < 0 and (error := ctypes.get_errno()) != _INTERRUPTED:
            raise OSError(error, os.strerror(error))
        return []

    def adopt(self, number: int, client: int, server: int, backlog: int, max_buffered: int) -> int:
        """Relay between two descriptors that are registered for IN in a set; returns the pair. Raises MemoryError.

        `backlog` is the address of an int64 that counts the bytes waiting for the sandbox's full sockets. Above
        `max_buffered`, sockets are read in small pieces.
        """
        pair = self._adopt(number, client, server, backlog, max_buffered)
        if not pair:
            raise MemoryError
        return int(pair)

    def start(self, pair: int, first_bytes: bytes) -> int:
        """Start with `first_bytes`, which the decision was made on and which are still unread; returns PairState."""
        return int(self._start(pair, first_bytes, len(first_bytes)))

    def counts(self, pair: int) -> tuple[int, int]:
        """Return the bytes sent to the server and to the client."""
        self._count(pair, ctypes.addressof(self._counts))
        return self._counts[0], self._counts[1]

    def side(self, pair: int, *, server: bool) -> Side:
        """Return the state of one side, with a copy of its unsent bytes."""
        waits_for, has_ended, size = ctypes.c_uint32(), ctypes.c_int(), ctypes.c_size_t()
        unsent = self._side(pair, server, *map(ctypes.addressof, (waits_for, has_ended, size)))
        return Side(waits_for.value, bool(has_ended.value), ctypes.string_at(unsent, size.value) if unsent else b"")


_INTERRUPTED: Final = 4  # EINTR: a signal's handler may have something to do first
_KINDS: Final[dict[str, type[ctypes.c_int | ctypes.c_int64 | ctypes.c_void_p]]] = {
    "i": ctypes.c_int,
    "n": ctypes.c_int64,
    "p": ctypes.c_void_p,
}


def _function(function: "ctypes._NamedFuncPointer", result: type | None, arguments: str) -> "ctypes._NamedFuncPointer":
    """Set a function's argument types, one letter each, and its result type."""
    function.restype = result
    function.argtypes = [_KINDS[each] for each in arguments]
    return function


def load() -> Compiled | None:
    """Load the library; None: it is not built, or built from another source."""
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
        built_from = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "exeat_source")))
        return Compiled(library) if built_from == digest().encode() else None
    except (OSError, ValueError, AttributeError):
        return None
