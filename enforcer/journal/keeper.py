"""Journal keeper: signs segments while tasks run, repairs unfinished ones, and starts compression and removal.

Of all processes with the key one is active, for all writers; when it ends, another takes over at its next turn. It
trusts no writer: it signs only lines that it has read and whose hash chain is intact. A fault is reported and stops
nothing: events are still written and chained, and signed later.
"""

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from proxy.telemetry.journal.keys import SigningKeyError, load_signer
from proxy.telemetry.journal.ledger import BrokenSegmentError, ChainWalk, Ledger, sweep, unsealed
from proxy.telemetry.journal.writer import SegmentHead

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

EVERY = 5.0  # seconds between two turns: the end of an open segment may be unsigned for so long
_RETENTION_INTERVAL = 3600.0  # seconds
_SCAN_INTERVAL = 30.0  # seconds, if there are new events


class Keeper:
    """Keeper of one journal. `state` is a directory outside it that workers and sandboxes never see.

    `tell` receives problems. `confine` runs in each process that reads the files of workers, to drop its rights. No
    method raises.
    """

    def __init__(
        self,
        journal: "Path",
        state: "Path",
        tell: "Callable[[str], None]",
        confine: "Callable[[], None]" = lambda: None,
    ) -> None:
        self._journal = journal
        self._state = state
        self.tell = tell
        self._confine = confine
        self._reported: set[str] = set()
        self._ledger: Ledger | None = None
        self._lock = -1
        self._chains: dict[str, ChainWalk] = {}
        self._has_new_events = True  # since the last scan for anomalies
        self._due = 0.0

    def turn(self) -> None:
        """Do the tasks that are due, if this keeper is the active one."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY
        self._run_guarded(self._do_turn)

    def close(self, writers: "Collection[int]" = ()) -> None:
        """Sign the segments of these ended processes, and leave the rest to other keepers."""
        self._run_guarded(lambda: self._seal_ended(self._open_ledger(), writers))
        self._has_new_events = True
        self._run_guarded(self._start_anomaly_scan)
        if self._lock >= 0:
            self._run_guarded(self._do_turn)  # signs the current heads of other writers
            os.close(self._lock)
            self._lock = -1

    def _run_guarded(self, do: "Callable[[], None]") -> None:
        try:
            do()
        except (OSError, SigningKeyError) as error:
            self._report_once(error.strerror or str(error) if isinstance(error, OSError) else str(error))

    def _report_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self.tell(f"the journal cannot be signed: {text}")

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = open_ledger(self._journal, self._state)
        return self._ledger

    def _do_turn(self) -> None:
        if self._lock < 0 and not self._acquire_lock():
            return
        ledger = self._open_ledger()
        self._seal_ended(ledger, ())
        heads = []
        for segment in unsealed(self._journal):
            chain = self._chains.setdefault(segment.name, ChainWalk())
            before = chain.lines
            try:
                chain.on(segment)
            except BrokenSegmentError as broken:
                self._report_once(str(broken))
                continue
            except FileNotFoundError:
                continue
            if chain.lines > before:
                heads.append(SegmentHead(segment.name, chain.lines, chain.head.decode()))
        ledger.checkpoint(heads)
        self._has_new_events = self._has_new_events or bool(heads)
        self._start_anomaly_scan()
        self._start_retention()

    def _seal_ended(self, ledger: Ledger, writers: "Collection[int]") -> None:
        self._has_new_events = (
            seal_ended(self._journal, ledger, self._report_once, (os.getpid(), *writers)) or self._has_new_events
        )

    def _acquire_lock(self) -> bool:
        """Become the active keeper if there is none; return whether."""
        file = os.open(self._state / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._lock = file
        return True

    def _start_retention(self) -> None:
        """Start a process for compression and retention, once an hour: it would take too long in this loop."""
        if self._is_due("tended", _RETENTION_INTERVAL):
            _run_detached(lambda: tend_now(self._journal, self._state), self._confine)

    def _start_anomaly_scan(self) -> None:
        """Start a process that looks for anomalies."""
        if self._has_new_events and self._is_due("looked", _SCAN_INTERVAL):
            self._has_new_events = False
            _run_detached(lambda: find_anomalies_now(self._journal, self._state), self._confine)

    def _is_due(self, name: str, every: float) -> bool:
        """Whether a periodic task is due (`every` in seconds); records it as done now."""
        stamp = self._state / name
        try:
            last = stamp.stat().st_mtime
        except FileNotFoundError:
            last = time.time()
            stamp.touch(0o600)
        due = time.time() - last > every
        if due:
            stamp.touch()
        return due


def open_ledger(journal: "Path", state: "Path") -> Ledger:
    """Open the ledger of a journal, with the current signing key. Raises SigningKeyError."""
    return Ledger(journal, load_signer(state.parent / "keys"), state / "ledger.lock")


def seal_ended(
    journal: "Path", ledger: Ledger, report: "Callable[[str], None]", writers: "Collection[int]" = ()
) -> bool:
    """Seal segments without a writer, and record or `report` their problems; return whether there were any."""
    has_problems = False
    for entry in sweep(journal, ledger, writers):
        has_problems = True
        if isinstance(entry, BrokenSegmentError):
            report(str(entry))
        else:
            ledger.write([entry])
    return has_problems


def tend_now(journal: "Path", state: "Path") -> None:
    """Compress closed segments and apply retention. Raises OSError, ValueError and SigningKeyError."""
    from proxy.telemetry.journal.retention import RetentionPolicy, apply_retention

    apply_retention(journal, open_ledger(journal, state), RetentionPolicy.load(state / "keep.json"), state / "sinks")


def find_anomalies_now(journal: "Path", state: "Path") -> None:
    """Update the baseline, and record anomalies. Raises OSError, ValueError and SigningKeyError."""
    from proxy.telemetry.baseline.anomalies import find_anomalies
    from proxy.telemetry.events import Origin

    if find_anomalies(journal, state, Origin(host=os.uname().nodename)):
        seal_ended(journal, open_ledger(journal, state), lambda _broken: None, (os.getpid(),))


def _run_detached(do: "Callable[[], None]", confine: "Callable[[], None]") -> None:
    """Run a function in a detached process with the lowest priority."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
        os.nice(19)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        # It runs again later; `exeat log retention --now` shows its errors
        with contextlib.suppress(Exception):
            confine()
            do()
    finally:
        os._exit(0)
