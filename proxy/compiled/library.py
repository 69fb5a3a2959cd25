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


class Over(IntEnum):
    """State of a relayed pair: open, or how it ended."""

    OPEN = 0
    IN_PEACE = 1 << 16
    NEAR_BROKE = 2 << 16
    FAR_BROKE = 3 << 16
    FAILED = 4 << 16


class Side(NamedTuple):
    """State of one side of a pair: the events it waits for, whether it has ended, and its unsent bytes."""

    waits_for: int
    silent: bool
    kept: bytes


def digest() -> str:
    """Return the SHA-256 of `relay.c`, which the library must have been built from. Raises OSError."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Compiled:
    """The loaded relay. For one thread. A pair is identified by a number, its address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._answers = array("I", bytes(8 * AT_ONCE))
        self._at = self._answers.buffer_info()[0]
        self._two = (ctypes.c_uint64 * 2)()
        self._serve = _function(library.exeat_serve, ctypes.c_int, "iipi")
        self._adopt = _function(library.exeat_adopt, ctypes.c_void_p, "iiipn")
        self._start = _function(library.exeat_start, ctypes.c_uint32, "ppn")
        self.over = _function(library.exeat_over, ctypes.c_uint32, "p")  # (pair) -> Over
        self.release = _function(library.exeat_release, None, "p")  # (pair)
        self.leave = _function(library.exeat_leave, None, "i")  # (set): forget one that is about to be closed
        self._count = _function(library.exeat_count, None, "pp")
        self._side = _function(library.exeat_side, ctypes.c_void_p, "pippp")

    def serve(self, number: int, wait: float, most: int) -> list[int]:
        """Wait as epoll.poll(wait, most) does, relay bytes, and return the other events: descriptor, events, and so on.

        The near descriptor stands for a pair that has ended. Raises OSError.
        """
        count = self._serve(number, -1 if wait < 0 else int(wait * 1e3 + 0.5), self._at, most)
        if count > 0:
            return self._answers[: 2 * count].tolist()
        if count < 0 and (error := ctypes.get_errno()) != _INTERRUPTED:
            raise OSError(error, os.strerror(error))
        return []

    def adopt(self, number: int, near: int, far: int, backlog: int, most_kept: int) -> int:
        """Relay between two descriptors that are registered for IN in a set; returns the pair. Raises MemoryError.

        `backlog` is the address of an int64 that counts the bytes waiting for the sandbox's full sockets. Above
        `most_kept`, sockets are read in small pieces.
        """
        pair = self._adopt(number, near, far, backlog, most_kept)
        if not pair:
            raise MemoryError
        return int(pair)

    def start(self, pair: int, said: bytes) -> int:
        """Start with the bytes that the decision was made on (`said`), which are still unread; returns Over."""
        return int(self._start(pair, said, len(said)))

    def counts(self, pair: int) -> tuple[int, int]:
        """Return the bytes sent to the server and to the client."""
        self._count(pair, ctypes.addressof(self._two))
        return self._two[0], self._two[1]

    def side(self, pair: int, *, far: bool) -> Side:
        """Return the state of one side, with a copy of its unsent bytes."""
        waits_for, silent, size = ctypes.c_uint32(), ctypes.c_int(), ctypes.c_size_t()
        kept = self._side(pair, far, *map(ctypes.addressof, (waits_for, silent, size)))
        return Side(waits_for.value, bool(silent.value), ctypes.string_at(kept, size.value) if kept else b"")


_INTERRUPTED: Final = 4  # EINTR: a signal's handler may have something to do first
_KINDS: Final[dict[str, type[ctypes.c_int | ctypes.c_int64 | ctypes.c_void_p]]] = {
    "i": ctypes.c_int,
    "n": ctypes.c_int64,
    "p": ctypes.c_void_p,
}


def _function(named: "ctypes._NamedFuncPointer", result: type | None, arguments: str) -> "ctypes._NamedFuncPointer":
    """Set a function's argument types, one letter each, and its result type."""
    named.restype = result
    named.argtypes = [_KINDS[each] for each in arguments]
    return named


def load() -> Compiled | None:
    """Load the library; None: it is not built, or built from another source."""
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
        made_of = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "exeat_source")))
        return Compiled(library) if made_of == digest().encode() else None
    except (OSError, ValueError, AttributeError):
        return None
