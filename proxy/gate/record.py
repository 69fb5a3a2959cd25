"""Record of one connection: one decision event, and one close event if it was allowed (invariant 6).

`Handover` is what inspection takes over: a connection that is recorded, with no byte consumed.
"""

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from proxy.dialing.connect_race import address_text
from proxy.event_loop.poller import reset
from proxy.telemetry.events import Kind, Tls
from proxy.telemetry.journal.writer import JournalWriteError
from rules.values.names import HostName, InvalidNameError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.dialing.connect_race import Hop
    from proxy.gate.decide import GateDecision, OriginalDestination
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.supervisor_channel.channel import Attribution
    from proxy.telemetry.events import Component, Process
    from rules.decision import Decision
    from rules.values.addresses import Address
    from rules.verdicts import Outcome, Reason

type Endpoint = tuple["Address", int]
type FindProcess = "Callable[[Endpoint, Endpoint], Attribution | None]"  # finds the process that opened a connection


class ConnectionRecord:
    """Events of one connection. `address`: the address it leads to, if known; `via`: the proxy it goes through."""

    __slots__ = (
        "_recorder",
        "address",
        "attribution",
        "destination",
        "event",
        "gate_decision",
        "opened",
        "peer",
        "via",
    )

    def __init__(
        self,
        recorder: "Recorder",
        peer: Endpoint,
        destination: "OriginalDestination",
        address: "Address | str | None",
        opened: float,
    ) -> None:
        self._recorder = recorder
        self.gate_decision: GateDecision | None = None  # set when the decision is recorded, or could not be
        self.peer = peer
        self.destination = destination
        self.address = address
        self.via: str | None = None
        self.attribution: Attribution | None = None  # the process that opened it, where that is looked for
        self.opened = opened  # time.monotonic()
        self.event = ""

    def set_hop(self, hop: "Hop") -> None:
        """Set the address or proxy that is dialed. Behind a proxy the address is unknown."""
        self.address, self.via = (None, str(hop)) if isinstance(hop, tuple) else (address_text(hop), None)

    def set_denied_address(self, address: "Address | None") -> None:
        """Set the address that the connection is denied for."""
        if address is not None:
            self.address = address_text(address)

    def record_decision(self, gate_decision: "GateDecision") -> bool:
        """Record the decision, once a connection; False: block the connection, as its event could not be written.

        Under `on_journal_failure: continue` an event that the disk doesn't take is only counted (`Recorder.decided`).
        """
        assert self.gate_decision is None, "a second decision"
        self.gate_decision = gate_decision
        destination, hello = self.destination, gate_decision.hello
        try:
            self.event = self._recorder.decided(
                Kind.CONNECTION_DECIDED,
                gate_decision.decision,
                name=gate_decision.name,
                address=self.address,
                port=destination.port,
                via=self.via,
                protocol=gate_decision.attempt.protocol,
                tls=None if hello is None else Tls(hello.sni, hello.alpn, hello.version, hello.ech, hello.ja4),
                process=self.process,
                detail=gate_decision.detail,
                approval=gate_decision.approval,
            )
        except JournalWriteError:
            return False
        return True

    @property
    def process(self) -> "Process | None":
        """The process that opened it, if known by now."""
        return None if self.attribution is None else self.attribution.process

    def record_end(  # noqa: PLR0917 - what there is to record, in the order of the others
        self,
        up: int,
        down: int,
        outcome: "Outcome",
        reason: "Reason | None",
        by: "Decision | None" = None,
        detail: str = "",
    ) -> None:
        """Record the end; `by`: the later decision that ended it, `detail`: what failed.

        No effect if it was not allowed, or the end is already recorded.
        """
        gate_decision = self.gate_decision
        if gate_decision is None or not self.event:
            return
        self._recorder.closed(
            self.event,
            name=gate_decision.name,
            address=self.address,
            port=self.destination.port,
            via=self.via,
            protocol=gate_decision.attempt.protocol,
            up=up,
            down=down,
            seconds=time.monotonic() - self.opened,
            outcome=outcome,
            reason=reason,
            by=by,
            process=self.process,
            detail=detail,
        )

    def record_error(self, where: "Component", error: Exception) -> None:
        """Record an unexpected exception."""
        self._recorder.error(where, f"{type(error).__name__}: {error}", cause=self.event or None)


class Handover(NamedTuple):
    """A connection that the gate hands to inspection. If it is denied, inspection only serves the block page.

    The target of the attempt is the only host that requests on this connection may name (invariant 3).
    """

    sandbox: "SandboxState"
    client: "socket.socket"  # non-blocking, SO_RCVLOWAT 1, in no event loop
    record: ConnectionRecord
    gate_decision: "GateDecision"
    closed: "Callable[[int, int, Reason | None], None]"  # (bytes up, bytes down, why it did not end by itself), once

    @property
    def event(self) -> str:
        """Id of the decision event."""
        return self.record.event

    @property
    def decision(self) -> "Decision":
        """The decision."""
        return self.gate_decision.decision

    @property
    def sni(self) -> str | None:
        """Server name in the ClientHello as the client wrote it; None: there is none."""
        return self.gate_decision.hello.sni if self.gate_decision.hello else None

    @property
    def shown_host(self) -> str:
        """Host of the certificate shown to the client: the target, or the SNI of a denied connection."""
        if self.sni and not self.decision.outcome.passes:
            try:
                return HostName.parse(self.sni)
            except InvalidNameError:
                pass  # no client accepts a certificate for that name
        return str(self.gate_decision.attempt.target)

    def give_up(self, reason: "Reason | None") -> None:
        """Reset the connection and record its end; inspection doesn't serve it."""
        reset(self.client)
        self.closed(0, 0, reason)


class Inspection(Protocol):
    """Inspects connections, and serves the block page of denied ones: `proxy.inspection`."""

    def adopt(self, handover: Handover) -> None:
        """Take a connection over, with its socket."""

    def review(self, handover: Handover, decision: "Decision") -> None:
        """Apply a new decision to a connection: it, or a request on it, may have to end."""
