"""What was attached and isn't served any more: it ends once, and whatever the journal is like."""

import json
import socket

import pytest

from enforcer.service.attached import Attached
from enforcer.service.sandboxes import MOST_DEATHS, Sandbox
from tests.enforcer.service.test_blame import Sets, World


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def world(journal):
    """One that was attached, and one that was not, in one worker."""
    world = World([])
    attached = Attached(Sets(), world.all, None, journal)
    for name, of in (("box", "/proc/1/ns/net"), ("hog", "")):
        task = {"id": name, "name": name, "labels": {}}
        one = Sandbox(name, task, Sets(), "", 1, of, lambda _said: None)
        if of:
            one.tell = lambda said, one=one: attached._told(one, said)
        world.by_name[name] = one
        world.all.add(one)
        world.all.serve(one, ["tcp"], [socket.socket().detach()])
    return world


def _ends(journal):
    events = [json.loads(line) for path in journal.rglob("*.jsonl") for line in path.read_text().splitlines()]
    return [event["outcome"] for event in events if event["kind"] == "task.ended"]


def test_an_attached_one_whose_worker_fails_it_ends_once(world, journal):
    for _ in range(2):
        world.all.heard(world.crew.worker, {"of": "box", "failed": "it says so"})
    assert _ends(journal) == ["failed"]
    assert world.served() == {"hog": 1}
    assert "stop" in world.crew.told[-1][1], "or its worker went on to serve it"


def test_a_journal_that_can_t_be_written_keeps_no_other_from_being_seen_to(world, journal):
    journal.write_text("no directory")
    box = world.by_name["box"]
    box.died.extend([float("inf")] * (MOST_DEATHS + 1))
    world.crew.worker.sandboxes = _Ordered(["box", "hog"])
    world.die(world.crew.worker, world.by_name["hog"].turn)
    assert world.served() == {"hog": 2}


class _Ordered(list):
    """A worker's sandboxes, the attached one first."""

    def discard(self, name):
        if name in self:
            self.remove(name)

    add = list.append
