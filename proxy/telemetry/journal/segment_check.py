"""Verifies one journal file: hash chain, first line, signatures, and lines that the ledger signed.

A line that a crash has torn is no tampering, and is reported apart. Where something is wrong the file is read a second
time, to report which line was changed, removed, inserted or moved. Each line names the one it follows, so most of what
can be done to a file shows in what is left of it. A changed line with a new hash leaves the same traces as removed
lines, but for their number: a signed line, which states that, tells the two apart.
"""

import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import MalformedEventError, decode
from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal.keys import key_id, said_key, valid
from proxy.telemetry.journal.segments import (
    BEGINNING,
    COMPRESSED,
    LEDGER,
    Segment,
    blocks,
    hash_of,
    is_index_correct,
    links,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from proxy.telemetry.events import Event

type Keys = MutableMapping[str, Ed25519PublicKey]

_KIND_AT = len('{"time":"2026-11-18T12:00:00.000000000Z","id":"01a1fbac-5503-7e75-bce9-8bc86d516a2a"')
_JOURNAL_KIND = b',"kind":"journal.'
_KEY = b'"kind":"journal.key"'
_TIME_TEXT = slice(9, 39)
_NO_LINE = 1 << 62


class FindingSeverity(StrEnum):
    """Severity of a finding."""

    TAMPERED = "tampered"
    UNSIGNED = "unsigned"
    TORN = "torn"


class Finding(NamedTuple):
    """What is wrong, and where: a file of the journal, and the line in it."""

    gravity: FindingSeverity  # its name in `exeat log verify --format json`
    file: str
    line: int | None
    why: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.why}"


@dataclass(frozen=True, slots=True)
class SignedClaim:
    """Signed claim about a segment: its number of lines, and the hash of the last."""

    lines: int
    head: bytes
    closed: bool
    where: str


@dataclass(slots=True)
class CheckedFile:
    """Result of checking one file."""

    name: str
    file: str
    lines: int = 0
    head: bytes = BEGINNING
    sealed: bool = False
    torn: bool = False
    last: str = ""  # the time of the last line
    mark: Mark | None = None  # of the first line
    marks: list[tuple[int, Kind, Mark]] = field(default_factory=list)  # of a ledger: each line's
    hashes: set[bytes] = field(default_factory=set)  # of a ledger
    signed: tuple[int, str, str] | None = None  # the last line with a good signature, its time, and its key
    checks_last_signature_only: bool = False  # signatures are not held against their keys but for the last
    unchecked_line: "FileLine | None" = None  # the last signed line, whose signature was not
    findings: list[Finding] = field(default_factory=list)

    def found(self, line: int | None, why: str, gravity: FindingSeverity = FindingSeverity.TAMPERED) -> None:
        """Add a finding."""
        self.findings.append(Finding(gravity, self.file, line, why))


class FileLine(NamedTuple):
    """A place in a file."""

    number: int
    text: bytes


def check(
    segment: Segment, claims: "tuple[SignedClaim, ...]", keys: "Keys", file: str, *, every_signature: bool = True
) -> CheckedFile:
    """Look at one segment or ledger from its first byte to its last. Raises OSError.

    A key that a trusted one vouches for is added to `keys`. Without `every_signature`, of a ledger only the last one is
    held against its key: it is over everything before it.
    """
    result = CheckedFile(segment.name, file, checks_last_signature_only=segment.is_ledger and not every_signature)
    _check_lines(segment, claims, keys, result)
    if not result.findings and segment.path.name.endswith(COMPRESSED) and not is_index_correct(segment.path):
        why = "its index says otherwise than its lines: `exeat log` may have passed some over"
        result.found(None, why)
    if result.unchecked_line is not None and not result.findings:
        problem = _check_signature(result.unchecked_line, keys, result)
        if problem is not None:
            return check(segment, claims, keys, file)
    return result


def _check_lines(segment: Segment, claims: "tuple[SignedClaim, ...]", keys: "Keys", result: CheckedFile) -> None:  # noqa: C901, PLR0912  10 million times
    file = result.file
    prev, number = BEGINNING, 0
    pending_claims = [(claim.lines, claim) for claim in sorted(set(claims), key=lambda claim: claim.lines)]
    pending_claims.append((_NO_LINE, SignedClaim(_NO_LINE, b"", False, "")))
    at, claim = pending_claims.pop(0)
    for block in blocks(segment):
        if block.torn:
            result.torn = True
            break
        texts = block.lines[:-1].split(b"\n")
        for text in texts:
            number += 1
            body = text[:-75]
            line_hash = sha256(body).hexdigest().encode()
            # What `segments.links` takes apart, for all but a few lines with two comparisons
            plain = text.endswith(b',"hash":"%b"}' % line_hash) and body.endswith(b',"prev":"%b"' % prev)
            if (
                not plain
                and (wrong := _check_unusual_line(FileLine(number, text + b"\n"), prev, keys, result)) is not None
            ):
                result.findings.append(_locate_fault(segment, claims, file, number, wrong))
                return
            if text.startswith(_JOURNAL_KIND, _KIND_AT) or number == 1:
                if (problem := _check_own_event(FileLine(number, text + b"\n"), segment, keys, result)) is not None:
                    result.found(number, problem)
                    return
            elif result.sealed:
                result.found(number, "it stands behind the segment's end")
                return
            prev = line_hash
            while number == at:
                if line_hash != claim.head:
                    why = f"it is not the line that was signed ({claim.where}); it or one before it was changed"
                    result.findings.append(_locate_fault(segment, claims, file, number, why))
                    return
                at, claim = pending_claims.pop(0)
        result.last = texts[-1][_TIME_TEXT].decode("ascii", "replace")
    result.lines, result.head = number, prev
    if at != _NO_LINE:
        most = max(each.lines for each in claims)
        why = f"it ends here: {most - number} more lines were signed ({claim.where})"
        result.found(number, why)
    elif result.torn and (result.sealed or segment.path.name.endswith(COMPRESSED)):
        result.found(number + 1, "there is half a line behind its end")
    elif not result.sealed and segment.path.name.endswith(COMPRESSED) and not segment.is_ledger:
        result.found(number, "it was closed, and its end is missing")
    elif result.torn:
        why = "an unfinished line: its writer was killed, or is writing it now"
        result.found(number + 1, why, FindingSeverity.TORN)


def _check_unusual_line(line: FileLine, prev: bytes, keys: "Keys", result: CheckedFile) -> str | None:
    """Look at a line that isn't as most are; what is wrong with it, None: it is signed, and well."""
    found = links(line.text)
    if found is None:
        return "it is no line of a journal: it has no `prev` and `hash`"
    if not found.is_whole:
        return "it was changed: its hash is not that of what it says"
    if found.prev != prev:
        return "it does not follow the line before it"
    if not found.signature:
        return "it is no line of a journal"
    if result.checks_last_signature_only and _KEY not in line.text:
        result.unchecked_line = line
        result.signed = (line.number, "", "")
        return None
    return _check_signature(line, keys, result)


def _check_signature(line: FileLine, keys: "Keys", result: CheckedFile) -> str | None:
    """Hold a line's signature against its key; what is wrong with it."""
    found = links(line.text)
    try:
        mark = decode(line.text).journal
    except MalformedEventError as error:
        return f"it is signed and no event: {error}"
    key = "" if mark is None else mark.key
    if key not in keys:
        return f"it is signed with the key `{key[:32]}`, which is none of those that are trusted"
    if found is None or not valid(keys[key], found.signature, found.signed):
        return f"its signature is not that of the key `{key}`"
    result.signed = (line.number, line.text[_TIME_TEXT].decode("ascii", "replace"), key)
    return None


def _check_own_event(line: FileLine, segment: Segment, keys: "Keys", result: CheckedFile) -> str | None:  # noqa: PLR0911
    """Take note of what the journal says of itself; what is wrong with it."""
    try:
        event = decode(line.text)
    except MalformedEventError:
        return "it is no event"
    mark = event.journal
    if line.number == 1:
        return _check_first_line(event, segment, result)
    if mark is None:
        return "it is no event"
    signed = result.signed is not None and result.signed[0] == line.number
    if event.kind is Kind.JOURNAL_SEALED:
        result.sealed = True
        if not signed:
            return "it says that the segment ends here, and is not signed"
        if mark.lines != line.number - 1:
            return f"it says that {mark.lines} lines are before it"
    if not segment.is_ledger:
        return None
    if not signed:
        return "it is not signed"
    if event.kind is Kind.JOURNAL_KEY and (successor := said_key(event.detail)) is not None:
        keys[key_id(successor)] = successor
    result.hashes.add(hash_of(line.text))
    result.marks.append((line.number, event.kind, mark))
    return None


def _check_first_line(event: "Event", segment: Segment, result: CheckedFile) -> str | None:
    """Look at a file's first line."""
    mark = event.journal
    if mark is None or event.kind is not Kind.JOURNAL_OPENED:
        return "it is not how a segment begins: what stood before it was removed"
    if mark.segment != segment.name:
        return f"it begins {mark.segment[:64]}, and is called {segment.name}: it was moved, or another one removed"
    result.mark = mark
    return None


def _locate_fault(segment: Segment, claims: "tuple[SignedClaim, ...]", file: str, number: int, why: str) -> Finding:
    """Look again at a segment in which something is wrong, for what was done to it and where that begins."""
    if os.path.basename(file).startswith(LEDGER):
        claims = ()
    located = first_wrong(segment, {claim.lines: claim.head for claim in claims})
    if located is not None:
        return Finding(FindingSeverity.TAMPERED, file, *located)
    return Finding(FindingSeverity.TAMPERED, file, number, why)


_SEAL = re.compile(rb'"kind":"journal\.sealed".*"journal":\{"segment":"[^"]*","lines":(\d{1,12})[,}]')


class _Links(NamedTuple):
    prev: bytes
    hash: bytes
    whole: bool  # its hash is that of what it says
    number: int | None = None  # which line it is to be, if it says so


def first_wrong(segment: Segment, signed: "Mapping[int, bytes]") -> tuple[int, str] | None:
    """Return the first line that is wrong and what was done; None: each follows the one before.

    `signed` says which hash a line (by its number) has to have. Raises OSError.
    """
    lines = _read_links(segment)
    signed = {**signed, **{line.number: line.hash for line in lines if line.number is not None and line.whole}}
    at = {line.hash: number for number, line in enumerate(lines, 1)}
    prev = BEGINNING
    for number, line in enumerate(lines, 1):
        if not line.hash:
            return number, "it is no line of a journal: it has no `prev` and `hash`"
        if not line.whole:
            return number, "it was changed: its hash is not that of what it says"
        if line.prev != prev:
            return _explain_gap(lines, at, number, signed)
        prev = line.hash
    return _find_rewritten(lines, signed)


def _find_rewritten(lines: list[_Links], signed: "Mapping[int, bytes]") -> tuple[int, str] | None:
    """Say between which two signed lines something was changed, of lines that hang together."""
    good = 0
    for number in sorted(signed):
        if number <= len(lines) and lines[number - 1].hash != signed[number]:
            return good + 1, f"from here to line {number} are not the lines that were signed"
        good = number
    return None


def _explain_gap(  # noqa: PLR0911  a list of what may have been done
    lines: list[_Links], at: dict[bytes, int], number: int, signed: "Mapping[int, bytes]"
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
    if (rewritten := _find_rewritten(lines[: number - 1], signed)) is not None:
        return rewritten
    if line.prev == BEGINNING:
        return number, "it is another segment's beginning: what stood before it belongs elsewhere"
    missing = _missing_before(at, number, signed)
    if missing == 0 and number > 1:
        return number - 1, "it was changed, and given a new hash: the line behind it follows another"
    if number == 1:
        return number, "what stood before it was removed"
    much = f"{missing} lines were" if missing and missing > 1 else "a line was" if missing else "something was"
    return number, f"{much} removed before it"


def _missing_before(at: dict[bytes, int], number: int, signed: "Mapping[int, bytes]") -> int | None:
    """Return how many lines are missing before line `number`, where a signed line tells."""
    for meant in sorted(signed):
        found = at.get(signed[meant])
        if found is not None and found >= number:
            return meant - found
    return None


def _read_links(segment: Segment) -> list[_Links]:
    found = []
    for block in blocks(segment):
        if block.torn:
            break
        for text in block.lines[:-1].split(b"\n"):
            parsed = links(text + b"\n")
            if parsed is None:
                found.append(_Links(b"", b"", whole=False))
            else:
                seal = _SEAL.search(text) if parsed.signature else None
                found.append(
                    _Links(parsed.prev, parsed.hash, parsed.is_whole, None if seal is None else int(seal[1]) + 1)
                )
    return found
