"""Paths as servers may read them. RFC 3986 defines one reading; servers differ, and differences are bypasses.

A request's path is brought to *readings*, each a tuple of decoded segments. The first is how it is written; the others
are what servers make of it, in any combination:

- decode several times, and split at slashes before, between or after that;
- merge empty segments, drop `.`, cut `;parameters`, take out a session (`(S(x))`, ASP.NET's);
- compare names as Windows and frameworks do: without blanks around them, dots behind them and `::$DATA`, and in
  Unicode's compatible form, without what is invisible (UAX 15 NFKC; full-width letters are letters then, and what
  looks like a slash is one).

The evaluator takes the strictest verdict over all readings, and the bytes go out unchanged: a deny covers each
spelling, an allow only what it covers in all of them. What no two servers would agree on (`..`, backslashes, control
bytes, bytes that are no UTF-8, broken escapes, more than 1000 segments) has no reading: it is ambiguous and denied.
A slash at the end makes no difference, neither in a path nor in a pattern.

Some servers decode a path and then parse it again: for them `/admin%3Fx` ends at the `?`. That reading (`cut_readings`)
counts for denies, asks and flags alone: an allow of `/channels/*/messages` covers `/channels/%23general/messages`.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from rules.values.globs import MANY, ONE, Glob, Part, Wild, pattern_matches

type Reading = tuple[str, ...]

_ROUNDS: Final = 4  # of decoding; what still has escapes that hide something after that is hostile
_MOST_SEGMENTS: Final = 1000  # of a path that is read: every rule's patterns go through all of them
_MOST_COMPARED: Final = 250  # segments of a path with non-ASCII characters or nested escapes: read several times
_MOST_IN_ALL: Final = 4 * _MOST_SEGMENTS  # of all readings together
_MOST_PARTS: Final = 64  # of a pattern: sample_requests.py tries every length of every `**`
_MOST_MANY: Final = 2
_SESSION: Final = re.compile(r"\((?:[A-Za-z]\([^()]*\))+\)")  # a segment of its own: sessions without cookies
_LONGEST_NESTED: Final = 8192  # characters of a path with nested escapes
_BLANKS: Final = "".join(filter(str.isspace, map(chr, range(0x3001))))  # those that Unicode has
# What UAX 44 calls ignorable where it has no sign, besides the category Cf
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_MOST_MARKS: Final = 30  # on one letter, as of UAX 15 D3: to put many in order takes the square of their number
_LATE_MARKS: Final = frozenset("\u0f73\u0f75\u0f81\uff9e\uff9f")  # that are such only in their compatible form
_MOST_EXPANDED: Final = 2, 64  # times as long, and characters more: some are written as up to 18 others
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_HEX: Final = "0123456789abcdefABCDEF"
_ESCAPES: Final = {(a + b).encode(): bytes([int(a + b, 16)]) for a in _HEX for b in _HEX}
_WIDE_ESCAPE: Final = re.compile(r"%[uU][0-9A-Fa-f]{4}")  # of IIS; nested in another escape never legitimate
_SLASHES: Final = {0x2044: "/", 0x2215: "/", 0x2216: "\\"}  # substitutes in Windows' code pages ("best fit")
_CONTROLS: Final = frozenset(map(chr, range(0x20))) | {"\x7f"}
_WRITTEN: Final = {ord(character): f"%{ord(character):02X}" for character in "%/*?#;"}
_NEVER_DECODED: Final = _CONTROLS | {"\\"}
_NEVER_WRITTEN: Final = _NEVER_DECODED | {" ", "#"}


def readings(target: str) -> tuple[Reading, ...]:
    """List every way to read the path of a request target (`/a/b?c=d`, or `*`), as written first; none: ambiguous."""
    path = target.partition("?")[0]
    if path[:1] != "/":
        return ((),) if path == "*" else ()  # RFC 9112 section 3.2.4: asterisk-form is about the server as a whole
    if len(path) > _MOST_SEGMENTS and path.count("/") > _MOST_SEGMENTS:
        return ()
    if not path.isascii() or "%" in path:
        return _decoded_readings(path)
    if not path.isprintable() or "\\" in path or " " in path or "#" in path:
        return ()
    bare = path.rstrip("/")
    segments = tuple(bare[1:].split("/")) if bare else ()  # `_split`, without a call for what nearly every path is
    if "//" in path or "/." in path or ";" in path or "/(" in path or "./" in path or path[-1] == "." or ":$" in path:
        return _all_readings((segments,))
    return (segments,)


def cut_readings(reading: Reading) -> tuple[Reading, ...] | None:
    """List what is left of a path for a server that parses it again once it is decoded: what is before a `?` or `#`.

    Empty: it has neither. None: what is left is ambiguous.
    """
    for at, segment in enumerate(reading):
        end = min((segment.index(mark) for mark in "?#" if mark in segment), default=None)
        if end is not None:
            return _all_readings(((*reading[:at], *filter(None, (segment[:end],))),)) or None
    return ()


def _split(path: str) -> Reading:
    bare = path.rstrip("/")
    return tuple(bare[1:].split("/")) if bare else ()


def _all_readings(written: Iterable[Reading]) -> tuple[Reading, ...]:
    """Add to each reading what servers make of it that compare names leniently, leave segments out, or do both."""
    found: dict[Reading, None] = {}
    size = 0
    for segments in written:
        for way in (segments, _collapse(segments), _compare_leniently(segments), _strip_fully(segments)):
            if way is None:
                return ()
            if way not in found:
                found[way] = None
                size += len(way)
        if size > _MOST_IN_ALL:
            return ()
    return tuple(found)


def _collapse(segments: Reading) -> Reading | None:
    """Merge slashes, drop `.`, cut parameters and sessions; None: it climbs."""
    bare = [segment.partition(";")[0] for segment in segments]
    if ".." in bare:
        return None
    return tuple(segment for segment in bare if segment not in {"", "."} and not _is_session(segment))


def _strip_fully(segments: Reading) -> Reading | None:
    """Do both until nothing is left to do: `a.;x` is `a`."""
    way: Reading | None = segments
    for _ in range(_ROUNDS):
        before = way
        way = _collapse(segments)
        way = None if way is None else _compare_leniently(way)
        if way is None or way == before:
            return way
        segments = way
    return None


def _compare_leniently(segments: Reading) -> Reading | None:
    """Compare names as Windows and some frameworks do; None: it climbs then, or hides something further."""
    found: list[str] = []
    for segment in segments:
        name = segment if segment.isascii() else _to_compatible(segment)
        if "\\" in name or (_ESCAPE.search(name) and not _ESCAPE.search(segment)):
            return None
        for part in name.split("/") if name is not segment else (name,):
            if part.partition(";")[0].replace(" ", "") == "..":
                return None
            bare = _trim(part)
            if ":$" in bare and bare.rpartition(":")[2][:1] == "$":  # NTFS: `::$DATA`, `:$I30:$INDEX_ALLOCATION`
                bare = _trim(bare.partition(":")[0])
            if bare or not part:
                found.append(bare)
    return tuple(found)


def _trim(name: str) -> str:
    return name.lstrip(_BLANKS).rstrip(_BLANKS + ".")


def _to_compatible(segment: str) -> str:
    """Replace characters by their compatible forms, and drop invisible ones."""
    shown = unicodedata.normalize("NFKC", segment.translate(_SLASHES))
    unseen = {ord(character): None for character in set(shown) if _is_unseen(character)}
    return unicodedata.normalize("NFKC", shown.translate(unseen)) if unseen else shown


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or _UNSEEN.match(character) is not None


def _is_costly(text: str) -> bool:
    """Whether normalising a path is slow, which no text written by people is."""
    if text.count("/") > _MOST_COMPARED:
        return True
    run = 0
    for character in text:
        if unicodedata.combining(character) or character in _LATE_MARKS:
            run += 1
            if run > _MOST_MARKS:
                return True
        elif run and not _is_unseen(character):
            run = 0
    times, more = _MOST_EXPANDED
    return len(unicodedata.normalize("NFKC", text)) > times * len(text) + more


def _is_session(segment: str) -> bool:
    return segment[:1] == "(" and _SESSION.fullmatch(segment) is not None


def _decoded_readings(path: str) -> tuple[Reading, ...]:
    """Read a path with escapes: decoded once or further, and split at the slashes that are there at any time."""
    texts = _decodings(path)
    if not _NEVER_WRITTEN.isdisjoint(path) or any(text.count("/") > _MOST_SEGMENTS for text in texts):
        return ()
    written: dict[Reading, None] = {}
    for split, text in enumerate(texts):  # so many times decoded
        segments: Reading | None = _split(text)
        for decoded in range(max(split, 1), len(texts)) if len(texts) > 1 else (0,):
            if texts[decoded].count("/") == text.count("/"):
                segments = _split(texts[decoded])
            elif segments is not None:
                segments = _decode_all(segments, strict=decoded == 1)
            if segments is None:
                return ()
            written[segments] = None
    found = _all_readings(written)
    return () if None in map(cut_readings, found) else found


def _decodings(path: str) -> list[str]:
    """Return a path as it is after no, one, two ... times of decoding, to the end; empty: it is ambiguous."""
    texts = [path]
    while len(texts) == 1 or "%" in texts[-1]:
        further = _decode(texts[-1], strict=len(texts) == 1)
        if further == texts[-1]:
            break
        if further is None or len(texts) > _ROUNDS or (len(texts) > 1 and len(path) > _LONGEST_NESTED):
            return []
        texts.append(further)
    if not texts[-1].isascii() and _is_costly(texts[-1]):
        return []
    if len(texts) > 2 and texts[-1].count("/") > _MOST_COMPARED:
        return []
    if len(texts) > 1 and _WIDE_ESCAPE.search(texts[-1]):
        return []
    return texts if all(map(_NEVER_DECODED.isdisjoint, texts)) else []


def _decode_all(segments: Reading, *, strict: bool) -> Reading | None:
    found = tuple(_decode(segment, strict=strict) for segment in segments)
    return None if None in found else tuple(segment for segment in found if segment is not None)


def _decode(text: str, *, strict: bool) -> str | None:
    """Decode every escape once. None if the bytes are no UTF-8, or, if `strict`, where `%` begins no escape."""
    head, *pieces = text.encode("utf-8", "surrogateescape").split(b"%")
    decoded = [head]
    for piece in pieces:
        byte = _ESCAPES.get(piece[:2])
        if byte is None and strict:
            return None
        decoded.append(b"%" + piece if byte is None else byte + piece[2:])
    try:
        return b"".join(decoded).decode("utf-8")
    except UnicodeDecodeError:
        return None


def percent_encode(text: str, plain: frozenset[str]) -> str:
    """Write text with escapes for all but `plain` characters (RFC 3986 section 2.1)."""
    if plain.issuperset(text):
        return text
    return "".join(c if c in plain else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text)


class PathPattern(NamedTuple):
    """A pattern for paths: `*` stands for characters within one segment, `**` for any number of whole segments.

    `text` is its normal form.
    """

    text: str
    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern, which is written decoded or with escapes. Raises ValueError with what to write instead."""
        if text[:1] != "/":
            raise ValueError(f"`{text}` must begin with a slash: `/{text}`")
        for character, meaning in (("?", "a query"), ("#", "a fragment"), (";", "parameters"), ("\\", "a backslash")):
            if character in text:
                raise ValueError(f"`{text}` has {meaning} in it, which is never part of what is compared")
        segments = _split(text)
        if "" in segments:
            raise ValueError(f"`{text}` has an empty segment, which no request is let through with: write one slash")
        if len(segments) > _MOST_PARTS or segments.count("**") > _MOST_MANY:
            raise ValueError(f"`{text}` has more than {_MOST_PARTS} segments or more than {_MOST_MANY} times `**`")
        parts = tuple(_part(segment, text) for segment in segments)
        return cls("/" + "/".join(map(_format_part, parts)), parts)

    def matches(self, reading: Reading) -> bool:
        """Whether one reading of a path is covered."""
        return pattern_matches(self.parts, reading)


def _part(segment: str, text: str) -> Part:
    if segment == "*":
        return ONE
    if segment == "**":
        return MANY
    if "**" in segment:
        raise ValueError(f"`{text}`: `**` stands for whole segments, as in `/a/**`; within one it is `*`")
    pieces = [_decode(piece, strict=True) for piece in segment.split("*")]
    if None in pieces or not _NEVER_DECODED.isdisjoint("".join(piece or "" for piece in pieces)):
        raise ValueError(f"`{text}` has a broken escape or a control character in it")
    prefix, *rest = (piece or "" for piece in pieces)
    if not rest:
        if prefix in {".", ".."}:
            raise ValueError(f"`{text}` has `{prefix}` in it, which no request is let through with")
        return prefix
    return Glob(prefix, tuple(piece for piece in rest[:-1] if piece), rest[-1])


def _format_part(part: Part) -> str:
    """Write a part as a pattern has it, in the one way that means only this."""
    if isinstance(part, Wild):
        return part.value
    pieces = (part.prefix, *part.middle, part.suffix) if isinstance(part, Glob) else (part,)
    return "*".join(piece.translate(_WRITTEN) for piece in pieces)
