"""Worker process as the runner sees it: forks, confines and stops it, and notices its death.

`proxy.worker.server` is what the worker runs; this module takes away every right that it doesn't need.
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
_WORDS = frozenset({"asks", "confined", "failed", "placeholders", "summary"})
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_LAST_WORDS = 5.0  # seconds for a stopped worker to close what is open


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

    words: frozenset[str] = _WORDS  # the keys of its messages that are kept
    watches_rules = False  # another process watches the rule files
    writers: tuple[int, ...] = ()  # processes whose journal segments belong to this run

    def __init__(self, control: socket.socket, gate: socket.socket) -> None:
        self.control = control
        self.gate = gate
        self.alive = True
        self.said: dict[str, object] = {}
        self._leaving = False  # it was asked to stop; its last message may be outstanding

    def tell(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message. A worker that is gone gets none; one that can't get new rules is ended."""
        try:
            message.send(self.control, what, descriptors)
        except message.MessageNotSentError:
            self._give_up()
        except OSError:
            pass

    def hear(self) -> bool:
        """Read one message; False when the worker is gone.

        A task may control the worker, so only the keys in `words` are kept; an invalid message ends the worker.
        """
        try:
            said, _ = message.receive(self.control)
        except ValueError:
            said = {}
            self._give_up()
        self._report(said)
        self.said.update((name, value) for name, value in said.items() if name in self.words)
        self.alive = bool(said) and self.alive
        return bool(said)

    def stop(self, last: Mapping[str, object] = _NOTHING) -> None:
        """Send the last message, and have it close what is open; `see_out` waits for that."""
        self.tell({**last, "stop": True})  # `SandboxNews`
        self._leaving = True

    def see_out(self) -> None:
        """Wait for its last message, if it was asked to stop. Idempotent."""
        if not self._leaving:
            return
        self._leaving = False
        self.control.settimeout(_LAST_WORDS)
        deadline = time.monotonic() + _LAST_WORDS
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline and self.alive and "summary" not in self.said and self.hear():
                pass
        self._leave()

    def kill(self) -> None:
        """End its service of this task. Idempotent."""
        self.alive = False
        self.control.close()
        self.gate.close()

    # For the loop of the runner. Nothing to do for a worker of the service.

    def report_to(self, tell: Callable[[str], None]) -> None:
        """Have errors of the worker's signer reported."""

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:
        """Register its descriptors. `kill` kills the task."""

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        return math.inf

    def turn(self) -> None:
        """Do what is due."""

    def _report(self, said: Mapping[str, object]) -> None:
        """Pass metrics on, where another process reads them."""

    def _give_up(self) -> None:
        """Stop it from allowing anything further: `hear` finds it gone."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def _leave(self) -> None:
        self.kill()


class WorkerProcess(Worker):
    """A worker process of this run, for one sandbox, with its signer."""

    def __init__(
        self, pid: int, control: socket.socket, gate: socket.socket, signer: CertificateSigner | None = None
    ) -> None:
        super().__init__(control, gate)
        self.pid = pid
        self.writers = (pid,)
        self.over = False  # it has ended, and its pid may be another process's
        self._signer = signer

    def kill(self) -> None:
        """End the process. Idempotent."""
        self._give_up()
        if not self.over:
            self.over = True
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        super().kill()
        if self._signer is not None:
            self._signer.close()

    def report_to(self, tell: Callable[[str], None]) -> None:
        """Have errors of its signer reported."""
        if self._signer is not None:
            self._signer.said = tell

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

    def _give_up(self) -> None:
        if not self.over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _leave(self) -> None:
        """End it; after its last message without waiting, since an interpreter takes a while to exit."""
        if "summary" in self.said:
            self._give_up()
        else:
            self.kill()


def start[Kind: WorkerProcess](
    identity: Identity, sandbox_state: SandboxState, worker_paths: WorkerPaths, kind: type[Kind]
) -> Kind:
    """Fork a worker for one sandbox. Raises HostError when the journal can't be opened, or the CA is missing."""
    signer = CertificateSigner(
        worker_paths.authority, worker_paths.certificate, identity, fingerprint=worker_paths.authority_fingerprint
    )
    its_signer = signer.pair(_ONLY)
    signer.serves(_ONLY, 1)
    gate, its_gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    journal, metrics = open_journal(identity, worker_paths.journal), worker_paths.metrics

    def be(parent: int, control: socket.socket) -> None:
        linux.disable_core_dumps()  # before secrets are in memory
        detach({journal, control.fileno(), its_gate.fileno(), its_signer.fileno()}, metrics)
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
        ends = worker_paths.authority_expires
        only = OnlySandbox(sandbox_state, its_gate, metrics, login)
        listens = () if metrics is None else (metrics.getsockname()[:2],)
        server.serve(Setup(its_signer, ends, roots, journal, control, forbidden=listens, only=only))

    pid, control = fork(be)
    for end in (its_gate, its_signer):
        end.close()
    os.close(journal)
    worker = kind(pid, control, gate, signer)
    signer.renew = lambda _number, pair: worker.tell(WorkerOrder(keyholder=True), [pair.fileno()])
    return worker


def wait_until_confined(worker: Worker) -> None:
    """Wait until the worker is confined. Raises HostError with its own message."""
    while "confined" not in worker.said:
        if not worker.hear() or "failed" in worker.said:
            raise start_error(worker)


def start_error(worker: Worker) -> HostError:
    """Return the error for a worker that ends before it serves, with its own message if it sent one."""
    worker.control.settimeout(_LAST_WORDS)
    with contextlib.suppress(TimeoutError):
        while "failed" not in worker.said and worker.hear():
            pass
    return HostError(f"the gate could not be started: {worker.said.get('failed', 'its process ended')}")


def open_journal(identity: Identity, directory: Path) -> int:
    """Open the journal's directory, so that the worker can make segments under its own ids."""
    if identity.privileged:
        return idmapped_tree(str(directory), identity.worker_uid, identity.worker_uid)
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
