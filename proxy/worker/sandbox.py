"""One sandbox in a worker: its gate, its resolver and its datagrams, put together once, and taken apart at its end.

Home of invariant 11 within a process. Everything that a task can fill, teach or slow down is made here, for it alone:
names, lookups, memories of decisions, counts, the place in the poller. What tenancies share (`Common`) is the link to
the signer, the host's roots, the journal's writer, and whatever policies they have in common, which nothing changes.
"""

import asyncio
import os
import time
from contextvars import copy_context
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.certificates.leaves import Leaves
from proxy.dialing.dial import Dialer
from proxy.dns import records
from proxy.dns.datagrams import Datagrams
from proxy.dns.lookup import MOST_AT_ONCE, Lookup
from proxy.dns.names import NameTable
from proxy.dns.resolver import Resolver
from proxy.event_loop.poller import IN, Poller
from proxy.gate.listener import Gate
from proxy.inspection import Inspection
from proxy.supervisor_channel.channel import ProcessAttribution, SupervisorChannel
from proxy.telemetry.events import Kind, Where
from proxy.telemetry.journal.recorder import Recorder
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.udp.answers import Answers
from proxy.udp.listener import UdpGate
from proxy.worker.refused_packets import Undeliverable
from proxy.worker.reload import Reloading
from proxy.worker.taint import Taint
from rules.verdicts import Outcome

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterator, Mapping

    from proxy.approvals.client import Asking
    from proxy.certificates.leaves import SignerLink
    from proxy.dialing.proxy_auth import Login
    from proxy.gate.record import ConnectionRecord
    from proxy.info_api.visit import InfoApi, Visit
    from proxy.inspection import Roots
    from proxy.sandbox.descriptor_quota import DescriptorQuotas
    from proxy.sandbox.tenant import Tenant
    from proxy.telemetry.journal.writer import Journal
    from proxy.telemetry.summary import Summary
    from rules.addresses import Address

_GRACE: Final = 1.0  # seconds that open connections have to end by themselves once the task has ended
_EACH: Final = 2  # descriptors that a connection takes: the client's and the server's


class Common(NamedTuple):
    """What the tenancies of one worker share."""

    journal: "Journal"
    signer: "SignerLink"
    authority_ends: float  # seconds since 1970
    roots: "Roots"
    descriptors: "DescriptorQuotas"
    forbidden: "Collection[tuple[Address, int]]" = ()  # where Exeat itself listens outside
    in_turn: bool = False  # whether there are others that want their turn


class Tenancy:
    """One sandbox's part of a worker. For one thread, within a running loop. It closes its sockets."""

    def __init__(
        self,
        tenant: "Tenant",
        sockets: "Mapping[str, socket.socket]",
        common: Common,
        login: "Login | None" = None,
        *,
        before: int | None = None,
        wait: float = 0.0,
    ) -> None:
        """Put it together. `sockets` are the sandbox's, by their names in enforcer.network.gate_sockets.

        `before`: how many workers have died while they served it; None: it dies with its worker.
        `wait`: seconds until the addresses of its table are free.
        """
        self._sockets = dict(sockets)
        self.context = copy_context()  # for work that begins outside of it (`turn`)
        self.metrics = _metrics(tenant, common)
        self.recorder = Recorder(tenant, common.journal, self.metrics)
        self._poller = Poller(in_turn=common.in_turn)
        self._descriptors = descriptors = common.descriptors.join()
        has_room = descriptors.has_room
        self._asking = self._ask_people(sockets.get("approvals"))
        tenant.asking = self._asking
        tenant.taint = taint = Taint(self.recorder, unsure=bool(before))
        taint.review = self._review
        if self._asking is not None:
            taint.asks(self._asking)
        names = NameTable(tenant.policy.settings.dns_pool, tenant.own_addresses, before=before, wait=wait)
        self._lookup = Lookup(has_room=has_room)
        dialer = Dialer(
            self._lookup, self._poller, forbidden=common.forbidden, metrics=self.metrics, descriptors=descriptors
        )
        dialer.login = login
        self._leaves = Leaves(common.signer)
        self._inspection = Inspection(self._leaves, dialer, self.recorder, common.roots)
        self._resolver = resolver = Resolver(tenant, self.recorder, names, self._lookup)
        watcher = sockets.get("watch")
        asking = ProcessAttribution(sockets["diag"], watcher) if watcher is not None else None
        self._datagrams = Datagrams(sockets["dns_udp"], resolver, self.recorder, self._poller)
        self._info_api: InfoApi | None = None
        self._gate = Gate(
            sockets["tcp"],
            tenant,
            self.recorder,
            dialer=dialer,
            names=names,
            resolver=resolver,
            info_api=self._visit,
            inspection=self._inspection,
            attribute=asking.ask if asking is not None else None,
            has_room=has_room,
        )
        answers = Answers(sockets["answers"], sockets.get("answers6"), tenant.own_addresses)
        self._udp = UdpGate(
            sockets["udp"], answers, tenant, self.recorder, dialer=dialer, names=names, has_room=has_room
        )
        descriptors.count(self._gate.connections, _EACH)
        descriptors.count(self._udp.open_flows, 1)
        descriptors.count(self._lookup.waiting, 2, MOST_AT_ONCE)  # a question for each family of addresses
        descriptors.count(resolver.record_tasks, 1, records.MOST_AT_ONCE)
        self._counted: dict[str, int] = {}  # packets refused before this tenancy began
        self._log = sockets.get("refusal_log")
        self._hearing = SupervisorChannel(watcher, self.recorder, self._poller, asking) if watcher is not None else None
        self.reloading = Reloading(self.recorder, self._gate, self._udp, self._lookup, self._inspection, self._hearing)
        self._names = names

    def _visit(self, gate: Gate, client: "socket.socket", record: "ConnectionRecord") -> "Visit":
        """Make what serves a connection to the info API."""
        if self._info_api is None:
            from proxy.info_api.visit import InfoApi  # few tasks ask: a start needn't import it

            self._info_api = InfoApi(self.recorder, gate.dialer)
        return self._info_api.visit(gate, client, record)

    def start(self) -> None:
        """Begin to serve."""
        self._datagrams.start()
        self._gate.start()
        self._udp.start()
        if self._log is not None:
            self._log.setblocking(False)
            self._poller.watch(self._log.fileno(), IN, Undeliverable(self._log, self.recorder, self._names))
        if self._hearing is not None:
            self._hearing.start()
        if self._asking is not None:
            self._asking.start()
        if self.recorder.tenant.policy.needs.inspection:
            self._inspection.warm()

    def hear(self, said: "Mapping[str, object]") -> None:
        """Take note of what the supervisor says of the sandbox and its task."""
        if isinstance(problems := said.get("rules_rejected"), list):
            self.reloading.rejected(list(map(str, problems)))
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

    def _count(self, said: "Mapping[str, object]") -> None:
        """Count what the supervisor has told the journal: its own numbers nobody scrapes."""
        for kind, times in _counts(said, "told", Kind):
            self.metrics.told(Kind(kind), 0, times)
        for where, times in _counts(said, "errors", Where):
            self.metrics.failed(Where(where), times)

    async def drain(self) -> None:
        """Let what is open end by itself, for a moment: the task is over."""
        deadline = time.monotonic() + _GRACE
        self._gate.finish()
        self._udp.finish()
        while (self.metrics.connections_open or self._udp.flows) and time.monotonic() < deadline:  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(0.01)

    def close(self) -> "Summary":
        """End everything that is open, tell its end, and return what was counted. Idempotent."""
        self._gate.close()
        self._udp.close()
        self._inspection.close()
        self._leaves.close()
        self._datagrams.close()
        self._lookup.close()
        if self._hearing is not None:
            self._hearing.finish()
        if self._asking is not None:
            self._asking.close()
        if self._log is not None:
            self._poller.forget(self._log.fileno())
        self._descriptors.leave()
        return self.recorder.summary()

    def let_go(self) -> None:
        """Close the sandbox's sockets, and the place in the poller: for a worker that lives on. Idempotent."""
        self._poller.close()
        for sock in self._sockets.values():
            sock.close()

    def renew_approvals(self, channel: "socket.socket") -> None:
        """Ask people over this channel from now on: the registry at the end of the other is gone."""
        before = self._sockets.pop("approvals", None)
        self._sockets["approvals"] = channel
        if self._asking is None:
            tenant = self.recorder.tenant
            tenant.asking = self._asking = self._ask_people(channel)
            if self._asking is not None and tenant.taint is not None:
                tenant.taint.asks(self._asking)
                self._asking.start()
        else:
            self._asking.renew(channel)
        if before is not None:
            before.close()

    def _ask_people(self, channel: "socket.socket | None") -> "Asking | None":
        if channel is None:
            return None
        from proxy.approvals.client import Asking  # many rules ask nobody

        asking = Asking(channel, self._poller, self.recorder.error)
        asking.waiting = self.metrics.waiting
        return asking

    def _review(self) -> None:
        """Decide again on all that is open: the task has read what nobody vouches for."""
        self._gate.review()
        self._udp.review()


def _counts(said: "Mapping[str, object]", name: str, known: type[StrEnum]) -> "Iterator[tuple[str, int]]":
    """Give how often there was each of what is known."""
    counts = said.get(name)
    if isinstance(counts, dict):
        yield from ((word, int(counts[word])) for word in map(str, known) if word in counts)


def _metrics(tenant: "Tenant", common: Common) -> Metrics:
    metrics = Metrics()
    policy = tenant.policy
    metrics.rules_loaded(policy.revision, policy.rule_ids, policy.settings.mode, time.time(), policy.needs.endings)
    metrics.rules_valid = not policy.unread
    metrics.limits = tenant.meters
    metrics.ca_expiry = common.authority_ends
    metrics.watch("worker", os.getpid())
    return metrics
