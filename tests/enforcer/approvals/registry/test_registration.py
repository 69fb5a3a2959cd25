"""A task's place with the registry: told again, tried again, and heard of where the run was started."""

import contextlib
import os
import selectors
import socket
from types import SimpleNamespace

import pytest

from enforcer.approvals import client
from enforcer.approvals.registration import Registration, _asked
from enforcer.system import state
from enforcer.system.errors import ExeatError, HostError
from proxy.approvals import protocol

from .process import ask, until


def test_a_store_that_can_t_be_used_is_told_to_who_asks_and_to_who_has_a_task_and_is_tried_again(here, capfd):
    state.make_private(state.state_directory())
    made = state.make_private(client.approvals_directory())
    (made / client.STORE).mkdir()
    with pytest.raises(ExeatError, match="can't be used"):
        ask(what="status")
    post = Registration(protocol.Introduction("sandbox-t1", "t1", "make", {}, os.geteuid(), "here"), here / "journal")
    with contextlib.closing(post):
        post.begin()
        post.handed_over()
        post.hear()
        assert "nobody can approve anything for now: the approvals in" in capfd.readouterr().err
        (made / client.STORE).rmdir()
        given = []

        class Worker:
            def tell(self, _what, descriptors):
                given.append(os.dup(descriptors[0]))

        def introduced():
            for key, _ in selector.select(0):
                key.data()  # the one that is just leaving may have heard it once more
            post.turn(Worker())
            with contextlib.suppress(ExeatError):
                return given and ask(what="status")[0]["gates"] == 1

        with selectors.DefaultSelector() as selector:
            post.watch(selector)
            until(introduced, "the next registry")
        for end in given:
            os.close(end)


@pytest.mark.parametrize("before", ["there has been none", "one has lived long"])
def test_where_none_can_be_had_it_is_tried_again_after_ever_longer_rests(here, monkeypatch, before):
    """Who tries without a rest takes a processor for as long as the task runs."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("enforcer.approvals.registration.time", SimpleNamespace(monotonic=lambda: clock.now))
    post = Registration(protocol.Introduction("sandbox-t1", "t1", "make", {}, os.geteuid(), "here"), here / "journal")
    rests = []
    with contextlib.closing(post):
        if before == "one has lived long":
            ours, theirs = socket.socketpair()
            with monkeypatch.context() as patch, theirs:
                patch.setattr("enforcer.approvals.registration.introduced", lambda *_, **__: (ours, socket.socket()))
                post.begin()
            post.handed_over()
            clock.now += 1000.0
            post.hear()
            rests.append(post.wait())
        monkeypatch.setattr("enforcer.approvals.client.connected", refused)
        for _ in range(5):
            post.turn(None) if rests else post.begin()
            rests.append(post.wait())
            clock.now += post.wait()
    assert rests == [*([0.0] if before == "one has lived long" else []), 1.0, 5.0, 30.0, 30.0, 30.0]


def test_whoever_sits_at_the_run_s_terminal_is_told_what_it_waits_for_and_a_flood_of_it_in_few_lines(gate, capfd):
    """A task that waits for people looks like one that hangs."""
    first = gate.ask(1, path="/x\x1b[2J")
    gate.post.hear()
    said = capfd.readouterr().err
    assert said == (
        f"exeat: somebody is asked to approve: POST api.example:443/x\\x1b[2J (web:writing):"
        f" `exeat approvals show {first}`\n"
    )
    for number in range(2, 10):
        gate.ask(number, path=f"/{number}")
        gate.post.hear()
    said = capfd.readouterr().err.splitlines()
    assert [" /" not in line and "to approve: POST" in line for line in said] == [True] * 4 + [False]
    assert said[-1] == "exeat: there are more questions: `exeat approvals`"


def test_what_an_agent_asks_for_by_itself_is_said_without_a_rule():
    said = b'{"asked": {"id": "abcd", "what": "GET x.example:443/", "rules": ""}}'
    assert "approve: GET x.example:443/ (which no rule is about): `exeat approvals show abcd`" in _asked(said)


def refused(_patience):
    raise HostError("it can't be had")
