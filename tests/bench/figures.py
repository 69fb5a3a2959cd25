"""What was measured: values round by round, their medians and spread, ratios of rounds, and the goals they are held to.

Everything is run in turns, in another order each round, so that what slows the machine for a while slows all alike; a
ratio is the median of the rounds' ratios, each of two runs that lie side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Values:
    """One figure of one way, by round."""

    each: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.each)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.each), max(self.each)

    def over(self, other: "Values") -> "Values":
        """The ratio to another way's, round by round."""
        return Values(tuple(a / b for a, b in zip(self.each, other.each, strict=True)))

    def minus(self, other: "Values") -> "Values":
        """The difference to another way's, round by round."""
        return Values(tuple(a - b for a, b in zip(self.each, other.each, strict=True)))

    def times(self, factor: float) -> "Values":
        """The same in another unit."""
        return Values(tuple(value * factor for value in self.each))


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of number: what it is, its unit, and its values by way."""

    says: str
    unit: str
    digits: int
    by_way: Mapping[str, Values]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a value is held to. MissingError one fails nothing: machines differ, and a timed test is a coin toss."""

    says: str
    found: Values
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.found.median >= self.limit if self.at_least else self.found.median <= self.limit


@dataclass(slots=True)
class Findings:
    """All that one run of the bench found."""

    figures: dict[str, list[Figure]] = field(default_factory=dict)  # by measurement
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def in_turns[W](ways: Sequence[W], rounds: int, once: Callable[[W], dict[str, float]], name=lambda way: way.name):
    """Run every way once a round, beginning with another each round. Returns {figure: {way: Values}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        first = number % len(ways)
        for way in (*ways[first:], *ways[:first]):
            for figure, value in once(way).items():
                found.setdefault(figure, {}).setdefault(name(way), []).append(value)
    return {
        figure: {name(way): Values(tuple(values[name(way)])) for way in ways if name(way) in values}
        for figure, values in found.items()
    }
