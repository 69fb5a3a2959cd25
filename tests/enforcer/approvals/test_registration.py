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
from tests.enforcer.approvals.registry_process import ask
from tests.support.waiting import wait_until


def test_unusable_store_is_reported_and_retried(state_home, capfd):
    state.make_private(state.state_directory())
    made = state.make_private(client.approvals_directory())
    (made / client.STORE).mkdir()
    with pytest.raises(ExeatError, match="can't be used"):
        ask(what="status")
    registration = Registration(
        protocol.Introduction("sandbox-t1", "t1", "make", {}, os.geteuid(), "here"), state_home / "journal"
    )
    with contextlib.closing(registration):
        registration.begin()
        registration.handed_over()
        registration.hear()
        assert "nobody can approve anything for now: the approvals in" in capfd.readouterr().err
        (made / client.STORE).rmdir()
        given = []

        class Worker:
            def send(self, _what, descriptors):
                given.append(os.dup(descriptors[0]))

        def introduced():
            for key, _ in selector.select(0):
                key.data()  # the one that is just leaving may have heard it once more
            registration.turn(Worker())
            with contextlib.suppress(ExeatError):
                return given and ask(what="status")[0]["gates"] == 1

        with selectors.DefaultSelector() as selector:
            registration.watch(selector)
            wait_until(introduced, "the next registry")
        for end in given:
            os.close(end)


@pytest.mark.parametrize("before", ["there has been none", "one has lived long"])
def test_missing_registry_is_retried_with_longer_pauses(state_home, monkeypatch, before):
    """Who tries without a rest takes a processor for as long as the task runs."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("enforcer.approvals.registration.time", SimpleNamespace(monotonic=lambda: clock.now))
    registration = Registration(
        protocol.Introduction("sandbox-t1", "t1", "make", {}, os.geteuid(), "here"), state_home / "journal"
    )
    rests = []
    with contextlib.closing(registration):
        if before == "one has lived long":
            ours, theirs = socket.socketpair()
            with monkeypatch.context() as patch, theirs:
                patch.setattr("enforcer.approvals.registration.introduced", lambda *_, **__: (ours, socket.socket()))
                registration.begin()
            registration.handed_over()
            clock.now += 1000.0
            registration.hear()
            rests.append(registration.wait())
        monkeypatch.setattr("enforcer.approvals.client.connected", refused)
        for _ in range(5):
            registration.turn(None) if rests else registration.begin()
            rests.append(registration.wait())
            clock.now += registration.wait()
    assert rests == [*([0.0] if before == "one has lived long" else []), 1.0, 5.0, 30.0, 30.0, 30.0]


def test_terminal_shows_pending_requests_and_sums_up_a_flood(worker_end, capfd):
    """A task that waits for people looks like one that hangs."""
    first = worker_end.ask(1, path="/x\x1b[2J")
    worker_end.registration.hear()
    said = capfd.readouterr().err
    assert said == (
        f"exeat: approval requested: POST api.example:443/x\\x1b[2J (web:writing): `exeat approvals show {first}`\n"
    )
    for number in range(2, 10):
        worker_end.ask(number, path=f"/{number}")
        worker_end.registration.hear()
    said = capfd.readouterr().err.splitlines()
    assert [" /" not in line and "approval requested: POST" in line for line in said] == [True] * 4 + [False]
    assert said[-1] == "exeat: there are more approval requests: `exeat approvals` lists them"


def test_pre_request_is_printed_without_a_rule():
    said = b'{"asked": {"id": "abcd", "what": "GET x.example:443/", "rules": ""}}'
    assert (
        "approval requested: GET x.example:443/ (requested by the task itself): `exeat approvals show abcd`"
        in _asked(said)
    )


def refused(_patience):
    raise HostError("it can't be had")
