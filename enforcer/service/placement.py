"""Place of a sandbox at a worker, seen from the process of its run: the service's worker, or its own.

A message to a worker of the service goes by the service, so a run never notices one that died and was replaced. A run
whose worker is its own is registered with the service, which counts and stops it.
"""

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from enforcer.service.rule_sets import policy_in_memory
from enforcer.worker.worker import Worker, WorkerProcess
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.policy.run_request import Wanted
    from proxy.sandbox.sandbox_state import SandboxState

_REPORT_EVERY: Final = 2.0  # seconds
_MOST_PIECES: Final = 100  # of a report: a worker that says more is not believed


class SharedWorker(Worker):
    """A place at a worker of the service. The channel to the service is also what the sandbox's sockets go through."""

    words = Worker.words | {"declined", "kill", "unknown"}

    def __init__(self, service: socket.socket, *, shared: bool) -> None:
        """Have one. `shared`: the rules may be those of other runs too, and are watched by the service."""
        super().__init__(service, service)
        self.watches_rules = shared


class RegisteredWorker(WorkerProcess):
    """A worker of this run alone, which the service lists, counts and stops.

    The service reads what the worker has counted; nothing of it is read here, and the worker can't flood the service.
    """

    _service: socket.socket
    _kill: Callable[[], None]
    _selector: selectors.BaseSelector | None = None
    _pieces = 0  # of a report that it may still send
    _due = 0.0

    def register(self, service: socket.socket, described: Mapping[str, object]) -> None:
        """Register the run with the service, as `described`."""
        self._service = service
        self._send(described)

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:
        """Also take the service's word to kill the task."""
        super().watch(selector, kill)
        self._selector, self._kill = selector, kill
        selector.register(self._service, selectors.EVENT_READ, self.hear_service)

    def hear_service(self) -> None:
        """Do what the service says."""
        said: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError):
            said, _ = message.receive(self._service)
        if not said and self._selector is not None:
            self._selector.unregister(self._service)  # it has ended, and this run with it
        elif said.get("kill") is True:
            self._kill()

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return min(super().wait(), max(0.0, self._due - time.monotonic()))

    def turn(self) -> None:
        """Also ask the worker what it has counted, if it is time."""
        super().turn()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _REPORT_EVERY
            self._pieces = _MOST_PIECES
            self.tell({"ask": True, "metrics": True})

    def stop(self, last: Mapping[str, object] = MappingProxyType({})) -> None:
        """Also have the report passed on that the worker makes when it stops."""
        self._pieces = _MOST_PIECES
        super().stop(last)

    def _report(self, said: Mapping[str, object]) -> None:
        if "metrics" in said and self._pieces > 0:
            self._pieces = 0 if said.get("left") == 0 else self._pieces - 1
            self._send({"metrics": said["metrics"], "left": said.get("left")})

    def _send(self, what: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # the service has ended: then this run does, too
            message.send(self._service, what)


def place(
    service: socket.socket, sandbox_state: "SandboxState", wanted: "Wanted", *, shared: bool, known: int
) -> SharedWorker:
    """Ask for a place. `shared`: the rules may be those of other runs too, and are watched by the service.

    `known` is the set that they were found in there; 0: they were read here.
    """
    request: dict[str, object] = {
        "lodge": sandbox_state.id,
        "id": sandbox_state.task.id,
        "name": sandbox_state.task.name,
        "labels": dict(sandbox_state.task.labels),
        "workspace": wanted.workspace,
    }
    worker = SharedWorker(service, shared=shared)
    if known:
        worker.tell({**request, "known": known})
        if not worker.hear() or "unknown" not in worker.said:
            return worker
        del worker.said["unknown"]  # it was dropped in this very moment
    request |= {
        "files": [os.path.join(os.getcwd(), path) for path in wanted.rules],
        "asked": list(wanted.asked),
        "seen": wanted.seen,
        "system": str(wanted.system),
        "shared": shared,
    }
    policy = policy_in_memory(sandbox_state.policy)
    try:
        worker.tell(request, [policy])
    finally:
        os.close(policy)
    return worker
