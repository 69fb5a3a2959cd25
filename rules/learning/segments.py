"""Patterns for paths that were seen: a `*` only where three values were seen in that segment, all else being the same.

Works on readings (rules.paths), segment by segment, the last first. `**` and `*` within a segment are never made up.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from rules.globs import ONE, Part
from rules.paths import PathPattern, Reading

ENOUGH: Final = 3  # distinct values of a segment

type Learned = tuple[Part, ...]

_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~@:+=,$!")


def generalised(seen: Iterable[Reading]) -> set[Learned]:
    """Give patterns that cover every reading, and beyond them only what a `*` stands for."""
    patterns: set[Learned] = set(seen)
    while True:
        found = _once(patterns)
        if found == patterns:
            return patterns
        patterns = found


def _once(patterns: set[Learned]) -> set[Learned]:
    """Put a `*` into the last segment that has enough values, for all patterns that are the same but for it."""
    for back in range(1, max(map(len, patterns), default=0) + 1):
        groups: dict[tuple[Learned, Learned], set[Part]] = defaultdict(set)
        for pattern in patterns:
            if len(pattern) >= back:
                at = len(pattern) - back
                groups[pattern[:at], pattern[at + 1 :]].add(pattern[at])
        wide = {around: values for around, values in groups.items() if len(values) > 1 and _is_wide(values)}
        if wide:
            kept = set(patterns)
            for (before, after), values in wide.items():
                kept -= {(*before, value, *after) for value in values}
                kept.add((*before, ONE, *after))
            return kept
    return patterns


def _is_wide(values: set[Part]) -> bool:
    return ONE in values or len(values) >= ENOUGH


def covers(pattern: Learned, reading: Reading) -> bool:
    """Whether a pattern covers a reading."""
    return len(pattern) == len(reading) and all(
        part is ONE or part == segment for part, segment in zip(pattern, reading, strict=True)
    )


def written(pattern: Learned) -> str | None:
    """Write a pattern as a rule has it, in ASCII without anything to quote; None: the rule language has no way to."""
    text = "/" + "/".join("*" if part is ONE else _escaped(str(part)) for part in pattern)
    try:
        read = PathPattern.parse(text)
    except ValueError:
        return None
    return text if read.parts == pattern else None


def _escaped(segment: str) -> str:
    return "".join(
        character if character in _PLAIN else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in segment
    )
