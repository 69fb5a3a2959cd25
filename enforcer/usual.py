"""What is unusual of a task, as it is counted: read from where the journal's keeper wrote it, and told to the gate."""

from collections import Counter
from pathlib import Path


class Unusual:
    """How often something unusual was told of one task."""

    def __init__(self, journal: Path, task: str) -> None:
        self._journal = journal
        self._task = task
        self._file: Path | None = None
        self._changed = 0
        self._told: Counter[str] = Counter()

    def news(self) -> dict[str, int]:
        """Return what has been added since this was last asked, by what it is; nothing where it can't be read."""
        from enforcer.errors import ExeatError
        from enforcer.keeping import place  # which imports more than a short task has time for
        from proxy.telemetry.usual.looking import TOLD, read_counts

        try:
            self._file = self._file or place(self._journal) / TOLD
            changed = self._file.stat().st_mtime_ns
        except (OSError, ExeatError):
            return {}
        if changed == self._changed:
            return {}
        self._changed = changed
        counted = read_counts(self._file).get(self._task, Counter())
        news, self._told = counted - self._told, counted
        return dict(news)
