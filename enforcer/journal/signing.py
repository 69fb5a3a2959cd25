"""Starts and stops the journal's keeper in the process that supervises a task, and reads its anomaly counts."""

import contextlib
import os
from collections import Counter
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.system import linux, state
from enforcer.system.errors import HostError
from enforcer.system.notices import print_notice
from proxy.telemetry.events import Component

if TYPE_CHECKING:
    from enforcer.journal.keeper import Keeper
    from enforcer.worker.worker import Worker
    from proxy.sandbox.recorder import Recorder
    from proxy.telemetry.baseline.anomalies import AnomalyCounts


def keeper_directory(journal: Path) -> Path:
    """Return the directory of a journal's bookmarks, locks and settings, out of reach of its writers.

    Raises HostError.
    """
    base = state.make_private(keys_directory().parent)
    real = os.path.realpath(journal)
    default = real == os.path.realpath(state.journal_directory())
    return state.make_private(base / ("journal" if default else sha256(os.fsencode(real)).hexdigest()[:16]))


def keys_directory() -> Path:
    """Return the directory of the keys that sign journals."""
    return state.state_directory() / "keeper" / "keys"


def start_keeper(journal: Path, recorder: "Recorder") -> "Keeper":
    """Start the keeper of a journal. Raises HostError."""
    from enforcer.journal.keeper import Keeper  # imports cryptography, which is large
    from proxy.telemetry import encoding  # noqa: F401  imported now, so that the end of the task is not delayed

    return Keeper(journal, keeper_directory(journal), partial(recorder.error, Component.JOURNAL), confine)


def stop_keeper(journal: Path, recorder: "Recorder", gate: "Worker") -> None:
    """Sign the segments of a task's gate and supervisor, which have ended. Raises HostError."""
    from enforcer.journal.keeper import Keeper
    from proxy.telemetry.journal.ledger import is_left

    recorder.journal.close()
    keeper = Keeper(journal, keeper_directory(journal), print_notice, confine)
    keeper.close(gate.writers)
    if any(is_left(journal, pid) for pid in gate.writers):  # the gate reported its segments closed, but has open ones
        gate.kill()
        keeper.close(gate.writers)


def sign_ended_run(journal: Path) -> None:
    """Sign the segment of this process about an ended run, so that it does not count as killed. Never raises."""
    from enforcer.journal.keeper import Keeper

    with contextlib.suppress(HostError):  # the next writer signs it
        Keeper(journal, keeper_directory(journal), print_notice, confine).close((os.getpid(),))


def confine() -> None:
    """Drop all capabilities for good: reading the files of workers needs none. Raises OSError."""
    with contextlib.suppress(PermissionError):  # an ordinary user has no capabilities
        linux.drop_bounding_set()
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)  # no program that it executes can gain any
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


class AnomalyCountReader:
    """Counts of anomalies of one task, and of flagged events in the whole journal that nobody has acknowledged."""

    def __init__(self, journal: Path, task: str = "") -> None:
        self._journal = journal
        self._task = task
        self._file: Path | None = None
        self._changed = 0
        self._reported: Counter[str] = Counter()
        self.flags = (0, 0.0)  # their number, and the time of the oldest (s since 1970)

    def news(self) -> dict[str, object]:
        """Return the counts to send to a gate, if they changed since the last call."""
        numbers = self._read()
        if numbers is None:
            return {}
        self.flags = numbers.flags, float(numbers.oldest)
        counted = Counter(numbers.tasks.get(self._task, {}))
        added, self._reported = counted - self._reported, counted
        return {"unusual": dict(added), "flags": list(self.flags)}

    def _read(self) -> "AnomalyCounts | None":
        """Return the counts written since the last call; None: none, or unreadable."""
        from proxy.telemetry.baseline.anomalies import TOLD, read_numbers  # imports more than a short task needs

        try:
            self._file = self._file or keeper_directory(self._journal) / TOLD
            changed = self._file.stat().st_mtime_ns
        except (OSError, HostError):
            return None
        if changed == self._changed:
            return None
        self._changed = changed
        return read_numbers(self._file)
