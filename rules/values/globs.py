"""Index of patterns over parts (reversed labels of a name, segments of a path): a few dictionary lookups a part.

A pattern is a tuple of parts: text stands for itself, `ONE` for exactly one part, `MANY` for any number of parts (none
included), a `Glob` for one part with `*` in it. What a lookup costs depends on the text and not on how many patterns
there are. Nothing here knows what parts mean, and nothing is a regular expression: no pattern makes a lookup blow up.
"""

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from unicodedata import combining, normalize


class Wild(Enum):
    """A part that is all wildcard."""

    ONE = "*"
    MANY = "**"


_ACCENTS: Final = 200  # canonical combining classes from here on (UAX 44): those below belong to letters of scripts
ONE: Final = Wild.ONE
MANY: Final = Wild.MANY


def fold(text: str) -> str:
    """Return text in the form for comparison without case and accents.

    Some servers compare upper case and some lower case: one way or the other U+0131 and U+0130 are an `i`.
    Some databases ignore accents too (MySQL: utf8mb4_0900_ai_ci).
    """
    return text.lower() if text.isascii() else "".join(map(_letter, text)).upper().casefold()


@lru_cache(1024)
def _letter(character: str) -> str:
    """Return a character without accents. Each by itself: to put many of one letter in order takes long."""
    if character.isascii():
        return character
    return "".join(each for each in normalize("NFD", character) if combining(each) < _ACCENTS)


class Glob(NamedTuple):
    """One part with `*` in it, each standing for any characters, none included."""

    prefix: str
    middle: tuple[str, ...]
    suffix: str

    @classmethod
    def parse(cls, text: str) -> "Glob":
        """Split `text`, which has at least one `*`."""
        prefix, *middle, suffix = text.split("*")
        return cls(prefix, tuple(piece for piece in middle if piece), suffix)

    def matches(self, part: str) -> bool:
        """Whether `part` is covered; linear in its length."""
        end = len(part) - len(self.suffix)
        start = len(self.prefix)
        if start > end or not (part.startswith(self.prefix) and part.endswith(self.suffix)):
            return False
        for piece in self.middle:
            start = part.find(piece, start, end)
            if start < 0:
                return False
            start += len(piece)
        return True

    def folded(self) -> "Glob":
        """Return it as it covers text in any case, once that is folded."""
        return Glob(fold(self.prefix), tuple(map(fold, self.middle)), fold(self.suffix))


type Part = str | Literal[Wild.ONE, Wild.MANY] | Glob


def fold_pattern(pattern: Sequence[Part]) -> tuple[Part, ...]:
    """Return a folded pattern, for matching folded parts without case."""
    return tuple(
        part if isinstance(part, Wild) else fold(part) if isinstance(part, str) else part.folded() for part in pattern
    )


def pattern_matches(pattern: Sequence[Part], parts: Sequence[str]) -> bool:
    """Whether one pattern covers `parts`: the plain meaning of a pattern, which `Trie` finds faster.

    Going back to the last MANY is enough, as with `*` in shell globs; quadratic at worst.
    """
    at = index = 0
    resume: tuple[int, int] | None = None
    while index < len(parts):
        part = pattern[at] if at < len(pattern) else None
        if part is MANY:
            at += 1
            resume = (at, index)
        elif part is not None and _covers_one(part, parts[index]):
            at, index = at + 1, index + 1
        elif resume is not None:
            at, index = resume[0], resume[1] + 1
            resume = (at, index)
        else:
            return False
    return all(part is MANY for part in pattern[at:])


def may_overlap(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Whether something may be covered by both patterns; parts with `*` inside are taken to meet each other."""
    if not one or not other:
        return all(part is MANY for part in one or other)
    if one[0] is MANY:
        return may_overlap(one[1:], other) or may_overlap(one, other[1:])
    if other[0] is MANY:
        return may_overlap(other, one)
    return _meet(one[0], other[0]) and may_overlap(one[1:], other[1:])


def _meet(one: Part, other: Part) -> bool:
    if isinstance(one, str):
        return _covers_one(other, one)
    return _covers_one(one, other) if isinstance(other, str) else True


def _covers_one(part: Part, text: str) -> bool:
    return part.matches(text) if isinstance(part, Glob) else part is ONE or part == text


_NONE: Final = -1  # no slot


class _Node:
    """Where patterns with a common beginning meet. `slot`: the pattern that ends here; `tail`: here, and then MANY."""

    __slots__ = ("carries", "forks", "globs", "literal", "loops", "many", "one", "slot", "tail")

    def __init__(self, *, loops: bool = False) -> None:
        self.slot = _NONE
        self.tail = _NONE
        self.literal = _NO_NODES  # its own once there is something in it: most nodes are the end of a pattern
        self.one: _Node | None = None
        self.many: _Node | None = None
        self.globs: _Globs | None = None
        self.loops = loops  # the node behind a MANY in the middle stays for every part that comes
        self.carries = loops  # whether anything but `tail` is to be found from here on
        self.forks = loops  # whether one part can lead on to more than one node

    def step(self, part: Part) -> "_Node":
        self.carries = True
        self.forks = self.forks or not isinstance(part, str)
        if part is ONE:
            self.one = self.one or _Node()
            return self.one
        if part is MANY:
            self.many = self.many or _Node(loops=True)
            return self.many
        if isinstance(part, Glob):
            self.globs = self.globs or _Globs()
            return self.globs.add(part)
        if not self.literal:
            self.literal = {}
        node = self.literal.get(part)
        if node is None:
            node = self.literal[part] = _Node()
        return node


_NO_NODES: Final[dict[str, _Node]] = {}


class _Globs:
    """The globs that begin at one node, found by their literal beginning, or by their end where they have none."""

    __slots__ = ("by_prefix", "by_suffix", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[Glob, _Node] = {}
        self.by_prefix: dict[int, dict[str, list[Glob]]] = {}
        self.by_suffix: dict[int, dict[str, list[Glob]]] = {}

    def add(self, glob: Glob) -> _Node:
        node = self.nodes.get(glob)
        if node is None:
            node = self.nodes[glob] = _Node()
            index, key = (self.by_prefix, glob.prefix) if glob.prefix else (self.by_suffix, glob.suffix)
            index.setdefault(len(key), {}).setdefault(key, []).append(glob)
        return node

    def find(self, part: str) -> list[_Node]:
        candidates: list[Glob] = []
        for length, globs in self.by_prefix.items():
            candidates += globs.get(part[:length], ())
        for length, globs in self.by_suffix.items():
            candidates += globs.get(part[max(len(part) - length, 0) :], ())
        return [self.nodes[glob] for glob in candidates if glob.matches(part)]


class Trie[T]:
    """Patterns by number: every distinct pattern has a slot, counted from 0. `values`: by slot what stands under it."""

    __slots__ = ("_root", "values")

    def __init__(self) -> None:
        self._root = _Node()
        self.values: list[list[T]] = []

    def add(self, pattern: Sequence[Part]) -> int:
        """Return the slot of `pattern`, the same one whenever the same pattern is added."""
        node = self._root
        ends_in_many = bool(pattern) and pattern[-1] is MANY
        for part in pattern[:-1] if ends_in_many else pattern:
            node = node.step(part)
        if ends_in_many:
            if node.tail == _NONE:
                node.tail = self._new_slot()
            return node.tail
        if node.slot == _NONE:
            node.slot = self._new_slot()
            node.carries = True
        return node.slot

    def _new_slot(self) -> int:
        self.values.append([])
        return len(self.values) - 1

    def file(self, pattern: Sequence[Part], what: T) -> int:
        """Store a value under a pattern; returns its slot."""
        slot = self.add(pattern)
        self.values[slot].append(what)
        return slot

    def find(self, parts: Sequence[str]) -> list[int]:
        """Find the slots of all patterns that cover `parts`, patterns with a final MANY first; each once."""
        found: list[int] = []
        node, at = self._root, 0
        for part in parts:  # as long as there is but one way to go, as there mostly is
            if node.forks:
                return _find_all(node, parts[at:], found)
            if node.tail != _NONE:
                found.append(node.tail)
            child = node.literal.get(part)
            if child is None:
                return found
            node, at = child, at + 1
        if node.forks:
            return _find_all(node, (), found)
        found += [slot for slot in (node.tail, node.slot) if slot != _NONE]
        return found

    def nearest(self, parts: Sequence[str], least: int = 2) -> int | None:
        """Find the slot of a pattern that begins as `parts` do, for as many as it can but at least `least`."""
        node, deep = self._root, 0
        for part in parts:
            child = node.literal.get(part)
            if child is None:
                break
            node, deep = child, deep + 1
        while deep >= least:
            if node.slot != _NONE or node.tail != _NONE:
                return max(node.slot, node.tail)
            following = node.one or next(iter(node.literal.values()), None)
            if following is None:
                break
            node = following
        return None


def _find_all(start: _Node, parts: Sequence[str], found: list[int]) -> list[int]:
    """Go every way that leads on from `start`, and add the slots that lie there to `found`."""
    nodes: list[_Node] = []
    _enter(start, nodes, found)
    for part in parts:
        following: list[_Node] = []
        for node in nodes:
            child = node.literal.get(part)
            if child is not None:
                _enter(child, following, found)
            if node.one is not None:
                _enter(node.one, following, found)
            if node.globs is not None:
                for child in node.globs.find(part):
                    _enter(child, following, found)
            if node.loops and node not in following:
                following.append(node)
        nodes = following
        if not nodes:
            return found
    found += [node.slot for node in nodes if node.slot != _NONE]
    return found


def _enter(node: _Node, nodes: list[_Node], found: list[int]) -> None:
    """Go on from `node`, and from what lies behind a MANY that covers nothing."""
    if node.tail != _NONE and node.tail not in found:
        found.append(node.tail)
    if node.carries:
        nodes.append(node)
    if node.many is not None and node.many not in nodes:
        _enter(node.many, nodes, found)
