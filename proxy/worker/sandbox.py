"""Server of one sandbox in a worker: watches its sockets, starts its traffic (`traffic`), and ends it.

Implements invariant 11 within a process: each sandbox has its own queues, caches and tables. They are made here, and in
`Traffic` with the first connection, lookup or datagram, which most short tasks never send. Sandboxes share only
`WorkerResources`: the link to the signer, the host's roots, the journal's writer, and immutable policies.
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
    from rules.matching.policy import Policy
    from rules.values.addresses import Address

_GRACE: Final = 1.0  # seconds for open connections to end by themselves after the end of the task
_WARM_UP_DELAY: Final = 0.25  # seconds: importing inspection takes as long, and would slow the start of the sandbox
_ARRIVALS: Final = ("tcp", "dns_udp", "udp", "refusal_log")  # sockets that traffic comes over


class WorkerResources:
    """Resources that the sandboxes of one worker share: journal, signer, trusted roots, descriptor quotas."""

    def __init__(
        self,
        journal: "Journal",
        signer_socket: "socket.socket",
        roots: bytes,
        *,
        authority_expires: float,
        descriptors: "DescriptorQuotas",
        forbidden: "Collection[tuple[Address, int]]" = (),
        in_turn: bool = False,
    ) -> None:
        """Share `signer_socket` (to the certificate signer) and `roots`, the trusted certificates of the host (PEM).

        `authority_expires`: seconds since 1970; `forbidden`: addresses where Exeat itself listens on the host;
        `in_turn`: whether the worker serves several sandboxes, which take turns.
        """
        self.journal = journal
        self.authority_expires = authority_expires
        self.descriptors = descriptors
        self.forbidden = forbidden
        self.in_turn = in_turn
        self._signer_socket = signer_socket
        self._pem = roots

    @cached_property
    def signer(self) -> SignerLink:
        """Link to the certificate signer."""
        return SignerLink(self._signer_socket)

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
        self._signer_socket.close()


class SandboxServer:
    """Serves one sandbox. For one thread, within a running loop. It closes its sockets."""

    def __init__(
        self,
        sandbox: "SandboxState",
        sockets: "Mapping[str, socket.socket]",
        resources: WorkerResources,
        login: "Login | None" = None,
        *,
        before: int | None = None,
        wait: float = 0.0,
        on_failure: "Callable[[str], object]",
    ) -> None:
        """Prepare the server. `sockets` are the sandbox's, by their names in enforcer.network.gate_sockets.

        `before`: how many workers have died while they served it; None: the sandbox ends with its worker.
        `wait`: seconds until its name table has free addresses. `on_failure` gets the reason if serving fails.
        """
        self._sandbox = sandbox
        self._sockets = dict(sockets)
        self._resources = resources
        self._login = login
        self._before, self._wait = before, wait
        self._on_failure = on_failure
        self.context = copy_context()  # for work that starts outside of this sandbox's callbacks (`turn`)
        self.metrics = _make_metrics(sandbox, resources)
        self.recorder = Recorder(sandbox, resources.journal, self.metrics)
        self._poller = Poller(in_turn=resources.in_turn)
        self._descriptors = resources.descriptors.join()
        supervisor = sockets.get("watch")
        self._attribution = ProcessAttribution(sockets["diag"], supervisor) if supervisor is not None else None
        self._supervisor_channel = (
            SupervisorChannel(supervisor, self.recorder, self._poller, self._attribution)
            if supervisor is not None
            else None
        )
        self._traffic: Traffic | None = None  # once it is started
        self._warm_up_timer: asyncio.TimerHandle | None = None
        self._refused_before: dict[str, int] = {}  # packets refused before this worker served it

    def start_traffic(self) -> Traffic:
        """Make and start the gate, the resolver and UDP on the first call; return them.

        If that fails, the sockets are closed for good: a part of it might go on under rules that are no longer in
        force.
        """
        if self._traffic is not None:
            return self._traffic
        try:
            traffic = Traffic(
                self.recorder,
                self._sockets,
                self._resources,
                self._poller,
                self._descriptors,
                attribution=self._attribution,
                supervisor_channel=self._supervisor_channel,
                before=self._before,
                wait=self._wait,
            )
            traffic.dialer.login = self._login
            traffic.start()
        except Exception as error:
            self.failed(error)
            raise
        self._traffic = traffic
        return traffic

    def swap(self, policy: "Policy", login: "Login | None") -> None:
        """Put a new policy in force; if traffic can't be served, only for programs. Raises the error of the traffic."""
        try:
            traffic = self.start_traffic()
        except Exception:
            self._sandbox.policy = policy
            raise
        traffic.policy_reload.swap(policy, login)

    def start(self) -> None:
        """Start to serve."""
        prepare_listener(self._sockets["tcp"])  # accepted sockets inherit the options of the listener
        for name in _ARRIVALS:
            if (sock := self._sockets.get(name)) is not None:
                self._poller.watch(sock.fileno(), IN, self)
        if self._supervisor_channel is not None:
            self._supervisor_channel.start()
        policy = self._sandbox.policy
        if self._before or policy.needs.approvals or policy.needs.udp:
            self.start_traffic()
        if policy.needs.inspection:
            self._warm_up_timer = asyncio.get_running_loop().call_later(_WARM_UP_DELAY, self._warm_up)

    def ready(self, _events: int) -> None:
        """Start the traffic on its first event.

        The gate, the resolver or UDP then takes this handler's place in the poller for the descriptor (`Gate.start`),
        and the poller reports the event to it again.
        """
        self.start_traffic()

    def failed(self, error: Exception) -> None:
        """Close the sockets for good: the traffic could not be started. Idempotent."""
        arrivals = [sock for name in _ARRIVALS if (sock := self._sockets.get(name)) is not None and sock.fileno() >= 0]
        for sock in arrivals:
            self._poller.forget(sock.fileno())
            sock.close()
        if arrivals:
            why = f"the sandbox's traffic can't be served: {type(error).__name__}: {error}"
            self.recorder.error(Component.WORKER, why)
            self._on_failure(why)

    def handle_message(self, fields: "SandboxNews") -> None:
        """Handle a message of the enforcer about the sandbox or its task."""
        if isinstance(problems := fields.get("rules_rejected"), list):
            self.recorder.rules_rejected(list(map(str, problems)))
        refused = fields.get("refused")
        if isinstance(refused, dict):
            counted = {kind: count - self._refused_before.get(kind, 0) for kind, count in refused.items()}
            self.metrics.refused_packets(counted)
        if isinstance(unusual := fields.get("unusual"), dict):
            for what, times in unusual.items():
                self.metrics.unusual(str(what), int(times))
        if isinstance(flags := fields.get("flags"), list) and len(flags) == 2:
            self.metrics.flags = int(flags[0]), float(flags[1])
        if isinstance(seconds := fields.get("started"), float):
            self.metrics.sandbox_started(seconds)
        if isinstance(before := fields.get("again"), dict):
            self.metrics.sandboxes += 1  # another worker started it, and has counted these packets
            self._refused_before = before
        self._count_run_events(fields)
        if (outcome := fields.get("ended")) in list(Outcome):
            self.metrics.task_ended(Outcome(str(outcome)))
            self.metrics.sandbox_ended()

    def _count_run_events(self, fields: "SandboxNews") -> None:
        """Count the events that the run itself has recorded: Prometheus reads only the worker's metrics."""
        for kind, times in _known_counts(fields, "told", Kind):
            self.metrics.count_events(Kind(kind), 0, times)
        for where, times in _known_counts(fields, "errors", Component):
            self.metrics.failed(Component(where), times)

    async def drain(self) -> None:
        """Let open connections end by themselves for a moment: the task is over."""
        for _ in range(2):  # accept what came before the end: the first time may only start the traffic
            await asyncio.sleep(0)
        if (traffic := self._traffic) is None:
            return
        deadline = time.monotonic() + _GRACE
        traffic.finish()
        while traffic.is_open and time.monotonic() < deadline:  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(0.01)

    def close(self) -> "Summary":
        """End everything that is open, record the end, and return the counts. Idempotent."""
        if self._warm_up_timer is not None:
            self._warm_up_timer.cancel()
        if self._traffic is not None:
            self._traffic.close()
        if self._supervisor_channel is not None:
            self._supervisor_channel.finish()
        for name in _ARRIVALS:
            if (sock := self._sockets.get(name)) is not None:
                self._poller.forget(sock.fileno())
        self._descriptors.leave()
        return self.recorder.summary()

    def close_sockets(self) -> None:
        """Close the sandbox's sockets and its epoll set, in a worker that serves others. Idempotent."""
        self._poller.close()
        for sock in self._sockets.values():
            sock.close()

    def renew_approvals(self, channel: "socket.socket") -> None:
        """Use a new channel to the approvals server: the previous server is gone."""
        self.start_traffic().renew_approvals(channel)
        before = self._sockets.pop("approvals", None)
        self._sockets["approvals"] = channel
        if before is not None:
            before.close()

    def _warm_up(self) -> None:
        self.start_traffic().inspection.warm()


def _known_counts(fields: "Mapping[str, object]", name: str, known: type[StrEnum]) -> "Iterator[tuple[str, int]]":
    """Yield the counts with known names."""
    counts = fields.get(name)
    if isinstance(counts, dict):
        yield from ((word, int(counts[word])) for word in map(str, known) if word in counts)


def _make_metrics(sandbox: "SandboxState", resources: WorkerResources) -> Metrics:
    metrics = Metrics()
    policy = sandbox.policy
    metrics.rules_loaded(policy.revision, policy.rule_ids, policy.settings.mode, time.time(), policy.needs.endings)
    metrics.rules_valid = not policy.unread
    metrics.limits = sandbox.meters
    metrics.ca_expiry = resources.authority_expires
    metrics.watch("worker", os.getpid())
    return metrics
