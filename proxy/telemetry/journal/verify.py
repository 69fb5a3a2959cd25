"""Verifies a journal: each of its files (`segment_check`), and all of them against each other.

It checks that each segment in a ledger exists or has a signed removal, that each ledger has the lines that segments
recorded of it, and that it follows the previous one. It reports lines newer than the last signature: without one, any
process may have written them. With the public key all of this works on a copy.
"""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.encoding import MalformedEventError, decode
from proxy.telemetry.events import Kind
from proxy.telemetry.journal.keys import is_signature_valid
from proxy.telemetry.journal.segment_check import CheckedFile, Finding, FindingSeverity, Keys, SignedClaim, check
from proxy.telemetry.journal.segments import LEDGER, Segment, days, find, ledger, links, segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_PARALLEL_FROM = 32 << 20  # bytes of segments from which several processes pay off
_UNSIGNED_FOR = 60  # seconds until a line must be signed


@dataclass(slots=True)
class Report:
    """Result of a verification."""

    findings: list[Finding] = field(default_factory=list)
    lines: int = 0
    segments: int = 0
    signed: str = ""  # time of the last signature
    key: str = ""  # its key
    head: str = ""  # hash of the last line of the last ledger

    def found(self, gravity: FindingSeverity, file: str, line: int | None, why: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(gravity, file, line, why))

    @property
    def intact(self) -> bool:
        """Whether all findings are effects of a crash."""
        return all(each.gravity is FindingSeverity.TORN for each in self.findings)


class LedgerContents(NamedTuple):
    """Contents of all ledgers."""

    claims: dict[str, list[SignedClaim]]
    removed: set[str]  # days and segments
    hashes: dict[str, set[bytes]]  # by ledger
    ended: set[str]  # ledgers with unknown hashes


def verify(
    journal: "Path",
    keys: Keys,
    external_lines: "Iterable[tuple[str, bytes]]" = (),
    progress: "Callable[[int, int], None]" = lambda _done, _all: None,
) -> Report:
    """Verify a whole journal. Raises OSError.

    `external_lines` are lines stored on another machine, each with its source: the journal must have what they sign.
    `progress` receives the number of checked bytes and of all bytes.
    """
    report = Report()
    where = days(journal)
    # List segments first: while others write, the ledgers read later then have all that these segments recorded.
    found = [segment for day in where for segment in segments(day)]
    ledgers = _check_ledgers(journal, where, keys, report)
    for source, line in external_lines:
        _add_external_claim(source, line, keys, ledgers, report)
    checked = []
    sizes = {segment.name: _size(segment) for segment in found}
    total, done = sum(sizes.values()), 0
    for each in _check_segments(found, ledgers, keys, total):
        done += sizes[each.name]
        progress(done, total)
        checked.append(each)
        report.findings += each.findings
        report.lines += each.lines
    report.segments = len(found)
    begun = {name for name in ledgers.claims if find(journal, name) is not None}
    _report_missing(ledgers, {segment.name for segment in found} | begun, {day.name for day in where}, report)
    for each in checked:
        if not each.findings or each.findings[0].gravity is FindingSeverity.TORN:
            _check_predecessor(each, ledgers, report)
    _report_unsigned(checked, ledgers, report)
    report.findings.sort(key=lambda each: (each.file, each.line or 0))
    return report


def _check_ledgers(journal: "Path", where: "list[Path]", keys: Keys, report: Report) -> LedgerContents:
    """Check the ledgers in order and collect their contents."""
    ledgers = LedgerContents({}, set(), {}, set())
    for day in where:
        day_ledger = ledger(day)
        if day_ledger is None:
            continue
        done = check(day_ledger, (), keys, os.path.relpath(day_ledger.path, journal), every_signature=False)
        report.findings += done.findings
        report.lines += done.lines
        ledgers.hashes[day_ledger.name] = done.hashes
        if done.findings:
            ledgers.ended.add(day_ledger.name)
        _check_predecessor(done, ledgers, report)
        for number, kind, each in done.marks:
            if kind is Kind.JOURNAL_CHECKPOINT and each.lines is not None:
                claim = SignedClaim(each.lines, each.head.encode(), each.closed, f"{done.file}:{number}")
                ledgers.claims.setdefault(each.segment, []).append(claim)
            elif kind is Kind.JOURNAL_REMOVED:
                ledgers.removed.add(each.segment)
        if done.signed is not None:
            _, report.signed, report.key = done.signed
        report.head = done.head.decode("ascii", "replace")
    # Drop findings about ledgers whose removal a later ledger records
    report.findings = [
        each for each in report.findings if each.line is not None or each.file.partition("/")[0] not in ledgers.removed
    ]
    return ledgers


def _check_predecessor(done: CheckedFile, ledgers: LedgerContents, report: Report) -> None:
    """Check that the ledger before a file exists and has the line that was its last one then."""
    if done.mark is None or not done.mark.after:
        return
    name, head, where = done.mark.after, done.mark.follows, f"{done.file}:1"
    if name not in ledgers.hashes:
        report.found(
            FindingSeverity.TAMPERED, f"{name.partition('/')[0]}/{LEDGER}", None, f"it is missing ({where} follows it)"
        )
    elif head.encode() not in ledgers.hashes[name] and name not in ledgers.ended:
        why = f"the line with the hash {head[:16]}… is missing: it existed when {where} was written"
        report.found(FindingSeverity.TAMPERED, f"{name}.jsonl", None, why)


def _add_external_claim(source: str, line: bytes, keys: Keys, ledgers: LedgerContents, report: Report) -> None:
    """Add a signed line from another machine as a claim that the journal must meet."""
    found = links(line)
    try:
        event = decode(line)
    except MalformedEventError:
        report.found(FindingSeverity.UNSIGNED, source, None, "it is not a line of a journal")
        return
    mark = event.journal
    if mark is None or event.kind is not Kind.JOURNAL_CHECKPOINT or mark.lines is None:
        return
    if found is None or mark.key not in keys or not is_signature_valid(keys[mark.key], found.signature, found.signed):
        report.found(FindingSeverity.UNSIGNED, source, None, "it is not signed with a trusted key")
        return
    ledgers.claims.setdefault(mark.segment, []).append(SignedClaim(mark.lines, mark.head.encode(), mark.closed, source))


def _check_segments(found: "list[Segment]", ledgers: LedgerContents, keys: Keys, total: int) -> "Iterator[CheckedFile]":
    """Check each segment, on all cores if there are many bytes."""
    _shared_keys.clear()
    _shared_keys.update(keys)
    jobs = [(each, tuple(ledgers.claims.get(each.name, ())), _file_name(each)) for each in found]
    if total < _PARALLEL_FROM or len(found) == 1:
        yield from map(_check_segment, jobs)
        return
    import multiprocessing

    # Largest first, so that no core ends with a long one; fork(2) shares the data without copying it
    jobs.sort(key=lambda job: _size(job[0]), reverse=True)
    with multiprocessing.get_context("fork").Pool(min(len(jobs), os.process_cpu_count() or 1)) as pool:
        yield from pool.imap_unordered(_check_segment, jobs)


_shared_keys: Keys = {}


def _check_segment(job: tuple[Segment, tuple[SignedClaim, ...], str]) -> CheckedFile:
    segment, claims, file = job
    try:
        return check(segment, claims, _shared_keys, file)
    except FileNotFoundError:
        gone = CheckedFile(segment.name, file)
        gone.found(None, "it was removed during the verification", FindingSeverity.UNSIGNED)
        return gone


def _file_name(segment: Segment) -> str:
    return f"{segment.name.partition('/')[0]}/{segment.path.name}"


def _size(segment: Segment) -> int:
    try:
        return segment.path.stat().st_size
    except FileNotFoundError:
        return 0  # compressed or removed meanwhile


def _report_missing(ledgers: LedgerContents, existing: set[str], where: set[str], report: Report) -> None:
    """Report segments that a ledger lists and the journal lacks, and missing numbers."""
    for name, claims in ledgers.claims.items():
        day = name.partition("/")[0]
        if name not in existing and name not in ledgers.removed and day not in ledgers.removed:
            most = max(claims, key=lambda claim: claim.lines)
            why = f"it is missing: {most.lines} lines of it were signed ({most.where})"
            report.found(FindingSeverity.TAMPERED, name, None, why)
    for day in where:
        numbers = {int(name.partition("/")[2]) for name in existing if name.startswith(f"{day}/")}
        for number in range(1, max(numbers, default=0)):
            name = f"{day}/{number:04d}"
            if number not in numbers and name not in ledgers.removed and name not in ledgers.claims:
                report.found(FindingSeverity.TAMPERED, name, None, "it is missing: there are later ones")


def _report_unsigned(checked: list[CheckedFile], ledgers: LedgerContents, report: Report) -> None:
    """Report lines that should be signed by now."""
    if not checked:
        return
    if not report.signed:
        report.found(FindingSeverity.UNSIGNED, LEDGER, None, "nothing in this journal is signed")
        return
    newest = max(each.last for each in checked)
    if _parse_time(newest) - _parse_time(report.signed) > _UNSIGNED_FOR:
        why = f"nothing was signed since {report.signed}: later lines, up to {newest}, are not proven"
        report.found(FindingSeverity.UNSIGNED, LEDGER, None, why)
    for each in checked:
        known = max((claim.lines for claim in ledgers.claims.get(each.name, ())), default=0)
        if (
            each.lines > known
            and _parse_time(report.signed) - _parse_time(each.last) > _UNSIGNED_FOR
            and not each.findings
        ):
            first = "it" if not known else f"the part after line {known}"
            why = f"{first} is in no ledger: any process may have written it"
            report.found(FindingSeverity.UNSIGNED, each.file, known + 1, why)


def _parse_time(text: str) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
