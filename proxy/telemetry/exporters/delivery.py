"""Delivers the journal's lines to one exporter, from its bookmark on: at least once, in order, none left out.

The position moves only when the receiver has what was sent. A receiver that is down is tried again, ever more rarely;
an event that a receiver doesn't like is sent without what a sandbox chose of it, so that no task can stop the stream.
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
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries
_LONGEST_RETRY_AFTER: Final = 300.0  # seconds that a receiver may ask us to wait
_POLL_INTERVAL: Final = 0.5  # seconds between looks at a journal in which nothing is new
_NOTE: Final = "the receiver refused the whole event: it is in the journal, under this id"

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
class DeliveryMetrics:
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
            f'# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{{sink="{self.sink}"}} {value}\n'
            for (name, kind, text), value in zip(METRICS, values, strict=True)
        ]
        return "".join(lines).encode("ascii")

    def failed(self, where: object) -> None:
        """Take note that a scrape failed: there is nothing to count it in."""


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
        """`say` is told what an admin should know; `wait` is called with seconds."""
        self._reader = reader
        self._exporter = sink
        self._metrics = metrics
        self._log = log
        self._wait = wait

    def once(self) -> None:
        """Deliver what is there now. Raises UnavailableError when the receiver doesn't take it, and OSError."""
        while self._deliver_batch():
            pass

    def follow(self) -> None:
        """Deliver what is there and what comes, for ever. Raises OSError when the journal can't be read."""
        seconds = 0.0
        while True:
            try:
                is_delivered = self._deliver_batch()
            except UnavailableError as error:
                seconds = min(LONGEST_WAIT, seconds * 2) or SHORTEST_WAIT
                requested = min(error.wait or 0.0, _LONGEST_RETRY_AFTER)
                self._log(f"{error}; trying again")
                # Not all at the same time, where several wait for one receiver
                self._wait(max(requested, seconds * random.uniform(0.5, 1.0)))  # noqa: S311  no secret
                continue
            if seconds:
                self._log("delivering again")
            seconds = 0.0
            if not is_delivered:
                self._wait(_POLL_INTERVAL)

    def _deliver_batch(self) -> bool:
        """Deliver the next lines; whether there were any."""
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
        """Return what can be sent of a line; one that is no event of ours is counted, and told with its place."""
        try:
            return Item(line.line, read(line.line))
        except ValueError:
            self._metrics.dropped += 1
            self._log(f"the line before byte {line.position.offset} of {line.position.segment} is no event: left out")
            return None

    def _send(self, items: list[Item]) -> None:
        """Have them taken in their order. What is refused is looked for by halves."""
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
        """Send little of an event's texts, or none of a sandbox's. If that is refused, too, it isn't the event."""
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
    """Yield lines in parts of at most `MOST_BYTES`, or of one line."""
    part: list[Line] = []
    size = 0
    for line in lines:
        if part and size + len(line.line) > MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line.line)
    yield part
