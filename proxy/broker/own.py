"""The values of a task's own secrets in what it sends: whole, in the usual encodings, or most of one bit by bit.

A task has no value, so one that it sends has come back from somewhere, and is on its way to somewhere else. A value is
cut into pieces of six characters and more, at most eight; which of them the requests of a task had is remembered for as
long as they keep coming. Two thirds of them, or all but one if that is more, make a leak: two requests that share a
value between them have that much, wherever it was cut. What is remembered is one number a secret.

Missed is what this doesn't list: a value that is encrypted, compressed, reversed, in another alphabet, or sent in
shorter pieces than these, and the pieces of values that have fewer than three. Nothing here shows a value or keeps a
text.
"""

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from proxy.broker.spelling import encoded, spellings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.broker.values import Held

SHORTEST_PIECE: Final = 6  # characters: 62 to the sixth is more than the bytes that a task sends
MOST_PIECES: Final = 8
FEWEST_PIECES: Final = 3
FORGOTTEN_AFTER: Final = 1000  # requests without a piece
_SHORT: Final = 256  # bytes of a text that is quicker gone through once for all forms than once for each
_ROUNDS: Final = 2  # of percent signs
_BREAKS: Final = b"\r\n\t "
WHOLE: Final = 1

type _Forms = tuple[tuple[bytes, int], ...]


class _Value:
    """One secret: what it is looked for by, and which pieces of it have left lately.

    Each form is beside the bit of what it is a form of: `WHOLE`, or a piece's. `folded` are looked for in lower case,
    `exact` as they are.
    """

    __slots__ = ("exact", "folded", "ident", "last", "left", "longest", "needed", "whole_exact", "whole_folded")

    def __init__(self, held: "Held") -> None:
        self.ident = held.secret.id
        pieces = tuple(_pieces(held.value[_public(held) :]))
        self.needed = len(pieces) - max(1, len(pieces) // 3)
        self.whole_folded, self.whole_exact = _forms(held.value, WHOLE)
        self.folded, self.exact = self.whole_folded, self.whole_exact
        for number, piece in enumerate(pieces, 1):
            folded, exact = _forms(piece, 1 << number)
            self.folded, self.exact = self.folded + folded, self.exact + exact
        self.longest = max(len(form) for form, _ in (*self.whole_folded, *self.whole_exact))
        self.left = 0  # pieces, a bit each
        self.last = 0  # the request that had one last

    def bits_in(self, ways: "list[tuple[bytes, bytes]]", *, pieces: bool) -> int:
        """Return what of the value is in a text, which is given in several ways, each also in lower case."""
        bits = 0
        folded_forms = self.folded if pieces else self.whole_folded
        exact_forms = self.exact if pieces else self.whole_exact
        for way, folded in ways:
            for form, bit in folded_forms:
                if form in folded:
                    bits |= bit
            for form, bit in exact_forms:
                if form in way:
                    bits |= bit
        return bits


def _forms(text: bytes, bit: int) -> "tuple[_Forms, _Forms]":
    exact = encoded(text)
    plain = (form.lower() for form in spellings(text) if form not in exact)
    folded = dict.fromkeys((*plain, text.hex().encode()))
    return tuple((form, bit) for form in folded), tuple((form, bit) for form in exact)


class Own:
    """The values of one task. For one thread."""

    __slots__ = ("_glance", "_requests", "_values", "longest")

    def __init__(self, held: "Iterable[Held]") -> None:
        self._values = tuple(map(_Value, held))
        self.longest = max((value.longest for value in self._values), default=0)  # bytes of the longest form of any
        self._requests = 0
        exact = re.compile(b"|".join({re.escape(form) for value in self._values for form, _ in value.exact}))
        folded = re.compile(b"|".join({re.escape(form) for value in self._values for form, _ in value.folded}))
        self._glance = lambda text: exact.search(text) is None and folded.search(text.lower()) is None

    def __repr__(self) -> str:
        """Show nothing."""
        return "Own(...)"

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("secrets are not to be pickled")

    def watch(self) -> "Watch | None":
        """Look one request through; None: there is nothing to look for."""
        if not self._values:
            return None
        self._requests += 1
        return Watch(self._values, self._requests, self._glance)


class Watch:
    """One request: its head, and its body bit by bit."""

    __slots__ = ("_found", "_glance", "_number", "_values")

    def __init__(self, values: tuple[_Value, ...], number: int, glance: "Callable[[bytes], bool]") -> None:
        """`glance` says of a short text whether nothing is in it, all forms at once."""
        self._glance = glance
        self._values = values
        self._number = number
        self._found: dict[_Value, int] = {}  # the pieces in what was looked at, that may not have left

    def take(self, text: bytes, *, pieces: bool = True, lines: bool = True) -> "Iterator[str]":
        """Yield what is found in the next text, in words. `pieces`: they are looked for as well, and behind `%`.

        `lines`: the text may be broken up, as encoders do with long ones.

        Two texts in a row have to overlap, or what is cut between them is missed.
        """
        if len(text) <= _SHORT and not lines and b"%" not in text and self._glance(text):
            return
        ways = [(way, way.lower()) for way in (_ways(text, lines=lines) if pieces else (text,))]
        for value in self._values:
            bits = value.bits_in(ways, pieces=pieces)
            if not bits:
                continue
            if bits & WHOLE:
                yield f"the value of the secret `{value.ident}`"
            elif self._has_most(value, bits):
                yield f"most of the value of the secret `{value.ident}`, in one request or in several"

    @property
    def saw_some(self) -> bool:
        """Whether there was a piece of a value in what was looked at last."""
        return bool(self._found)

    def has_left(self) -> None:
        """Remember that what was looked at has left, or is about to."""
        for value, bits in self._found.items():
            value.left |= bits
            value.last = self._number
        self._found.clear()

    def _has_most(self, value: _Value, bits: int) -> bool:
        if self._number - value.last > FORGOTTEN_AFTER:
            value.left = 0
        bits |= self._found.get(value, 0)
        self._found[value] = bits
        return (bits | value.left).bit_count() >= value.needed


def _ways(text: bytes, *, lines: bool) -> "Iterator[bytes]":
    """Yield a text as it is, without percent signs, and without the breaks that encoders put in."""
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


def _public(held: "Held") -> int:
    """Return how many characters of a value's beginning are no secret: those that its placeholder has too."""
    pairs = zip(held.value, held.placeholder, strict=False)
    return next((at for at, (mine, other) in enumerate(pairs) if mine != other), 0)
