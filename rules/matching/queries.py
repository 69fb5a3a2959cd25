"""Matches query parameters and headers, as servers may read them, against a rule.

Servers differ: in what separates parameters, in how often they decode, in whether case counts. Each way to read them
is asked; where the ways differ the answer is `PERHAPS`, which holds back and never lets out.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from rules.globs import Glob, fold
from rules.matching.precedence import Match, weakest_match
from rules.patterns import Pattern
from rules.rule import Presence, Values

type Pairs = tuple[tuple[str, str], ...]

_ROUNDS: Final = 3  # of decoding
_LONGEST: Final = 16 * 1024  # bytes of a query that are read: servers take 8 to 16 KB of a URL
_MOST: Final = 1000  # parameters, or members of a header's lists: PHP takes no more, and others fewer
_SPECIAL: Final = frozenset("%+;")
_SAME: Final = {ord("."): "_", ord(" "): "_", ord("["): "_"}
_WIDE: Final = re.compile(r"%u([0-9a-fA-F]{4})")  # ASP's way to write any character
# CGI's environment has one name for `X-Team`, `X_Team` and, with some servers, `X.Team` (RFC 3875 section 4.1.18)
_HEADER_SAME: Final = {code: "-" for code in range(0x80) if not chr(code).isalnum()}


def match_parameter(query: str, name: str, wanted: Values) -> Match:
    """Match a parameter of a query (without its `?`) against the values of a rule.

    What is so long that servers differ in how much of it they read is not known, and costs nobody its reading.
    """
    if len(query) > _LONGEST or query.count("&") + query.count(";") > _MOST:
        return Match.PERHAPS
    if _SPECIAL.isdisjoint(query):
        return _match_values(_split(query, "&"), name, wanted)
    match = _combine({_match_values(pairs, name, wanted) for pairs in _readings(query)})
    if match is Match.PERHAPS or "+" not in query:
        return match
    if match is Match.YES and not isinstance(wanted, Presence):
        return match
    literal = match_parameter(query.replace("+", "%2B"), name, wanted)  # it is a space to nearly every server
    return weakest_match((literal, Match.PERHAPS)) if match is Match.NO else _combine({match, literal})


def match_header(headers: Pairs, name: str, wanted: Values) -> Match:
    """Match a header against the values of a rule; `headers` have lower-case names. Without headers: unknown.

    A field that comes more than once, or is a list with commas, matches for certain only if each of its lines does.
    Servers differ in which names are the same to them, and one that `Connection` names is for the next hop alone (RFC
    9110 section 7.6.1): whoever is behind that may never see it.
    """
    if not headers:
        return Match.PERHAPS
    same = name.translate(_HEADER_SAME)
    lines = [(key == name, value.strip(" \t")) for key, value in headers if key.translate(_HEADER_SAME) == same]
    if not lines:
        return Match.YES if wanted is Presence.ABSENT else Match.NO
    found = {_header_held(lines, wanted)}
    if any(key == "connection" and name in map(str.strip, value.lower().split(",")) for key, value in headers):
        found.add(_header_held([], wanted))
    return _combine(found)


def _header_held(lines: Sequence[tuple[bool, str]], wanted: Values) -> Match:
    """Answer for what there is of a header, each line with whether its name is exactly this one."""
    exact = any(exactly for exactly, _ in lines)
    if isinstance(wanted, Presence):
        if bool(lines) is not exact:
            return Match.PERHAPS
        return Match.YES if exact is (wanted is Presence.PRESENT) else Match.NO
    if exact and all(_one_of(wanted, line) for _, line in lines):
        return Match.YES
    if len(lines) + sum(line.count(",") for _, line in lines) > _MOST:
        return Match.PERHAPS
    texts = [text for _, line in lines for text in (line, *line.split(","))]
    return Match.PERHAPS if any(_one_of_folded(wanted, text) for text in texts) else Match.NO


def _combine(found: set[Match]) -> Match:
    return found.pop() if len(found) == 1 else Match.PERHAPS


def _split(query: str, separator: str) -> Pairs:
    return tuple([(name, value) for name, _, value in [p.partition("=") for p in query.split(separator) if p]])


@lru_cache(maxsize=16)  # every rule, and every parameter of one, asks about the same request
def _readings(query: str) -> tuple[Pairs, ...]:
    return tuple(dict.fromkeys(_each_reading(query)))


def _each_reading(query: str) -> Iterator[Pairs]:
    for pairs in (_split(query, "&"), _split(query.replace(";", "&"), "&")):
        for rounds in (1, _ROUNDS):
            yield tuple((_decoded(name, rounds), _decoded(value, rounds)) for name, value in pairs)
            if "%" in query:
                yield tuple((_other_readings(name, rounds), _other_readings(value, rounds)) for name, value in pairs)


def _match_values(pairs: Pairs, name: str, wanted: Values) -> Match:
    """Answer by one reading; a name that is the same to some server (another case, a part of a list) counts as well."""
    bare = _base_names(name)
    same = [(key == name, value) for key, value in pairs if key == name or not bare.isdisjoint(_base_names(key))]
    exact = any(exactly for exactly, _ in same)
    if isinstance(wanted, Presence):
        if bool(same) is not exact:
            return Match.PERHAPS
        return Match.YES if exact is (wanted is Presence.PRESENT) else Match.NO
    if exact and all(_one_of(wanted, value) for _, value in same):
        return Match.YES
    return Match.PERHAPS if any(_one_of_folded(wanted, value) for _, value in same) else Match.NO


@lru_cache(maxsize=1024)
def _base_names(name: str) -> frozenset[str]:
    """Bring to one form the names that some server takes for the same: `Name`, `name[]`, `name[0]`, ` name`."""
    return frozenset(fold(part.strip()).translate(_SAME) for part in (name, name.partition("[")[0]))


def _other_readings(text: str, rounds: int) -> str:
    """Decode as ASP does, or up to a NUL, where PHP's names end."""
    wide = _WIDE.sub(lambda found: chr(int(found[1], 16)).encode("utf-8", "replace").decode(), text)
    return _decoded(wide, rounds).partition("\0")[0]


def _decoded(text: str, rounds: int) -> str:
    text = text.replace("+", " ")
    for _ in range(rounds):
        head, *pieces = text.split("%")
        out = bytearray(head.encode("utf-8", "surrogateescape"))
        for piece in pieces:
            digits = piece[:2]
            if (
                len(digits) == 2
                and digits.isascii()
                and digits.isalnum()
                and digits.strip("0123456789abcdefABCDEF") == ""
            ):
                out.append(int(digits, 16))
                out += piece[2:].encode("utf-8", "surrogateescape")
            else:
                out += b"%" + piece.encode("utf-8", "surrogateescape")
        further = out.decode("utf-8", "surrogateescape")
        if further == text:
            break
        text = further
    return text


def _one_of(patterns: Iterable[Pattern], text: str) -> bool:
    return any(pattern.matches(text) for pattern in patterns)


def _one_of_folded(patterns: Iterable[Pattern], text: str) -> bool:
    lowered = fold(text.strip())
    for pattern in patterns:
        wanted = fold(pattern.text.strip())
        if Glob.parse(wanted).matches(lowered) if "*" in wanted else wanted == lowered:
            return True
    return False
