"""Reads the anomalies that the journal's keeper has counted, for the metrics of a task or a service."""

from collections import Counter
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from proxy.telemetry.baseline.anomalies import Numbers


class AnomalyCounts:
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

    def _read(self) -> "Numbers | None":
        """Return what has been written since this was last asked; None: nothing, or nothing that can be read."""
        from enforcer.journal.signing import place  # which imports more than a short task has time for
        from enforcer.system.errors import ExeatError
        from proxy.telemetry.baseline.anomalies import TOLD, read_numbers

        try:
            self._file = self._file or place(self._journal) / TOLD
            changed = self._file.stat().st_mtime_ns
        except (OSError, ExeatError):
            return None
        if changed == self._changed:
            return None
        self._changed = changed
        return read_numbers(self._file)
