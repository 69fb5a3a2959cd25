"""Detects the task's own secrets in outgoing data: whole, encoded, or most of one in pieces.

`proxy/dlp` decodes the data, calls this search, and matches the patterns of other credentials. The secrets are the
values of `secrets` and the upstream proxy's password; a task has none of them. A value is cut into at most eight pieces
of at least six characters. Two thirds of the pieces (with few pieces: all but one) are a leak, also over several
requests. The search misses values that are encrypted, compressed, reversed, in another alphabet, or in shorter pieces,
and pieces of a value that has fewer than three.
"""

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from proxy.secrets.encodings import encoded, spellings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.event_loop.turn import Sliced
    from proxy.secrets.injection import SecretInjector

SHORTEST_PIECE: Final = 6  # characters: 62 to the sixth is more than the bytes that a task sends
MOST_PIECES: Final = 8
FEWEST_PIECES: Final = 3
FORGOTTEN_AFTER: Final = 1000  # requests without a piece
_SHORT: Final = 256  # bytes; below, one regular expression for all forms is faster than a search for each
_ROUNDS: Final = 2  # of percent-decoding
_BREAKS: Final = b"\r\n\t "
WHOLE: Final = 1
_SHORTEST_PASSWORD: Final = 8  # bytes: a shorter one would be found everywhere

type _Forms = tuple[tuple[bytes, int], ...]


class SecretToFind(NamedTuple):
    """Value to detect, and its description; its first `public` characters are not secret."""

    name: str
    value: bytes
    public: int = 0

    def __repr__(self) -> str:
        """Show no value."""
        return f"SecretToFind({self.name}, ...)"


class _SecretForms:
    """One secret: the encoded forms to search for, and the pieces of it that were sent lately.

    Each form comes with a bit: `WHOLE`, or that of its piece. `folded` forms match lower-case text, `exact` forms the
    text as it is.
    """

    __slots__ = (
        "exact",
        "folded",
        "last_request",
        "left_pieces",
        "longest",
        "name",
        "needed",
        "whole_exact",
        "whole_folded",
    )

    def __init__(self, known: SecretToFind) -> None:
        self.name = known.name
        pieces = tuple(_pieces(known.value[known.public :]))
        self.needed = len(pieces) - max(1, len(pieces) // 3)
        self.whole_folded, self.whole_exact = _forms(known.value, WHOLE)
        self.folded, self.exact = self.whole_folded, self.whole_exact
        for number, piece in enumerate(pieces, 1):
            folded, exact = _forms(piece, 1 << number)
            self.folded, self.exact = self.folded + folded, self.exact + exact
        self.longest = max(len(form) for form, _ in (*self.whole_folded, *self.whole_exact))
        self.left_pieces = 0  # pieces that were sent, a bit each
        self.last_request = 0  # number of the last request that had a piece

    def bits_in(self, readings: "list[tuple[bytes, bytes]]", *, pieces: bool) -> int:
        """Return the bits of the forms in a text, given in several readings, each also in lower case."""
        bits = 0
        folded_forms = self.folded if pieces else self.whole_folded
        exact_forms = self.exact if pieces else self.whole_exact
        for reading, folded in readings:
            for form, bit in folded_forms:
                if form in folded:
                    bits |= bit
            for form, bit in exact_forms:
                if form in reading:
                    bits |= bit
        return bits


def _forms(text: bytes, bit: int) -> "tuple[_Forms, _Forms]":
    exact = encoded(text)
    plain = (form.lower() for form in spellings(text) if form not in exact)
    folded = dict.fromkeys((*plain, text.hex().encode()))
    return tuple((form, bit) for form in folded), tuple((form, bit) for form in exact)


class OwnSecrets:
    """Secret values that one task must not send. For one thread."""

    __slots__ = ("_has_no_match", "_requests", "_values", "longest")

    def __init__(self, known: "Iterable[SecretToFind]") -> None:
        """Search for these values; at least one."""
        self._values = tuple(map(_SecretForms, known))
        self.longest = max(value.longest for value in self._values)  # bytes of the longest form of any
        self._requests = 0
        exact = re.compile(b"|".join({re.escape(form) for value in self._values for form, _ in value.exact}))
        folded = re.compile(b"|".join({re.escape(form) for value in self._values for form, _ in value.folded}))
        self._has_no_match = lambda text: exact.search(text) is None and folded.search(text.lower()) is None

    def __repr__(self) -> str:
        """Show nothing."""
        return "OwnSecrets(...)"

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("secrets are not to be pickled")

    def watch(self) -> "SecretSearch":
        """Start the search of one request."""
        self._requests += 1
        return SecretSearch(self._values, self._requests, self._has_no_match)


def make_secret_search(injector: "SecretInjector | None", password: bytes) -> OwnSecrets | None:
    """Return the search for a task's secret values; None: it has none.

    `password`: for the upstream proxy; empty: there is none.
    """
    known = [] if injector is None else list(injector.values_to_find)
    if len(password) >= _SHORTEST_PASSWORD:
        known.append(SecretToFind("the password for the upstream proxy", password))
    return OwnSecrets(known) if known else None


class SecretSearch:
    """Search of one request: its head, then its body piece by piece."""

    __slots__ = ("_found", "_has_no_match", "_number", "_values")

    def __init__(self, values: tuple[_SecretForms, ...], number: int, glance: "Callable[[bytes], bool]") -> None:
        """`glance` returns whether a short text has none of the forms."""
        self._has_no_match = glance
        self._values = values
        self._number = number
        self._found: dict[_SecretForms, int] = {}  # bits found in text that isn't sent yet

    def search(self, text: bytes, *, pieces: bool = True, lines: bool = True) -> "Sliced[None]":
        """Search the next text, one secret a slice. The caller must then call `found`, and `has_left` once it is sent.

        `pieces`: search for pieces too, and percent-decode. `lines`: also join lines, which encoders break. Consecutive
        texts must overlap, or a value across their border is missed.
        """
        if len(text) <= _SHORT and not lines and b"%" not in text and self._has_no_match(text):
            return
        readings = [(reading, reading.lower()) for reading in (_readings(text, lines=lines) if pieces else (text,))]
        for value in self._values:
            if bits := value.bits_in(readings, pieces=pieces):
                self._found[value] = self._found.get(value, 0) | bits
            yield

    def found(self) -> "list[str]":
        """Describe the leaks found since `has_left`, counting pieces that other requests have sent."""
        names = []
        for value, bits in self._found.items():
            if bits & WHOLE:
                names.append(value.name)
            elif self._has_most(value, bits):
                names.append(f"most of {value.name}, in one request or in several")
        return names

    @property
    def saw_some(self) -> bool:
        """Whether the text searched last has a piece of a value."""
        return bool(self._found)

    def has_left(self) -> None:
        """Record that the searched text is sent."""
        for value, bits in self._found.items():
            if not bits & WHOLE:
                value.left_pieces |= bits
                value.last_request = self._number
        self._found.clear()

    def _has_most(self, value: _SecretForms, bits: int) -> bool:
        if self._number - value.last_request > FORGOTTEN_AFTER:
            value.left_pieces = 0
        return (bits | value.left_pieces).bit_count() >= value.needed


def _readings(text: bytes, *, lines: bool) -> "Iterator[bytes]":
    """Yield a text as it is, percent-decoded, and without the line breaks of encoders."""
    yield text
    for _ in range(_ROUNDS):
        if b"%" not in text:
            break
        text = unquote_to_bytes(text)
        yield text
    if lines and any(byte in text for byte in (b"\n", b" ", b"\\n", b"\t")):
        yield text.replace(b"\\r", b"").replace(b"\\n", b"").translate(None, _BREAKS)


def _pieces(value: bytes) -> "Iterator[bytes]":
    count = min(len(value) // SHORTEST_PIECE, MOST_PIECES)
    if count < FEWEST_PIECES:
        return
    edges = [len(value) * number // count for number in range(count + 1)]
    yield from (value[start:end] for start, end in pairwise(edges))
