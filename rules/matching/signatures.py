"""Combinations of patterns that exist: for each, a sample text that exactly these patterns match.

Patterns over parts (labels of a name, segments of a path, characters of a label) are walked all at once, as one
automaton whose states are sets of places in the patterns; every state that can be reached is one combination.
A part that only wildcards match is one that no pattern names. The walk continues only while a required pattern can
still match, so that its cost depends on the differences and not on the number of rules.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from rules.values.globs import MANY, ONE, Glob, Part

type Signature = frozenset[int]  # numbers of the patterns that cover a text
type State = tuple[int, ...]

_MOST_STATES: Final = 200_000
_MOST_FRESH: Final = 64
_LONGEST_PART: Final = 4096  # characters
_LETTERS: Final = "xabcdefghijklmnopqrstuvwyz0123456789"


class Grammar(NamedTuple):
    """What parts of a text are: which characters, whether the last may be a hyphen, and which parts are no parts."""

    hyphens_inside: bool  # a label neither begins nor ends with a hyphen
    never: frozenset[str] = frozenset()


ANY_TEXT: Final = Grammar(hyphens_inside=False)
LABELS: Final = Grammar(hyphens_inside=True)
SEGMENTS: Final = Grammar(hyphens_inside=False, never=frozenset({".", ".."}))


class PatternSample(NamedTuple):
    """One combination of patterns, and the parts of a text that has it."""

    signature: Signature
    parts: tuple[str, ...]


class TooManyError(Exception):
    """There are more combinations than anybody would wait for."""


class _Node:
    __slots__ = ("ends", "globs", "literal", "live", "loops", "many", "one")

    def __init__(self, *, loops: bool) -> None:
        self.literal: dict[str, int] = {}
        self.globs: dict[Glob, int] = {}
        self.one: int | None = None
        self.many: int | None = None
        self.loops = loops
        self.live = False
        self.ends: list[int] = []


class Signatures:
    """Patterns, walked together. `required`: the numbers of those that matter; None: all."""

    def __init__(
        self, patterns: Sequence[tuple[Part, ...]], grammar: Grammar, wanted: Collection[int] | None = None
    ) -> None:
        self._grammar = grammar
        self._wanted = None if wanted is None else frozenset(wanted)
        self._nodes = [_Node(loops=False)]
        self._fillings: dict[tuple[frozenset[Glob], frozenset[str]], tuple[str, ...]] = {}
        for number, parts in enumerate(patterns):
            self._add(parts, number, live=wanted is None or number in wanted)

    def _add(self, parts: tuple[Part, ...], number: int, *, live: bool) -> None:
        at = 0
        self._nodes[0].live |= live
        for part in parts:
            at = self._step(self._nodes[at], part)
            self._nodes[at].live |= live
        self._nodes[at].ends.append(number)

    def _step(self, node: _Node, part: Part) -> int:
        following: int | None
        if part is MANY:
            following = node.many = self._made(loops=True) if node.many is None else node.many
        elif part is ONE:
            following = node.one = self._made(loops=False) if node.one is None else node.one
        elif isinstance(part, Glob):
            following = node.globs.get(part)
            if following is None:
                following = node.globs[part] = self._made(loops=False)
        else:
            following = node.literal.get(part)
            if following is None:
                following = node.literal[part] = self._made(loops=False)
        return following

    def _made(self, *, loops: bool) -> int:
        self._nodes.append(_Node(loops=loops))
        return len(self._nodes) - 1

    def find(
        self,
        valid: Callable[[tuple[str, ...]], bool],
        deepest: int = 130,
        other: str | None = None,
        apart: Callable[[tuple[str, ...]], object] = lambda _: None,
    ) -> Iterator[PatternSample]:
        """Return each combination once, with the shortest `valid` text. Raises TooManyError.

        Combinations without a required pattern are left out. `deepest`: most parts of a text; `other`: a given part
        that no pattern names. `apart` distinguishes texts of one state, if their validity depends on it.
        """
        start = self._closed({0})
        reached = {(start, apart(()))}
        yielded: set[Signature] = set()
        waiting: deque[tuple[State, tuple[str, ...]]] = deque([(start, ())])
        while waiting:
            state, parts = waiting.popleft()
            signature = frozenset(number for at in state for number in self._nodes[at].ends)
            matters = bool(signature) if self._wanted is None else not self._wanted.isdisjoint(signature)
            if matters and signature not in yielded and valid(parts):
                yielded.add(signature)
                yield PatternSample(signature, parts)
            if len(parts) >= deepest:
                continue
            for part in self._alphabet(state, other):
                following = self._after(state, part)
                longer = (*parts, part)
                key = following, apart(longer)
                if key in reached or not any(self._nodes[at].live for at in following):
                    continue
                reached.add(key)
                if len(reached) > _MOST_STATES:
                    raise TooManyError
                waiting.append((following, longer))

    def _closed(self, places: set[int]) -> State:
        """Add the places behind a MANY that covers nothing."""
        waiting = list(places)
        while waiting:
            many = self._nodes[waiting.pop()].many
            if many is not None and many not in places:
                places.add(many)
                waiting.append(many)
        return tuple(sorted(places))

    def _after(self, state: State, part: str) -> State:
        places: set[int] = set()
        for at in state:
            node = self._nodes[at]
            following = node.literal.get(part)
            if following is not None:
                places.add(following)
            if node.one is not None:
                places.add(node.one)
            if node.loops:
                places.add(at)
            places.update(behind for glob, behind in node.globs.items() if glob.matches(part))
        return self._closed(places)

    def _alphabet(self, state: State, other: str | None) -> Iterable[str]:
        """Return one part for each way to continue: named parts, parts that globs cover, and a fresh one."""
        nodes = [self._nodes[at] for at in state]
        globs = frozenset(glob for node in nodes for glob in node.globs)
        wild = any(node.loops or node.one is not None for node in nodes)
        only = nodes[0].literal if len(nodes) == 1 else {part: 0 for node in nodes for part in node.literal}
        yield from (part for part in only if part not in self._grammar.never)
        if globs:
            covered = frozenset(part for part in only if any(glob.matches(part) for glob in globs))
            key = globs, covered
            if key not in self._fillings:
                self._fillings[key] = tuple(_fillings(globs, covered, self._grammar))
            yield from self._fillings[key]
        if wild and other is not None:
            yield other
        elif wild:
            fresh = (text for text in _fresh() if text not in only and not any(glob.matches(text) for glob in globs))
            yield from islice(fresh, 1)


def _fresh() -> Iterator[str]:
    yield "x"
    yield from (f"{letter}{number}" for number in range(_MOST_FRESH) for letter in "xqz")


def _fillings(globs: frozenset[Glob], literals: frozenset[str], grammar: Grammar) -> Iterator[str]:
    """Return a part for each combination of globs that no literal part matches, by the same walk over characters."""
    ordered: list[Glob | str] = [*sorted(globs), *sorted(literals)]
    patterns = [characters(pattern) for pattern in ordered]
    letters = {part for pattern in patterns for part in pattern}
    other = next((letter for letter in _LETTERS if letter not in letters), None)

    def is_part(found: tuple[str, ...]) -> bool:
        text = "".join(found)
        at_an_edge = grammar.hyphens_inside and "-" in {text[:1], text[-1:]}
        return bool(text) and text not in literals and text not in grammar.never and not at_an_edge

    def apart(found: tuple[str, ...]) -> tuple[bool, bool]:
        return found[:1] == ("-",), is_part(found)

    walk = Signatures(patterns, ANY_TEXT)
    yield from ("".join(each.parts) for each in walk.find(is_part, _LONGEST_PART, other, apart))


def characters(pattern: Glob | str) -> tuple[Part, ...]:
    """Split a glob into parts, for the same walk as over names and paths."""
    if isinstance(pattern, str):
        return tuple(pattern)
    pieces = (pattern.prefix, *pattern.middle, pattern.suffix)
    parts: list[Part] = list(pieces[0])
    for piece in pieces[1:]:
        parts += [MANY, *piece]
    return tuple(parts)
