"""Unified diff of two texts by lines, and three-way merge of edits that don't touch each other.

The difference is the shortest edit script. A task chooses one of the texts, so the work is bounded: beyond the bound,
everything between the common beginning and the common end counts as one difference. Output escapes control characters.

Source: E. W. Myers, "An O(ND) Difference Algorithm and Its Variations", 1986.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from proxy.telemetry.visible import visible

_MOST_STEPS: Final = 500_000  # under a second
_CONTEXT: Final = 3  # lines around a change


class Block(NamedTuple):
    """Lines `[start:end]` of the old text that stand as `[new_start:new_end]` in the new one."""

    start: int
    end: int
    new_start: int
    new_end: int


def split(text: bytes) -> list[bytes]:
    r"""Split at line feeds and nothing else; every line but an unfinished last one ends in `\n`."""
    *lines, last = text.split(b"\n")
    return [*(line + b"\n" for line in lines), *([last] if last else [])]


def differences(old: Sequence[bytes], new: Sequence[bytes], most: int = _MOST_STEPS) -> list[Block]:
    """Return the differing blocks, in order; no two touch. `most` bounds the number of steps."""
    numbers: dict[bytes, int] = {}  # equal lines, equal numbers: a line is looked at once however long it is
    a = [numbers.setdefault(line, len(numbers)) for line in old]
    b = [numbers.setdefault(line, len(numbers)) for line in new]
    head = 0
    while head < len(a) and head < len(b) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    inner_a, inner_b = a[head : len(a) - tail], b[head : len(b) - tail]
    if not inner_a and not inner_b:
        return []
    whole = [Block(0, len(inner_a), 0, len(inner_b))]
    found = whole if not inner_a or not inner_b else _shortest(inner_a, inner_b, most) or whole
    return [Block(*(at + head for at in block)) for block in found]


def _shortest(a: list[int], b: list[int], most: int) -> list[Block] | None:
    """Find the shortest script; None where that takes too many steps."""
    furthest = {1: 0}  # by diagonal: how far along `a` the best path so far reaches
    history: list[dict[int, int]] = []
    steps = 0
    for edits in range(len(a) + len(b) + 1):
        history.append(dict(furthest))
        steps += len(furthest)
        for diagonal in range(-edits, edits + 1, 2):
            x = _begin(furthest, diagonal, edits)
            y = x - diagonal
            before = x
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            furthest[diagonal] = x
            steps += 1 + x - before
            if x >= len(a) and y >= len(b):
                return _blocks(history, len(a), len(b))
            if steps > most:
                return None
    raise AssertionError("deleting all of one and inserting all of the other is a script")


def _begin(furthest: dict[int, int], diagonal: int, edits: int) -> int:
    """Choose between an insertion (from the diagonal above) and a deletion (from the one below)."""
    if diagonal == -edits or (diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1]):
        return furthest[diagonal + 1]
    return furthest[diagonal - 1] + 1


def _blocks(history: list[dict[int, int]], x: int, y: int) -> list[Block]:
    """Walk the path back from its end, and gather what is no match into blocks."""
    found: list[Block] = []
    for edits in range(len(history) - 1, 0, -1):
        furthest = history[edits]
        diagonal = x - y
        begun = _begin(furthest, diagonal, edits)
        inserted = diagonal == -edits or (diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1])
        from_x = begun if inserted else begun - 1
        from_y = from_x - (diagonal + 1 if inserted else diagonal - 1)
        to_x, to_y = begun, begun - diagonal
        if found and (found[-1].start, found[-1].new_start) == (to_x, to_y):
            last = found.pop()
            found.append(Block(from_x, last.end, from_y, last.new_end))
        else:
            found.append(Block(from_x, to_x, from_y, to_y))
        x, y = from_x, from_y
    return found[::-1]


def merge(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Return the text with both sides' changes, or None where they conflict.

    Where both sides changed the same lines, or lines next to each other, in different ways, nothing is guessed.
    """
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
    """Split the blocks that overlap or touch, beginning at `low` of the base, off both lists; return their end too."""
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
    """Return the lines of one side for `[low:high]` of the base; None: unchanged."""
    if not blocks:
        return None
    first, last = blocks[0], blocks[-1]
    return list(lines[first.new_start - (first.start - low) : last.new_end + (high - last.end)])


class Counted(NamedTuple):
    """Number of added and deleted lines."""

    added: int
    deleted: int


def counted(old: bytes, new: bytes) -> Counted:
    """Count the lines that differ."""
    blocks = differences(split(old), split(new))
    return Counted(sum(b.new_end - b.new_start for b in blocks), sum(b.end - b.start for b in blocks))


def hunks(old: bytes, new: bytes) -> Iterator[str]:
    """Yield the lines of all hunks, without line ends."""
    before, after = split(old), split(new)
    group: list[Block] = []
    for block in differences(before, after):
        if group and block.start - group[-1].end > 2 * _CONTEXT:
            yield from _hunk(before, after, group)
            group = []
        group.append(block)
    if group:
        yield from _hunk(before, after, group)


def shown(line: bytes) -> str:
    """Return a line without its end, with control and invisible characters escaped; tabs stay."""
    text = line.decode("utf-8", "surrogateescape")
    return "\t".join(visible(part) for part in text.split("\t"))


def _hunk(before: list[bytes], after: list[bytes], blocks: list[Block]) -> Iterator[str]:
    start = max(blocks[0].start - _CONTEXT, 0)
    end = min(blocks[-1].end + _CONTEXT, len(before))
    new_start = blocks[0].new_start - (blocks[0].start - start)
    new_end = blocks[-1].new_end + end - blocks[-1].end
    yield f"@@ -{_range(start, end)} +{_range(new_start, new_end)} @@"
    at = start
    for block in blocks:
        yield from _marked(" ", before[at : block.start])
        yield from _marked("-", before[block.start : block.end])
        yield from _marked("+", after[block.new_start : block.new_end])
        at = block.end
    yield from _marked(" ", before[at:end])


def _range(start: int, end: int) -> str:
    """Write lines as diff does: counted from 1; an empty range stands after the line that it names."""
    length = end - start
    first = start + 1 if length else start
    return f"{first}" if length == 1 else f"{first},{length}"


def _marked(mark: str, lines: list[bytes]) -> Iterator[str]:
    for line in lines:
        yield mark + shown(line.removesuffix(b"\n"))
        if not line.endswith(b"\n"):
            yield "\\ No newline at end of file"
