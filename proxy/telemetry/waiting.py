"""How many attempts wait for people at one gate, for how long, and what came of those that did: numbers only."""

import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from proxy.telemetry.events import Answer, Count

if TYPE_CHECKING:
    from collections.abc import Hashable

STALE: Final = "stale"  # whoever waited is gone
ANSWERS: Final = frozenset({*(each.value for each in Answer if each is not Answer.PASS), STALE})
BOUNDS: Final = (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # seconds: a person's

Real = Annotated[float, Meta(ge=0, le=1e15)]  # seconds


class Told(Struct, frozen=True):
    """What one process tells another of its `Waiting`."""

    answers: Mapping[str, Count]
    counts: Annotated[list[Count], Meta(min_length=len(BOUNDS) + 1, max_length=len(BOUNDS) + 1)]
    seconds: Real
    pending: Count
    age: Real


class Waiting:
    """Counts what waits. Of several processes the numbers are added up (`note`)."""

    __slots__ = ("_others", "_others_age", "_since", "answers", "counts", "seconds")

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}
        self._others = 0
        self._others_age = 0.0
        self.answers: dict[str, int] = {}  # what came of those that waited, by answer
        self.counts = [0] * (len(BOUNDS) + 1)  # how long they waited; the last: above all bounds
        self.seconds = 0.0  # all of them together

    @property
    def pending(self) -> int:
        """How many wait now."""
        return len(self._since) + self._others

    @property
    def age(self) -> float:
        """How long the oldest of them has waited, in seconds; 0 where nothing waits."""
        own = time.monotonic() - min(self._since.values()) if self._since else 0.0
        return max(own, self._others_age)

    def began(self, key: "Hashable") -> None:
        """Count an attempt that waits from now on. `key` tells it from the others."""
        self._since[key] = time.monotonic()

    def over(self, key: "Hashable", answer: Answer | None) -> None:
        """Count it out, with what came of it; None: whoever waited is gone. Once: what doesn't wait is passed over."""
        began = self._since.pop(key, None)
        if began is None:
            return
        seconds = time.monotonic() - began
        self.answered(answer)
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def ended(self, key: "Hashable", answer: Answer) -> None:
        """Count an attempt out that may never have waited."""
        if key in self._since:
            self.over(key, answer)
        else:
            self.answered(answer)

    def answered(self, answer: Answer | None) -> None:
        """Count what came of an attempt that never waited: there was nobody to ask, or too much."""
        word = STALE if answer is None else answer.value
        self.answers[word] = self.answers.get(word, 0) + 1

    def note(self, other: "Waiting", *, ended: bool = False) -> None:
        """Add another process's numbers; `ended`: without what only holds while it is there."""
        for word, count in other.answers.items():
            self.answers[word] = self.answers.get(word, 0) + count
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds
        if not ended:
            self._others += other.pending
            self._others_age = max(self._others_age, other.age)

    def told(self) -> "Told":
        """Return all of it for another process."""
        return Told(self.answers, self.counts, self.seconds, self.pending, self.age)

    @classmethod
    def of(cls, told: "Told") -> "Waiting":
        """Take what another process says, which isn't trusted. Raises ValueError."""
        if not told.answers.keys() <= ANSWERS:
            raise ValueError("not answers")
        found = cls()
        found.answers, found.counts, found.seconds = dict(told.answers), told.counts, told.seconds
        found._others, found._others_age = told.pending, told.age
        return found
