"""The connection that a run keeps to its service while its task has a gate of its own.

The run passes on what its worker has counted, and kills its task where the service says so.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from proxy import message

if TYPE_CHECKING:
    from enforcer.worker.worker import Worker

_EVERY: Final = 2.0  # seconds
_MOST_PIECES: Final = 100  # of a report: a worker that says more is not believed


class Registration:
    """One registered run. Nothing that the worker says is read here, and it can't flood the service."""

    def __init__(self, service: socket.socket, described: Mapping[str, object]) -> None:
        """Register the run, as `described`."""
        self._service = service
        self._selector: selectors.BaseSelector | None = None
        self._kill: Callable[[], None] | None = None
        self._pieces = 0  # that the worker may still say
        self._due = 0.0
        self._say(described)

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:
        """Hear what the service says from now on. `kill` kills the task."""
        self._selector, self._kill = selector, kill
        selector.register(self._service, selectors.EVENT_READ, self.hear)

    def hear(self) -> None:
        """Do what the service says."""
        said: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError):
            said, _ = message.receive(self._service)
        if not said and self._selector is not None:
            self._selector.unregister(self._service)  # it has ended, and this run with it
        elif said.get("kill") is True and self._kill is not None:
            self._kill()

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return max(0.0, self._due - time.monotonic())

    def turn(self, worker: "Worker") -> None:
        """Ask the worker what it has counted, if it is time. The last report comes when the worker stops."""
        if self.wait() == 0.0:
            self._due = time.monotonic() + _EVERY
            self._pieces = _MOST_PIECES
            worker.tell({"report": True})

    def last(self) -> None:
        """Have the report passed on that the worker makes when it stops."""
        self._pieces = _MOST_PIECES

    def report(self, said: Mapping[str, object]) -> None:
        """Pass on a piece of what the worker has counted."""
        if self._pieces > 0:
            self._pieces = 0 if said.get("left") == 0 else self._pieces - 1
            self._say({"metrics": said["metrics"], "left": said.get("left")})

    def _say(self, what: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # the service has ended: then this run does, too
            message.send(self._service, what)
