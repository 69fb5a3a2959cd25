"""What mitmproxy's layers are given to work in: fixed options, and a context that is cheap to fork.

mitmproxy's own options copy and check a value whenever it is read, and its context makes a connection with a new UUID
only to throw it away; both happen several times a request.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_specs import ProxyMode, RegularMode

if TYPE_CHECKING:
    from mitmproxy.options import Options

    from proxy.inspection.contexts import FarContexts, NearContexts, Spoken
    from proxy.inspection.judging import Place
    from proxy.inspection.session import Session
    from rules.addresses import Address
    from rules.attempt import Request
    from rules.policy import Policy


@dataclass(frozen=True, slots=True)
class FixedOptions:
    """Every option that a layer of ours reads, closed; a test compares the names with mitmproxy's source.

    One that a layer reads and that isn't here raises, which ends the connection.
    """

    connection_strategy: str = "lazy"  # nothing is dialled before a request was decided
    validate_inbound_headers: bool = True
    normalize_outbound_headers: bool = True
    store_streamed_bodies: bool = False
    stream_large_bodies: str | None = None  # every body is streamed
    body_size_limit: str | None = None
    websocket: bool = False
    rawtcp: bool = False
    keep_host_header: bool = True
    http2_ping_keepalive: int = 0  # our own pings would keep an idle connection from ending
    proxy_debug: bool = False


_OPTIONS = cast("Options", FixedOptions())
_MODE: ProxyMode = RegularMode.parse("regular")  # only says that we are no reverse and no upstream proxy


class Near(Client):
    """mitmproxy's idea of a sandbox's connection."""

    cut = False  # whether it was cut off rather than ended
    full = False  # whether what is written to it has to wait


class Far(Server):
    """mitmproxy's idea of a connection to the internet: its address is the checked name, for good (invariant 3)."""

    cut = False
    full = False
    over = False  # whether it failed to open, or was closed
    used = False  # whether a request was sent on it
    addresses: "tuple[Address, ...]" = ()  # to dial: checked for the request that it is made for
    dialled: "Address | None" = None  # the one of them that it leads to
    good_for: "tuple[Policy, Request | None] | None" = None  # what that was last checked for


@dataclass(frozen=True, slots=True)
class Ends:
    """What TLS is ended with on both sides."""

    near: "NearContexts"
    far: "FarContexts"
    spoken: "Spoken"


class GateContext(Context):
    """A context that knows its session."""

    client: Near
    server: Far
    session: "Session"
    ends: Ends

    def __init__(self, client: Near, server: Far, session: "Session", ends: Ends) -> None:
        # not the base's: it would make a server of its own
        self.client = client
        self.server = server
        self.options = _OPTIONS
        self.layers = []
        self.session = session
        self.ends = ends

    def fork(self) -> "GateContext":
        """Return a context for a layer beside this one."""
        forked = GateContext(self.client, self.server, self.session, self.ends)
        forked.layers = self.layers.copy()
        return forked


def near(peer: tuple[str, int], place: "Place") -> Near:
    """Return a sandbox's connection, open."""
    return Near(
        peername=peer,
        sockname=(str(place.target), place.port),
        proxy_mode=_MODE,
        tls=place.tls,
        state=ConnectionState.OPEN,
    )


def far(place: "Place", addresses: "tuple[Address, ...]" = ()) -> Far:
    """Return a connection to where the session leads, not open yet; a client connection may use many."""
    server = Far(address=(str(place.target), place.port), tls=place.tls)
    server.addresses = addresses
    return server
