"""Connection that the gate hands to inspection: accepted and decided, with no byte consumed."""

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from proxy.event_loop.poller import reset
from rules.names import HostName, InvalidName

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.dialing.dialer import Hop
    from proxy.gate.client_hello import ClientHello
    from proxy.gate.decide import Judgement
    from proxy.gate.record import ConnectionRecord
    from proxy.sandbox.sandbox_state import Tenant
    from proxy.supervisor_channel.channel import Whose
    from rules.addresses import Address
    from rules.attempt import Protocol as Spoken
    from rules.decision import Decision
    from rules.verdicts import Reason


class Admitted(NamedTuple):
    """What inspection takes over. `decision` may be a refusal: then a page that explains it is all there is to serve.

    `target` is the one host that may be asked on this connection (invariant 3). Where TLS came without a usable name
    for a refusal's page, it is what the task connected to.
    """

    tenant: "Tenant"
    client: "socket.socket"  # non-blocking, SO_RCVLOWAT 1, in no event loop
    peer: "tuple[Address, int]"  # the task's end
    target: "HostName | Address"
    port: int
    protocol: "Spoken"  # TLS or HTTP
    hello: "ClientHello | None"  # of TLS
    decision: "Decision"
    event: str  # id of its connection.decided
    opened: float  # time.monotonic() of accept
    closed: "Callable[[int, int, Reason | None], None]"  # (bytes up, bytes down, why it did not end by itself), once
    whose: "Whose | None" = None  # the process that opened it, where that is asked
    detail: str = ""  # of a refusal: why it can't be dialed
    advice: str = ""  # ... and what can be done about it
    approval: str = ""  # ... the id of what people were asked about it
    leads_to: "Callable[[Hop], None]" = lambda _hop: None  # receives where the server was dialed, each time

    @classmethod
    def of(
        cls,
        record: "ConnectionRecord",
        judgement: "Judgement",
        tenant: "Tenant",
        client: "socket.socket",
        closed: "Callable[[int, int, Reason | None], None]",
    ) -> Self:
        """Return what inspection takes over of a connection whose decision is recorded."""
        attempt = judgement.attempt
        return cls(
            tenant=tenant,
            client=client,
            peer=record.peer,
            target=attempt.target,
            port=record.wanted.port,
            protocol=attempt.protocol,
            hello=judgement.hello,
            decision=judgement.decision,
            event=record.event,
            opened=record.opened,
            closed=closed,
            whose=record.whose,
            detail=judgement.detail,
            advice=judgement.advice,
            approval=judgement.approval,
            leads_to=record.leads_to,
        )

    @property
    def sni(self) -> str | None:
        """The server name in the ClientHello, as the client wrote it; None: there is none."""
        return self.hello.sni if self.hello else None

    @property
    def shown_host(self) -> str:
        """The host that the client is shown a certificate for: the target, or what a refused client wants."""
        if self.sni and not self.decision.outcome.passes:
            try:
                return HostName.parse(self.sni)
            except InvalidName:
                pass  # no client takes a certificate for that
        return str(self.target)

    def give_up(self, reason: "Reason | None") -> None:
        """Reset the connection, and record its end: inspection doesn't begin with it."""
        reset(self.client)
        self.closed(0, 0, reason)


class Inspection(Protocol):
    """Reads connections, and serves the page of those that are refused: `proxy.inspection`."""

    def adopt(self, admitted: Admitted) -> None:
        """Take a connection over, its socket with it."""
        ...

    def review(self, admitted: Admitted, decision: "Decision") -> None:
        """Go on under other rules, which say `decision` to a connection: it, or a request on it, may have to end."""
        ...
