"""Start queue: requests for runs that wait until others have started, first come first served.

With fewer starts at once a tenth of the processors' time is idle; with hundreds each takes longer and more memory. A
start that takes long holds nobody up.
"""

import contextlib
import os
import resource
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from enforcer.service import protocol
from enforcer.service.channel import copy_descriptors
from enforcer.system.errors import ExeatError

_A_PROCESSOR: Final = 5  # starts: they wait for each other's locks in the kernel, and for workers
_LEAST: Final = 6
_MOST_WAITING: Final = 1024  # requests; more are begun at once, as are those that would take too many descriptors
_LONG: Final = 1.0  # seconds after which a start isn't counted any more

type Start = Callable[[socket.socket, list[int]], int]


def most_at_once() -> int:
    """Return how many starts go on at once on this machine."""
    return max(_A_PROCESSOR * len(os.sched_getaffinity(0)), _LEAST)


def most_waiting() -> int:
    """Return how many requests can wait: a quarter of what may be open is the most that they take."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = _MOST_WAITING if soft == resource.RLIM_INFINITY else soft // 4 // (protocol.DESCRIPTORS + 1)
    return min(room, _MOST_WAITING)


class StartQueue:
    """All of them. `start` begins one and returns its process; what it is called with stays the caller's."""

    def __init__(self, start: Start, most: int, longest: int) -> None:
        """At most so many start at once, and at most so many wait."""
        self._start = start
        self._most = most
        self._longest = longest
        self._starting: dict[int, float] = {}  # since when (time.monotonic()), by their processes
        self._waiting: deque[tuple[socket.socket, list[int]]] = deque()

    def ask(self, client: socket.socket, descriptors: Sequence[int]) -> None:
        """Start a run, or have it wait. Copies are kept of what it is asked with.

        Raises what `start` does, Unreadable, OSError.
        """
        if len(descriptors) != protocol.DESCRIPTORS:
            raise protocol.MalformedRequestError("the request has too few descriptors")
        if len(self._waiting) < self._longest and (self._waiting or not self._room()):
            ours = copy_descriptors((client.fileno(), *descriptors))
            self._waiting.append((socket.socket(fileno=ours[0]), ours[1:]))
        else:
            self._begin(client, list(descriptors))

    def over(self, pid: int) -> bool:
        """Take note that a task runs, or never will; whether now nobody waits for a start any more."""
        return self._starting.pop(pid, None) is not None and not self._starting and not self._waiting

    def turn(self) -> None:
        """Start those for whom there is room.

        Raises what `start` does: that one runs its task without a service, and the others still wait.
        """
        while self._waiting and self._room():
            client, descriptors = self._waiting.popleft()
            try:
                self._begin(client, descriptors)
            except ExeatError as error:
                decline(client, str(error))
                raise
            finally:
                _close(client, descriptors)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        if not self._waiting:
            return 60.0
        now = time.monotonic()
        return 0.0 if self._room() else min(since + _LONG for since in self._counted(now)) - now

    def close(self) -> None:
        """Have those who wait run their tasks without a service. Idempotent."""
        while self._waiting:
            client, descriptors = self._waiting.popleft()
            decline(client, "the service is about to end")
            _close(client, descriptors)

    def _begin(self, client: socket.socket, descriptors: list[int]) -> None:
        client.setblocking(True)
        self._starting[self._start(client, descriptors)] = time.monotonic()

    def _room(self) -> bool:
        return len(self._counted(time.monotonic())) < self._most

    def _counted(self, now: float) -> list[float]:
        return [since for since in self._starting.values() if now < since + _LONG]


def decline(client: socket.socket, why: str) -> None:
    """Have who asks run the task without a service."""
    with contextlib.suppress(OSError):
        client.send(b"declined " + why.encode("utf-8", "backslashreplace"))


def _close(client: socket.socket, descriptors: Sequence[int]) -> None:
    client.close()
    for each in descriptors:
        os.close(each)
