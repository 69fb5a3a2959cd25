"""Worker process as its supervisor sees it: forks, confines and stops it, and notices its death.

What the worker does is `proxy.worker.server`'s; here it only loses everything it doesn't need for that.
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

_ONLY = 1  # the worker's number
_WORDS = frozenset({"asks", "confined", "failed", "placeholders", "summary"})
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_LAST_WORDS = 5.0  # seconds that a worker has to close what is open after it was told to stop


class WorkerPaths(NamedTuple):
    """Where the worker keeps and shows things."""

    authority: Path
    authority_is: Sequence[int]  # the fingerprint of the file in it that the certificate is from
    authority_ends: float  # seconds since 1970
    certificate: bytes  # of the CA (PEM), as the sandbox is to trust it
    journal: Path
    metrics: socket.socket | None  # already listening


class Worker:
    """A task's gate as its supervisor sees it: a channel to it, and one that the sandbox's sockets are sent through.

    It is a process of this run (`WorkerProcess`), or a place in a worker of the service (`service.placement`).
    """

    words: frozenset[str] = _WORDS  # of what it says: the rest is not kept
    watches_rules = False  # whether somebody else reads the rule files again when they change
    writers: tuple[int, ...] = ()  # processes whose segments of the journal belong to this run

    def __init__(self, control: socket.socket, gate: socket.socket) -> None:
        self.control = control
        self.gate = gate
        self.alive = True
        self.said: dict[str, object] = {}
        self._leaving = False  # it was told to stop, and may have more to say

    def tell(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send it a message. One that is gone gets none; one that can't be told of other rules has to end."""
        try:
            message.send(self.control, what, descriptors)
        except message.Unsent:
            self._give_up()
        except OSError:
            pass

    def hear(self) -> bool:
        """Read one message; False when the worker is gone.

        A task may have chosen what it says: only `words` are kept, and a worker that says no message is ended.
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
        """Send the last message, and have it close what is open: `see_out` waits until it has."""
        self.tell({**last, "stop": True})
        self._leaving = True

    def see_out(self) -> None:
        """Wait for its last message, if it was told to stop. Idempotent."""
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
        """See that it serves this task no more. Idempotent."""
        self.alive = False
        self.control.close()
        self.gate.close()

    # What a supervisor's loop has to do for it: nothing, for a worker that is looked after elsewhere.

    def report_to(self, tell: Callable[[str], None]) -> None:
        """Have faults of what belongs to it told."""

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:
        """Have what is said about it noticed. `kill` kills the task."""

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return math.inf

    def turn(self) -> None:
        """Do what is due."""

    def _report(self, said: Mapping[str, object]) -> None:
        """Pass on what it has counted, where somebody wants that."""

    def _give_up(self) -> None:
        """Have it let nothing out any more: `hear` finds it gone."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def _leave(self) -> None:
        self.kill()


class WorkerProcess(Worker):
    """A worker that this process has forked for one sandbox, with its signer."""

    def __init__(
        self, pid: int, control: socket.socket, gate: socket.socket, keyholder: CertificateSigner | None = None
    ) -> None:
        super().__init__(control, gate)
        self.pid = pid
        self.writers = (pid,)
        self.over = False  # and its id may be another's
        self._keyholder = keyholder

    def kill(self) -> None:
        """See that it is gone. Idempotent."""
        self._give_up()
        if not self.over:
            self.over = True
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        super().kill()
        if self._keyholder is not None:
            self._keyholder.close()

    def report_to(self, tell: Callable[[str], None]) -> None:
        """Have faults of its signer told."""
        if self._keyholder is not None:
            self._keyholder.said = tell

    def watch(self, selector: selectors.BaseSelector, kill: Callable[[], None]) -> None:  # noqa: ARG002
        """Have its signer's requests noticed."""
        if self._keyholder is not None:
            self._keyholder.watch(selector)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return math.inf if self._keyholder is None else self._keyholder.wait()

    def turn(self) -> None:
        """Do what is due for its signer."""
        if self._keyholder is not None:
            self._keyholder.turn()

    def _give_up(self) -> None:
        if not self.over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _leave(self) -> None:
        """End it; after its last message it goes while the rest is seen to: an interpreter's end takes a while."""
        if "summary" in self.said:
            self._give_up()
        else:
            self.kill()


def start[Kind: WorkerProcess](
    identity: Identity, sandbox_state: SandboxState, worker_paths: WorkerPaths, kind: type[Kind]
) -> Kind:
    """Fork a worker for one sandbox. Raises HostError when its journal can't be opened, or the CA is missing."""
    keyholder = CertificateSigner(
        worker_paths.authority, worker_paths.certificate, identity, fingerprint=worker_paths.authority_is
    )
    its_keyholder = keyholder.pair(_ONLY)
    keyholder.serves(_ONLY, 1)
    gate, its_gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    journal, metrics = open_journal(identity, worker_paths.journal), worker_paths.metrics

    def be(parent: int, control: socket.socket) -> None:
        linux.disable_core_dumps()  # before there are secrets in it
        detach({journal, control.fileno(), its_gate.fileno(), its_keyholder.fileno()}, metrics)
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
        message.send(control, {"confined": True, "placeholders": placeholders})
        from proxy.worker import server  # from the view that it is confined to

        gc.freeze()
        gc.enable()
        ends = worker_paths.authority_ends
        only = server.OnlySandbox(sandbox_state, its_gate, metrics, login)
        listens = () if metrics is None else (metrics.getsockname()[:2],)
        server.serve(server.Setup(its_keyholder, ends, roots, journal, control, forbidden=listens, only=only))

    pid, control = fork(be)
    for end in (its_gate, its_keyholder):
        end.close()
    os.close(journal)
    worker = kind(pid, control, gate, keyholder)
    keyholder.renew = lambda _number, pair: worker.tell({"keyholder": True}, [pair.fileno()])
    return worker


def wait_until_confined(worker: Worker) -> None:
    """Wait until the worker has given up what it doesn't need. Raises HostError with its own words."""
    while "confined" not in worker.said:
        if not worker.hear() or "failed" in worker.said:
            raise start_error(worker)


def start_error(worker: Worker) -> HostError:
    """Return why a worker that is gone, or goes, serves nobody, in its own words if it has left any."""
    worker.control.settimeout(_LAST_WORDS)
    with contextlib.suppress(TimeoutError):
        while "failed" not in worker.said and worker.hear():
            pass
    return HostError(f"the gate could not be started: {worker.said.get('failed', 'its process ended')}")


def open_journal(identity: Identity, directory: Path) -> int:
    """Open the journal's directory so that the worker, under its own ids, can make segments in it."""
    if identity.privileged:
        return idmapped_tree(str(directory), identity.worker_uid, identity.worker_uid)
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
