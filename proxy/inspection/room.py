"""How much memory a tenant's inspected connections may take together, of what their peers send and don't take.

Each connection's buffers and windows are bounded, but a tenant may have thousands of connections, and each may ask for
something large and read none of it: then the machine's memory would end, and the kernel ends other tenants' tasks first
(invariant 11). So there is an account: beyond `TIGHT` a connection whose client reads too little is read for less, and
beyond `MOST` those that keep most end. This module must never let what was counted once be forgotten about.
"""

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MIB: Final = 1 << 20
TIGHT: Final = 32 * MIB  # bytes; as much as spliced connections may keep (proxy.gate.splice)
MOST: Final = 256 * MIB
REQUEST: Final = 32 * 1024  # bytes that a request under way takes by itself, with what is held back to be looked at
FIELD: Final = 128  # ... and each field of its head, beside its text


class Keeper(Protocol):
    """A connection that keeps something. `kept`: how much as far as was noted (bytes)."""

    kept: int

    def weigh(self) -> int:
        """Return how much it keeps now."""

    def overflow(self) -> None:
        """End: there is no room for what it keeps. It leaves the room with that."""


class Room:
    """One tenant's room. For one thread."""

    __slots__ = ("_keepers", "_most", "kept")

    def __init__(self, keepers: "Callable[[], Collection[Keeper]]", most: int = MOST) -> None:
        self._keepers = keepers
        self._most = most
        self.kept = 0  # bytes, of all

    @property
    def is_tight(self) -> bool:
        """Whether nothing more should be taken in for who doesn't read."""
        return self.kept > min(TIGHT, self._most // 2)

    def note(self, keeper: Keeper, kept: int) -> None:
        """Take note of how much a connection keeps now; it may have to end for that, or another."""
        self.kept += kept - keeper.kept
        keeper.kept = kept
        if self.kept > self._most:
            self._make_room()

    def leave(self, keeper: Keeper) -> None:
        """Take note that a connection keeps nothing any more. Idempotent."""
        self.kept -= keeper.kept
        keeper.kept = 0

    def _make_room(self) -> None:
        """Weigh everything, as sockets take what waits for them unnoted; then end those that keep most.

        A quarter is free afterwards, so what it takes to weigh them all is little beside what comes in until the next
        time.
        """
        keepers = sorted(self._keepers(), key=_weighed, reverse=True)
        self.kept = sum(keeper.kept for keeper in keepers)
        for keeper in keepers:
            if self.kept <= self._most * 3 // 4:
                return
            keeper.overflow()
            self.leave(keeper)


def _weighed(keeper: Keeper) -> int:
    keeper.kept = keeper.weigh()
    return keeper.kept
