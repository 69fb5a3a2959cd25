"""Counts that one process reports to another, in pieces that each fit a message."""

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from proxy.telemetry.prometheus import merging
from proxy.wire import message, strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.telemetry.metrics import Metrics

_PIECE: Final = 60_000  # characters: what JSON makes of them fits a message
_MOST: Final = 4 << 20  # characters of a report


def pieces(metrics: "Metrics") -> "Iterator[dict[str, object]]":
    """Yield the messages of a report: `metrics` is a piece of JSON, `left` says how many follow."""
    text = message.as_text(merging.to_json(metrics))
    count = -(-len(text) // _PIECE)
    for number in range(count):
        yield {"metrics": text[number * _PIECE : (number + 1) * _PIECE], "left": count - 1 - number}


class Reported:
    """The counts that another process has reported last. The process isn't trusted: types and sizes are checked."""

    def __init__(self, role: str = "", *, steady: bool = False) -> None:
        """Show the process's own use as `role`'s. `steady`: ignore a report whose counters went back."""
        self.counts: Metrics | None = None  # None: there was no report yet
        self._role = role
        self._steady = steady
        self._text = ""
        self._left = 0

    def take(self, said: "Mapping[str, object]") -> None:
        """Take in a piece. The last one of a report replaces the counts, if all of the report can be read."""
        piece, left = said.get("metrics"), said.get("left")
        if not isinstance(piece, str) or not isinstance(left, int):
            return
        if left >= self._left:  # a report begins; the one before may have been cut off
            self._text = ""
        self._left = left
        if len(self._text) + len(piece) <= _MOST:
            self._text += piece
        if left > 0:
            return
        text, self._text = self._text, ""
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            counts = merging.from_json(strict_json.loads(text), self._role)
            if not self._steady or self.counts is None or _counters(self.counts) <= _counters(counts):
                self.counts = counts


def _counters(metrics: "Metrics") -> Counter[object]:
    """Return all that may only grow. Rules are counted together: a rule that is gone is counted as `other`."""
    found: Counter[object] = Counter({"rules": sum(metrics.rule_decisions.values())})
    found.update({name: getattr(metrics, name) for name in merging.TOTALS})
    for name in merging.BY_KEY:
        found.update({(name, key): count for key, count in getattr(metrics, name).items()})
    for name in merging.HISTOGRAMS:
        found.update({(name, at): count for at, count in enumerate(getattr(metrics, name).counts)})
    return found
