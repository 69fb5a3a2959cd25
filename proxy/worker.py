"""The worker: the unprivileged process that everything of a sandbox passes through, and nothing else lives in.

It has the sandbox's sockets, the CA, a place in the journal and a channel to its supervisor. It ends with it: without a
supervisor nobody would say what became of the sandbox.
"""

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy import message
from proxy.dialling.dial import Dialer
from proxy.dns.datagrams import Datagrams
from proxy.dns.lookup import Lookup
from proxy.dns.names import NameTable
from proxy.dns.resolver import Resolver
from proxy.gate import Gate
from proxy.inspection import Inspection
from proxy.poller import Loop, Poller
from proxy.reloading import Reloading
from proxy.telemetry.events import Where
from proxy.telemetry.journal import Journal
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.recorder import Recorder
from proxy.udp.answers import Answers
from proxy.udp.gate import UdpGate
from proxy.undeliverable import Undeliverable
from rules.addresses import normal
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from proxy.ca.authority import Authority
    from proxy.dialling.proxy_auth import Login
    from proxy.telemetry.scrape import ScrapeServer
    from proxy.tenant import Tenant
    from rules.addresses import Address

_MOST_SOCKETS = 16  # more than a sandbox has
_GRACE = 1.0  # seconds that open connections have to end by themselves once the task has ended


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is given."""

    tenant: "Tenant"
    authority: bytes  # the CA's key and certificate (PEM)
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
    """The parts, put together once, and what the supervisor says to them."""

    def __init__(self, setup: Setup, sockets: dict[str, socket.socket]) -> None:
        """Put them together. `sockets` are the sandbox's, by their names in enforcer.network.sockets."""
        tenant = setup.tenant
        self._diagnosis = sockets["diag"]  # answers whose socket a connection is
        self._control = setup.control
        self.metrics = _metrics(setup)
        self.recorder = Recorder(tenant, Journal(setup.journal), self.metrics)
        os.close(setup.journal)
        names = NameTable(tenant.policy.settings.dns_pool, tenant.own_addresses)
        lookup = Lookup()
        poller = Poller()
        dialer = Dialer(lookup, poller, forbidden=_own_ports(setup), metrics=self.metrics)
        dialer.login = setup.login
        self._inspection = Inspection(lambda: _authority(setup), dialer, self.recorder, setup.roots)
        resolver = Resolver(tenant, self.recorder, names, lookup)
        self._datagrams = Datagrams(sockets["dns_udp"], resolver, self.recorder, poller)
        self._gate = Gate(
            sockets["tcp"],
            tenant,
            self.recorder,
            dialer=dialer,
            names=names,
            resolver=resolver,
            inspection=self._inspection,
        )
        answers = Answers(sockets["answers"], sockets.get("answers6"), tenant.own_addresses)
        self._udp = UdpGate(sockets["udp"], answers, tenant, self.recorder, dialer=dialer, names=names)
        self._reloading = Reloading(self.recorder, self._gate, self._udp, lookup, self._inspection)
        self._log = [sockets["refusal_log"]] if "refusal_log" in sockets else []
        self._undeliverable = [Undeliverable(sock, self.recorder, names) for sock in self._log]
        self._scraped = setup.metrics
        self._stopped = asyncio.Event()
        self._scrapes: ScrapeServer | None = None

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._hear)
        self._datagrams.start()
        self._gate.start()
        self._udp.start()
        for sock, undeliverable in zip(self._log, self._undeliverable, strict=True):
            sock.setblocking(False)
            loop.add_reader(sock, undeliverable.readable)
        if self._scraped is not None:
            from proxy.telemetry.scrape import ScrapeServer

            self._scrapes = ScrapeServer(self._scraped, self.metrics)
            await self._scrapes.start()
        if self.recorder.tenant.policy.needs_inspection:
            self._inspection.warm()
        await self._stopped.wait()
        await self._drain()

    async def close(self) -> None:
        """End everything that is open, tell its end, and say what was counted."""
        self._gate.close()
        self._udp.close()
        self._inspection.close()
        self._datagrams.close()
        if self._scrapes is not None:
            await self._scrapes.close()
        summary = self.recorder.summary().encode().decode()
        with contextlib.suppress(OSError):
            message.send(self._control, {"summary": summary})
        self.recorder.journal.close()

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Tell of what nobody else did: an exception in a callback or a task of the loop's."""
        error = context.get("exception")
        said = str(context.get("message", "")) if error is None else f"{type(error).__name__}: {error}"
        self.recorder.error(Where.WORKER, said)

    async def _drain(self) -> None:
        deadline = time.monotonic() + _GRACE
        self._udp.finish()
        while (self.metrics.connections_open or self._udp.flows) and time.monotonic() < deadline:  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(0.01)

    def _hear(self) -> None:
        """Do what the supervisor says; without one, stop."""
        try:
            said, descriptors = message.receive(self._control)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            said, descriptors = {}, []
        for descriptor in descriptors:
            self._reloading.arrived(descriptor)
        if isinstance(problems := said.get("rules_rejected"), list):
            self._reloading.rejected(list(map(str, problems)))
        refused = said.get("refused")
        if isinstance(refused, dict):
            self.metrics.refused_packets(refused)
        if isinstance(seconds := said.get("started"), float):
            self.metrics.sandbox_started(seconds)
        if (outcome := said.get("ended")) in list(Outcome):
            self.metrics.task_ended(Outcome(str(outcome)))
            self.metrics.sandbox_ended()
        if not said or "stop" in said:
            asyncio.get_running_loop().remove_reader(self._control)
            self._stopped.set()


def _own_ports(setup: Setup) -> "set[tuple[Address, int]]":
    """Where Exeat itself listens outside: never dialled for a task, whatever a rule says."""
    if setup.metrics is None:
        return set()
    host, port, *_ = setup.metrics.getsockname()
    return {(normal(host), port)}


def _authority(setup: Setup) -> "Authority":
    from proxy.ca.authority import Authority

    return Authority.from_pem(setup.authority)


def _metrics(setup: Setup) -> Metrics:
    metrics = Metrics()
    policy = setup.tenant.policy
    metrics.rules_loaded(policy.revision, policy.rule_ids, policy.settings.mode, time.time())
    metrics.limits = setup.tenant.meters
    metrics.ca_expiry = setup.authority_ends
    metrics.watch("worker", os.getpid())
    return metrics
