"""The gate's worker as its supervisor sees it: forked, confined, told to stop, and noticed when it dies.

What the worker does is `proxy.worker.process`'s; here it only loses everything it doesn't need for that.
"""

import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.sandbox.identity import Identity, idmapped_tree
from enforcer.system import linux
from enforcer.system.errors import HostError
from enforcer.system.processes import detach
from enforcer.worker import confinement, credentials
from enforcer.worker.signer import Keyholder
from enforcer.worker.trust import system_roots
from proxy import message
from proxy.tenant import Tenant

if TYPE_CHECKING:
    from enforcer.service.registration import Registration

_ONLY = 1  # the worker's number
_SAID = frozenset({"asks", "confined", "failed", "kill", "placeholders", "summary", "unknown"})
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_LAST_WORDS = 5.0  # seconds that a worker has to close what is open after it was told to stop


class Stations(NamedTuple):
    """Where the worker keeps and shows things."""

    authority: Path
    authority_is: Sequence[int]  # the fingerprint of the file in it that the certificate is from
    authority_ends: float  # seconds since 1970
    certificate: bytes  # of the CA (PEM), as the sandbox is to trust it
    journal: Path
    metrics: socket.socket | None  # already listening


class Worker:
    """A running worker: its process, the channel to it, and the channel that a sandbox sends its sockets through."""

    __slots__ = (
        "alive",
        "control",
        "gate",
        "keyholder",
        "leaving",
        "over",
        "pid",
        "registration",
        "said",
        "watches_rules",
    )

    def __init__(
        self,
        pid: int,
        control: socket.socket,
        gate: socket.socket,
        *,
        watches_rules: bool = False,
        keyholder: Keyholder | None = None,
    ) -> None:
        self.pid = pid
        self.control = control
        self.gate = gate
        self.alive = True
        self.over = False  # and its id may be another's
        self.leaving = False  # it was told to stop, and may have more to say
        self.said: dict[str, object] = {}  # its last words
        self.watches_rules = watches_rules  # whether somebody else reads the rule files again when they change
        self.keyholder = keyholder  # None: the service's
        self.registration: Registration | None = None  # with a service, of a run that has this worker for itself

    def tell(self, what: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send it a message; a worker that is gone hears nothing, and one that can't be told of other rules goes."""
        try:
            message.send(self.control, what, descriptors)
        except message.Unsent:
            self._give_up()
        except OSError:
            pass

    def hear(self) -> bool:
        """Read one message; False when the worker is gone.

        What it says is what a task might: of it is kept what a worker has to say, and who says no message is ended.
        """
        try:
            said, _ = message.receive(self.control)
        except ValueError:
            said = {}
            if self.pid > 0:  # and not the service
                self._kill()
        if "metrics" in said and self.registration is not None:
            self.registration.report(said)
        self.said.update((name, value) for name, value in said.items() if name in _SAID)
        self.alive = bool(said) and self.alive
        return bool(said)

    def stop(self, last: Mapping[str, object] = _NOTHING) -> None:
        """Say the last that there is to say, and let it close what is open: `see_out` waits until it has."""
        if self.registration is not None:
            self.registration.last()
        self.tell({**last, "stop": True})
        self.leaving = True

    def see_out(self) -> None:
        """Wait for its last words, if it was told to stop. Idempotent.

        One that has said them goes while the rest is seen to: an interpreter takes a while to be taken apart.
        """
        if not self.leaving:
            return
        self.leaving = False
        self.control.settimeout(_LAST_WORDS)
        deadline = time.monotonic() + _LAST_WORDS
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline and self.alive and "summary" not in self.said and self.hear():
                pass
        if self.pid > 0 and "summary" in self.said:
            self._kill()
        else:
            self.kill()

    def tell_of_keyholder(self, tell: Callable[[str], None]) -> None:
        """Have what is to be known of its key holder told so."""
        if self.keyholder is not None:
            self.keyholder.said = tell

    def kill(self) -> None:
        """See that it is gone. Idempotent."""
        self._kill()
        if not self.over:
            self.over = True
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        self.alive = False
        self.control.close()
        self.gate.close()
        if self.keyholder is not None:
            self.keyholder.close()

    def _give_up(self) -> None:
        """Have it let nothing out any more; whoever hears it finds it gone."""
        if self.pid > 0:
            self._kill()
        else:  # the service, which lets go of whose channel has ended
            with contextlib.suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)

    def _kill(self) -> None:
        if not self.over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def start(identity: Identity, tenant: Tenant, stations: Stations) -> Worker:
    """Fork a worker for one tenant. Raises HostError when its journal can't be opened for it, or the CA isn't there."""
    keyholder = Keyholder(stations.authority, stations.certificate, identity, fingerprint=stations.authority_is)
    its_keyholder = keyholder.pair(_ONLY)
    keyholder.serves(_ONLY, 1)
    control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, its_gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    journal = open_journal(identity, stations.journal)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            linux.leave_no_core()  # before there are secrets in it
            detach({journal, its_control.fileno(), its_gate.fileno(), its_keyholder.fileno()}, stations.metrics)
            roots, login = system_roots(), credentials.login(tenant.policy)
            tenant.entrust(credentials.broker(tenant.policy, os.environ), login)
            confinement.enter(identity)
            linux.die_with_parent(signal.SIGKILL, parent)
            placeholders = tenant.broker.placeholders if tenant.broker is not None else {}
            message.send(its_control, {"confined": True, "placeholders": placeholders})
            from proxy.worker.process import Setup, serve  # from the view that it is confined to

            gc.freeze()
            gc.enable()
            serve(
                Setup(
                    tenant,
                    its_keyholder,
                    stations.authority_ends,
                    roots,
                    journal,
                    its_control,
                    its_gate,
                    stations.metrics,
                    login,
                )
            )
        except BaseException as error:  # noqa: BLE001 - a worker that isn't confined must not run
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            with contextlib.suppress(OSError):
                message.send(its_control, {"failed": text or type(error).__name__})
            os._exit(1)
        finally:
            os._exit(0)
    for end in (its_control, its_gate, its_keyholder):
        end.close()
    os.close(journal)
    worker = Worker(pid, control, gate, keyholder=keyholder)
    keyholder.renew = lambda _number, pair: worker.tell({"keyholder": True}, [pair.fileno()])
    return worker


def wait_until_confined(worker: Worker) -> None:
    """Wait until the worker has given up what it doesn't need. Raises HostError with its own words."""
    while "confined" not in worker.said:
        if not worker.hear() or "failed" in worker.said:
            raise lost(worker)


def lost(worker: Worker) -> HostError:
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
