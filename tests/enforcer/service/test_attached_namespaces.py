"""What was attached and isn't served any more: it ends once, and whatever the journal is like."""

import json
import os
import socket

import pytest

from enforcer.service.sandboxes import MOST_DEATHS, AttachedNamespaces, Sandbox
from proxy.sandbox.sandbox_state import Task
from tests.enforcer.service.test_worker_deaths import Sets, WorkerPoolLab


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def world(journal):
    """One that was attached, and one that was not, in one worker."""
    world = WorkerPoolLab([])
    attached = AttachedNamespaces(Sets(), world.all, None, journal)
    for name, of in (("box", "/proc/1/ns/net"), ("hog", "")):
        task = Task(name, name)
        one = Sandbox(name, task, Sets(), "", 1, of, lambda _said: None)
        if of:
            one.send_to_run = lambda said, one=one: attached._handle_last_message(one, said)
        world.by_name[name] = one
        world.all.add(one)
        world.all.serve(one, ["tcp"], [socket.socket().detach()])
    return world


def _ends(journal):
    events = [json.loads(line) for path in journal.rglob("*.jsonl") for line in path.read_text().splitlines()]
    return [event["outcome"] for event in events if event["kind"] == "task.ended"]


def test_attached_namespace_that_fails_ends_once(world, journal):
    for _ in range(2):
        world.all.handle_report(world.crew.worker, {"of": "box", "failed": "it says so"})
    assert _ends(journal) == ["failed"]
    assert world.served() == {"hog": 1}
    assert "stop" in world.crew.told[-1][1], "or its worker went on to serve it"


def test_unwritable_journal_delays_no_other_namespace(world, journal):
    journal.write_text("no directory")
    box = world.by_name["box"]
    box.blamed_death_times.extend([float("inf")] * (MOST_DEATHS + 1))
    world.crew.worker.sandboxes = _Ordered(["box", "hog"])
    world.die(world.crew.worker, world.by_name["hog"].turn)
    assert world.served() == {"hog": 2}


@pytest.mark.parametrize("gone", [os.unlink, lambda path: os.replace(f"{path}.other", path)], ids=["gone", "another"])
def test_namespace_whose_path_changed_ends(tmp_path, journal, monkeypatch, gone):
    monkeypatch.setattr("enforcer.service.sandboxes._CHECK_PATHS_EVERY", 0.0)
    box = tmp_path / "box"
    box.touch()
    (tmp_path / "box.other").touch()
    world = WorkerPoolLab([])
    attached = AttachedNamespaces(Sets(), world.all, None, journal)
    task = Task("box", "box")
    for name in (str(box), str(tmp_path / "not seen from here")):
        one = Sandbox(name, task, Sets(), "", 0, name, lambda _said: None)
        world.all.add(one)
        world.all.serve(one, ["tcp"], [socket.socket().detach()])
        attached._watch(one)
    attached.turn()
    assert _ends(journal) == []
    gone(box)
    attached.turn()
    attached.turn()
    assert _ends(journal) == ["passed"]


class _Ordered(list):
    """A worker's sandboxes, the attached one first."""

    def discard(self, name):
        if name in self:
            self.remove(name)

    add = list.append
