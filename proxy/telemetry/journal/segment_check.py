"""Verifies one journal file: hash chain, first line, signatures, and lines that the ledger signed.

A line that a crash has torn is not tampering and has its own severity. If a check fails, the file is read a second time
to find which line was changed, removed, inserted or moved. Each line names its predecessor, so most manipulations show
in the remaining lines. A changed line with a new hash looks like removed lines; only the line count in a later signed
line distinguishes the two.
"""

import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import MalformedEventError, decode
from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal.keys import is_signature_valid, key_id, parse_public_key
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
    """Problem in a file of the journal, with its line."""

    gravity: FindingSeverity  # its name in `exeat log verify --format json`
    file: str
    line: int | None
    why: str

    def __str__(self) -> str:
        """Return the finding as one line."""
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
    last: str = ""  # time of the last line
    mark: Mark | None = None  # of the first line
    marks: list[tuple[int, Kind, Mark]] = field(default_factory=list)  # of a ledger: number, kind and mark of each line
    hashes: set[bytes] = field(default_factory=set)  # of a ledger
    signed: tuple[int, str, str] | None = None  # last line with a valid signature, its time and key
    checks_last_signature_only: bool = False  # skip all signatures but the last
    unchecked_line: "FileLine | None" = None  # the last signed line, still unchecked
    findings: list[Finding] = field(default_factory=list)

    def found(self, line: int | None, why: str, gravity: FindingSeverity = FindingSeverity.TAMPERED) -> None:
        """Add a finding."""
        self.findings.append(Finding(gravity, self.file, line, why))


class FileLine(NamedTuple):
    """Line of a file, with its number."""

    number: int
    text: bytes


def check(
    segment: Segment, claims: "tuple[SignedClaim, ...]", keys: "Keys", file: str, *, every_signature: bool = True
) -> CheckedFile:
    """Check one segment or ledger from its first byte to its last. Raises OSError.

    A key that a trusted key has signed is added to `keys`. Without `every_signature`, only the last signature of a
    ledger is checked: it covers everything before it.
    """
    result = CheckedFile(segment.name, file, checks_last_signature_only=segment.is_ledger and not every_signature)
    _check_lines(segment, claims, keys, result)
    if not result.findings and segment.path.name.endswith(COMPRESSED) and not is_index_correct(segment.path):
        why = "its index does not match its lines: `exeat log` may have skipped some"
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
            # The same check as `segments.links`, with two comparisons for nearly all lines
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
                result.found(number, "it is after the segment's end")
                return
            prev = line_hash
            while number == at:
                if line_hash != claim.head:
                    why = f"it is not the line that was signed ({claim.where}): it or a line before it was changed"
                    result.findings.append(_locate_fault(segment, claims, file, number, why))
                    return
                at, claim = pending_claims.pop(0)
        result.last = texts[-1][_TIME_TEXT].decode("ascii", "replace")
    result.lines, result.head = number, prev
    if at != _NO_LINE:
        most = max(each.lines for each in claims)
        why = f"it ends here, but {most - number} more lines were signed ({claim.where})"
        result.found(number, why)
    elif result.torn and (result.sealed or segment.path.name.endswith(COMPRESSED)):
        result.found(number + 1, "there is half a line after its end")
    elif not result.sealed and segment.path.name.endswith(COMPRESSED) and not segment.is_ledger:
        result.found(number, "it was closed, but its end is missing")
    elif result.torn:
        why = "an unfinished line: its writer was killed, or is writing it now"
        result.found(number + 1, why, FindingSeverity.TORN)


def _check_unusual_line(line: FileLine, prev: bytes, keys: "Keys", result: CheckedFile) -> str | None:
    """Check a line that failed the quick check; return the problem, or None for a validly signed line."""
    found = links(line.text)
    if found is None:
        return "it is not a line of a journal: it has no `prev` and `hash`"
    if not found.is_whole:
        return "it was changed: its hash does not match its content"
    if found.prev != prev:
        return "it does not follow the line before it"
    if not found.signature:
        return "it is not a line of a journal"
    if result.checks_last_signature_only and _KEY not in line.text:
        result.unchecked_line = line
        result.signed = (line.number, "", "")
        return None
    return _check_signature(line, keys, result)


def _check_signature(line: FileLine, keys: "Keys", result: CheckedFile) -> str | None:
    """Verify a line's signature; return the problem, or None."""
    found = links(line.text)
    try:
        mark = decode(line.text).journal
    except MalformedEventError as error:
        return f"it is signed, but not an event: {error}"
    key = "" if mark is None else mark.key
    if key not in keys:
        return f"it is signed with the key `{key[:32]}`, which is not a trusted key"
    if found is None or not is_signature_valid(keys[key], found.signature, found.signed):
        return f"its signature is not valid for the key `{key}`"
    result.signed = (line.number, line.text[_TIME_TEXT].decode("ascii", "replace"), key)
    return None


def _check_own_event(line: FileLine, segment: Segment, keys: "Keys", result: CheckedFile) -> str | None:  # noqa: PLR0911
    """Process an event of the journal about itself; return the problem, or None."""
    try:
        event = decode(line.text)
    except MalformedEventError:
        return "it is not an event"
    mark = event.journal
    if line.number == 1:
        return _check_first_line(event, segment, result)
    if mark is None:
        return "it is not an event"
    signed = result.signed is not None and result.signed[0] == line.number
    if event.kind is Kind.JOURNAL_SEALED:
        result.sealed = True
        if not signed:
            return "it ends the segment, but is not signed"
        if mark.lines != line.number - 1:
            return f"it states {mark.lines} lines before it"
    if not segment.is_ledger:
        return None
    if not signed:
        return "it is not signed"
    if event.kind is Kind.JOURNAL_KEY and (successor := parse_public_key(event.detail)) is not None:
        keys[key_id(successor)] = successor
    result.hashes.add(hash_of(line.text))
    result.marks.append((line.number, event.kind, mark))
    return None


def _check_first_line(event: "Event", segment: Segment, result: CheckedFile) -> str | None:
    """Check a file's first line; return the problem, or None."""
    mark = event.journal
    if mark is None or event.kind is not Kind.JOURNAL_OPENED:
        return "a segment does not begin like this: lines before it were removed"
    if mark.segment != segment.name:
        return f"it begins {mark.segment[:64]}, but is named {segment.name}: it was moved, or another one removed"
    result.mark = mark
    return None


def _locate_fault(segment: Segment, claims: "tuple[SignedClaim, ...]", file: str, number: int, why: str) -> Finding:
    """Read a faulty segment again to find the first changed line and the kind of change."""
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
    whole: bool  # its hash matches its content
    number: int | None = None  # its line number, if it states one


def first_wrong(segment: Segment, signed: "Mapping[int, bytes]") -> tuple[int, str] | None:
    """Return the first faulty line and the kind of change; None: the chain is intact.

    `signed` has the required hashes by line number. Raises OSError.
    """
    lines = _read_links(segment)
    signed = {**signed, **{line.number: line.hash for line in lines if line.number is not None and line.whole}}
    at = {line.hash: number for number, line in enumerate(lines, 1)}
    prev = BEGINNING
    for number, line in enumerate(lines, 1):
        if not line.hash:
            return number, "it is not a line of a journal: it has no `prev` and `hash`"
        if not line.whole:
            return number, "it was changed: its hash does not match its content"
        if line.prev != prev:
            return _explain_gap(lines, at, number, signed)
        prev = line.hash
    return _find_rewritten(lines, signed)


def _find_rewritten(lines: list[_Links], signed: "Mapping[int, bytes]") -> tuple[int, str] | None:
    """Find the two signed lines around a change, in lines whose chain is intact."""
    good = 0
    for number in sorted(signed):
        if number <= len(lines) and lines[number - 1].hash != signed[number]:
            return good + 1, f"from here to line {number} are not the lines that were signed"
        good = number
    return None


def _explain_gap(  # noqa: PLR0911  one return for each kind of change
    lines: list[_Links], at: dict[bytes, int], number: int, signed: "Mapping[int, bytes]"
) -> tuple[int, str]:
    """Explain why line `number` does not follow the line before it, which is intact."""
    line, before = lines[number - 1], lines[number - 2].hash if number > 1 else BEGINNING
    if at[line.hash] != number or any(each.hash == line.hash for each in lines[: number - 1]):
        return number, "it was inserted: it is a copy of another line"
    follows = at.get(line.prev)
    if follows is not None and follows > number:
        return number, f"it is in the wrong place: it follows line {follows}"
    if number < len(lines) and lines[number].prev == before:
        return number, "it was inserted: the line after it follows the one before it"
    if follows is not None:
        return follows + 1, f"from here to line {number - 1} was inserted: line {number} follows line {follows}"
    if (rewritten := _find_rewritten(lines[: number - 1], signed)) is not None:
        return rewritten
    if line.prev == BEGINNING:
        return number, "it is the first line of another segment: the lines before it belong elsewhere"
    missing = _missing_before(at, number, signed)
    if missing == 0 and number > 1:
        return number - 1, "it was changed, and given a new hash: the line after it follows another"
    if number == 1:
        return number, "lines before it were removed"
    much = f"{missing} lines were" if missing and missing > 1 else "a line was" if missing else "lines were"
    return number, f"{much} removed before it"


def _missing_before(at: dict[bytes, int], number: int, signed: "Mapping[int, bytes]") -> int | None:
    """Return the number of lines missing before line `number`, if a signed line states it."""
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
