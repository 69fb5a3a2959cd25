"""What the parts of an inspected connection share: its two ends, events, fixed options, and how much it may keep.

mitmproxy's own options copy and check a value whenever it is read, and its context makes a connection with a new UUID
only to throw it away; both happen several times a request.

Each connection's buffers and windows are bounded, but a tenant may have thousands of connections, and each may ask for
something large and read none of it: then the machine's memory would end, and the kernel ends other tenants' tasks first
(invariant 11). So there is an account (`Room`): beyond `TIGHT` a connection whose client reads too little is read for
less, and beyond `MOST` those that keep most end. It must never let what was counted once be forgotten about.
"""

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.mode_specs import ProxyMode, RegularMode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import date

    from mitmproxy.options import Options

    from proxy.dialing.connecting import Hop
    from proxy.dialing.proxy_auth import Login
    from proxy.inspection.judging import Place
    from proxy.inspection.session import Session
    from proxy.inspection.stream import Stream
    from proxy.inspection.tls import FarContexts, NearContexts, Spoken
    from rules.attempt import Request
    from rules.matching.policy import Policy
    from rules.verdicts import Reason


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


def next_key() -> str:
    """Return what names a new request in this process."""
    return f"request {next(_numbers)}"


class Checkpoint(commands.Command):
    """A point in the middle of long work: the conversation may go on from here in its next turn (`slices`)."""


class ClientEnded(HttpEvent):
    """A client has ended its side behind a whole request, and may still wait for the answer."""


class Broken(events.ConnectionEvent):
    """The TLS of a connection broke: nothing more can be read, and what came may not be all."""


class Relieved(events.Event):
    """What couldn't be sent before can be now: give back the credit that was withheld for it."""


class Unspoken(events.Event):
    """The client has ended its handshake and said nothing since: it waits for its server to speak first."""


class Decided(events.Event):
    """A request is decided."""

    def __init__(self, stream: "Stream") -> None:
        self.stream = stream


class Opened(events.Event):
    """A connection to the internet is there, or `problem` says why it isn't."""

    def __init__(self, server: "Far", problem: str | None) -> None:
        self.server = server
        self.problem = problem


class Revoked(events.Event):
    """Other rules are in force, and they don't let these requests (by their keys) out."""

    def __init__(self, flows: "frozenset[str]") -> None:
        self.flows = flows


class Failure(str):
    """Why a connection to the internet didn't come about. A string, because that is what mitmproxy's layers pass on."""

    __slots__ = ("reason",)
    reason: "Reason"

    def __new__(cls, reason: "Reason", detail: str) -> Self:
        """Make one; `detail` is the text."""
        failure = super().__new__(cls, detail)
        failure.reason = reason
        return failure


MIB: Final = 1 << 20
TIGHT: Final = 32 * MIB  # bytes; as much as spliced connections may keep (proxy.gate.splice)
MOST: Final = 256 * MIB
REQUEST: Final = 32 * 1024  # bytes that a request under way takes by itself, with what is held back to be looked at
FIELD: Final = 128  # ... and each field of its head, beside its text


class Keeper(Protocol):
    """A connection that keeps something. `kept`: how much as far as was noted (bytes)."""

    kept: int

    def weigh(self) -> int:
        """Return how much it keeps now."""

    def overflow(self) -> None:
        """End: there is no room for what it keeps. It leaves the room with that."""


class Room:
    """One tenant's room. For one thread."""

    __slots__ = ("_keepers", "_most", "kept")

    def __init__(self, keepers: "Callable[[], Collection[Keeper]]", most: int = MOST) -> None:
        self._keepers = keepers
        self._most = most
        self.kept = 0  # bytes, of all

    @property
    def is_tight(self) -> bool:
        """Whether nothing more should be taken in for who doesn't read."""
        return self.kept > min(TIGHT, self._most // 2)

    def note(self, keeper: Keeper, kept: int) -> None:
        """Take note of how much a connection keeps now; it may have to end for that, or another."""
        self.kept += kept - keeper.kept
        keeper.kept = kept
        if self.kept > self._most:
            self._make_room()

    def leave(self, keeper: Keeper) -> None:
        """Take note that a connection keeps nothing any more. Idempotent."""
        self.kept -= keeper.kept
        keeper.kept = 0

    def _make_room(self) -> None:
        """Weigh everything, as sockets take what waits for them unnoted; then end those that keep most.

        A quarter is free afterwards, so what it takes to weigh them all is little beside what comes in until the next
        time.
        """
        keepers = sorted(self._keepers(), key=_weighed, reverse=True)
        self.kept = sum(keeper.kept for keeper in keepers)
        for keeper in keepers:
            if self.kept <= self._most * 3 // 4:
                return
            keeper.overflow()
            self.leave(keeper)


def _weighed(keeper: Keeper) -> int:
    keeper.kept = keeper.weigh()
    return keeper.kept
