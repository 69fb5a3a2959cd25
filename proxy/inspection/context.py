"""What mitmproxy's layers are given to work in: fixed options, and a context that is cheap to fork.

mitmproxy's own options copy and check a value whenever it is read, and its context makes a connection with a new UUID
only to throw it away; both happen several times a request.
"""

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_specs import ProxyMode, RegularMode

if TYPE_CHECKING:
    from datetime import date

    from mitmproxy.options import Options

    from proxy.dialing.connecting import Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.inspection.contexts import FarContexts, NearContexts, Spoken
    from proxy.inspection.judging import Place
    from proxy.inspection.session import Session
    from rules.attempt import Request
    from rules.matching.policy import Policy


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
_numbers = itertools.count(1)  # mitmproxy's ids are random: a system call for each
_MODE: ProxyMode = RegularMode.parse("regular")  # only says that we are no reverse and no upstream proxy


class Near(Client):
    """mitmproxy's idea of a sandbox's connection."""

    __hash__ = object.__hash__  # mitmproxy compares ids, which are for flows that are read from files
    __eq__ = object.__eq__
    __setattr__ = object.__setattr__
    cut = False  # whether it was cut off rather than ended
    full = False  # whether what is written to it has to wait


class Far(Server):
    """mitmproxy's idea of a connection to the internet: its address is the checked name, for good (invariant 3)."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __setattr__ = object.__setattr__
    cut = False
    full = False
    over = False  # whether it failed to open, or was closed
    used = False  # whether a request was sent on it
    unidentified = False  # whether its server has asked for a client certificate, and got none
    proven = False  # whether its server has proved, over TLS, to be the checked name
    addresses: "tuple[Hop, ...]" = ()  # to dial: checked for the request that it is made for
    authorities: tuple[bytes, ...] = ()  # certificates (PEM) that it may be verified with beside the host's
    login: "Login | None" = None  # what a proxy is told that requests are relayed by
    dialled: "Hop | None" = None  # the one of them that it leads to
    good_for: "tuple[Policy, date | None, Request | None, bool, frozenset[str]] | None" = (
        None  # that it was checked for
    )


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
    client = Near.__new__(Near)  # a constructor would set forty fields to what they are anyway
    client.id = f"near {next(_numbers)}"
    client.peername = peer
    client.sockname = (str(place.target), place.port)
    client.proxy_mode = _MODE
    client.timestamp_start = time.time()
    client.tls = place.tls
    client.state = ConnectionState.OPEN
    return client


def far(place: "Place", addresses: "tuple[Hop, ...]" = (), authorities: tuple[bytes, ...] = ()) -> Far:
    """Return a connection to where the session leads, not open yet; a client connection may use many."""
    server = Far.__new__(Far)
    server.id = f"far {next(_numbers)}"
    server.address = (str(place.target), place.port)
    server.tls = place.tls
    server.addresses = addresses
    server.authorities = authorities
    return server


def flow_of(client: Near, server: Far) -> HTTPFlow:
    """Return the flow of a new request, as mitmproxy's constructor makes it but for a random id."""
    flow = HTTPFlow.__new__(HTTPFlow)
    flow.__dict__.update(
        id=f"flow {next(_numbers)}", client_conn=client, server_conn=server, live=True, intercepted=False,
        timestamp_created=time.time(), marked="", is_replay=None, metadata={}, comment="", _resume_event=None,
        _backup=None,
    )  # fmt: skip
    return flow
