"""What was done to a segment that doesn't hang together: which line was changed, removed, inserted or moved.

Each line says which one it follows, so most of what can be done to a file can be told from what is left of it. Whoever
changes a line and makes its hash anew leaves the same as whoever removes lines, but for how many there are: a signed
line, which says that, tells the two apart.
"""

import re
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.journal.chain import BEGINNING, links
from proxy.telemetry.journal.segments import Segment, blocks

if TYPE_CHECKING:
    from collections.abc import Mapping


_SEAL = re.compile(rb'"kind":"journal\.sealed".*"journal":\{"segment":"[^"]*","lines":(\d{1,12})[,}]')


class _Line(NamedTuple):
    prev: bytes
    hash: bytes
    whole: bool  # its hash is that of what it says
    number: int | None = None  # which line it is to be, if it says so


def first_wrong(segment: Segment, signed: "Mapping[int, bytes]") -> tuple[int, str] | None:
    """Return the first line that is wrong and what was done; None: each follows the one before.

    `signed` says which hash a line (by its number) has to have. Raises OSError.
    """
    lines = _read(segment)
    signed = {**signed, **{line.number: line.hash for line in lines if line.number is not None and line.whole}}
    at = {line.hash: number for number, line in enumerate(lines, 1)}
    prev = BEGINNING
    for number, line in enumerate(lines, 1):
        if not line.hash:
            return number, "it is no line of a journal: it has no `prev` and `hash`"
        if not line.whole:
            return number, "it was changed: its hash is not that of what it says"
        if line.prev != prev:
            return _misplaced(lines, at, number, signed)
        prev = line.hash
    return _rewritten(lines, signed)


def _rewritten(lines: list[_Line], signed: "Mapping[int, bytes]") -> tuple[int, str] | None:
    """Say between which two signed lines something was changed, of lines that hang together."""
    good = 0
    for number in sorted(signed):
        if number <= len(lines) and lines[number - 1].hash != signed[number]:
            return good + 1, f"from here to line {number} are not the lines that were signed"
        good = number
    return None


def _misplaced(  # noqa: PLR0911  a list of what may have been done
    lines: list[_Line], at: dict[bytes, int], number: int, signed: "Mapping[int, bytes]"
) -> tuple[int, str]:
    """Say why line `number` doesn't follow the one before it, which is whole and does."""
    line, before = lines[number - 1], lines[number - 2].hash if number > 1 else BEGINNING
    if at[line.hash] != number or any(each.hash == line.hash for each in lines[: number - 1]):
        return number, "it was inserted: it is a copy of another line"
    follows = at.get(line.prev)
    if follows is not None and follows > number:
        return number, f"it stands in the wrong place: it follows what is line {follows}"
    if number < len(lines) and lines[number].prev == before:
        return number, "it was inserted: the line behind it follows the one before it"
    if follows is not None:
        return follows + 1, f"from here to line {number - 1} was inserted: line {number} follows line {follows}"
    if (rewritten := _rewritten(lines[: number - 1], signed)) is not None:
        return rewritten
    if line.prev == BEGINNING:
        return number, "it is another segment's beginning: what stood before it belongs elsewhere"
    missing = _missing(at, number, signed)
    if missing == 0 and number > 1:
        return number - 1, "it was changed, and given a new hash: the line behind it follows another"
    if number == 1:
        return number, "what stood before it was removed"
    much = f"{missing} lines were" if missing and missing > 1 else "a line was" if missing else "something was"
    return number, f"{much} removed before it"


def _missing(at: dict[bytes, int], number: int, signed: "Mapping[int, bytes]") -> int | None:
    """Return how many lines are missing before line `number`, where a signed line tells."""
    for meant in sorted(signed):
        found = at.get(signed[meant])
        if found is not None and found >= number:
            return meant - found
    return None


def _read(segment: Segment) -> list[_Line]:
    found = []
    for block in blocks(segment):
        if block.torn:
            break
        for text in block.lines[:-1].split(b"\n"):
            said = links(text + b"\n")
            if said is None:
                found.append(_Line(b"", b"", whole=False))
            else:
                whole = sha256(said.hashed).hexdigest().encode() == said.hash
                seal = _SEAL.search(text) if said.signature else None
                found.append(_Line(said.prev, said.hash, whole, None if seal is None else int(seal[1]) + 1))
    return found
