"""Looking a text through for the patterns: one pass for where any could begin, and a close look only there.

For each prefix the pass looks for its rarest character, and behind and before that for the rest of it.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from proxy.broker.reading import is_key_parameter
from proxy.leaks.patterns import BEGINS_WORD, PATTERNS, Pattern, compiled, entropy, word

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST: Final = 5120  # bytes of the longest that any pattern matches
BACK: Final = 192  # bytes that are looked back at, for the name of a parameter and the beginning of a word
_TRIED_AT_ONCE: Final = 64  # places where a pattern fits and is none, in one slice: some 10 us each
_WINDOW: Final = 32 << 10  # bytes that are gone over at a time: 4 ms where each is a prefix's
_LONGEST_NAME: Final = 64
_RARE: Final = b"~_QZXJKVWYHUGBFDOLMRINPCSATExzqkjvbwy98764325-.:/ "  # rare first, in what clients send


class Hit(NamedTuple):
    """What was found: the kind of credential, and where in the text it is."""

    name: str
    start: int
    end: int
    open: bool = False  # whether it ends with the text, and what comes next might say that it is none


class _Begun(NamedTuple):
    """A prefix, and what may follow it. `offset`: where in it the character is that is looked for."""

    prefix: bytes
    offset: int
    pattern: Pattern
    rest: re.Pattern[bytes]


def _rarity(prefix: bytes) -> int:
    """Return where in a prefix the character is that is rarest in what clients send."""
    ranks = [(_RARE.find(byte) if byte in _RARE else len(_RARE), at) for at, byte in enumerate(prefix)]
    return min(ranks)[1]


def _begun() -> dict[int, tuple[_Begun, ...]]:
    found: dict[int, list[_Begun]] = {}
    for pattern in PATTERNS:
        for prefix in pattern.prefixes:
            offset = _rarity(prefix)
            found.setdefault(prefix[offset], []).append(_Begun(prefix, offset, pattern, compiled(pattern)))
    return {byte: tuple(each) for byte, each in found.items()}


def _anchors(begun: dict[int, tuple[_Begun, ...]]) -> re.Pattern[bytes]:
    """Return the expression for the one pass. Each branch begins with a character, which is what makes it quick.

    Each also looks ahead for all of the rest: a text of nothing but prefixes then costs no step of the interpreter's.
    """
    branches = []
    for byte, each in begun.items():
        ways: dict[tuple[bytes, bool], set[bytes]] = {}  # what follows, and whether a word begins: by what is behind
        for prefix, offset, pattern, _ in each:
            follows = re.escape(prefix[offset + 1 :]) + pattern.rest, pattern.word
            ways.setdefault(follows, set()).add(re.escape(prefix[: offset + 1]))
        either = []
        for (after, begins_word), befores in sorted(ways.items()):
            sizes: dict[int, list[bytes]] = {}
            for before in sorted(befores):
                sizes.setdefault(len(before.replace(b"\\", b"")), []).append(before)
            for same in (b"|".join(sizes[size]) for size in sorted(sizes)):
                begun_word = word(b"(?:" + same + b")") if begins_word else b""
                either.append(b"(?<=" + same + b")" + begun_word + b"(?=" + after + b")")
        branches.append(re.escape(bytes([byte])) + b"(?:" + b"|".join(either) + b")")
    return re.compile(b"|".join(branches))


_BEGUN: Final = _begun()
_ANCHORS: Final = _anchors(_BEGUN)


def may_have_some(text: bytes) -> bool:
    """Whether any credential could begin in a text."""
    return _ANCHORS.search(text) is not None


def hits(text: bytes, *, parameters: bool = False, url: bool = False) -> "Iterator[Hit]":
    """Yield what looks like a credential in `text`.

    `parameters`: it has some, `name=value`, where a credential may be in its usual place. `url`: it is a request's.
    """
    return (hit for hit in candidates(text, parameters=parameters, url=url) if hit is not None)


def _fitting(text: bytes) -> "Iterator[int | None]":
    """Yield where a pattern may fit, and None after each part of the work."""
    for begin in range(0, len(text), _WINDOW):
        for tried, anchor in enumerate(_ANCHORS.finditer(text, begin, begin + _WINDOW + LONGEST), 1):
            if anchor.start() >= begin + _WINDOW:
                break
            yield anchor.start()
            if not tried % _TRIED_AT_ONCE:
                yield None
        yield None


def candidates(text: bytes, *, parameters: bool = False, url: bool = False) -> "Iterator[Hit | None]":
    """Yield `hits`, and None after each part of the work: the caller may stop there for a while (`proxy.slices`)."""
    for at in _fitting(text):
        if at is None:
            yield None
            continue
        for prefix, offset, pattern, rest in _BEGUN[text[at]]:
            start = at - offset
            if start < 0 or not text.startswith(prefix, start):
                continue
            if pattern.word and BEGINS_WORD.match(text, start) is None:
                continue
            if url and pattern.not_in_urls:
                continue
            found = rest.match(text, start + len(prefix))
            if found is None or entropy(found[0]) < pattern.entropy:
                continue
            if pattern.check is not None and not pattern.check(text[start : found.end()]):
                continue
            if not (parameters and _is_in_place(text, start)):
                yield Hit(pattern.name, start, found.end(), pattern.ends and found.end() == len(text))


def _is_in_place(text: bytes, start: int) -> bool:
    """Whether what begins there is the value of a parameter that credentials stand in: that is how they are used."""
    before = text[max(start - BACK, 0) : start]
    name, equals, _ = before[max(before.rfind(b"?"), before.rfind(b"&")) + 1 :].partition(b"=")
    if not equals or len(name) > _LONGEST_NAME or b"\n" in name:
        return False
    return is_key_parameter(unquote_to_bytes(name).lower())
