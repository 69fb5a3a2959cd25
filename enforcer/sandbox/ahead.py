"""How every view begins, written once: a service gives the same programs to each sandbox that it makes."""

from typing import Final

from enforcer.sandbox import build, layers
from enforcer.sandbox.calls import Packet
from enforcer.sandbox.player import Player
from enforcer.sandbox.steps import Show, Step

_MOST: Final = 8  # beginnings that are kept
_written: Final[dict[str, list[Packet]]] = {}


class Paper(Player):
    """Nobody plays what is written here: no step may wait for what comes of it."""


def view(steps: tuple[Step, ...]) -> list[Packet] | None:
    """Return the programs of a view that begins with these steps, of which none has a descriptor.

    None where one has to wait and see: something is mounted inside what it shows.
    """
    if layers.has_mounts_below(*(step.source for step in steps if isinstance(step, Show))):
        return None
    key = repr(steps)
    if key not in _written:
        while len(_written) >= _MOST:
            del _written[next(iter(_written))]
        paper = Paper()
        build.begin(paper)
        build.take(paper, steps)
        _written[key] = paper.calls.packets()
    return _written[key]
