"""What one export counts, as Prometheus reads it. The label is the kind of sink: a closed set."""

import time
from dataclasses import dataclass
from typing import Final

_NS_A_SECOND: Final = 1_000_000_000
# name, type, what it says, the attribute it is made of
METRICS: Final = (
    ("exeat_exported_total", "counter", "events that the receiver has"),
    ("exeat_export_failures_total", "counter", "times that the receiver didn't take what was sent"),
    ("exeat_export_reduced_total", "counter", "events that were refused, and sent without a sandbox's words"),
    ("exeat_events_dropped_total", "counter", "lines of the journal that are no events, and were not sent"),
    ("exeat_journal_lag_seconds", "gauge", "age of the oldest event that the receiver doesn't have; 0: it has all"),
)


@dataclass(slots=True)
class Numbers:
    """The counters of one process. Written by one thread; read by another, which may see them a moment later."""

    sink: str
    delivered: int = 0
    failures: int = 0
    reduced: int = 0
    dropped: int = 0
    oldest: int | None = None  # when the oldest event happened that is not delivered (ns since 1970)

    def render(self) -> bytes:
        """Return the metrics as Prometheus' text format 0.0.4."""
        oldest = self.oldest
        lag = 0.0 if oldest is None else max(0.0, (time.time_ns() - oldest) / _NS_A_SECOND)
        values = (self.delivered, self.failures, self.reduced, self.dropped, f"{lag:.3f}")
        lines = [
            f'# HELP {name} {says}\n# TYPE {name} {kind}\n{name}{{sink="{self.sink}"}} {value}\n'
            for (name, kind, says), value in zip(METRICS, values, strict=True)
        ]
        return "".join(lines).encode("ascii")

    def failed(self, where: object) -> None:
        """Take note that a scrape failed: there is nothing to count it in."""
