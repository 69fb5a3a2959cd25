"""Could any request on this connection pass? Answered by trying those that stand for all of them.

A connection is decided before its requests are seen; it may be let in only if some request on it could pass, else it
would be opened for nothing. A pattern covers endlessly many paths, but for the verdict only some differ: put a text
that no rule can name (NUL) wherever a wildcard stands, and whatever covers that covers every other text there too; let
`**` be any number of segments up to one more than the longest pattern has, and what covers those covers any number.
So the requests given here decide for all requests that a rule lets out.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final

from rules.paths import Reading
from rules.rule import Http, Rule
from rules.trie import MANY, ONE, Glob, Part

UNNAMED: Final = "\0"  # no rule can have it in a method or a path, so only wildcards cover it

_ANYTHING: Final[tuple[Part, ...]] = (MANY,)


def longest(rules: Iterable[Rule]) -> int:
    """Count the parts of the longest path pattern that any of the rules has, in exemptions too."""
    matches = [http for rule in rules for http in (rule.http, *(e.http for e in rule.excepts)) if http is not None]
    return max((len(pattern.parts) for http in matches for pattern in http.paths or ()), default=0)


def witnesses(http: Http | None, depth: int) -> Iterator[tuple[str, Reading]]:
    """Give a method and a reading of a path for each kind of request that `http` (None: anything) covers.

    `depth` is what `longest` says of all rules that could have a word. Patterns have at most two `**` (paths.py), which
    bounds how many there are.
    """
    methods = (UNNAMED,) if http is None or http.methods is None else sorted(http.methods)
    patterns = (_ANYTHING,) if http is None or http.paths is None else tuple(path.parts for path in http.paths)
    for parts in patterns:
        for path in _paths(parts, depth):
            for method in methods:
                yield method, path


def _paths(parts: tuple[Part, ...], depth: int) -> Iterator[Reading]:
    for lengths in product(range(depth + 2), repeat=sum(part is MANY for part in parts)):
        remaining = iter(lengths)
        path: list[str] = []
        for part in parts:
            path += [UNNAMED] * next(remaining) if part is MANY else [_filled(part)]
        yield tuple(path)


def _filled(part: Part) -> str:
    if isinstance(part, Glob):
        return UNNAMED.join((part.prefix, *part.middle, part.suffix))
    return UNNAMED if part is ONE else str(part)
