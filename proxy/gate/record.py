"""Record of one connection: one decision event, and one close event if it was allowed (invariant 6).

`Handover` is what inspection takes over: a connection that is recorded, with no byte consumed.
"""

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from proxy.dialing.dialer import written
from proxy.event_loop.poller import reset
from proxy.telemetry.events import Kind, Tls
from proxy.telemetry.journal.writer import JournalWriteError
from rules.names import HostName, InvalidNameError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.dialing.dialer import Hop
    from proxy.gate.decide import ConnectionDecision, OriginalDestination
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.supervisor_channel.channel import Attribution
    from proxy.telemetry.events import Component, Process
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.verdicts import Outcome, Reason

type Endpoint = tuple["Address", int]
type FindProcess = "Callable[[Endpoint, Endpoint], Attribution | None]"  # finds the process that opened a connection


class ConnectionRecord:
    """One connection's events. `address` is where it leads, as far as that is known; `via` the proxy that it takes."""

    __slots__ = ("_recorder", "address", "attribution", "event", "judgement", "opened", "peer", "via", "wanted")

    def __init__(
        self,
        recorder: "Recorder",
        peer: Endpoint,
        wanted: "OriginalDestination",
        address: "Address | str | None",
        opened: float,
    ) -> None:
        self._recorder = recorder
        self.judgement: ConnectionDecision | None = None  # once the one decision has been recorded, or could not be
        self.peer = peer
        self.wanted = wanted
        self.address = address
        self.via: str | None = None
        self.attribution: Attribution | None = None  # the process that opened it, where that is looked for
        self.opened = opened  # time.monotonic()
        self.event = ""

    def leads_to(self, hop: "Hop") -> None:
        """Note what is dialed. Through a proxy, the address is not known here."""
        self.address, self.via = (None, str(hop)) if isinstance(hop, tuple) else (written(hop), None)

    def may_not_lead_to(self, address: "Address | None") -> None:
        """Take note of the address that it is refused for, where it is refused for that."""
        if address is not None:
            self.address = written(address)

    def decided(self, judgement: "ConnectionDecision") -> bool:
        """Tell the decision; False: that could not be written, so nothing may pass. Once a connection."""
        assert self.judgement is None, "decided twice"
        self.judgement = judgement
        wanted, hello = self.wanted, judgement.hello
        try:
            self.event = self._recorder.decided(
                Kind.CONNECTION_DECIDED,
                judgement.decision,
                name=judgement.name,
                address=self.address,
                port=wanted.port,
                via=self.via,
                protocol=judgement.attempt.protocol,
                tls=None if hello is None else Tls(hello.sni, hello.alpn, hello.version, hello.ech, hello.ja4),
                process=self.process,
                detail=judgement.detail,
                approval=judgement.approval,
            )
        except JournalWriteError:
            return False
        return True

    @property
    def process(self) -> "Process | None":
        """Who opened it, as far as that is known by now."""
        return None if self.attribution is None else self.attribution.process

    def ended(  # noqa: PLR0917 - what there is to record, in the order of the others
        self,
        up: int,
        down: int,
        outcome: "Outcome",
        reason: "Reason | None",
        by: "Decision | None" = None,
        detail: str = "",
    ) -> None:
        """Tell how it ended; `by`: the later decision that ended it, `detail`: what went wrong, in words.

        Harmless where nothing was allowed, and twice.
        """
        judgement = self.judgement
        if judgement is None or not self.event:
            return
        self._recorder.closed(
            self.event,
            name=judgement.name,
            address=self.address,
            port=self.wanted.port,
            via=self.via,
            protocol=judgement.attempt.protocol,
            up=up,
            down=down,
            seconds=time.monotonic() - self.opened,
            outcome=outcome,
            reason=reason,
            by=by,
            process=self.process,
            detail=detail,
        )

    def error(self, where: "Component", error: Exception) -> None:
        """Tell of an exception that nobody expected."""
        self._recorder.error(where, f"{type(error).__name__}: {error}", cause=self.event or None)


class Handover(NamedTuple):
    """What inspection takes over. Its decision may be a refusal: then a page that explains it is all there is to serve.

    The target of the attempt is the one host that may be asked on this connection (invariant 3).
    """

    sandbox: "SandboxState"
    client: "socket.socket"  # non-blocking, SO_RCVLOWAT 1, in no event loop
    record: ConnectionRecord
    judgement: "ConnectionDecision"
    closed: "Callable[[int, int, Reason | None], None]"  # (bytes up, bytes down, why it did not end by itself), once

    @property
    def event(self) -> str:
        """The id of its decision event."""
        return self.record.event

    @property
    def decision(self) -> "Decision":
        """Its decision."""
        return self.judgement.decision

    @property
    def sni(self) -> str | None:
        """The server name in the ClientHello, as the client wrote it; None: there is none."""
        return self.judgement.hello.sni if self.judgement.hello else None

    @property
    def shown_host(self) -> str:
        """The host that the client is shown a certificate for: the target, or what a refused client wants."""
        if self.sni and not self.decision.outcome.passes:
            try:
                return HostName.parse(self.sni)
            except InvalidNameError:
                pass  # no client takes a certificate for that
        return str(self.judgement.attempt.target)

    def give_up(self, reason: "Reason | None") -> None:
        """Reset the connection, and record its end: inspection doesn't begin with it."""
        reset(self.client)
        self.closed(0, 0, reason)


class Inspection(Protocol):
    """Reads connections, and serves the page of those that are refused: `proxy.inspection`."""

    def adopt(self, admitted: Handover) -> None:
        """Take a connection over, its socket with it."""

    def review(self, admitted: Handover, decision: "Decision") -> None:
        """Go on under other rules, which say `decision` to a connection: it, or a request on it, may have to end."""
