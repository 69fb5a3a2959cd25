"""Cgroups that runs leave when they are killed: the service takes them away, and not each run those of all others."""

import time
from typing import Final

from enforcer.limits import cgroups
from enforcer.limits.cgroups import CONTROLLERS, hierarchies, places

_REST: Final = 0.5  # seconds: killed processes take a moment to be gone
_SELDOM: Final = 60.0  # seconds: a run may also give up on a group whose processes are not gone in time
_PATIENCE: Final = 10.0  # seconds at the end
_PAUSE: Final = 0.02


class CgroupSweep:
    """Those in the places that runs of this service make groups in; where these are is looked up once."""

    def __init__(self) -> None:
        """Look after these places from now on."""
        found = hierarchies()
        needed = (CONTROLLERS, CONTROLLERS - {"cpu"})  # as runs ask for them (`limits.resource_limits`)
        self._places = {place.path for each in needed for place in places(found, each)}
        cgroups.look_after(self._places)
        self._due = 0.0  # at once: an earlier service may have been killed

    def some(self) -> None:
        """Take note that a run has ended which could take nothing away."""
        self._due = min(self._due, time.monotonic() + _REST)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return self._due - time.monotonic()

    def turn(self) -> None:
        """Take away what is there, if that is due."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + (_REST if self._sweep() else _SELDOM)

    def close(self) -> None:
        """Take away all that is left, and leave what comes later to others."""
        deadline = time.monotonic() + _PATIENCE
        while self._sweep() and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def _sweep(self) -> int:
        return sum(map(cgroups.sweep, self._places))
