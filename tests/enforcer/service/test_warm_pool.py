"""What the service has ready before anybody asks, and what becomes of a sandbox whose worker is gone."""

import selectors
import signal
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest

from enforcer.service.sandboxes import Sandbox, Sandboxes
from enforcer.service.warm_pool import WarmPool
from proxy.sandbox.sandbox_state import Task
from proxy.wire import message

PATIENCE = 30  # seconds


class House:
    """WarmPool whose processes are `cat`, and which say that they are ready when the test has them say so."""

    def __init__(self, size=2):
        self.selector = selectors.DefaultSelector()
        self.known, self.children, self.ends = 1, [], []
        self.spares = WarmPool(self.selector, self.start, lambda: self.known, size)

    def start(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.children.append(subprocess.Popen(["cat"], stdin=theirs))
        self.ends.append(theirs)
        return self.children[-1].pid, ours

    def turn(self):
        time.sleep(max(self.spares.wait(), 0))
        self.spares.turn()

    def made(self, count):
        """Have so many made, one after the other."""
        for _ in range(count):
            self.turn()
            message.send(self.ends[-1], {"ready": True})
            self.hear()

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


def test_ready_process_is_taken_once_and_replaced(house):
    assert house.spares.take() is None
    house.made(1)
    assert house.spares.take().pid == house.children[0].pid
    assert house.spares.take() is None
    house.made(2)
    assert len(house.children) == 3
    assert house.spares.wait() > PATIENCE  # there are as many as there are to be


def test_processes_are_made_one_by_one_without_delaying_starts(house, monkeypatch):
    house.turn()
    house.spares.turn()
    assert (len(house.children), house.spares.wait() > 1) == (1, True)
    monkeypatch.setattr("enforcer.service.warm_pool._PATIENCE", 0)
    house.spares.turn()
    assert len(house.children) == 2


def test_nearly_ready_process_is_taken_if_none_is_ready(house, monkeypatch):
    house.made(1)
    house.turn()
    taken = [house.spares.take(), house.spares.take()]
    assert [each.pid for each in taken] == [child.pid for child in house.children]
    house.turn()
    monkeypatch.setattr("enforcer.service.warm_pool._PATIENCE", 0)
    assert house.spares.take() is None


def test_busy_process_is_not_taken(house):
    house.made(1)
    for word, pids in (("busy", []), ("ready", [house.children[0].pid])):
        message.send(house.ends[0], {word: True})
        house.hear()
        assert [taken.pid for taken in [house.spares.take()] if taken is not None] == pids


def test_no_process_is_made_while_a_start_waits(house):
    house.spares.take()
    house.spares.turn()
    assert (house.children, house.spares.wait() > 0) == ([], True)
    house.spares.note_idle()
    house.spares.turn()
    assert len(house.children) == 1


@pytest.mark.parametrize(("house", "missing", "urgent"), [(3, 1, False), (3, 2, True)], indirect=["house"])
def test_nearly_full_pool_refills_slowly(house, missing, urgent, monkeypatch):
    monkeypatch.setattr("enforcer.service.warm_pool._IDLE_DELAY", PATIENCE)
    house.made(3)
    taken = [house.spares.take() for _ in range(missing)]
    house.spares.note_idle()
    assert (len({each.pid for each in taken}), house.spares.wait() <= 0) == (missing, urgent)


def test_process_made_before_a_change_is_never_taken(house):
    house.made(1)
    house.known = 2
    assert house.spares.take() is None
    assert message.receive(house.ends[0]) == ({}, [])  # it is told to go


def test_dead_process_is_not_taken_and_is_replaced(house):
    house.made(1)
    house.children[0].send_signal(signal.SIGKILL)
    house.ends[0].close()
    deadline = time.monotonic() + PATIENCE
    while house.spares.wait() > PATIENCE or house.spares.wait() < 1:
        house.hear()
        house.spares.reap()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert house.spares.take() is None


def test_run_that_ends_during_a_worker_change_is_removed():
    left, told = [], []
    sandboxes = Sandboxes(SimpleNamespace(join=lambda *_: None, leave=lambda _rules, of: left.append(of)))
    sandboxes.pool = SimpleNamespace(signer=SimpleNamespace(serves=lambda *_: None))
    sandbox = Sandbox("one", Task("1", "a"), None, "/", 1, "", told.append)
    sandboxes.add(sandbox)
    sandbox.worker = SimpleNamespace(channel=None, number=1, sandboxes={"one"})
    sandboxes.stop(sandbox)
    assert (len(sandboxes), left, sandbox.worker.sandboxes) == (0, ["one"], set())
    assert told == [{"failed": "its worker has died"}]


def test_last_message_of_a_run_reaches_its_worker():
    told = []
    sandboxes = Sandboxes(SimpleNamespace(join=lambda *_: None))
    sandboxes.pool = SimpleNamespace(send=lambda worker, what: told.append((worker, what)))
    sandbox = Sandbox("one", Task("1", "a"), None, "/", 1, "", None)
    sandboxes.add(sandbox)
    sandbox.worker = SimpleNamespace(channel=True, sandboxes={"one"})
    sandboxes.stop(sandbox, {"ended": "passed", "refused": {"udp": 2}, "to": "another", "stop": True})
    assert told == [(sandbox.worker, {"ended": "passed", "refused": {"udp": 2}, "stop": True, "to": "one"})]
    assert (sandbox.ending, sandbox.refused) == (True, {"udp": 2})
