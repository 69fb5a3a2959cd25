"""The state machine of a connection: the table by itself, and what a connection does that would leave it."""

import pytest

from proxy.gate.connection import Connection
from proxy.gate.managed_connection import NEXT_STATE, TRANSITIONS, State, TransitionError
from tests.proxy.gate.gate_lab import HOSTS, SPLICED, GateLab, client_hello, run

USUAL = ["ACCEPTED", "PEEKING", "DECIDING", "RESOLVING", "DIALING", "SPLICING", "CLOSED"]
HELD = ["ACCEPTED", "PEEKING", "DECIDING", "PENDING", "DECIDING", "RESOLVING", "DIALING", "SPLICING", "CLOSED"]
READ = ["ACCEPTED", "PEEKING", "DECIDING", "INSPECTING", "CLOSED"]
NEVER = [
    ("CLOSED", "ACCEPTED"),  # nothing comes back
    ("CLOSED", "CLOSED"),
    ("PEEKING", "RESOLVING"),  # undecided
    ("PEEKING", "SPLICING"),
    ("PENDING", "RESOLVING"),  # an answer allows nothing by itself: the policy decides again
    ("PENDING", "DIALING"),
    ("DECIDING", "DIALING"),  # to an address that nobody has checked
    ("RESOLVING", "SPLICING"),
    ("DIALING", "DECIDING"),  # its decision is recorded, once
    ("SPLICING", "INSPECTING"),  # nobody knows what was said before
    ("INSPECTING", "SPLICING"),
]


def test_table_lists_every_state_and_each_may_close():
    assert set(TRANSITIONS) == set(State)
    assert not TRANSITIONS[State.CLOSED]
    assert all(State.CLOSED in TRANSITIONS[state] for state in State if state is not State.CLOSED)


@pytest.mark.parametrize("path", [USUAL, HELD, READ], ids=["usual", "held", "read"])
def test_transitions_of_a_connection_are_in_the_table(path):
    state, *rest = (State[name] for name in path)
    for following in rest:
        state = NEXT_STATE[state, following]
    assert state is State.CLOSED


@pytest.mark.parametrize(("state", "following"), NEVER)
def test_transition_that_is_not_in_the_table_raises(state, following):
    with pytest.raises(TransitionError):
        NEXT_STATE[State[state], State[following]]


def test_spliced_connection_enters_each_state_once(tmp_path, monkeypatch):
    seen = []
    enter = Connection._enter
    monkeypatch.setattr(Connection, "_enter", lambda self, state: (seen.append(state.name), enter(self, state)))

    async def test():
        async with GateLab(tmp_path, [SPLICED], hosts=HOSTS) as world:
            client = await world.connect("good.example")
            await client.send(client_hello())
            await (await world.origin.take()).send(b"answer")
            assert await client.read_exactly(6) == b"answer"
            (connection,) = world.gate.connections
            client.reset()
            await world.closing()
            assert seen == USUAL[1:-1]
            assert connection.state is State.CLOSED

    run(test)


def test_unlisted_transition_closes_the_connection_and_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(Connection, "_resolve", lambda self: self._enter(State.SPLICING))  # unchecked, unrecorded

    async def test():
        async with GateLab(tmp_path, [SPLICED], hosts=HOSTS) as world:
            client = await world.connect("good.example")
            await client.send(client_hello())
            assert (await world.decision())["reason"] == "gate_error"
            assert await client.ended() == "reset"
            assert "TransitionError" in world.errors[0]["fault"]["detail"]
            assert world.origin.accepted == 0
            assert not world.gate.connections

    run(test)
