"""Starts and ends the journal's keeper in the process that supervises a task, and reads the anomalies it counted."""

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


def place(journal: Path) -> Path:
    """Return where lies what belongs to a journal and must be out of its writers' reach: bookmarks, locks, settings.

    Raises HostError.
    """
    base = state.make_private(keys().parent)
    real = os.path.realpath(journal)
    default = real == os.path.realpath(state.journal_directory())
    return state.make_private(base / ("journal" if default else sha256(os.fsencode(real)).hexdigest()[:16]))


def keys() -> Path:
    """Return the directory of the keys that sign journals."""
    return state.state_directory() / "keeper" / "keys"


def begin(journal: Path, recorder: "Recorder") -> "Keeper":
    """Look after a journal from here on. Raises HostError."""
    from enforcer.journal.keeper import Keeper  # and cryptography, which is large: only where it is used
    from proxy.telemetry import encoding  # noqa: F401  at the end it is needed, and somebody waits

    return Keeper(journal, place(journal), partial(recorder.error, Component.JOURNAL), confine)


def end(journal: Path, recorder: "Recorder", gate: "Worker") -> None:
    """Sign what a task's gate and its supervisor have told; both are done. Raises HostError."""
    from enforcer.journal.keeper import Keeper
    from proxy.telemetry.journal.ledger import is_left

    recorder.journal.close()
    keeper = Keeper(journal, place(journal), print_notice, confine)
    keeper.close(gate.writers)
    if any(is_left(journal, pid) for pid in gate.writers):  # it has said that it had closed what it wrote
        gate.kill()
        keeper.close(gate.writers)


def sign(journal: Path) -> None:
    """Sign what this process has told of a run that is over: else it is taken for one that was killed. Never raises."""
    from enforcer.journal.keeper import Keeper

    with contextlib.suppress(HostError):  # whoever writes there next signs it
        Keeper(journal, place(journal), print_notice, confine).close((os.getpid(),))


def confine() -> None:
    """Give up every capability, and any way to get one: whoever reads what workers wrote needs none. Raises OSError."""
    with contextlib.suppress(PermissionError):  # an ordinary user has no capability, this one neither
        linux.drop_bounding_set()
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)  # and nothing that is executed has one
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


class AnomalyCountReader:
    """How often something unusual was told of one task; and of the whole journal, how many flags wait for somebody."""

    def __init__(self, journal: Path, task: str = "") -> None:
        self._journal = journal
        self._task = task
        self._file: Path | None = None
        self._changed = 0
        self._told: Counter[str] = Counter()
        self.flags = (0, 0.0)  # how many, and when the oldest was (s since 1970)

    def news(self) -> dict[str, object]:
        """Return what a gate is to be told: what was added since this was last asked; nothing where nothing was."""
        numbers = self._read()
        if numbers is None:
            return {}
        self.flags = numbers.flags, float(numbers.oldest)
        counted = Counter(numbers.tasks.get(self._task, {}))
        added, self._told = counted - self._told, counted
        return {"unusual": dict(added), "flags": list(self.flags)}

    def _read(self) -> "AnomalyCounts | None":
        """Return what has been written since this was last asked; None: nothing, or nothing that can be read."""
        from proxy.telemetry.baseline.anomalies import TOLD, read_numbers  # more than a short task has time for

        try:
            self._file = self._file or place(self._journal) / TOLD
            changed = self._file.stat().st_mtime_ns
        except (OSError, HostError):
            return None
        if changed == self._changed:
            return None
        self._changed = changed
        return read_numbers(self._file)
