"""Kinds of names or paths, each given by the patterns that cover it, told as rules would write them."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Final

type Kind = frozenset[str]

_MOST_LEFT_OUT: Final = 3


class Kinds:
    """All kinds there are. `whole`: the patterns of which every kind is among them; None: of each one."""

    def __init__(self, kinds: Iterable[Kind], whole: Collection[str] | None = None) -> None:
        self._having: dict[str, set[Kind]] = defaultdict(set)
        for kind in kinds:
            for pattern in kind:
                self._having[pattern].add(kind)
        self._whole = None if whole is None else frozenset(whole)

    def told(self, kinds: Collection[Kind]) -> list[str]:
        """Write some of the kinds: by the patterns that they fill, and else by what they are and what they are not."""
        wanted = set(kinds)
        candidates = {pattern for kind in wanted for pattern in kind}
        filled = [
            pattern
            for pattern in candidates
            if (self._whole is None or pattern in self._whole) and self._having[pattern] <= wanted
        ]
        filled.sort(key=lambda pattern: (-len(self._having[pattern]), len(pattern), pattern))
        said: list[str] = []
        left = set(wanted)
        for pattern in filled:
            if not self._having[pattern].isdisjoint(left):
                left -= self._having[pattern]
                said.append(pattern)
        return [*sorted(said), *sorted({self._narrowed(kind, wanted) for kind in left})]

    def _narrowed(self, kind: Kind, wanted: set[Kind]) -> str:
        base = max(kind, key=_specificity)
        crossing = sorted(p for p in kind if p != base and not self._having[base] <= self._having[p])
        left_out = list(self._left_out(base, kind, wanted))
        also = f" that is also {' and '.join(crossing)}" if crossing else ""
        but = f" but not {', '.join(left_out[:_MOST_LEFT_OUT])}" if left_out else ""
        more = len(left_out) - _MOST_LEFT_OUT
        return base + also + but + (f" and {more} more" if more > 0 else "")

    def _left_out(self, base: str, kind: Kind, wanted: set[Kind]) -> Iterator[str]:
        """Find what is inside `base` and not meant, the widest first."""
        inside = {pattern for other in self._having[base] for pattern in other if pattern not in kind}
        outside = sorted(
            (p for p in inside if self._having[p].isdisjoint(wanted)), key=lambda p: (-len(self._having[p]), p)
        )
        covered: set[Kind] = set()
        for pattern in outside:
            here = self._having[pattern] & self._having[base]
            if not here <= covered:
                covered |= here
                yield pattern


def _specificity(pattern: str) -> tuple[bool, int, int, str]:
    """Rank patterns: the one that names most is the most specific."""
    parts = pattern.replace("/", ".").split(".")
    return "*" not in pattern, sum("*" not in part and bool(part) for part in parts), len(pattern), pattern
