"""Placement of a sandbox at a worker, as its run sees it: a worker of the service, or one of its own.

Messages to a worker of the service go through the service, so a run never notices that one died and was replaced. A run
with a worker of its own registers with the service, which counts and stops it.
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
    from enforcer.policy.run_request import RunRequest
    from enforcer.service.messages import OwnWorkerRun, PlaceRequest
    from proxy.sandbox.sandbox_state import SandboxState

_REPORT_EVERY: Final = 2.0  # seconds
_MOST_PIECES: Final = 100  # messages of a metrics report: further ones are dropped


class SharedWorker(Worker):
    """A worker of the service. The channel to the service also carries the sandbox's sockets."""

    kept_fields = Worker.kept_fields | {"declined", "kill", "unknown"}

    def __init__(self, service: socket.socket, *, shared: bool) -> None:
        """`shared`: the rule set may be shared with other runs, and the service watches its files."""
        super().__init__(service, service)
        self.watches_rules = shared


class RegisteredWorker(WorkerProcess):
    """A worker of this run alone, which the service lists, counts and stops.

    The service reads the worker's metrics; this run passes them on unread, and a worker can't flood the service.
    """

    _service: socket.socket
    _kill: Callable[[], None]
    _selector: selectors.BaseSelector | None = None
    _pieces = 0  # messages of a report that it may still send
    _due = 0.0

    def register(self, service: socket.socket, description: "OwnWorkerRun") -> None:
        """Register the run with the service."""
        self._service = service
        self._send(description)

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:
        """Also handle the service's request to kill the task."""
        super().watch(selector, kill)
        self._selector, self._kill = selector, kill
        selector.register(self._service, selectors.EVENT_READ, self.handle_service_message)

    def handle_service_message(self) -> None:
        """Handle a message of the service."""
        fields: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError):
            fields, _ = message.receive(self._service)
        if not fields and self._selector is not None:
            self._selector.unregister(self._service)  # the service has ended, and ends this run
        elif fields.get("kill") is True:
            self._kill()

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return min(super().wait(), max(0.0, self._due - time.monotonic()))

    def turn(self) -> None:
        """Also request the worker's metrics, if it is time."""
        super().turn()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _REPORT_EVERY
            self._pieces = _MOST_PIECES
            self.send({"ask": True, "metrics": True})

    def stop(self, last: Mapping[str, object] = MappingProxyType({})) -> None:
        """Also pass on the metrics that the worker sends when it stops."""
        self._pieces = _MOST_PIECES
        super().stop(last)

    def _forward_metrics(self, fields: Mapping[str, object]) -> None:
        if "metrics" in fields and self._pieces > 0:
            self._pieces = 0 if fields.get("left") == 0 else self._pieces - 1
            self._send({"metrics": fields["metrics"], "left": fields.get("left")})

    def _send(self, fields: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # the service has ended, and ends this run
            message.send(self._service, fields)


def place(
    service: socket.socket, sandbox_state: "SandboxState", request: "RunRequest", *, shared: bool, known: int
) -> SharedWorker:
    """Request a worker from the service. `shared`: other runs may have its rule set, which the service watches.

    `known`: the number of a rule set that the service has already; 0: the rules were read here.
    """
    place_request: PlaceRequest = {
        "lodge": sandbox_state.id,
        "id": sandbox_state.task.id,
        "name": sandbox_state.task.name,
        "labels": dict(sandbox_state.task.labels),
        "workspace": request.workspace,
    }
    worker = SharedWorker(service, shared=shared)
    if known:
        worker.send({**place_request, "known": known})
        if not worker.receive() or "unknown" not in worker.received_fields:
            return worker
        del worker.received_fields["unknown"]  # the service has just dropped the rule set
    place_request.update(
        {
            "files": [os.path.join(os.getcwd(), path) for path in request.rules],
            "asked": list(request.searched_paths),
            "seen": request.fingerprint,
            "system": str(request.system),
            "shared": shared,
        }
    )
    policy = policy_in_memory(sandbox_state.policy)
    try:
        worker.send(place_request, [policy])
    finally:
        os.close(policy)
    return worker
