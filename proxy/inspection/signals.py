"""What the router, its requests and the driver under them say to each other beyond mitmproxy's own events."""

from typing import TYPE_CHECKING, Self

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import HttpEvent

if TYPE_CHECKING:
    from proxy.inspection.context import Far
    from proxy.inspection.stream import Stream
    from rules.verdicts import Reason


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
    """Other rules are in force, and they don't let these requests (ids of their flows) out."""

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
