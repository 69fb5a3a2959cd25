"""Server of one sandbox in a worker: watches its sockets, starts its traffic (`traffic`), and ends it.

Home of invariant 11 within a process. Everything that a task can fill, teach or slow down is made for it alone: here,
and in `Traffic` once its first connection, lookup or datagram comes, which most short tasks never send. Sandboxes share
(`WorkerResources`) the link to the signer, the host's roots, the journal's writer, and immutable policies.
"""

import asyncio
import os
import time
from contextvars import copy_context
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final

from proxy.certificates.leaf_certificates import SignerLink
from proxy.event_loop.poller import IN, Poller, prepare_listener
from proxy.inspection import Roots
from proxy.sandbox.recorder import Recorder
from proxy.supervisor_channel.channel import ProcessAttribution, SupervisorChannel
from proxy.telemetry.events import Component, Kind
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.worker.traffic import Traffic
from rules.verdicts import Outcome

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterator, Mapping

    from proxy.dialing.proxy_auth import Login
    from proxy.sandbox.sandbox_state import DescriptorQuotas, SandboxState
    from proxy.telemetry.journal.writer import Journal
    from proxy.telemetry.summary import Summary
    from proxy.worker.messages import SandboxNews
    from rules.addresses import Address
    from rules.matching.policy import Policy

_GRACE: Final = 1.0  # seconds that open connections have to end by themselves once the task has ended
_A_MOMENT: Final = 0.25  # seconds: inspection takes as long to import, on a core that a sandbox is being made on
_ARRIVALS: Final = ("tcp", "dns_udp", "udp", "refusal_log")  # sockets that traffic comes over


class WorkerResources:
    """Resources that the sandboxes of one worker share: journal, signer, trusted roots, descriptor quotas."""

    def __init__(
        self,
        journal: "Journal",
        keyholder: "socket.socket",
        roots: bytes,
        *,
        authority_expires: float,
        descriptors: "DescriptorQuotas",
        forbidden: "Collection[tuple[Address, int]]" = (),
        in_turn: bool = False,
    ) -> None:
        """Share `keyholder`, a socket to the certificate signer, and `roots`, the host's trusted certificates (PEM).

        `authority_expires`: seconds since 1970; `forbidden`: addresses where Exeat itself listens on the host;
        `in_turn`: whether other sandboxes want their turn.
        """
        self.journal = journal
        self.authority_expires = authority_expires
        self.descriptors = descriptors
        self.forbidden = forbidden
        self.in_turn = in_turn
        self._keyholder = keyholder
        self._pem = roots

    @cached_property
    def signer(self) -> SignerLink:
        """Link to the certificate signer."""
        return SignerLink(self._keyholder)

    @cached_property
    def roots(self) -> Roots:
        """Trusted roots that servers are verified with."""
        return Roots(self._pem)

    def renew_roots(self, pem: bytes) -> None:
        """Verify servers of later sandboxes with these roots; earlier ones keep theirs."""
        self.roots = Roots(pem)

    def close(self) -> None:
        """Close the link to the signer. Idempotent."""
        if "signer" in self.__dict__:
            self.signer.close()
        self._keyholder.close()


class SandboxServer:
    """Serves one sandbox. For one thread, within a running loop. It closes its sockets."""

    def __init__(
        self,
        sandbox: "SandboxState",
        sockets: "Mapping[str, socket.socket]",
        common: WorkerResources,
        login: "Login | None" = None,
        *,
        before: int | None = None,
        wait: float = 0.0,
        gave_up: "Callable[[str], object]",
    ) -> None:
        """Put it together. `sockets` are the sandbox's, by their names in enforcer.network.gate_sockets.

        `before`: how many workers have died while they served it; None: it dies with its worker.
        `wait`: seconds until the addresses of its table are free. `gave_up` hears why its traffic can't be served.
        """
        self._sandbox = sandbox
        self._sockets = dict(sockets)
        self._common = common
        self._login = login
        self._before, self._wait = before, wait
        self._gave_up = gave_up
        self.context = copy_context()  # for work that begins outside of it (`turn`)
        self.metrics = _metrics(sandbox, common)
        self.recorder = Recorder(sandbox, common.journal, self.metrics)
        self._poller = Poller(in_turn=common.in_turn)
        self._descriptors = common.descriptors.join()
        watcher = sockets.get("watch")
        self._attribution = ProcessAttribution(sockets["diag"], watcher) if watcher is not None else None
        self._hearing = (
            SupervisorChannel(watcher, self.recorder, self._poller, self._attribution) if watcher is not None else None
        )
        self._warming: asyncio.TimerHandle | None = None
        self._counted: dict[str, int] = {}  # packets refused before this worker served it

    @cached_property
    def traffic(self) -> Traffic:
        """What serves the sandbox's traffic: made when it is first needed, and it serves from then on.

        Where it can't be made, its sockets are closed for good: a part of it might go on under rules that are no longer
        in force.
        """
        try:
            traffic = Traffic(
                self.recorder,
                self._sockets,
                self._common,
                self._poller,
                self._descriptors,
                attribution=self._attribution,
                hearing=self._hearing,
                before=self._before,
                wait=self._wait,
            )
            traffic.dialer.login = self._login
            traffic.start()
        except Exception as error:
            self.failed(error)
            raise
        return traffic

    def swap(self, policy: "Policy", login: "Login | None") -> None:
        """Put other rules in force; if no traffic can be served, for programs only. Raises what is wrong with that."""
        try:
            traffic = self.traffic
        except Exception:
            self._sandbox.policy = policy
            raise
        traffic.reloading.swap(policy, login)

    def start(self) -> None:
        """Start to serve."""
        prepare_listener(self._sockets["tcp"])  # what is accepted later takes over what is set before it comes
        for name in _ARRIVALS:
            if (sock := self._sockets.get(name)) is not None:
                self._poller.watch(sock.fileno(), IN, self)
        if self._hearing is not None:
            self._hearing.start()
        policy = self._sandbox.policy
        if self._before or policy.needs.approvals or policy.needs.udp:
            self._serve()
        if policy.needs.inspection:
            self._warming = asyncio.get_running_loop().call_later(_A_MOMENT, self._warm)

    def ready(self, _events: int) -> None:
        """Start the traffic on its first event; the poller reports the event again, to the traffic."""
        self._serve()

    def failed(self, error: Exception) -> None:
        """Close the sockets for good: the traffic could not be started. Idempotent."""
        arrivals = [sock for name in _ARRIVALS if (sock := self._sockets.get(name)) is not None and sock.fileno() >= 0]
        for sock in arrivals:
            self._poller.forget(sock.fileno())
            sock.close()
        if arrivals:
            why = f"the sandbox's traffic can't be served: {type(error).__name__}: {error}"
            self.recorder.error(Component.WORKER, why)
            self._gave_up(why)

    def hear(self, said: "SandboxNews") -> None:
        """Handle a message of the enforcer about the sandbox or its task."""
        if isinstance(problems := said.get("rules_rejected"), list):
            self.recorder.rules_rejected(list(map(str, problems)))
        refused = said.get("refused")
        if isinstance(refused, dict):
            counted = {kind: count - self._counted.get(kind, 0) for kind, count in refused.items()}
            self.metrics.refused_packets(counted)
        if isinstance(unusual := said.get("unusual"), dict):
            for what, times in unusual.items():
                self.metrics.unusual(str(what), int(times))
        if isinstance(flags := said.get("flags"), list) and len(flags) == 2:
            self.metrics.flags = int(flags[0]), float(flags[1])
        if isinstance(seconds := said.get("started"), float):
            self.metrics.sandbox_started(seconds)
        if isinstance(before := said.get("again"), dict):
            self.metrics.sandboxes += 1  # it was started under another worker, which has told of these packets
            self._counted = before
        self._count(said)
        if (outcome := said.get("ended")) in list(Outcome):
            self.metrics.task_ended(Outcome(str(outcome)))
            self.metrics.sandbox_ended()

    def _count(self, said: "SandboxNews") -> None:
        """Count what the supervisor has told the journal: its own numbers nobody scrapes."""
        for kind, times in _counts(said, "told", Kind):
            self.metrics.count_events(Kind(kind), 0, times)
        for where, times in _counts(said, "errors", Component):
            self.metrics.failed(Component(where), times)

    async def drain(self) -> None:
        """Let open connections end by themselves for a moment: the task is over."""
        for _ in range(2):  # what came before its end is taken: the first time its traffic is begun with
            await asyncio.sleep(0)
        if (traffic := self._begun) is None:
            return
        deadline = time.monotonic() + _GRACE
        traffic.finish()
        while traffic.is_open and time.monotonic() < deadline:  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(0.01)

    def close(self) -> "Summary":
        """End everything that is open, record the end, and return the counts. Idempotent."""
        if self._warming is not None:
            self._warming.cancel()
        if self._begun is not None:
            self._begun.close()
        if self._hearing is not None:
            self._hearing.finish()
        for name in _ARRIVALS:
            if (sock := self._sockets.get(name)) is not None:
                self._poller.forget(sock.fileno())
        self._descriptors.leave()
        return self.recorder.summary()

    def let_go(self) -> None:
        """Close the sandbox's sockets and its epoll set, in a worker that serves others. Idempotent."""
        self._poller.close()
        for sock in self._sockets.values():
            sock.close()

    def renew_approvals(self, channel: "socket.socket") -> None:
        """Use a new channel to the approvals server: the previous server is gone."""
        self.traffic.renew_approvals(channel)
        before = self._sockets.pop("approvals", None)
        self._sockets["approvals"] = channel
        if before is not None:
            before.close()

    @property
    def _begun(self) -> Traffic | None:
        """The sandbox's traffic, if it has started."""
        return self.__dict__.get("traffic")

    def _serve(self) -> None:
        _ = self.traffic

    def _warm(self) -> None:
        self.traffic.inspection.warm()


def _counts(said: "Mapping[str, object]", name: str, known: type[StrEnum]) -> "Iterator[tuple[str, int]]":
    """Yield the counts with known names."""
    counts = said.get(name)
    if isinstance(counts, dict):
        yield from ((word, int(counts[word])) for word in map(str, known) if word in counts)


def _metrics(sandbox: "SandboxState", common: WorkerResources) -> Metrics:
    metrics = Metrics()
    policy = sandbox.policy
    metrics.rules_loaded(policy.revision, policy.rule_ids, policy.settings.mode, time.time(), policy.needs.endings)
    metrics.rules_valid = not policy.unread
    metrics.limits = sandbox.meters
    metrics.ca_expiry = common.authority_expires
    metrics.watch("worker", os.getpid())
    return metrics
