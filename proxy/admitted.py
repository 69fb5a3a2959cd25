"""A connection that the gate hands to inspection: accepted, decided, and not a byte of it consumed."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.dialling.connecting import Hop
    from proxy.hello import ClientHello
    from proxy.tenant import Tenant
    from proxy.watched.attributing import Whose
    from rules.addresses import Address
    from rules.attempt import Protocol
    from rules.decision import Decision
    from rules.names import HostName
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
    protocol: "Protocol"  # TLS or HTTP
    hello: "ClientHello | None"  # of TLS
    decision: "Decision"
    event: str  # id of its connection.decided
    opened: float  # time.monotonic() of accept
    closed: "Callable[[int, int, Reason | None], None]"  # (bytes up, bytes down, why it did not end by itself), once
    whose: "Whose | None" = None  # the process that opened it, where that is asked
    detail: str = ""  # of a refusal: why it can't be dialled
    advice: str = ""  # ... and what can be done about it
    approval: str = ""  # ... the id of what people were asked about it
    leads_to: "Callable[[Hop], None]" = lambda _hop: None  # is told where the server was dialled, each time
