"""Merging two edits of one text, line by line, when they don't touch each other.

Where both sides changed the same lines, or lines next to each other, in different ways, nothing is guessed.
"""

from collections.abc import Sequence

from enforcer.changes.lines import Block, differences, split


def merge(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Return the text with both sides' changes, or None where they conflict."""
    old, left, right = split(base), split(ours), split(theirs)
    ahead, other = differences(old, left)[::-1], differences(old, right)[::-1]
    merged: list[bytes] = []
    at = 0  # of the base: what lies before is in `merged`
    while ahead or other:
        low = min(blocks[-1].start for blocks in (ahead, other) if blocks)
        high, mine, their = _together(low, ahead, other)
        merged += old[at:low]
        one = _side(left, mine, low, high)
        two = _side(right, their, low, high)
        if one is not None and two is not None and one != two:
            return None
        merged += one if one is not None else two or []
        at = high
    return b"".join([*merged, *old[at:]])


def _together(low: int, ahead: list[Block], other: list[Block]) -> tuple[int, list[Block], list[Block]]:
    """Take off both lists the blocks that overlap or touch, beginning at `low` of the base; and where they end."""
    high, mine, their = low, list[Block](), list[Block]()
    grown = True
    while grown:
        grown = False
        for blocks, taken in ((ahead, mine), (other, their)):
            while blocks and blocks[-1].start <= high:
                taken.append(blocks.pop())
                high = max(high, taken[-1].end)
                grown = True
    return high, mine, their


def _side(lines: Sequence[bytes], blocks: list[Block], low: int, high: int) -> list[bytes] | None:
    """Return what one side has for lines `[low:high]` of the base; None: what the base has."""
    if not blocks:
        return None
    first, last = blocks[0], blocks[-1]
    return list(lines[first.new_start - (first.start - low) : last.new_end + (high - last.end)])
