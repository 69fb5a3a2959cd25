"""Serves the traffic of one sandbox: gate, resolver, UDP, inspection and approvals.

It is made when the first connection, lookup, datagram or refused packet comes, or when rules need it at once.
"""

from typing import TYPE_CHECKING, Final

from proxy.approvals.recording import ApprovalRecorder
from proxy.certificates.leaf_certificates import LeafCertificates
from proxy.dialing.dialer import Dialer
from proxy.dns import records
from proxy.dns.lookup import MOST_AT_ONCE, Lookup
from proxy.dns.names import NameTable
from proxy.dns.resolver import Resolver
from proxy.dns.udp_server import UdpDnsServer
from proxy.event_loop.poller import IN, Poller
from proxy.gate.listener import Gate
from proxy.inspection import Inspection
from proxy.sandbox.taint import Taint
from proxy.udp.listener import UdpGate
from proxy.udp.sockets import ReplySocket
from proxy.worker.policy_swap import PolicyReload
from proxy.worker.refused_packet_log import RefusedPacketLog

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from proxy.approvals.client import ApprovalsClient
    from proxy.gate.record import ConnectionRecord
    from proxy.info_api.info_api_connection import InfoApi, InfoApiConnection
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import DescriptorQuota
    from proxy.supervisor_channel.channel import ProcessAttribution, SupervisorChannel
    from proxy.worker.sandbox import WorkerResources

_EACH: Final = 2  # descriptors that a connection takes: the client's and the server's


class Traffic:
    """Traffic of one sandbox. For one thread, within a running loop. The caller keeps the sockets."""

    def __init__(
        self,
        recorder: "Recorder",
        sockets: "Mapping[str, socket.socket]",
        common: "WorkerResources",
        poller: Poller,
        descriptors: "DescriptorQuota",
        *,
        attribution: "ProcessAttribution | None",
        hearing: "SupervisorChannel | None",
        before: int | None,
        wait: float,
    ) -> None:
        """Put it together; the arguments are `SandboxServer`'s."""
        sandbox = recorder.sandbox
        self._recorder = recorder
        self._poller = poller
        self._log = sockets.get("refusal_log")
        self._info_api: InfoApi | None = None
        has_room = descriptors.has_room
        self._asking = self._ask_people(sockets.get("approvals"))
        sandbox.approvals = self._asking
        approvals = ApprovalRecorder(recorder.origin, recorder.journal, recorder.metrics)
        sandbox.taint = taint = Taint(sandbox, approvals, recorder.metrics, unsure=bool(before))
        taint.review = self._review
        if self._asking is not None:
            taint.needs_approval(self._asking)
        self._names = names = NameTable(
            sandbox.policy.settings.dns_pool, sandbox.own_addresses, before=before, wait=wait
        )
        self._lookup = Lookup(has_room=has_room)
        self.dialer = dialer = Dialer(
            self._lookup, poller, forbidden=common.forbidden, metrics=recorder.metrics, descriptors=descriptors
        )
        self._leaves = LeafCertificates(common.signer)
        self.inspection = Inspection(self._leaves, dialer, recorder, common.roots)
        self._resolver = resolver = Resolver(sandbox, recorder, names, self._lookup)
        self._datagrams = UdpDnsServer(sockets["dns_udp"], resolver, recorder, poller)
        self._gate = Gate(
            sockets["tcp"],
            sandbox,
            recorder,
            dialer=dialer,
            names=names,
            resolver=resolver,
            info_api=self._visit,
            inspection=self.inspection,
            attribute=attribution.ask if attribution is not None else None,
            has_room=has_room,
        )
        answers = ReplySocket(sockets["answers"], sockets.get("answers6"), sandbox.own_addresses)
        self._udp = UdpGate(sockets["udp"], answers, sandbox, recorder, dialer=dialer, names=names, has_room=has_room)
        descriptors.count(self._gate.connections, _EACH)
        descriptors.count(self._udp.open_flows, 1)
        descriptors.count(self._lookup.waiting, 2, MOST_AT_ONCE)  # a question for each family of addresses
        descriptors.count(resolver.record_tasks, 1, records.MOST_AT_ONCE)
        self.reloading = PolicyReload(recorder, self._gate, self._udp, self._lookup, self.inspection, hearing)

    def start(self) -> None:
        """Start to serve."""
        self._datagrams.start()
        self._gate.start()
        self._udp.start()
        if self._log is not None:
            self._log.setblocking(False)
            self._poller.watch(self._log.fileno(), IN, RefusedPacketLog(self._log, self._recorder, self._names))
        if self._asking is not None:
            self._asking.start()

    @property
    def is_open(self) -> bool:
        """Whether any connection or flow is open."""
        return bool(self._recorder.metrics.connections_open or self._udp.flows)

    def finish(self) -> None:
        """Handle the end of the task."""
        self._gate.finish()
        self._udp.finish()

    def close(self) -> None:
        """End everything that is open, and record it. Idempotent."""
        self._gate.close()
        self._udp.close()
        self.inspection.close()
        self._leaves.close()
        self._datagrams.close()
        self._lookup.close()
        if self._asking is not None:
            self._asking.close()

    def renew_approvals(self, channel: "socket.socket") -> None:
        """Use a new channel to the approvals server."""
        if self._asking is not None:
            self._asking.renew(channel)
            return
        sandbox = self._recorder.sandbox
        sandbox.approvals = self._asking = self._ask_people(channel)
        if self._asking is not None and sandbox.taint is not None:
            sandbox.taint.needs_approval(self._asking)
            self._asking.start()

    def _visit(self, gate: Gate, client: "socket.socket", record: "ConnectionRecord") -> "InfoApiConnection":
        """Return the handler of a connection to the info API."""
        if self._info_api is None:
            from proxy.info_api.info_api_connection import InfoApi  # few tasks ask: a start needn't import it

            self._info_api = InfoApi(self._recorder, gate.dialer)
        return self._info_api.connection(gate, client, record)

    def _ask_people(self, channel: "socket.socket | None") -> "ApprovalsClient | None":
        if channel is None:
            return None
        from proxy.approvals.client import ApprovalsClient  # many rules ask nobody

        asking = ApprovalsClient(channel, self._poller, self._recorder.error)
        asking.waiting = self._recorder.metrics.waiting
        return asking

    def _review(self) -> None:
        """Decide again on everything open: the task became tainted."""
        self._gate.review()
        self._udp.review()
