"""States of a connection or a UDP flow through the gate, and their transitions: a pure table.

    ACCEPTED -> PEEKING -> DECIDING -> PENDING -> RESOLVING -> DIALING -> SPLICING or INSPECTING -> CLOSED

`connection` and `proxy/udp/flow.py` do the I/O. A flow begins at DECIDING, since nothing of it is read. A transition
that the table doesn't have raises, and whatever raises ends the connection (invariant 2). Every state may end in
CLOSED, and no state follows it.
"""

from enum import StrEnum
from typing import Final

from proxy.telemetry.events import Component

LIFETIME: Final = 24 * 3600.0  # seconds that a connection or a flow may live


class State(StrEnum):
    """State of a connection."""

    CLOSED = "closed"  # both sockets are closed, and its end is recorded
    ACCEPTED = "accepted"  # nothing of it has been read or decided
    PEEKING = "peeking"  # its first bytes are awaited, and consumed by nobody
    DECIDING = "deciding"  # the evaluator is asked; a refusal waits here for the process that opened the connection
    PENDING = "pending"  # people are asked; nothing is read, dialed or recorded
    RESOLVING = "resolving"  # the checked name is looked up, and each of its addresses checked
    DIALING = "dialing"  # its decision is recorded, and an address is dialed
    SPLICING = "splicing"  # bytes pass in both directions
    INSPECTING = "inspecting"  # inspection has it, or serves the page of its refusal


TRANSITIONS: Final = {
    State.CLOSED: (),
    State.ACCEPTED: (State.PEEKING, State.DECIDING, State.CLOSED),
    State.PEEKING: (State.DECIDING, State.CLOSED),
    State.DECIDING: (State.PENDING, State.RESOLVING, State.INSPECTING, State.CLOSED),
    State.PENDING: (State.DECIDING, State.CLOSED),  # after an answer the policy of that moment decides
    State.RESOLVING: (State.DECIDING, State.DIALING, State.CLOSED),  # other rules; an address that may not be dialed
    State.DIALING: (State.SPLICING, State.CLOSED),
    State.SPLICING: (State.CLOSED,),
    State.INSPECTING: (State.CLOSED,),
}

WHERE: Final = {  # in the gate a connection is, for `gate.error` events
    State.CLOSED: Component.OTHER,
    State.ACCEPTED: Component.PEEK,
    State.PEEKING: Component.PEEK,
    State.DECIDING: Component.PEEK,
    State.PENDING: Component.APPROVALS,
    State.RESOLVING: Component.DECIDE,
    State.DIALING: Component.DIAL,
    State.SPLICING: Component.RELAY,
    State.INSPECTING: Component.INSPECTION,
}


class TransitionError(Exception):
    """A transition that the table doesn't have; a bug."""


class _Table(dict[tuple[State, State], State]):
    def __missing__(self, key: tuple[State, State]) -> State:
        state, following = key
        raise TransitionError(f"a connection that is {state.name} can't become {following.name}")


# By a state and the one that is to follow it: that one, if it may. Raises TransitionError.
NEXT_STATE: Final = _Table({(state, each): each for state, following in TRANSITIONS.items() for each in following})
