"""Detects anomalies for the journal's keeper: compares the journal with the baselines, and records what is unusual.

The keeper starts a process for this from time to time. One file has the baselines and the position in the journal. It
is replaced as a whole, so a kill neither skips events nor counts them twice. Only recent anomalies are recorded. If the
file can't be read, that is recorded and the baselines start again from the journal.
"""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import MsgspecError, Struct

from proxy.telemetry.baseline.baselines import Baselines, no_baselines, place_of
from proxy.telemetry.encoding import MalformedEventError, decode, encode, timestamp
from proxy.telemetry.events import Component, Count, Event, Fault, IdMaker, Instant, Kind, Origin
from proxy.telemetry.journal.bookmark import Bookmark, Reader, SavedBookmark, replace
from proxy.telemetry.journal.segments import days
from proxy.telemetry.journal.writer import Journal
from rules.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.telemetry.events import Destination

FILE: Final = "usual.json"
TOLD: Final = "unusual.json"  # anomalies by task, and the number of unreviewed flags
_LOCK: Final = "usual.lock"
_BATCH_LINES: Final = 5000  # lines
_MOST_LINES: Final = 400_000  # lines of one scan; the next continues there
_LONGEST: Final = 32 << 20  # bytes of the file; above its largest size
_MOST_TASKS: Final = 200  # in `TOLD`
_MOST_FLAGS: Final = 1000
_NS: Final = 1_000_000_000
_FRESH: Final = 600 * _NS  # older anomalies are learned from and not recorded
_SETTLED: Final = 60 * _NS  # after the end of a task, until all its events are recorded

_ALLOWED: Final = frozenset({Outcome.PASSED, Outcome.WOULD_BLOCK})


class Scan:
    """Scan of the new lines of the journal, at `now` (ns since 1970)."""

    def __init__(self, baselines: Baselines, flags: dict[str, int], now: int) -> None:
        self._baselines = baselines
        self._now = now
        self._ids = IdMaker()
        self.flags = flags  # unreviewed flags: time (ns since 1970) by event id
        self.anomalies: list[Event] = []  # events to record

    def take(self, line: bytes) -> None:
        """Process one line."""
        try:
            event = decode(line)
        except MalformedEventError:
            return
        self._track_flag(event)
        self._check_event(event)

    def _track_flag(self, event: Event) -> None:
        """Track allowed attempts that were flagged, and their reviews."""
        flagged = event.verdict is Verdict.FLAG and event.kind is not Kind.FLAG_SEEN
        if flagged and event.outcome is not Outcome.PASSED:
            return
        if event.kind in {Kind.FLAG_SEEN, Kind.REQUEST_DECIDED}:
            # An inspected connection records each request, so the flag of the connection itself ends
            self.flags.pop(event.cause or "", None)
        if flagged and event.kind is not Kind.DNS_DECIDED and len(self.flags) < _MOST_FLAGS:
            self.flags[event.id] = int(event.time)

    def report_unreadable(self, why: str, host: Origin) -> None:
        """Record that the file of baselines can't be read."""
        fault = Fault(Component.OTHER, f"what tasks usually do can't be read, and is learned anew: {why}")
        self.anomalies.append(self._new_event(Kind.GATE_ERROR, host)._replace(fault=fault))

    def _check_event(self, event: Event) -> None:
        task, unusual, at = event.task, None, int(event.time)
        if not (task.id and task.name):
            return
        if event.kind is Kind.TASK_ENDED:
            self._baselines.ended(task.id, task.name, at)
        elif event.kind is Kind.CONNECTION_DECIDED and event.destination is not None and event.outcome in _ALLOWED:
            unusual = self._baselines.record_destination(task.id, task.name, place_of(event.destination), at)
        elif event.kind is Kind.CONNECTION_CLOSED and event.bytes is not None:
            unusual = self._baselines.record_bytes(task.id, task.name, max(0, event.bytes.up), at)
        if unusual is not None and self._now - event.time < _FRESH:
            made = self._new_event(Kind.ANOMALY_DETECTED, Origin(task, event.sandbox, event.host))
            self.anomalies.append(made._replace(cause=event.id, destination=event.destination, unusual=unusual))

    def _new_event(self, kind: Kind, origin: Origin) -> Event:
        now = time.time_ns()
        return Event(Instant(now), self._ids.make(now), kind, **origin._asdict())


def find_anomalies(journal: "Path", state: "Path", host: Origin) -> bool:
    """Scan the new lines of the journal, learn from them and record anomalies; return whether any were recorded.

    `host` is the origin of events about no task. A second process at the same time does nothing. Raises OSError.
    """
    lock = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _find_anomalies(journal, state, host)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _find_anomalies(journal: "Path", state: "Path", host: Origin) -> bool:
    now, report_unreadable = time.time_ns(), ""
    try:
        baselines, bookmark, flags = load(state / FILE)
    except ValueError as error:
        baselines, bookmark, flags, report_unreadable = no_baselines(), Bookmark(), {}, str(error)
    scan = Scan(baselines, flags, now)
    if report_unreadable:
        scan.report_unreadable(report_unreadable, host)
    reader, lines_left = Reader(journal, bookmark), _MOST_LINES
    while records := reader.read(min(_BATCH_LINES, lines_left)):
        for record in records:
            scan.take(record.line)
        bookmark.advance(records)
        lines_left -= len(records)
        if not lines_left:
            break
    else:
        baselines.settle(now - _SETTLED)  # the journal has been read to its end
    day_names = [day.name for day in days(journal)]
    bookmark.keep(day_names)
    flags = {event: at for event, at in flags.items() if day_names and timestamp(at)[:10] >= day_names[0]}
    _record(journal, scan.anomalies)
    _save_counts(state / TOLD, scan.anomalies, flags)
    replace(state / FILE, msgspec.json.encode(_SavedState(baselines, bookmark.saved(), flags)))
    return bool(scan.anomalies)


class _SavedState(Struct, frozen=True, rename={"baselines": "habits"}):
    """Saved state of the baselines."""

    baselines: Baselines
    bookmark: SavedBookmark
    flags: dict[str, Count] = {}


def load(path: "Path") -> tuple[Baselines, Bookmark, dict[str, int]]:
    """Return baselines, bookmark and unreviewed flags; empty ones if there is no file.

    Raises OSError and ValueError.
    """
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError("it is too large")
        saved = msgspec.json.decode(path.read_bytes(), type=_SavedState)
    except FileNotFoundError:
        return no_baselines(), Bookmark(), {}
    except (MsgspecError, RecursionError) as error:
        raise ValueError(str(error) or "it is too deep") from error
    bookmark = Bookmark()
    bookmark.take(saved.bookmark)
    return saved.baselines, bookmark, saved.flags


class EarlierRuns(NamedTuple):
    """Earlier runs of a name: how many are known, and how many reached a destination."""

    runs: int
    times: int


def count_earlier_runs(state: "Path", name: str, destination: "Destination") -> EarlierRuns | None:
    """Count earlier runs; None: the name is unknown or the file can't be read. Never raises.

    `state` is the directory of the journal's keeper (`enforcer.journal.signing.keeper_directory`).
    """
    try:
        baselines, *_ = load(state / FILE)
    except (OSError, ValueError):
        return None
    baseline = baselines.names.get(name)
    if baseline is None:
        return None
    times, _ = baseline.places.get(place_of(destination), (0, 0))
    return EarlierRuns(baseline.runs, times)


def _record(journal: "Path", anomalies: list[Event]) -> None:
    if not anomalies:
        return
    writer = Journal(journal)
    try:
        for event in anomalies:
            writer.append(encode(event), event.time)
    finally:
        writer.close()


def _save_counts(path: "Path", anomalies: list[Event], flags: dict[str, int]) -> None:
    """Add the anomalies to the counts by task, and store the flags; an unchanged file is not written."""
    counts_before = read_numbers(path)
    tasks = {task: Counter(counts) for task, counts in counts_before.tasks.items()}
    for each in anomalies:
        if each.unusual is not None:
            tasks.setdefault(each.task.id, Counter())[each.unusual.what] += 1
    kept = dict(list(tasks.items())[-_MOST_TASKS:])
    after = AnomalyCounts(kept, len(flags), min(flags.values(), default=0) // _NS)
    if after != counts_before:
        replace(path, msgspec.json.encode(after))


class AnomalyCounts(Struct, frozen=True):
    """Anomalies by task and kind, and the number of unreviewed flags.

    `oldest`: time of the oldest flag, in s since 1970.
    """

    tasks: Mapping[str, Mapping[str, Count]] = {}
    flags: Count = 0
    oldest: Count = 0


def read_numbers(path: "Path") -> AnomalyCounts:
    """Read the counts; an unreadable file counts as zero."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=AnomalyCounts)
    except (OSError, ValueError, RecursionError, MsgspecError):
        return AnomalyCounts()
