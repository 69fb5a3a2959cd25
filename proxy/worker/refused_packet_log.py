"""Records packets that the kernel rejected inside a sandbox as denied attempts, with their reason.

The ruleset logs each refused packet to a socket (and counts every one; the log is rate-limited, the counters are not).
"""

import contextlib
import socket
from typing import TYPE_CHECKING

from proxy.telemetry import events
from proxy.telemetry.journal.writer import JournalWriteError
from proxy.wire.refusal_log import Kind, parse_refusal
from rules.attempt import Protocol
from rules.decision import Decision
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.dns.names import NameTable
    from proxy.sandbox.recorder import Recorder
    from proxy.wire.refusal_log import RefusedPacket

_AT_ONCE = 64  # datagrams read before anything else gets its turn
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

    def __init__(self, log: socket.socket, recorder: "Recorder", names: "NameTable") -> None:
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
        for _ in range(_AT_ONCE):
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
                self._tell(packet)

    def _tell(self, packet: "RefusedPacket") -> None:
        sandbox = self._recorder.sandbox
        decision = Decision(reason=_REASONS.get(packet.kind, Reason.GATE_ERROR), revision=sandbox.policy.revision)
        name = None
        if packet.address is not None:
            name = self._names.name_of(packet.address)
        udp = packet.kind in (Kind.UDP, Kind.QUIC, Kind.DNS_DESTINATION)
        with contextlib.suppress(JournalWriteError):  # counted there; nothing was let out
            self._recorder.decided(
                events.Kind.CONNECTION_DECIDED,
                decision,
                name=name,
                address=packet.address,
                port=packet.port,
                protocol=Protocol.UDP if udp else Protocol.TCP if packet.kind is Kind.TCP else None,
            )
