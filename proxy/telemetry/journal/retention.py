"""Retention: compresses closed segments, and removes segments beyond the limits of age and size.

By default a day is removed after a year, whatever its size: with a size limit a task could remove the evidence of its
actions by a flood of events. `exeat log retention` sets other limits. A signed line of the ledger records a removal
first, which distinguishes it from tampering. Undelivered lines of an exporter stay longer, up to a limit: a stopped
exporter must not fill the disk.
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

_SETTLED = 600.0  # seconds between the close of a segment and its compression
_WRITABLE = 0o200
_SECONDS_A_DAY = 86_400
HELD = 7 * _SECONDS_A_DAY  # extra seconds for lines that an exporter has not delivered
_TOO_OLD, _TOO_LARGE = "older than what is kept", "more than what is kept"
DEFAULT_AGE = 365 * _SECONDS_A_DAY
HELD_SIZE = 2  # factor of the size limit, likewise


class RetentionPolicy(msgspec.Struct, frozen=True):
    """Retention limits: seconds, and bytes on disk; None: no limit."""

    age: int | None = DEFAULT_AGE
    size: int | None = None

    @classmethod
    def load(cls, path: "Path") -> "RetentionPolicy":
        """Load the saved policy, or the default. Raises OSError, ValueError."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{path}` is not a valid retention policy: {error}") from error

    def save(self, path: "Path") -> None:
        """Save the policy. Raises OSError."""
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
            return  # newer days stay too
        _remove_day(day, ledger, _TOO_OLD if is_old else _TOO_LARGE)
    if (journal / today).is_dir():
        _shrink_day(journal, journal / today, ledger, policy, positions)


def _shrink_day(
    journal: "Path", day: "Path", ledger: Ledger, policy: RetentionPolicy, positions: list[Bookmark]
) -> None:
    """Remove the oldest compressed segments of today while the journal exceeds its size."""
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
    """Whether the policy removes a day or a segment."""
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
    with contextlib.suppress(OSError):  # the directory has files of others
        day.rmdir()


def _unlink(day: "Path", is_journal_file: "Callable[[str], bool]") -> None:
    """Remove files of a day through its descriptor, so that a replaced path can't redirect it."""
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
    """Return the size of a journal on the disk, in bytes."""
    total = 0
    for day in days(journal):
        with os.scandir(day) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _bookmarks(directory: "Path") -> "Iterator[Bookmark]":
    """Yield the bookmarks of all exporters; skip unreadable ones, which no exporter can use either."""
    if directory.is_dir():
        for path in directory.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                yield Bookmark(path)
