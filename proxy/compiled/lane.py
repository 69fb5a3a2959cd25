"""One gate's listener as compiled code has it (`regulars.c`), called through ctypes. For one thread."""

import ctypes
import struct
from array import array
from typing import Final, NamedTuple

from proxy.compiled.library import function

ACCEPTED, GREETED, OVER, STAYS = 1, 2, 3, 4  # what happened to a connection
NEWS: Final = 1 << 24  # of the events of a listener: there is news

_NEWS: Final = struct.Struct("=QqqqQQIIIIiHH16s36s4x")  # struct news
_PLACE: Final = struct.Struct("=HH16s")  # struct place

_MOST_NEWS: Final = 512
_SILENT, _TOLD, _OPEN = range(3)  # struct counts
_made = tuple.__new__


class News(NamedTuple):
    """What happened to one connection; times are in nanoseconds, by the clock of time.monotonic_ns().

    Of ACCEPTED the descriptor `fd` is whoever's reads it; of OVER it is closed. STAYS one that was let out unasked,
    and of which there was no word so far.
    """

    id: int
    opened: int
    dialled: int  # how long it took; -1: it never was
    ended: int  # of OVER
    up: int
    down: int
    what: int
    number: int  # of the greeting, but of ACCEPTED
    over: int  # library.Over, of OVER
    error: int  # errno of what broke it, of OVER; or why one that was let out unasked was not dialled, of GREETED
    fd: int
    family: int  # of the task's end
    port: int
    address: bytes  # 16, of which IPv4 has the first four
    event: bytes  # the id under which one was let out unasked, which nobody has heard of yet; else zeros


class Taken(NamedTuple):
    """A connection that compiled code has passed on until now: as Compiled.adopt returns it."""

    pair: int
    far: int  # descriptor
    dialled: int  # ns; -1: it isn't connected yet


class Lane:
    """Accepts, and knows some connections again."""

    def __init__(  # noqa: PLR0917  as C has them
        self, library: ctypes.CDLL, number: int, listener: int, most_silent: int, backlog: int, most_kept: int
    ) -> None:
        """Accept at `listener` in the set `number`, and wait there for the first words of up to `most_silent`.

        What is held for full sockets counts in `backlog` (`Compiled.adopt`). Raises MemoryError.
        """
        self._counts = array("q", (0, 0, 0))
        self._vouched: list[ctypes.Structure] = []  # as long as compiled code may look at them
        self._two = array("q", (0, 0))
        self._at = self._two.buffer_info()[0]
        at = self._counts.buffer_info()[0]
        begin = function(library.exeat_open, ctypes.c_void_p, "iipnpn")
        self._gate = begin(number, listener, at, most_silent, backlog, most_kept)
        if not self._gate:
            raise MemoryError
        first = function(library.exeat_news, ctypes.c_void_p, "p")(self._gate)
        self._news = memoryview((ctypes.c_char * (_MOST_NEWS * _NEWS.size)).from_address(first))
        self._learn = function(library.exeat_learn, ctypes.c_int, "ppiipip")
        self._forget = function(library.exeat_forget, ctypes.c_int, "p")
        self._close = function(library.exeat_close, None, "p")
        self._tell = function(library.exeat_tell, None, "ppppp")
        self._usual = function(library.exeat_usual, ctypes.c_int, "pippipp")
        self._reveal = function(library.exeat_reveal, ctypes.c_int, "pn")
        self._dialled = function(library.exeat_dialled, ctypes.c_int64, "in")
        self._take = function(library.exeat_take, ctypes.c_void_p, "inp")
        # (descriptor, id, socket address, its size) -> errno: dial for one that was GREETED
        self.dial = function(library.exeat_dial, ctypes.c_int, "inpi")
        # (descriptor, id) -> 0, or -1 where nobody has it: let go of one that was GREETED
        self.give = function(library.exeat_give, ctypes.c_int, "in")

    @property
    def silent(self) -> int:
        """How many were accepted, and have said nothing so far."""
        return self._counts[_SILENT]

    def news(self, connections: int) -> list[News]:
        """Return what has happened since this was last asked; `connections`: how many are known of, all together."""
        counts = self._counts
        told = counts[_TOLD]
        if not told:
            return []
        counts[_TOLD], counts[_OPEN] = 0, connections
        return [_made(News, each) for each in _NEWS.iter_unpack(self._news[: told * _NEWS.size])]

    def learn(self, place: tuple[int, int, bytes], number: int, size: int, pieces: list[tuple[int, bytes]]) -> bool:
        """Know a greeting of `size` bytes again by what stands where, said at (family, port, address)."""
        spans = array("I", (edge for at, text in pieces for edge in (at, at + len(text))))
        where = ctypes.create_string_buffer(_PLACE.pack(*place), _PLACE.size)
        text = b"".join(text for _, text in pieces)
        said = ctypes.create_string_buffer(text, len(text) or 1)
        at = ctypes.addressof(where), ctypes.addressof(said)
        return not self._learn(self._gate, at[0], number, size, spans.buffer_info()[0], len(pieces), at[1])

    def tell(
        self, tail: ctypes.Structure, last_id: ctypes.c_int64, counted: ctypes.Structure, sha256: ctypes.Structure
    ) -> None:
        """Have some let out without asking, told at a journal's end (`journal/tail.py`) and `counted` (`alike.py`)."""
        self._kept = tail, last_id, counted, sha256  # as long as they are used
        self._tell(self._gate, *map(ctypes.addressof, self._kept))

    def usual(
        self, number: int, vouched: ctypes.Structure, there: "ctypes.Array[ctypes.c_char]", pieces: tuple[bytes, ...]
    ) -> bool:
        """Say where those lead that greet as it is known under a number, and how they are told (`Form.pieces`).

        It looks at `vouched` (`unasked.py`) until it forgets them. False: they are always asked for.
        """
        self._vouched.append(vouched)
        sizes = array("I", map(len, pieces))
        text = ctypes.create_string_buffer(b"".join(pieces))
        at = ctypes.addressof(vouched), ctypes.addressof(there)
        place = sizes.buffer_info()[0], ctypes.addressof(text)
        return not self._usual(self._gate, number, *at, len(there), *place)

    def reveal(self, before: int) -> bool:
        """Have those among the news that were let out unasked, and have been here since `before` (ns).

        True: there was no room for some, so ask again.
        """
        return bool(self._reveal(self._gate, before))

    def forget(self) -> bool:
        """Know none again; who is silent, or was let out unasked, is among the news. True: as `reveal`."""
        if self._forget(self._gate):
            return True
        self._vouched.clear()
        return False

    def dialled(self, fd: int, number: int) -> int:
        """Return how long the dial took, in ns; -1: it isn't over, or nobody has that id."""
        return int(self._dialled(fd, number))

    def take(self, fd: int, number: int) -> Taken | None:
        """Take over one that is passed on; None: nobody has that id, or it is over, as there is news of."""
        pair = self._take(fd, number, self._at)
        return Taken(pair, *self._two) if pair else None

    def close(self) -> None:
        """Accept no more. Idempotent; what is here still must be nobody's any more."""
        gate, self._gate = self._gate, None
        if gate:
            self._news.release()
            self._close(gate)


def destination(family: int, port: int, packed: bytes) -> "ctypes.Array[ctypes.c_char]":
    """Return a socket address as connect(2) takes it."""
    four = len(packed) == 4
    rest = packed + bytes(8) if four else bytes(4) + packed + bytes(4)
    data = struct.pack("=H", family) + struct.pack("!H", port) + rest
    return ctypes.create_string_buffer(data, len(data))
