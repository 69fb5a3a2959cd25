"""Start queue: requests for runs wait until others have started, first come, first served.

With fewer starts at once, a tenth of the processor time is idle; with hundreds, each takes longer and more memory. A
slow start stops counting after a second, and delays no other.
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

_STARTS_PER_PROCESSOR: Final = 5  # starts per processor: they wait for kernel locks, and for workers
_FEWEST_AT_ONCE: Final = 6
_MOST_WAITING: Final = 1024  # requests; further ones start at once
_COUNTED_FOR: Final = 1.0  # seconds after which a start doesn't count any more

type Start = Callable[[socket.socket, list[int]], int]


def most_at_once() -> int:
    """Return how many starts run at once on this machine."""
    return max(_STARTS_PER_PROCESSOR * len(os.sched_getaffinity(0)), _FEWEST_AT_ONCE)


def most_waiting() -> int:
    """Return how many requests may wait: they take at most a quarter of the open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = _MOST_WAITING if soft == resource.RLIM_INFINITY else soft // 4 // (protocol.DESCRIPTORS + 1)
    return min(room, _MOST_WAITING)


class StartQueue:
    """Starts runs in order. `start` begins one and returns its pid; its arguments stay the caller's."""

    def __init__(self, start: Start, most: int, longest: int) -> None:
        """Start `most` at once, and let `longest` wait."""
        self._start = start
        self._most = most
        self._longest = longest
        self._starting: dict[int, float] = {}  # start times (time.monotonic()), by pid
        self._waiting: deque[tuple[socket.socket, list[int]]] = deque()

    def submit(self, client: socket.socket, descriptors: Sequence[int]) -> None:
        """Start a run, or queue its request, with copies of the descriptors.

        Raises what `start` does, MalformedRequestError, OSError.
        """
        if len(descriptors) != protocol.DESCRIPTORS:
            raise protocol.MalformedRequestError("the request has too few descriptors")
        if len(self._waiting) < self._longest and (self._waiting or not self._has_room()):
            copies = copy_descriptors((client.fileno(), *descriptors))
            self._waiting.append((socket.socket(fileno=copies[0]), copies[1:]))
        else:
            self._begin(client, list(descriptors))

    def finish_start(self, pid: int) -> bool:
        """Record that a task runs, or never will; returns whether no start is going on or waiting."""
        return self._starting.pop(pid, None) is not None and not self._starting and not self._waiting

    def turn(self) -> None:
        """Start queued runs while there is room.

        Raises what `start` does: that client runs its task without the service, and the others still wait.
        """
        while self._waiting and self._has_room():
            client, descriptors = self._waiting.popleft()
            try:
                self._begin(client, descriptors)
            except ExeatError as error:
                decline(client, str(error))
                raise
            finally:
                _close(client, descriptors)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        if not self._waiting:
            return 60.0
        now = time.monotonic()
        return 0.0 if self._has_room() else min(since + _COUNTED_FOR for since in self._active_starts(now)) - now

    def close(self) -> None:
        """Decline all queued requests: their clients run without the service. Idempotent."""
        while self._waiting:
            client, descriptors = self._waiting.popleft()
            decline(client, "the service is stopping")
            _close(client, descriptors)

    def _begin(self, client: socket.socket, descriptors: list[int]) -> None:
        client.setblocking(True)
        self._starting[self._start(client, descriptors)] = time.monotonic()

    def _has_room(self) -> bool:
        return len(self._active_starts(time.monotonic())) < self._most

    def _active_starts(self, now: float) -> list[float]:
        return [since for since in self._starting.values() if now < since + _COUNTED_FOR]


def decline(client: socket.socket, why: str) -> None:
    """Decline a request: the client runs its task without the service."""
    with contextlib.suppress(OSError):
        client.send(b"declined " + why.encode("utf-8", "backslashreplace"))


def _close(client: socket.socket, descriptors: Sequence[int]) -> None:
    client.close()
    for descriptor in descriptors:
        os.close(descriptor)
