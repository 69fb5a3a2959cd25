"""The states of a connection or a UDP flow through the gate, and their transitions: a pure table.

    ACCEPTED -> PEEKING -> DECIDING -> PENDING -> RESOLVING -> DIALING -> SPLICING or INSPECTING -> CLOSED

`connection` and `proxy/udp/flow.py` do the I/O; a flow begins at DECIDING, for nothing of it is read. A transition that
the table doesn't have raises, and whatever raises ends the connection (invariant 2). Every state may end in CLOSED, and
no state follows it.
"""

from enum import Enum
from typing import Final

from proxy.telemetry.events import Where

LIFETIME: Final = 24 * 3600.0  # seconds that a connection or a flow may live


class State(Enum):
    """What a connection is doing. The value is where in the gate it is, for `gate.error` events."""

    CLOSED = Where.OTHER, "both sockets are closed, and its end is recorded"
    ACCEPTED = Where.PEEK, "nothing of it has been read or decided"
    PEEKING = Where.PEEK, "its first bytes are awaited, and consumed by nobody"
    DECIDING = Where.PEEK, "the evaluator is asked; a refusal waits here for the process that opened the connection"
    PENDING = Where.APPROVALS, "people are asked; nothing is read, dialed or recorded"
    RESOLVING = Where.DECIDE, "the checked name is looked up, and each of its addresses checked"
    DIALING = Where.DIAL, "its decision is recorded, and an address is dialed"
    SPLICING = Where.RELAY, "bytes pass in both directions"
    INSPECTING = Where.INSPECTION, "inspection has it, or serves the page of its refusal"

    def __init__(self, where: Where, meaning: str) -> None:
        self.where = where
        self.meaning = meaning


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


class TransitionError(Exception):
    """A bug: the table doesn't have this transition."""


def next_state(state: State, following: State) -> State:
    """Return `following`, if it may come after `state`. Raises TransitionError."""
    if following not in TRANSITIONS[state]:
        raise TransitionError(f"a connection that is {state.name} can't become {following.name}")
    return following
