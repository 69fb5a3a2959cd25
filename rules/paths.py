"""Paths as a server may read them. RFC 3986 says how to read a path; servers differ, and the differences are bypasses.

A request's path is brought to *readings*, each a tuple of decoded segments. One is how it is written; the others are
what servers make of it that decode slashes, decode twice, merge empty segments, drop `.`, cut `;parameters` or take
out a session (`(S(x))`, ASP.NET's). Whoever decides takes the strictest verdict over all readings, and the bytes go out
unchanged. What no two servers would agree on (`..`, backslashes, control bytes, bytes that are no UTF-8, broken
escapes, more than 1000 segments) has no reading at all: it is ambiguous and denied.
A slash at the end makes no difference, neither in a path nor in a pattern.
"""

import re
from typing import Final, NamedTuple, Self

from rules.matching.trie import MANY, ONE, Glob, Part, Wild, covers

type Reading = tuple[str, ...]

_ROUNDS: Final = 4  # of decoding; what still has escapes that hide something after that is hostile
_MOST_SEGMENTS: Final = 1000  # of a path that is read: every rule's patterns go through all of them
_MOST_PARTS: Final = 64  # of a pattern: witness.py tries every length of every `**`
_MOST_MANY: Final = 2
_SESSION: Final = re.compile(r"\((?:[A-Za-z]\([^()]*\))+\)")  # a segment of its own: sessions without cookies
_HEX: Final = "0123456789abcdefABCDEF"
_ESCAPES: Final = {(a + b).encode(): bytes([int(a + b, 16)]) for a in _HEX for b in _HEX}
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
    segments = _split(path)
    if "//" in path or "/." in path or ";" in path or "/(" in path:
        return _with_collapsed(segments)
    return (segments,)


def _split(path: str) -> Reading:
    bare = path.rstrip("/")
    return tuple(bare[1:].split("/")) if bare else ()


def _with_collapsed(*written: Reading) -> tuple[Reading, ...]:
    """Add to each reading what a server makes of it that merges slashes, drops `.` and cuts parameters and sessions."""
    found: dict[Reading, None] = {}
    for segments in written:
        bare = [segment.partition(";")[0] for segment in segments]
        if ".." in bare:
            return ()
        found[segments] = None
        found[tuple(segment for segment in bare if segment not in {"", "."} and not _is_session(segment))] = None
    return tuple(found)


def _is_session(segment: str) -> bool:
    return segment[:1] == "(" and _SESSION.fullmatch(segment) is not None


def _decoded_readings(path: str) -> tuple[Reading, ...]:
    """Read a path with escapes twice: slashes and further escapes left alone, and everything decoded to the end."""
    if not _NEVER_WRITTEN.isdisjoint(path):
        return ()
    once = _decoded(path, strict=True)
    as_written = [_decoded(segment, strict=True) for segment in _split(path)]
    segments = tuple(segment for segment in as_written if segment is not None)
    if once is None or len(segments) < len(as_written):
        return ()
    for _ in range(_ROUNDS):
        further = _decoded(once, strict=False)
        if further is None or not _NEVER_DECODED.isdisjoint(once):
            return ()
        if further == once:
            if once.count("/") > _MOST_SEGMENTS:
                return ()
            return _with_collapsed(segments, _split(once))
        once = further
    return ()


def _decoded(text: str, *, strict: bool) -> str | None:
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
        return cls("/" + "/".join(map(_shown, parts)), parts)

    def matches(self, reading: Reading) -> bool:
        """Whether one reading of a path is covered."""
        return covers(self.parts, reading)


def _part(segment: str, text: str) -> Part:
    if segment == "*":
        return ONE
    if segment == "**":
        return MANY
    if "**" in segment:
        raise ValueError(f"`{text}`: `**` stands for whole segments, as in `/a/**`; within one it is `*`")
    pieces = [_decoded(piece, strict=True) for piece in segment.split("*")]
    if None in pieces or not _NEVER_DECODED.isdisjoint("".join(piece or "" for piece in pieces)):
        raise ValueError(f"`{text}` has a broken escape or a control character in it")
    prefix, *rest = (piece or "" for piece in pieces)
    if not rest:
        if prefix in {".", ".."}:
            raise ValueError(f"`{text}` has `{prefix}` in it, which no request is let through with")
        return prefix
    return Glob(prefix, tuple(piece for piece in rest[:-1] if piece), rest[-1])


def _shown(part: Part) -> str:
    """Write a part as a pattern has it, in the one way that means only this."""
    if isinstance(part, Wild):
        return part.value
    pieces = (part.prefix, *part.middle, part.suffix) if isinstance(part, Glob) else (part,)
    return "*".join(piece.translate(_WRITTEN) for piece in pieces)
