"""Client and server ends of an inspected connection, and the quota of buffered bytes.

A sandbox may have thousands of connections. Each may request something large and read none of it, until the machine
runs out of memory and the kernel kills other tasks (invariant 11). `MemoryQuota` therefore counts the buffered bytes of
a sandbox. Above `TIGHT`, a connection whose client reads too little reads less from its server. Above `MOST`, the
connections that buffer most are closed. It must never lose a count.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from mitmproxy.proxy import events

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import date

    from mitmproxy.proxy.layer import Layer

    from proxy.dialing.connect_race import Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.inspection.http1 import ClientSideHttp1, ServerSideHttp1
    from proxy.inspection.http2 import ClientSideHttp2, ServerSideHttp2
    from proxy.inspection.transport import Transport
    from proxy.request.messages import WebOrigin
    from rules.attempt import Attempt, Request
    from rules.matching.policy import Policy
    from rules.verdicts import Reason


class End:
    """One connection of an inspected client: to the client itself or to a server, as HTTP sees it."""

    __slots__ = ("alpn", "can_read", "can_write", "cut", "origin", "peername", "transport")
    transport: "Transport[ClientEnd | ServerEnd] | None"

    def __init__(self, origin: "WebOrigin") -> None:
        self.origin = origin
        self.alpn: bytes | None = None  # the protocol that TLS agreed on
        self.can_read = self.can_write = False  # data may still arrive, or be sent
        self.cut = False  # it was cut off rather than ended
        self.peername = None  # mitmproxy logs it

    @property
    def connected(self) -> bool:
        """Whether it is open in both directions."""
        return self.can_read and self.can_write


class ClientEnd(End):
    """Connection to the client in the sandbox."""

    __slots__ = ("codec",)
    transport: "Transport[ClientEnd | ServerEnd]"

    def __init__(self, origin: "WebOrigin") -> None:
        super().__init__(origin)
        self.codec: ClientSideHttp1 | ClientSideHttp2 | None = None  # None: the handshake isn't complete
        self.can_read = self.can_write = True


class ServerEnd(End):
    """Connection to the server of the checked name (invariant 3); a client may use several."""

    __slots__ = (
        "_allowed_key", "addresses", "authorities", "codec", "dialled", "login", "over", "proven", "relayed",
        "unidentified", "used",
    )  # fmt: skip

    def __init__(
        self, origin: "WebOrigin", addresses: "tuple[Hop, ...]" = (), authorities: tuple[bytes, ...] = ()
    ) -> None:
        """`addresses` are checked for the request that it is made for; `authorities` (PEM) may verify it, too."""
        super().__init__(origin)
        self.transport = None  # it isn't dialed yet
        self.codec: ServerSideHttp1 | ServerSideHttp2 | None = None  # None: it isn't open yet
        self.addresses = addresses
        self.authorities = authorities
        self.over = False  # it failed to open, or was closed
        self.used = False  # a request was sent on it
        self.relayed = False  # requests go to an HTTP proxy itself, not through a tunnel
        self.unidentified = False  # its server has asked for a client certificate, and got none
        self.proven = False  # its server has proved, over TLS, to be the checked name
        self.login: Login | None = None  # credentials for that proxy
        self.dialled: Hop | None = None  # the address that it is connected to
        self._allowed_key: tuple[Policy, date | None, Request | None, bool, frozenset[str]] | None = (
            None  # the last allowed check
        )

    def is_good(self, policy: "Policy", attempt: "Attempt", address: "Hop") -> bool:
        """Whether `policy` allows a request to the `address` of this connection."""
        key = (policy, attempt.at, attempt.request, attempt.tainted, attempt.granted)
        if self._allowed_key != key:
            self._allowed_key = None if policy.check_address(attempt, address) else key
        return self._allowed_key is not None


class ConnectionControl(Protocol):
    """Opens and closes the connections that a client's requests use (`proxy.inspection.connection`)."""

    transports: "list[Transport[ClientEnd | ServerEnd]]"  # their sockets are open

    def open(self, server: ServerEnd) -> None:
        """Dial a server at an address that was checked for this request."""

    def end_sending(self, connection: ClientEnd | ServerEnd) -> None:
        """End our side only."""

    def close(self, connection: ClientEnd | ServerEnd) -> None:
        """Send buffered data, then close. Idempotent."""

    def reset(self, connection: ClientEnd | ServerEnd, *, at_once: bool = ...) -> None:
        """Reset a connection; earlier data is delivered first, unless `at_once`."""


@dataclass(frozen=True, slots=True)
class FixedOptions:
    """Every option that a layer of mitmproxy reads here; a test compares the names with its source.

    One that a layer reads and that isn't here raises, which ends the connection.
    """

    validate_inbound_headers: bool = True
    normalize_outbound_headers: bool = True
    http2_ping_keepalive: int = 0  # our own pings would keep an idle connection from ending
    proxy_debug: bool = False


_OPTIONS: Final = FixedOptions()


class LayerContext:
    """Context for a layer of mitmproxy, without the copies that mitmproxy's own context makes."""

    __slots__ = ("client", "layers", "options", "server")

    def __init__(self, client: ClientEnd, server: ServerEnd | None = None) -> None:
        self.client = client
        self.server = server
        self.options = _OPTIONS
        self.layers: list[Layer] = []


_numbers = itertools.count(1)


def next_key() -> str:
    """Return a key for a new request, unique in this process."""
    return f"request {next(_numbers)}"


class RequestsRevoked(events.Event):
    """Event: the rules now in force deny the requests with these keys."""

    def __init__(self, keys: "frozenset[str]") -> None:
        self.keys = keys


class ServerFailure(str):
    """Why a server connection failed; a string, as mitmproxy's layers pass that on."""

    __slots__ = ("reason",)
    reason: "Reason"

    def __new__(cls, reason: "Reason", detail: str) -> Self:
        """Create a failure; `detail` is the text."""
        failure = super().__new__(cls, detail)
        failure.reason = reason
        return failure


MIB: Final = 1 << 20
TIGHT: Final = 32 * MIB  # bytes; as much as spliced connections may keep (proxy.gate.splice)
MOST: Final = 256 * MIB
REQUEST: Final = 32 * 1024  # bytes that an open request takes itself, including data held back for a scan
FIELD: Final = 128  # bytes that each header field takes in addition to its text


class BufferOwner(Protocol):
    """A connection that buffers data. `kept`: bytes at the last count."""

    kept: int

    def weigh(self) -> int:
        """Return the bytes buffered now."""

    def overflow(self) -> None:
        """Reset the connection: the quota is used up."""


class MemoryQuota:
    """Quota of one sandbox's buffered bytes. For one thread."""

    __slots__ = ("_keepers", "_most", "kept")

    def __init__(self, keepers: "Callable[[], Collection[BufferOwner]]", most: int = MOST) -> None:
        self._keepers = keepers
        self._most = most
        self.kept = 0  # bytes of all connections

    @property
    def is_tight(self) -> bool:
        """Whether to stop reading data for a peer that doesn't read."""
        return self.kept > min(TIGHT, self._most // 2)

    def note(self, keeper: BufferOwner, kept: int) -> None:
        """Set how much a connection buffers now; it or another may be reset."""
        self.kept += kept - keeper.kept
        keeper.kept = kept
        if self.kept > self._most:
            self._close_largest()

    def leave(self, keeper: BufferOwner) -> None:
        """Count a connection as buffering nothing. Idempotent."""
        self.kept -= keeper.kept
        keeper.kept = 0

    def _close_largest(self) -> None:
        """Count all buffers again, as sockets drain them without notice; then close the largest.

        Afterwards a quarter of the quota is free, so that this happens rarely.
        """
        keepers = sorted(self._keepers(), key=_update_size, reverse=True)
        self.kept = sum(keeper.kept for keeper in keepers)
        for keeper in keepers:
            if self.kept <= self._most * 3 // 4:
                return
            keeper.overflow()
            self.leave(keeper)


def _update_size(keeper: BufferOwner) -> int:
    keeper.kept = keeper.weigh()
    return keeper.kept
