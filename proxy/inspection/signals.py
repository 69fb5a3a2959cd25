"""What our layers and the driver under them say to each other beyond mitmproxy's own commands and events."""

from typing import TYPE_CHECKING, Any, Self

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._base import HttpEvent

if TYPE_CHECKING:
    from collections.abc import Generator

    from mitmproxy.connection import Connection

    from proxy.slices import Sliced
    from rules.verdicts import Reason


class ResetConnection(commands.CloseConnection):
    """Cut a connection with an RST: what was being sent on it is not complete (invariant 12).

    What was sent before is delivered first, unless it is `at_once`: the gate's own refusals let nothing more through.
    """

    at_once: bool

    def __init__(self, connection: "Connection", *, at_once: bool = False) -> None:
        super().__init__(connection)
        self.at_once = at_once


class Checkpoint(commands.Command):
    """A point in the middle of long work: the conversation may go on from here in its next turn (`proxy.slices`)."""


def checkpoints[T](work: "Sliced[T]") -> "Generator[Checkpoint, Any, T]":
    """Do work with a checkpoint after each slice, for a layer; returns what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
        yield Checkpoint()


class ClientEnded(HttpEvent):
    """A client has ended its side behind a whole request, and may still wait for the answer."""


class Broken(events.ConnectionEvent):
    """The TLS of a connection broke: nothing more can be read, and what came may not be all."""


class Relieved(events.Event):
    """What couldn't be sent before can be now: give back the credit that was withheld for it."""


class Unspoken(events.Event):
    """The client has ended its handshake and said nothing since: it waits for its server to speak first."""


class Revoked(events.Event):
    """Other rules are in force, and they don't let these requests (ids of their flows) out."""

    __slots__ = ("flows",)

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
