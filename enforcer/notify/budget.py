"""How much of what is refused is told: each kind once in a while, a few at once, and the rest is counted."""

import time
from collections.abc import Callable
from typing import Final

EACH: Final = 60.0  # seconds between two events of the same
AT_ONCE: Final = 20  # events
REFILLED: Final = 3.0  # seconds for another one
_MOST_KINDS: Final = 256  # that are told apart


class Budget:
    """Says what is told. Bounded in time and in what it remembers, whatever the task does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._room = float(AT_ONCE)
        self._at = clock()
        self._told: dict[tuple[str, bytes], float] = {}  # when it was told last
        self._untold: dict[tuple[str, bytes], int] = {}  # how often it wasn't, since

    def take(self, call: str, exe: bytes) -> int | None:
        """Return how many like it were not told since the last one, or None: don't tell this one either."""
        now = self._clock()
        self._room = min(AT_ONCE, self._room + (now - self._at) / REFILLED)
        self._at = now
        key = (call, exe)
        if key not in self._untold and key not in self._told and len(self._told) + len(self._untold) >= _MOST_KINDS:
            self._forget(now)
        told = self._told.get(key)
        if self._room < 1 or (told is not None and now - told < EACH):
            if key in self._untold or len(self._untold) < _MOST_KINDS:
                self._untold[key] = self._untold.get(key, 0) + 1
            return None
        self._room -= 1
        self._told[key] = now
        return self._untold.pop(key, 0)

    def _forget(self, now: float) -> None:
        """Forget what could be told again by now; if that isn't enough, everything: the room bounds it still."""
        self._told = {key: at for key, at in self._told.items() if now - at < EACH}
        if len(self._told) >= _MOST_KINDS // 2:
            self._told.clear()
        self._untold.clear()
