"""What every sink does, and the two ways in which it can't."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from proxy.telemetry.shapes.record import Record


class Item(NamedTuple):
    """A line of the journal, newline included, and its record. The line is empty where the record was made shorter."""

    line: bytes
    record: Record


class Unavailable(Exception):  # noqa: N818  it is not our error
    """The receiver didn't take it: it is down, too slow, or says no for now. It is to be tried again.

    `wait`: seconds that the receiver asked for.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(Exception):  # noqa: N818
    """The receiver says that what was sent is at fault."""


class Sink(Protocol):
    """Somewhere that events go."""

    name: str  # of a closed set: it is a metric's label

    def send(self, items: Sequence[Item]) -> None:
        """Have them taken, all of them, when this returns. Raises Unavailable, Refused."""
