"""Retention: compresses closed segments, and removes those that are too old or too many.

By default a day is removed after a year, whatever its size: a bound on size would let a task's flood of events remove
the evidence of what it did. `exeat log retention` sets other bounds. A removal is recorded first, in a signed
line of the ledger, so that it can be told from tampering. What an exporter hasn't delivered yet is kept longer, up to a
stated bound: an exporter that is gone must not fill the disk.
"""

import calendar
import contextlib
import os
import time
from typing import TYPE_CHECKING

import msgspec

from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal.bookmark import Bookmark, lags, replace
from proxy.telemetry.journal.ledger import Ledger, LedgerEntry, last_hash
from proxy.telemetry.journal.segments import (
    COMPRESSED,
    LEDGER,
    PLAIN,
    Segment,
    compress,
    days,
    open_day,
    segment_number,
    segments,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SETTLED = 600.0  # seconds that a segment has to be closed for, before it is compressed
_WRITABLE = 0o200
_SECONDS_A_DAY = 86_400
HELD = 7 * _SECONDS_A_DAY  # seconds that what a sink hasn't got is kept beyond its age
_TOO_OLD, _TOO_LARGE = "older than what is kept", "more than what is kept"
DEFAULT_AGE = 365 * _SECONDS_A_DAY
HELD_SIZE = 2  # times as much as there may be, while a sink lacks some of it


class RetentionPolicy(msgspec.Struct, frozen=True):
    """Retention limits: seconds, and bytes on disk; None: no limit."""

    age: int | None = DEFAULT_AGE
    size: int | None = None

    @classmethod
    def load(cls, path: "Path") -> "RetentionPolicy":
        """Read what `save` wrote; the default where it never did. Raises OSError, ValueError."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{path}` does not say how much of the journal is kept: {error}") from error

    def save(self, path: "Path") -> None:
        """Write it. Raises OSError."""
        replace(path, msgspec.json.encode(self))


def apply_retention(journal: "Path", ledger: Ledger, policy: RetentionPolicy, bookmarks: "Path") -> None:
    """Compress closed segments, and remove what exceeds the limits. Raises OSError."""
    now = time.time()
    for day in days(journal):
        for segment in segments(day):
            if segment.path.name.endswith(PLAIN) and _is_compressible(segment, now):
                compress(segment.path)
    if policy.age is None and policy.size is None:
        return
    positions = list(_bookmarks(bookmarks))
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    for day in days(journal):
        if day.name >= today:
            break
        age = now - calendar.timegm(time.strptime(day.name, "%Y-%m-%d")) - _SECONDS_A_DAY
        is_old = policy.age is not None and age > policy.age
        is_overdue = policy.age is not None and age > policy.age + HELD
        if not _is_removable(
            journal,
            day.name,
            policy,
            positions,
            is_old=is_old,
            is_overdue=is_overdue,
        ):
            return  # nothing that is newer goes before it
        _remove_day(day, ledger, _TOO_OLD if is_old else _TOO_LARGE)
    if (journal / today).is_dir():
        _shrink_day(journal, journal / today, ledger, policy, positions)


def _shrink_day(
    journal: "Path", day: "Path", ledger: Ledger, policy: RetentionPolicy, positions: list[Bookmark]
) -> None:
    """Remove the oldest closed segments of today, if even without any other day there is too much."""
    for segment in segments(day):
        if not segment.path.name.endswith(COMPRESSED):
            continue
        if not _is_removable(journal, segment.name, policy, positions, is_old=False, is_overdue=False):
            return
        _record_removal(ledger, segment.name, 1, "", _TOO_LARGE)
        _unlink(day, {segment.path.name}.__contains__)


def _is_removable(
    journal: "Path",
    name: str,
    policy: RetentionPolicy,
    positions: list[Bookmark],
    *,
    is_old: bool,
    is_overdue: bool,
) -> bool:
    """Say whether a day or a segment is to be removed."""
    size = _disk_size(journal) if policy.size is not None else 0
    is_over_size = policy.size is not None and size > policy.size
    is_over_hold_size = policy.size is not None and size > HELD_SIZE * policy.size
    if not (is_old or is_over_size):
        return False
    return is_overdue or is_over_hold_size or not any(lags(mark, journal, name) for mark in positions)


def _remove_day(day: "Path", ledger: Ledger, why: str) -> None:
    found = segments(day)
    _record_removal(ledger, day.name, len(found), last_hash(day), why)
    _unlink(
        day, lambda name: segment_number(name) is not None or name.startswith(f"{LEDGER}.") or name.endswith(".part")
    )
    with contextlib.suppress(OSError):  # something of somebody else's is in it
        day.rmdir()


def _unlink(day: "Path", is_journal_file: "Callable[[str], bool]") -> None:
    """Remove files of a day, and never those of another directory, whatever is put in its place meanwhile."""
    directory = open_day(day)
    try:
        for name in os.listdir(directory):
            if is_journal_file(name):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)


def _record_removal(ledger: Ledger, name: str, count: int, head: str, why: str) -> None:
    many = "a segment" if count == 1 else f"{count} segments"
    ledger.write([LedgerEntry(Kind.JOURNAL_REMOVED, Mark(name, head=head), f"{many}: {why}")])


def _is_compressible(segment: Segment, now: float) -> bool:
    try:
        status = segment.path.lstat()
    except FileNotFoundError:
        return False
    return not status.st_mode & _WRITABLE and now - status.st_mtime > _SETTLED


def _disk_size(journal: "Path") -> int:
    """Return how many bytes a journal takes on the disk."""
    total = 0
    for day in days(journal):
        with os.scandir(day) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _bookmarks(directory: "Path") -> "Iterator[Bookmark]":
    """Yield the bookmarks of all sinks; one that can't be read is of nobody who could go on from it."""
    if directory.is_dir():
        for path in directory.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                yield Bookmark(path)
