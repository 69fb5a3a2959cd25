"""Delivers the journal's lines to one exporter, from its bookmark on: at least once, in order, none left out.

The bookmark moves only when the receiver has the lines. If a receiver is down, delivery retries with growing delays. If
it refuses an event, the event is sent without the texts that a sandbox chose, so that no task can stop the stream.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.telemetry.exporters.exporter import Item, RefusedError, UnavailableError
from proxy.telemetry.formats.decoded_event import read, shortened
from proxy.telemetry.formats.fields import nanoseconds

if TYPE_CHECKING:
    from proxy.telemetry.exporters.exporter import Exporter
    from proxy.telemetry.journal.bookmark import JournalLine as Line
    from proxy.telemetry.journal.bookmark import Reader

MOST_LINES: Final = 1000  # of a batch
MOST_BYTES: Final = 1 << 20
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between retries
_LONGEST_RETRY_AFTER: Final = 300.0  # seconds; limit of a receiver's Retry-After
_POLL_INTERVAL: Final = 0.5  # seconds between reads of an idle journal
_NOTE: Final = "the receiver refused the whole event: it is in the journal, under this id"

_NS_A_SECOND: Final = 1_000_000_000
# name, type, help text; in the order of the attributes below
METRICS: Final = (
    ("exeat_exported_total", "counter", "delivered events"),
    ("exeat_export_failures_total", "counter", "failed deliveries"),
    ("exeat_export_reduced_total", "counter", "refused events that were sent with shortened texts"),
    ("exeat_events_dropped_total", "counter", "lines of the journal that are not events and were not sent"),
    ("exeat_journal_lag_seconds", "gauge", "age of the oldest undelivered event; 0: all are delivered"),
)


@dataclass(slots=True)
class DeliveryMetrics:
    """Counters of one process. One thread writes them; another one reads them."""

    sink: str
    delivered: int = 0
    failures: int = 0
    reduced: int = 0
    dropped: int = 0
    oldest: int | None = None  # time of the oldest undelivered event (ns since 1970)

    def render(self) -> bytes:
        """Return the metrics as Prometheus' text format 0.0.4."""
        oldest = self.oldest
        lag = 0.0 if oldest is None else max(0.0, (time.time_ns() - oldest) / _NS_A_SECOND)
        values = (self.delivered, self.failures, self.reduced, self.dropped, f"{lag:.3f}")
        lines = [
            f'# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{{sink="{self.sink}"}} {value}\n'
            for (name, kind, text), value in zip(METRICS, values, strict=True)
        ]
        return "".join(lines).encode("ascii")

    def failed(self, where: object) -> None:
        """Ignore a failed scrape: no counter exists for it."""


class Delivery:
    """Delivers lines from a reader to an exporter. For one thread."""

    def __init__(
        self,
        reader: "Reader",
        sink: "Exporter",
        metrics: DeliveryMetrics,
        log: Callable[[str], None],
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`log` receives messages for the admin; `wait` receives seconds."""
        self._reader = reader
        self._exporter = sink
        self._metrics = metrics
        self._log = log
        self._wait = wait

    def once(self) -> None:
        """Deliver the existing lines. Raises UnavailableError when the receiver doesn't accept them, and OSError."""
        while self._deliver_batch():
            pass

    def follow(self) -> None:
        """Deliver existing and new lines, for ever. Raises OSError when the journal can't be read."""
        seconds = 0.0
        while True:
            try:
                is_delivered = self._deliver_batch()
            except UnavailableError as error:
                seconds = min(LONGEST_WAIT, seconds * 2) or SHORTEST_WAIT
                requested = min(error.wait or 0.0, _LONGEST_RETRY_AFTER)
                self._log(f"{error}; trying again")
                # Random, so that several exporters don't retry at the same time
                self._wait(max(requested, seconds * random.uniform(0.5, 1.0)))  # noqa: S311  no secret
                continue
            if seconds:
                self._log("delivering again")
            seconds = 0.0
            if not is_delivered:
                self._wait(_POLL_INTERVAL)

    def _deliver_batch(self) -> bool:
        """Deliver the next lines; return whether there were any."""
        lines = self._reader.read(MOST_LINES)
        if not lines:
            self._metrics.oldest = None
            return False
        try:
            for part in _split(lines):
                self._deliver_part(part)
        except BaseException:
            self._reader.rewind()
            raise
        return True

    def _deliver_part(self, lines: "Sequence[Line]") -> None:
        items = [item for line in lines if (item := self._to_item(line)) is not None]
        if items:
            self._metrics.oldest = nanoseconds(items[0].record)
            try:
                self._send(items)
            except UnavailableError:
                self._metrics.failures += 1
                raise
        self._reader.commit(lines)
        self._metrics.delivered += len(items)

    def _to_item(self, line: "Line") -> Item | None:
        """Decode a line; a line that is no event is counted and logged with its position."""
        try:
            return Item(line.line, read(line.line))
        except ValueError:
            self._metrics.dropped += 1
            self._log(
                f"the line before byte {line.position.offset} of {line.position.segment} is not an event: not sent"
            )
            return None

    def _send(self, items: list[Item]) -> None:
        """Send items in order. Find a refused item by halving the batch."""
        try:
            self._exporter.send(items)
        except RefusedError as refusal:
            if len(items) > 1:
                middle = len(items) // 2
                self._send(items[:middle])
                self._send(items[middle:])
            else:
                self._send_shortened(items[0], refusal)

    def _send_shortened(self, item: Item, refusal: RefusedError) -> None:
        """Send shortened versions of a refused event. If all are refused, the receiver refuses everything."""
        last_refusal = refusal
        for short in shortened(item.record, _NOTE):
            try:
                self._exporter.send([Item(b"", short)])
            except RefusedError as refused:
                last_refusal = refused
                continue
            self._metrics.reduced += 1
            self._log(f"event {item.record['id']} was refused ({refusal}): sent without all of its texts")
            return
        raise UnavailableError(f"the receiver refuses everything: {last_refusal}") from last_refusal


def _split(lines: "Sequence[Line]") -> "Iterator[list[Line]]":
    """Yield parts of at most `MOST_BYTES`, or of one line."""
    part: list[Line] = []
    size = 0
    for line in lines:
        if part and size + len(line.line) > MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line.line)
    yield part
