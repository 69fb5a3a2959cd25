"""What the service has ready before anybody asks, and what becomes of a sandbox whose worker is gone."""

import selectors
import signal
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest

from enforcer.service.sandboxes import Sandbox, Sandboxes
from enforcer.service.spares import Spares
from proxy import message

PATIENCE = 30  # seconds


class House:
    """Spares whose processes are `cat`, and which say that they are ready when the test has them say so."""

    def __init__(self, size=2):
        self.selector = selectors.DefaultSelector()
        self.known, self.children, self.ends = 1, [], []
        self.spares = Spares(self.selector, self.start, lambda: self.known, size)

    def start(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.children.append(subprocess.Popen(["cat"], stdin=theirs))
        self.ends.append(theirs)
        return self.children[-1].pid, ours

    def turn(self):
        time.sleep(max(self.spares.wait(), 0))
        self.spares.turn()

    def hear(self):
        for key, _ in self.selector.select(0):
            key.data()


@pytest.fixture
def house(request):
    made = House(getattr(request, "param", 2))
    yield made
    made.spares.close()
    for child in made.children:
        child.kill()


def test_one_that_is_ready_is_taken_once_and_another_takes_its_place(house):
    assert house.spares.take() is None
    house.turn()
    assert house.spares.take() is None  # it is not ready
    message.send(house.ends[0], {"ready": True})
    house.hear()
    assert house.spares.take().pid == house.children[0].pid
    assert house.spares.take() is None
    house.turn()
    house.turn()
    assert len(house.children) == 3
    assert house.spares.wait() > 1  # there are as many as there are to be


def test_one_that_is_busy_is_not_taken_until_it_is_ready_again(house):
    house.turn()
    for word, pids in (("ready", None), ("busy", []), ("ready", [house.children[0].pid])):
        message.send(house.ends[0], {word: True})
        house.hear()
        if pids is not None:
            assert [taken.pid for taken in [house.spares.take()] if taken is not None] == pids


def test_none_is_made_while_somebody_waits_for_a_start(house):
    house.spares.take()
    house.spares.turn()
    assert (house.children, house.spares.wait() > 0) == ([], True)
    house.spares.calm()
    house.spares.turn()
    assert len(house.children) == 1


@pytest.mark.parametrize(("house", "missing", "urgent"), [(3, 1, False), (3, 2, True)], indirect=["house"])
def test_with_most_of_them_there_the_next_waits_for_the_ends_of_short_tasks_too(house, missing, urgent, monkeypatch):
    monkeypatch.setattr("enforcer.service.spares._REST", 0)
    monkeypatch.setattr("enforcer.service.spares._LULL", PATIENCE)
    for _ in range(3):
        house.turn()
    for end in house.ends:
        message.send(end, {"ready": True})
    house.hear()
    taken = [house.spares.take() for _ in range(missing)]
    house.spares.calm()
    assert (len({each.pid for each in taken}), house.spares.wait() <= 0) == (missing, urgent)


def test_what_was_made_before_something_changed_is_never_taken(house):
    house.turn()
    message.send(house.ends[0], {"ready": True})
    house.hear()
    house.known = 2
    assert house.spares.take() is None
    assert message.receive(house.ends[0]) == ({}, [])  # it is told to go


def test_one_that_dies_is_not_taken_and_is_replaced_later(house):
    house.turn()
    message.send(house.ends[0], {"ready": True})
    house.hear()
    house.children[0].send_signal(signal.SIGKILL)
    house.ends[0].close()
    deadline = time.monotonic() + PATIENCE
    while house.spares.wait() > PATIENCE or house.spares.wait() < 1:
        house.hear()
        house.spares.reap()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert house.spares.take() is None


def test_a_run_that_ends_while_its_worker_is_being_replaced_is_forgotten():
    left, told = [], []
    sandboxes = Sandboxes(SimpleNamespace(join=lambda *_: None, leave=lambda _rules, of: left.append(of)))
    sandbox = Sandbox("one", {"id": "1", "name": "a", "labels": {}}, None, "/", 1, "", told.append)
    sandboxes.add(sandbox)
    sandbox.worker = SimpleNamespace(channel=None, sandboxes={"one"})
    sandboxes.stop(sandbox)
    assert (len(sandboxes), left, sandbox.worker.sandboxes) == (0, ["one"], set())
    assert told == [{"failed": "its worker has died"}]


def test_what_is_said_with_a_run_s_end_reaches_its_worker_with_that():
    told = []
    sandboxes = Sandboxes(SimpleNamespace(join=lambda *_: None))
    sandboxes.crew = SimpleNamespace(tell=lambda worker, what: told.append((worker, what)))
    sandbox = Sandbox("one", {"id": "1", "name": "a", "labels": {}}, None, "/", 1, "", None)
    sandboxes.add(sandbox)
    sandbox.worker = SimpleNamespace(channel=True, sandboxes={"one"})
    sandboxes.stop(sandbox, {"ended": "passed", "refused": {"udp": 2}, "to": "another", "stop": True})
    assert told == [(sandbox.worker, {"ended": "passed", "refused": {"udp": 2}, "stop": True, "to": "one"})]
    assert (sandbox.ending, sandbox.refused) == (True, {"udp": 2})
