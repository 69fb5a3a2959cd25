"""A unified diff of two texts, fit for a terminal: whatever a task wrote moves no cursor and hides nothing."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from enforcer.workspace.lines import Block, differences, split
from proxy.telemetry.visible import visible

_CONTEXT: Final = 3  # lines around a change


class Counted(NamedTuple):
    """How many lines were added and taken away."""

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
    """Return a line without its end, every character that isn't plain to see spelled out; tabs stay."""
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
