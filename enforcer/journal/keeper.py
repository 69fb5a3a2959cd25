"""Journal keeper: signs segments while tasks run, repairs unfinished ones, and has old ones compressed and removed.

Of all processes with the key one is active, for all writers; when it ends, another takes over at its next turn. It
trusts no writer: it signs only what it has read itself and whose hashes fit. A fault is recorded and stops nothing:
events are still written and chained, and signed later.
"""

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from proxy.telemetry.journal.keys import SigningKeyError, signer
from proxy.telemetry.journal.ledger import BrokenSegmentError, ChainWalk, Ledger, sweep, unsealed
from proxy.telemetry.journal.writer import SegmentHead

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

EVERY = 5.0  # seconds between two turns: as much of a live segment's end may be unsigned
_TENDED_EVERY = 3600.0  # seconds
_LOOKED_EVERY = 30.0  # likewise, where anything was written


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
        self._told: set[str] = set()
        self._ledger: Ledger | None = None
        self._lock = -1
        self._live: dict[str, ChainWalk] = {}
        self._grown = True  # since somebody last looked what is unusual, as far as is known
        self._due = 0.0

    def turn(self) -> None:
        """Do the tasks that are due, if this keeper is the active one."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY
        self._guarded(self._turn)

    def close(self, writers: "Collection[int]" = ()) -> None:
        """Sign the segments of these ended processes, and leave the rest to other keepers."""
        self._guarded(lambda: self._sweep(self._opened(), writers))
        self._grown = True
        self._guarded(self._have_looked)
        if self._lock >= 0:
            self._guarded(self._turn)  # as far as the others are by now
            os.close(self._lock)
            self._lock = -1

    def _guarded(self, do: "Callable[[], None]") -> None:
        try:
            do()
        except (OSError, SigningKeyError) as error:
            self._say(error.strerror or str(error) if isinstance(error, OSError) else str(error))

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.tell(f"the journal cannot be signed: {text}")

    def _opened(self) -> Ledger:
        if self._ledger is None:
            self._ledger = open_ledger(self._journal, self._state)
        return self._ledger

    def _turn(self) -> None:
        if self._lock < 0 and not self._take():
            return
        ledger = self._opened()
        self._sweep(ledger, ())
        heads = []
        for segment in unsealed(self._journal):
            walk = self._live.setdefault(segment.name, ChainWalk())
            before = walk.lines
            try:
                walk.on(segment)
            except BrokenSegmentError as broken:
                self._say(str(broken))
                continue
            except FileNotFoundError:
                continue
            if walk.lines > before:
                heads.append(SegmentHead(segment.name, walk.lines, walk.head.decode()))
        ledger.checkpoint(heads)
        self._grown = self._grown or bool(heads)
        self._have_looked()
        self._have_tended()

    def _sweep(self, ledger: Ledger, writers: "Collection[int]") -> None:
        self._grown = seal_ended(self._journal, ledger, self._say, (os.getpid(), *writers)) or self._grown

    def _take(self) -> bool:
        """Become the active keeper if there is none; return whether."""
        file = os.open(self._state / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._lock = file
        return True

    def _have_tended(self) -> None:
        """Start a process that compresses and removes old segments, once an hour: it takes too long for this loop."""
        if self._is_due("tended", _TENDED_EVERY):
            _apart(lambda: tend_now(self._journal, self._state), self._confine)

    def _have_looked(self) -> None:
        """Start a process that looks for anomalies."""
        if self._grown and self._is_due("looked", _LOOKED_EVERY):
            self._grown = False
            _apart(lambda: find_anomalies_now(self._journal, self._state), self._confine)

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
    return Ledger(journal, signer(state.parent / "keys"), state / "ledger.lock")


def seal_ended(journal: "Path", ledger: Ledger, say: "Callable[[str], None]", writers: "Collection[int]" = ()) -> bool:
    """Seal segments without a writer, and record or `say` their problems; return whether there were any."""
    wrong = False
    for found in sweep(journal, ledger, writers):
        wrong = True
        if isinstance(found, BrokenSegmentError):
            say(str(found))
        else:
            ledger.write([found])
    return wrong


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


def _apart(do: "Callable[[], None]", confine: "Callable[[], None]") -> None:
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
        with contextlib.suppress(
            Exception
        ):  # it is tried again; what is wrong with it, `exeat log retention --now` says
            confine()
            do()
    finally:
        os._exit(0)
