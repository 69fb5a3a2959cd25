"""Rounds through all that one gate has open: every second each looks at the time, and all are reviewed on a new day.

There is one timer for all of them, for they are many, and none while nothing is open. What goes wrong with one is its
own trouble (invariant 2): the others get their turn.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from proxy.sandbox.tenant import Tenant

EVERY: Final = 1.0  # seconds


class Guest(Protocol):
    """A connection or a flow in some stage of its life, as a gate keeps it."""

    def tick(self, now: float) -> None:
        """Look at the time, by the gate's clock."""

    def review(self) -> None:
        """Decide again what was let out: other rules are in force, or it is another day."""

    def abort(self) -> None:
        """End it now."""

    def failed(self, error: Exception) -> None:
        """End it now, and tell of an exception that nobody expected. Never raises."""


def visit[Kind: Guest](guests: "Collection[Kind]", act: "Callable[[Kind], None]") -> None:
    """Do it to each that is there now. One that raises fails; it may leave the collection, and others with it."""
    for guest in tuple(guests):
        try:
            act(guest)
        except Exception as error:  # noqa: BLE001 - the others are to have their turn
            guest.failed(error)


class Rounds:
    """The rounds of one gate. For one thread, within a running loop."""

    def __init__(
        self,
        tenant: "Tenant",
        guests: "Callable[[], Collection[Guest]]",
        review: "Callable[[], None]",
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        """Go through what `guests` returns; `review` is called when the day is another."""
        self._tenant = tenant
        self._guests = guests
        self._review = review
        self._clock = clock
        self._today = tenant.calendar.today()
        self._next: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether there will be another round."""
        return self._next is not None

    def keep_going(self) -> None:
        """See to it that there is a next round as long as anybody is there. Idempotent."""
        if self._next is None and self._guests():
            self._next = asyncio.get_running_loop().call_later(EVERY, self.go)

    def stop(self) -> None:
        """Go no more. Idempotent."""
        if self._next is not None:
            self._next.cancel()

    def go(self) -> None:
        """Go once, now."""
        self._next = None
        today = self._tenant.calendar.today()
        if today is not self._today:
            self._today = today
            self._review()
        now = self._clock()
        visit(self._guests(), lambda guest: guest.tick(now))
        self.keep_going()
