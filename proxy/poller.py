"""The worker's event loop: asyncio's, whose selector also serves the gate's own small objects.

What the gate watches is told from inside the selector, and as long as nothing of asyncio's is due the selector doesn't
even return: no handle, no context, no turn of the loop. On a connection that is passed through this halves the CPU time
(concurrent connections: 105 us with add_reader, 65 us so; single ones, where every event is a turn of the loop: 320 us
and 230 us).

A descriptor's number may have changed hands between epoll's answer and its turn, so whoever is watched must bear being
called when nothing is ready. An exception ends only the object that raised it (invariant 2).
"""

import asyncio
import math
import os
import select
import selectors
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP

_AT_ONCE: Final = 256  # events before time and asyncio's other business get their turn


class Watched(Protocol):
    """Something with a socket in the set."""

    def ready(self, events: int) -> None:
        """Take note of epoll's `events`; ERR and HUP come unasked. Must not block."""

    def failed(self, error: Exception) -> None:
        """Close down: `ready` raised. Must not raise."""


class Poller(selectors.EpollSelector):
    """One epoll set, for asyncio and for what is `Watched`. For one thread."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, Watched] = {}
        self._set = select.epoll.fromfd(os.dup(self.fileno()))  # the same set
        self._asyncio_has = self.get_map()
        self.stirred = False  # asyncio has been given something to do

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Self:
        """Return the poller of a `Loop`; any other loop gets one of its own, served at that loop's pace."""
        if isinstance(loop, Loop) and isinstance(loop.poller, cls):
            return loop.poller
        poller = cls()
        loop.add_reader(poller.fileno(), poller.select, 0)
        return poller

    def watch(self, fd: int, events: int, watched: Watched) -> None:
        """Add a descriptor to the set."""
        self._set.register(fd, events)
        self._watched[fd] = watched

    def change(self, fd: int, events: int) -> None:
        """Wait for something else on a descriptor in the set."""
        self._set.modify(fd, events)

    def pass_on(self, fd: int, events: int, watched: Watched) -> None:
        """Have another object told about a descriptor in the set, and wait for `events`."""
        self._set.modify(fd, events)
        self._watched[fd] = watched

    def forget(self, fd: int) -> None:
        """Take a descriptor out of the set, if it is there: always before it is closed or given away."""
        if self._watched.pop(fd, None) is not None:
            self._set.unregister(fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve what is watched until asyncio has something to do: an event, a callback, or the end of `timeout`."""
        self.stirred = False
        wait = -1.0 if timeout is None else max(timeout, 0.0)
        until = time.monotonic() + wait if wait > 0 else 0.0
        while True:
            events = self._serve(math.ceil(wait * 1e3) * 1e-3 if wait > 0 else wait)
            if events or self.stirred or not wait:
                return events
            if wait > 0:
                wait = until - time.monotonic()
                if wait <= 0:
                    return events

    def close(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()
        self._set.close()
        super().close()

    def _serve(self, wait: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Tell those who are watched, and return what asyncio has to be told."""
        ready = []
        watched = self._watched
        for fd, events in self._set.poll(wait, _AT_ONCE):
            one = watched.get(fd)
            if one is not None:
                try:
                    one.ready(events)
                except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                    one.failed(error)
                continue
            key = self._asyncio_has.get(fd)
            if key is not None:
                reads = selectors.EVENT_READ if events & ~OUT else 0
                writes = selectors.EVENT_WRITE if events & ~IN else 0
                ready.append((key, (reads | writes) & key.events))
        return ready


class Loop(asyncio.SelectorEventLoop):
    """The event loop of a worker: `asyncio.run(main(), loop_factory=Loop)`."""

    def __init__(self) -> None:
        self.poller = Poller()
        super().__init__(self.poller)

    def call_soon(  # type: ignore[override]  # the same, but for a type variable
        self, callback: "Callable[..., object]", *args: Any, context: "Context | None" = None
    ) -> asyncio.Handle:
        """Do as asyncio's, and have the selector return."""
        self.poller.stirred = True
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: "Callable[..., object]", *args: Any, context: "Context | None" = None
    ) -> asyncio.TimerHandle:
        """Do as asyncio's, and have the selector return: it may be due before what was."""
        self.poller.stirred = True
        return super().call_at(when, callback, *args, context=context)
