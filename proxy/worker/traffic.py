"""Serves the traffic of one sandbox: gate, resolver, UDP, inspection and approvals.

Made for the first connection, lookup, datagram or refused packet, or at the start if the rules need it.
"""

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from proxy.approvals.recording import ApprovalRecorder
from proxy.certificates.leaf_certificates import LeafCertificates
from proxy.dialing.dialer import Dialer
from proxy.dns import records
from proxy.dns.lookup import MOST_AT_ONCE, Lookup
from proxy.dns.names import NameTable
from proxy.dns.server import DnsServer
from proxy.dns.udp_listener import DnsUdpListener
from proxy.event_loop.poller import IN, Poller
from proxy.gate.listener import Gate
from proxy.inspection import Inspection
from proxy.sandbox.taint import Taint
from proxy.telemetry import events
from proxy.telemetry.journal.writer import JournalWriteError
from proxy.udp.listener import UdpGate
from proxy.udp.sockets import ReplySocket
from proxy.wire.refusal_log import Kind, parse_refusal
from proxy.worker.policy_swap import PolicyReload
from rules.attempt import Protocol
from rules.decision import Decision
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from proxy.approvals.client import ApprovalsClient
    from proxy.gate.record import ConnectionRecord
    from proxy.info_api.info_api_connection import InfoApi, InfoApiConnection
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import DescriptorQuota
    from proxy.supervisor_channel.channel import ProcessAttribution, SupervisorChannel
    from proxy.wire.refusal_log import RefusedPacket
    from proxy.worker.sandbox import WorkerResources

_DESCRIPTORS_PER_CONNECTION: Final = 2  # descriptors that a connection takes: the client's and the server's


class Traffic:
    """Traffic of one sandbox. For one thread, within a running loop. The caller keeps the sockets."""

    def __init__(
        self,
        recorder: "Recorder",
        sockets: "Mapping[str, socket.socket]",
        resources: "WorkerResources",
        poller: Poller,
        descriptors: "DescriptorQuota",
        *,
        attribution: "ProcessAttribution | None",
        supervisor_channel: "SupervisorChannel | None",
        before: int | None,
        wait: float,
    ) -> None:
        """Make all parts; the arguments are those of `SandboxServer`."""
        sandbox = recorder.sandbox
        self._recorder = recorder
        self._poller = poller
        self._log = sockets.get("refusal_log")
        self._info_api: InfoApi | None = None
        has_room = descriptors.has_room
        self._approvals_client = self._open_approvals(sockets.get("approvals"))
        sandbox.approvals = self._approvals_client
        approvals = ApprovalRecorder(recorder.origin, recorder.journal, recorder.metrics)
        sandbox.taint = taint = Taint(sandbox, approvals, recorder.metrics, is_unknown=bool(before))
        taint.review = self._review
        if self._approvals_client is not None:
            taint.connect(self._approvals_client)
        self._names = names = NameTable(
            sandbox.policy.settings.dns_pool, sandbox.own_addresses, before=before, wait=wait
        )
        self._lookup = Lookup(has_room=has_room)
        self.dialer = dialer = Dialer(
            self._lookup, poller, forbidden=resources.forbidden, metrics=recorder.metrics, descriptors=descriptors
        )
        self._leaves = LeafCertificates(resources.signer)
        self.inspection = Inspection(self._leaves, dialer, recorder, resources.roots)
        self._resolver = resolver = DnsServer(sandbox, recorder, names, self._lookup)
        self._dns_server = DnsUdpListener(sockets["dns_udp"], resolver, recorder, poller)
        self._gate = Gate(
            sockets["tcp"],
            sandbox,
            recorder,
            dialer=dialer,
            names=names,
            resolver=resolver,
            info_api=self._handle_info_api,
            inspection=self.inspection,
            attribute=attribution.look_up if attribution is not None else None,
            has_room=has_room,
        )
        answers = ReplySocket(sockets["answers"], sockets.get("answers6"), sandbox.own_addresses)
        self._udp = UdpGate(sockets["udp"], answers, sandbox, recorder, dialer=dialer, names=names, has_room=has_room)
        descriptors.count(self._gate.connections, _DESCRIPTORS_PER_CONNECTION)
        descriptors.count(self._udp.open_flows, 1)
        descriptors.count(self._lookup.waiting, 2, MOST_AT_ONCE)  # a query for each address family
        descriptors.count(resolver.record_tasks, 1, records.MOST_AT_ONCE)
        self.policy_reload = PolicyReload(
            recorder, self._gate, self._udp, self._lookup, self.inspection, supervisor_channel
        )

    def start(self) -> None:
        """Start to serve."""
        self._dns_server.start()
        self._gate.start()
        self._udp.start()
        if self._log is not None:
            self._log.setblocking(False)
            self._poller.watch(self._log.fileno(), IN, RefusedPacketLog(self._log, self._recorder, self._names))
        if self._approvals_client is not None:
            self._approvals_client.start()

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
        self._dns_server.close()
        self._lookup.close()
        if self._approvals_client is not None:
            self._approvals_client.close()

    def renew_approvals(self, channel: "socket.socket") -> None:
        """Use a new channel to the approvals server."""
        if self._approvals_client is not None:
            self._approvals_client.renew(channel)
            return
        sandbox = self._recorder.sandbox
        sandbox.approvals = self._approvals_client = self._open_approvals(channel)
        if self._approvals_client is not None and sandbox.taint is not None:
            sandbox.taint.connect(self._approvals_client)
            self._approvals_client.start()

    def _handle_info_api(self, gate: Gate, client: "socket.socket", record: "ConnectionRecord") -> "InfoApiConnection":
        """Return the handler of a connection to the info API."""
        if self._info_api is None:
            from proxy.info_api.info_api_connection import InfoApi  # few tasks use it: a start needn't import it

            self._info_api = InfoApi(self._recorder, gate.dialer)
        return self._info_api.connection(gate, client, record)

    def _open_approvals(self, channel: "socket.socket | None") -> "ApprovalsClient | None":
        if channel is None:
            return None
        from proxy.approvals.client import ApprovalsClient  # many rules need no approvals

        client = ApprovalsClient(channel, self._poller, self._recorder.error)
        client.waiting = self._recorder.metrics.waiting
        return client

    def _review(self) -> None:
        """Decide again on everything open: the task became tainted."""
        self._gate.review()
        self._udp.review()


_MOST_PER_EVENT = 64  # datagrams read before other descriptors get their turn
_LARGEST = 65536
_REASONS = {
    Kind.UDP: Reason.UDP,
    Kind.QUIC: Reason.QUIC,
    Kind.ICMP: Reason.ICMP,
    Kind.DNS_DESTINATION: Reason.ADDRESS_NOT_LISTED,
    Kind.TCP: Reason.GATE_ERROR,  # nothing listened: the gate was not there
    Kind.OTHER: Reason.PROTOCOL_MISMATCH,
}


class RefusedPacketLog:
    """Reads one sandbox's packet log (NFLOG) and records one decision a packet."""

    __slots__ = ("_log", "_names", "_recorder")

    def __init__(self, log: "socket.socket", recorder: "Recorder", names: "NameTable") -> None:
        self._log = log
        self._recorder = recorder
        self._names = names

    def ready(self, _events: int) -> None:
        """Handle an event of the poller."""
        self.readable()

    def failed(self, error: Exception) -> None:
        """Report an unexpected exception; later packets are recorded."""
        self._recorder.error("refusals", f"{type(error).__name__}: {error}")

    def readable(self) -> None:
        """Record the rejected packets that have arrived. Never raises."""
        for _ in range(_MOST_PER_EVENT):
            try:
                data = self._log.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: the kernel had more than the socket holds; its counters have them all
            try:
                packets = parse_refusal(data)
            except ValueError as error:
                self._recorder.error("refusals", str(error))
                continue
            for packet in packets:
                self._record(packet)

    def _record(self, packet: "RefusedPacket") -> None:
        sandbox = self._recorder.sandbox
        decision = Decision(reason=_REASONS.get(packet.kind, Reason.GATE_ERROR), revision=sandbox.policy.revision)
        name = None
        if packet.address is not None:
            name = self._names.name_of(packet.address)
        is_udp = packet.kind in (Kind.UDP, Kind.QUIC, Kind.DNS_DESTINATION)
        with contextlib.suppress(JournalWriteError):  # counted by the journal; the kernel has denied the packet
            self._recorder.decided(
                events.Kind.CONNECTION_DECIDED,
                decision,
                name=name,
                address=packet.address,
                port=packet.port,
                protocol=Protocol.UDP if is_udp else Protocol.TCP if packet.kind is Kind.TCP else None,
            )
