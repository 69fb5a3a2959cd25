"""Chooses which of too many entries to show: equally many of each group."""

from collections import Counter
from collections.abc import Callable, Iterable


def fair_share[T](entries: Iterable[T], most: int, group: Callable[[T], object]) -> list[T]:
    """Return at most `most` entries in their order.

    What a task does again and again, lookups that lead nowhere, leaves room for what it did once.
    """
    seen: Counter[object] = Counter()
    found: list[tuple[int, int, T]] = []
    for number, entry in enumerate(entries):
        name = group(entry)
        if seen[name] < most:
            found.append((seen[name], number, entry))
        seen[name] += 1
    found.sort(key=lambda each: each[:2])
    return [entry for _, _, entry in sorted(found[:most], key=lambda each: each[1])]
