"""Worker process as the runner sees it: forks, confines and stops it, and notices its death.

The worker runs `proxy.worker.server`; this module drops every right that it doesn't need.
"""

import contextlib
import gc
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from enforcer.sandbox.identity import Identity, idmapped_tree
from enforcer.system import linux
from enforcer.system.errors import HostError
from enforcer.system.processes import detach, fork
from enforcer.worker import confinement
from enforcer.worker.signer import CertificateSigner
from enforcer.worker.trust import system_roots
from proxy.sandbox.sandbox_state import SandboxState
from proxy.wire import message
from proxy.worker.messages import WorkerOrder, WorkerReady

_ONLY = 1  # the worker's number
_KEPT_FIELDS = frozenset({"asks", "confined", "failed", "placeholders", "summary"})
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_STOP_TIMEOUT = 5.0  # seconds for a stopped worker to close its connections


class WorkerPaths(NamedTuple):
    """Paths, certificate and listener of a worker."""

    authority: Path
    authority_fingerprint: Sequence[int]  # the fingerprint of the CA's file
    authority_expires: float  # seconds since 1970
    certificate: bytes  # of the CA (PEM), as the sandbox is to trust it
    journal: Path
    metrics: socket.socket | None  # already listening


class Worker:
    """A task's gate as the runner sees it: a control channel, and a channel for the sandbox's sockets.

    It is a process of this run (`WorkerProcess`), or a worker of the service (`service.placement`).
    """

    kept_fields: frozenset[str] = _KEPT_FIELDS  # fields of its messages that are kept; others are dropped
    watches_rules = False  # another process watches the rule files
    writers: tuple[int, ...] = ()  # processes whose journal segments belong to this run

    def __init__(self, control: socket.socket, gate: socket.socket) -> None:
        self.control = control
        self.gate = gate
        self.alive = True
        self.received_fields: dict[str, object] = {}
        self._is_stopping = False  # `stop` was sent; its summary may be outstanding

    def send(self, fields: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message. Does nothing if the worker has ended; ends it if it can't get new rules."""
        try:
            message.send(self.control, fields, descriptors)
        except message.MessageNotSentError:
            self._shut_down()
        except OSError:
            pass

    def receive(self) -> bool:
        """Read one message; False when the worker is gone.

        A task may control the worker, so only the keys in `kept_fields` are kept; an invalid message ends the worker.
        """
        try:
            fields, _ = message.receive(self.control)
        except ValueError:
            fields = {}
            self._shut_down()
        self._forward_metrics(fields)
        self.received_fields.update((name, value) for name, value in fields.items() if name in self.kept_fields)
        self.alive = bool(fields) and self.alive
        return bool(fields)

    def stop(self, last: Mapping[str, object] = _NOTHING) -> None:
        """Send the last message: it closes open connections, and sends a summary (`wait_for_summary`)."""
        self.send({**last, "stop": True})  # `SandboxNews`
        self._is_stopping = True

    def wait_for_summary(self) -> None:
        """Wait for its summary after `stop`. Idempotent."""
        if not self._is_stopping:
            return
        self._is_stopping = False
        self.control.settimeout(_STOP_TIMEOUT)
        deadline = time.monotonic() + _STOP_TIMEOUT
        with contextlib.suppress(TimeoutError):
            while (
                time.monotonic() < deadline and self.alive and "summary" not in self.received_fields and self.receive()
            ):
                pass
        self._end()

    def kill(self) -> None:
        """End its service of this task. Idempotent."""
        self.alive = False
        self.control.close()
        self.gate.close()

    # For the loop of the runner; a worker of the service needs none of these.

    def report_errors_to(self, report: Callable[[str], None]) -> None:
        """Have errors of the worker's signer reported."""

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:
        """Register its descriptors. `kill` kills the task."""

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return math.inf

    def turn(self) -> None:
        """Do what is due."""

    def _forward_metrics(self, fields: Mapping[str, object]) -> None:
        """Pass metrics on, where another process reads them."""

    def _shut_down(self) -> None:
        """Stop it from allowing anything further; the next `receive` returns False."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        self.kill()


class WorkerProcess(Worker):
    """A worker process of this run, for one sandbox, with its signer."""

    def __init__(
        self, pid: int, control: socket.socket, gate: socket.socket, signer: CertificateSigner | None = None
    ) -> None:
        super().__init__(control, gate)
        self.pid = pid
        self.writers = (pid,)
        self.has_ended = False  # its pid may belong to another process by now
        self._signer = signer

    def kill(self) -> None:
        """End the process. Idempotent."""
        self._shut_down()
        if not self.has_ended:
            self.has_ended = True
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        super().kill()
        if self._signer is not None:
            self._signer.close()

    def report_errors_to(self, report: Callable[[str], None]) -> None:
        """Have errors of its signer reported."""
        if self._signer is not None:
            self._signer.report = report

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:  # noqa: ARG002
        """Register its signer's descriptors."""
        if self._signer is not None:
            self._signer.watch(selector)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return math.inf if self._signer is None else self._signer.wait()

    def turn(self) -> None:
        """Do what is due for its signer."""
        if self._signer is not None:
            self._signer.turn()

    def _shut_down(self) -> None:
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _end(self) -> None:
        """End it. After its summary it is killed, since an interpreter takes a while to exit."""
        if "summary" in self.received_fields:
            self._shut_down()
        else:
            self.kill()


def start[Kind: WorkerProcess](
    identity: Identity, sandbox_state: SandboxState, worker_paths: WorkerPaths, kind: type[Kind]
) -> Kind:
    """Fork a worker for one sandbox. Raises HostError when the journal can't be opened, or the CA is missing."""
    signer = CertificateSigner(
        worker_paths.authority, worker_paths.certificate, identity, fingerprint=worker_paths.authority_fingerprint
    )
    signer_end = signer.pair(_ONLY)
    signer.serves(_ONLY, 1)
    gate, gate_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    journal, metrics = open_journal(identity, worker_paths.journal), worker_paths.metrics

    def run_worker(parent: int, control: socket.socket) -> None:
        linux.disable_core_dumps()  # before secrets are in memory
        detach({journal, control.fileno(), gate_end.fileno(), signer_end.fileno()}, metrics)
        roots, login, policy = system_roots(), None, sandbox_state.policy
        if policy.secrets or policy.settings.upstream_auth is not None:
            from enforcer.worker import credentials  # few rules have any

            login = credentials.read_login(policy)
            sandbox_state.set_secrets(
                credentials.read_secrets(policy, os.environ), b"" if login is None else login.password
            )
        confinement.enter(identity)
        linux.die_with_parent(signal.SIGKILL, parent)
        placeholders = sandbox_state.secret_injector.placeholders if sandbox_state.secret_injector is not None else {}
        message.send(control, WorkerReady(confined=True, placeholders=placeholders))
        from proxy.worker import server  # imported from the view that it is confined to
        from proxy.worker.messages import OnlySandbox, Setup

        gc.freeze()
        gc.enable()
        authority_expires = worker_paths.authority_expires
        only = OnlySandbox(sandbox_state, gate_end, metrics, login)
        forbidden = () if metrics is None else (metrics.getsockname()[:2],)
        server.serve(Setup(signer_end, authority_expires, roots, journal, control, forbidden=forbidden, only=only))

    pid, control = fork(run_worker)
    for end in (gate_end, signer_end):
        end.close()
    os.close(journal)
    worker = kind(pid, control, gate, signer)
    signer.renew = lambda _number, pair: worker.send(WorkerOrder(keyholder=True), [pair.fileno()])
    return worker


def wait_until_confined(worker: Worker) -> None:
    """Wait until the worker is confined. Raises HostError with its own message."""
    while "confined" not in worker.received_fields:
        if not worker.receive() or "failed" in worker.received_fields:
            raise start_error(worker)


def start_error(worker: Worker) -> HostError:
    """Return the error for a worker that ends before it serves, with its own message if it sent one."""
    worker.control.settimeout(_STOP_TIMEOUT)
    with contextlib.suppress(TimeoutError):
        while "failed" not in worker.received_fields and worker.receive():
            pass
    return HostError(f"the gate could not be started: {worker.received_fields.get('failed', 'its process ended')}")


def open_journal(identity: Identity, directory: Path) -> int:
    """Open the journal's directory, so that the worker can make segments under its own ids."""
    if identity.privileged:
        return idmapped_tree(str(directory), identity.worker_uid, identity.worker_uid)
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
