"""Programs that are the same for many sandboxes, written once: a service gives them to each that it makes."""

from collections.abc import Callable, Hashable, Sequence
from typing import Final

from enforcer.sandbox import contents
from enforcer.sandbox.calls import Packet
from enforcer.sandbox.player import Player

_MOST: Final = 32  # that are kept
_written: Final[dict[Hashable, list[Packet]]] = {}


class Paper(Player):
    """Nobody plays what is written here, so no step may wait for what comes of it. `given`: all that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Packet] = []

    def send(self, packets: Sequence[Packet]) -> None:
        """Take them."""
        self.given += packets


def play(player: Player, what: Hashable, write: Callable[[Player], None]) -> None:
    """Have the programs played that `write` writes, after all that is written already.

    They are the same wherever `what` is, and none has a descriptor but of contents that are kept: others are others in
    each process.
    """
    player.begin()
    player.send(_kept(what, write))


def _kept(what: Hashable, write: Callable[[Player], None]) -> list[Packet]:
    if what not in _written:
        paper = Paper()
        write(paper)
        paper.begin()
        for packet in paper.given:
            if packet.given:
                raise ValueError("a program that is kept has something to give")
            contents.keep(packet.descriptors)
        while len(_written) >= _MOST:
            del _written[next(iter(_written))]
        _written[what] = paper.given
    return _written[what]
