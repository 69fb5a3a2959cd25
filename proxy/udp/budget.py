"""How much may be told of what a task can do without end: so many a second, and some at once after a quiet time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Budget:
    """A bucket of tokens that fills by itself, like the `limit` of the ruleset's refusal log."""

    __slots__ = ("_a_second", "_at_once", "_clock", "_left", "_then")

    def __init__(self, a_second: float, at_once: int, clock: "Callable[[], float]") -> None:
        self._a_second = a_second
        self._at_once = at_once
        self._clock = clock
        self._left = float(at_once)
        self._then = clock()

    def spend(self) -> bool:
        """Take one, if there is one."""
        now = self._clock()
        self._left = min(self._left + (now - self._then) * self._a_second, self._at_once)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
