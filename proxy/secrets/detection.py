"""Detects the task's own secrets in outgoing data: whole, encoded, or most of one in pieces.

`proxy/dlp` decodes the data, calls this search, and matches the patterns of other credentials. The secrets are the
values of `secrets` and the upstream proxy's password; a task has none of them. A value is cut into at most eight pieces
of six characters and more. Two thirds of them, or all but one if that is more, make a leak, also over several requests;
one number a secret is remembered. Missed are values that are encrypted, compressed, reversed, in another alphabet, or
in shorter pieces, and pieces of values that have fewer than three.
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
_SHORT: Final = 256  # bytes of a text that is quicker gone through once for all forms than once for each
_ROUNDS: Final = 2  # of percent signs
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
        return f"Known({self.name}, ...)"


class _Value:
    """One secret: what it is looked for by, and which pieces of it have left lately.

    Each form is beside the bit of what it is a form of: `WHOLE`, or a piece's. `folded` are looked for in lower case,
    `exact` as they are.
    """

    __slots__ = ("exact", "folded", "last", "left", "longest", "name", "needed", "whole_exact", "whole_folded")

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


class OwnSecrets:
    """Secret values that one task must not send. For one thread."""

    __slots__ = ("_glance", "_requests", "_values", "longest")

    def __init__(self, known: "Iterable[SecretToFind]") -> None:
        """Look for these: one at least."""
        self._values = tuple(map(_Value, known))
        self.longest = max(value.longest for value in self._values)  # bytes of the longest form of any
        self._requests = 0
        exact = re.compile(b"|".join({re.escape(form) for value in self._values for form, _ in value.exact}))
        folded = re.compile(b"|".join({re.escape(form) for value in self._values for form, _ in value.folded}))
        self._glance = lambda text: exact.search(text) is None and folded.search(text.lower()) is None

    def __repr__(self) -> str:
        """Show nothing."""
        return "OwnSecrets(...)"

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError("secrets are not to be pickled")

    def watch(self) -> "SecretSearch":
        """Look one request through."""
        self._requests += 1
        return SecretSearch(self._values, self._requests, self._glance)


def make_secret_search(broker: "SecretInjector | None", password: bytes) -> OwnSecrets | None:
    """Return the search for a task's secret values; None: it has none.

    `password`: for the upstream proxy; empty: there is none.
    """
    known = [] if broker is None else list(broker.known)
    if len(password) >= _SHORTEST_PASSWORD:
        known.append(SecretToFind("the password for the upstream proxy", password))
    return OwnSecrets(known) if known else None


class SecretSearch:
    """Search of one request: its head, then its body piece by piece."""

    __slots__ = ("_found", "_glance", "_number", "_values")

    def __init__(self, values: tuple[_Value, ...], number: int, glance: "Callable[[bytes], bool]") -> None:
        """`glance` says of a short text whether nothing is in it, all forms at once."""
        self._glance = glance
        self._values = values
        self._number = number
        self._found: dict[_Value, int] = {}  # the pieces in what was looked at, that may not have left

    def search(self, text: bytes, *, pieces: bool = True, lines: bool = True) -> "Sliced[None]":
        """Look at the next text, a value in a slice. What is in it `found` says, and `has_left` has to follow that.

        `pieces`: they are looked for as well, and behind `%`. `lines`: the text may be broken up, as encoders do with
        long ones. Two texts in a row have to overlap, or what is cut between them is missed.
        """
        if len(text) <= _SHORT and not lines and b"%" not in text and self._glance(text):
            return
        ways = [(way, way.lower()) for way in (_ways(text, lines=lines) if pieces else (text,))]
        for value in self._values:
            if bits := value.bits_in(ways, pieces=pieces):
                self._found[value] = self._found.get(value, 0) | bits
            yield

    def found(self) -> "list[str]":
        """Return what was found since `has_left`, in words, with what has left by now of other requests too."""
        names = []
        for value, bits in self._found.items():
            if bits & WHOLE:
                names.append(value.name)
            elif self._has_most(value, bits):
                names.append(f"most of {value.name}, in one request or in several")
        return names

    @property
    def saw_some(self) -> bool:
        """Whether there was a piece of a value in what was looked at last."""
        return bool(self._found)

    def has_left(self) -> None:
        """Remember that what was looked at has left, or is about to."""
        for value, bits in self._found.items():
            if not bits & WHOLE:
                value.left |= bits
                value.last = self._number
        self._found.clear()

    def _has_most(self, value: _Value, bits: int) -> bool:
        if self._number - value.last > FORGOTTEN_AFTER:
            value.left = 0
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
