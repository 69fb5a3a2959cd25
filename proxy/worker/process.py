"""Process of a worker for one sandbox: unprivileged, serves its traffic, and ends with its supervisor.

It has the sandbox's sockets, a segment of the journal and a channel to its supervisor. It ends with its supervisor:
without one nobody would record what became of the sandbox.
"""

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING, NamedTuple

from proxy.event_loop.poller import Loop
from proxy.sandbox.sandbox_state import DescriptorQuotas
from proxy.telemetry.events import Where
from proxy.telemetry.journal.writer import Journal
from proxy.wire import message
from proxy.worker.sandbox import Common, SandboxServer
from rules.addresses import normal

if TYPE_CHECKING:
    from proxy.dialing.proxy_auth import Login
    from proxy.sandbox.sandbox_state import Tenant
    from proxy.telemetry.prometheus.scrape_server import ScrapeServer
    from rules.addresses import Address

_MOST_SOCKETS = 16  # more than a sandbox has


class Setup(NamedTuple):
    """What a worker is given."""

    tenant: "Tenant"
    keyholder: socket.socket  # to the process that signs certificates
    authority_ends: float  # seconds since 1970
    roots: bytes  # the host's trusted certificates: what servers are verified against
    journal: int  # a descriptor of the journal's directory
    control: socket.socket  # to the supervisor
    gate: socket.socket  # where the sandbox's sockets come from
    metrics: socket.socket | None  # listening
    login: "Login | None" = None  # what the upstream proxy is told


def serve(setup: Setup) -> None:
    """Serve one sandbox until the supervisor says stop or is gone. Raises OSError when it can't begin.

    The process is to end when this returns: a thread that still imports what inspection needs is not waited for.
    """
    said, descriptors = message.receive(setup.gate, _MOST_SOCKETS)
    names = said.get("sockets")
    if not isinstance(names, list):
        return
    sockets = {str(name): socket.socket(fileno=each) for name, each in zip(names, descriptors, strict=True)}
    loop = Loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_serve(setup, sockets))


async def _serve(setup: Setup, sockets: dict[str, socket.socket]) -> None:
    worker = _Worker(setup, sockets)
    try:
        await worker.run()
    finally:
        await worker.close()


class _Worker:
    """The one sandbox_server of a run without a service, and what the supervisor says to it."""

    def __init__(self, setup: Setup, sockets: dict[str, socket.socket]) -> None:
        """Put it together. `sockets` are the sandbox's, by their names in enforcer.network.gate_sockets."""
        self._control = setup.control
        self._journal = Journal(setup.journal)
        os.close(setup.journal)
        self._common = Common(
            self._journal,
            setup.keyholder,
            setup.roots,
            authority_ends=setup.authority_ends,
            descriptors=DescriptorQuotas(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1),
            forbidden=_own_ports(setup.metrics),
        )
        self.sandbox_server = SandboxServer(setup.tenant, sockets, self._common, setup.login)
        self._scraped = setup.metrics
        self._stopped = asyncio.Event()
        self._reports = False  # somebody wants to know what it has counted
        self._scrapes: ScrapeServer | None = None

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._hear)
        self.sandbox_server.start()
        if self._scraped is not None:
            from proxy.telemetry.prometheus.scrape_server import ScrapeServer

            self._scrapes = ScrapeServer(self._scraped, self.sandbox_server.metrics)
            await self._scrapes.start()
        await self._stopped.wait()
        await self.sandbox_server.drain()

    async def close(self) -> None:
        """End everything that is open, tell its end, and say what was counted."""
        summary = self.sandbox_server.close()
        self._common.close()
        if self._scrapes is not None:
            await self._scrapes.close()
        self._journal.close()  # who hears the next may sign what is in it
        self._control.setblocking(True)  # nothing else is to be done
        with contextlib.suppress(OSError):
            if self._reports:
                self._report()
            message.send(self._control, {"summary": summary.encode().decode()})

    def _report(self) -> None:
        """Say what was counted. Raises OSError where the supervisor takes no more now: the next report has it, too."""
        from proxy.telemetry.prometheus.totals import pieces  # where there is a service

        for piece in pieces(self.sandbox_server.metrics):
            message.send(self._control, piece)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Tell of what nobody else did: an exception in a callback or a task of the loop's."""
        self.sandbox_server.recorder.error(Where.WORKER, what_was_unexpected(context))

    def _hear(self) -> None:
        """Do what the supervisor says; without one, stop."""
        try:
            said, descriptors = message.receive(self._control, 1)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            said, descriptors = {}, []
        if said.get("approvals") is True and descriptors:
            self.sandbox_server.renew_approvals(socket.socket(fileno=descriptors.pop(0)))
        if said.get("keyholder") is True and descriptors:
            self._common.signer.renew(socket.socket(fileno=descriptors.pop(0)))
        for descriptor in descriptors:
            self._reload(descriptor)
        self.sandbox_server.hear(said)
        if said.get("report") is True:
            self._reports = True
            with contextlib.suppress(OSError):
                self._report()
        if not said or "stop" in said:
            asyncio.get_running_loop().remove_reader(self._control)
            self._stopped.set()

    def _reload(self, descriptor: int) -> None:
        """Have new rules put in force. Where nothing can do that, stop: no program may start under the old rules."""
        try:
            reloading = self.sandbox_server.reloading
        except Exception:  # noqa: BLE001 - the sandbox's server has recorded it
            os.close(descriptor)
            asyncio.get_running_loop().remove_reader(self._control)
            self._stopped.set()
        else:
            reloading.arrived(descriptor)


def what_was_unexpected(context: dict[str, object]) -> str:
    """Return in words what a loop's exception handler is told."""
    error = context.get("exception")
    return str(context.get("message", "")) if error is None else f"{type(error).__name__}: {error}"


def _own_ports(metrics: socket.socket | None) -> "set[tuple[Address, int]]":
    """Where Exeat itself listens outside: never dialled for a task, whatever a rule says."""
    if metrics is None:
        return set()
    host, port, *_ = metrics.getsockname()
    return {(normal(host), port)}
