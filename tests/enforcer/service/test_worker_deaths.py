"""Whom a worker's death costs what: by the turn in which it died, and by how often a sandbox has seen one die."""

import errno
import mmap
import socket

import pytest

from enforcer.service import sandboxes
from enforcer.service.sandboxes import MOST_DEATHS, Sandbox, Sandboxes
from enforcer.service.worker_pool import Worker
from proxy.dns.names import KEPT
from proxy.sandbox.sandbox_state import Task


class Sets:
    """Rules that nobody reads."""

    number = 1
    policy_file = 0
    asked = ()
    key = None

    def join(self, *_):
        pass

    leave = join


class WorkerPool:
    """Workers that aren't there, and a place for so many apart."""

    def __init__(self, places):
        self.worker, self.places, self.told = Worker(1, None), places, []
        self.worker.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.worker.channel = self
        self.others = []
        self.signer, self.served = self, {}
        self.refused = set()  # what is asked for once, of what there are no descriptors

    def serves(self, number, sandboxes):
        self.served[number] = sandboxes

    def apart(self):
        if len(self.others) == self.places:
            return None
        self.others.append(Worker(2 + len(self.others), None, apart=True))
        self.others[-1].page = mmap.mmap(-1, mmap.PAGESIZE)
        return self.others[-1]

    def least_busy(self):
        return self.worker

    def refresh_roots(self, worker):
        pass

    def send(self, worker, what, _descriptors=()):
        asked = what.get("admit") or next(iter(what))
        if asked in self.refused:
            self.refused.discard(asked)
            raise OSError(errno.EMFILE, "Too many open files")
        self.told.append((worker.number, what))


class WorkerPoolLab:
    """So many sandboxes in one worker."""

    def __init__(self, names, places=8):
        self.crew, self.said, self.by_name = WorkerPool(places), [], {}
        self.all = Sandboxes(Sets())
        self.all.pool = self.crew
        for name in names:
            task = Task(name, name)
            one = Sandbox(name, task, Sets(), "", 1, "", lambda what, name=name: self.said.append((name, what)))
            self.by_name[name] = one
            self.all.add(one)
            self.all.serve(one, ["tcp"], [socket.socket().detach()])

    def die(self, worker, turn):
        worker.page[:8] = turn.to_bytes(8, "little")
        self.all.handle_worker_death(worker)
        self.all.reassign(worker)

    def served(self):
        return {name: one.worker.number for name, one in self.by_name.items() if self.all.get(name)}


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(sandboxes.time, "monotonic", lambda: now[0])
    return now


def test_sandbox_in_whose_turn_a_worker_died_moves_alone():
    lab = WorkerPoolLab(["hog", "quiet", "other"])
    lab.die(lab.crew.worker, lab.by_name["hog"].turn)
    assert lab.served() == {"hog": 2, "quiet": 1, "other": 1}
    lab.all.reassign(lab.crew.others[0])
    assert lab.crew.served == {1: 2, 2: 1}, "what the signer was told last: each has an allowance of its own"
    lab.all.forget(lab.by_name["quiet"])
    assert lab.crew.served == {1: 1, 2: 1}
    assert ("lost" in lab.crew.told[-1][1], lab.crew.told[-1][0]) == (True, 2)


# A worker reads what tasks send, so what it has marked may be anything.
@pytest.mark.parametrize("turn", [0, 10**6, 2**64 - 1], ids=["nobody's", "a stranger's", "the largest"])
def test_unknown_turn_moves_no_sandbox(turn):
    lab = WorkerPoolLab(["hog", "quiet"])
    lab.die(lab.crew.worker, turn)
    assert lab.served() == {"hog": 1, "quiet": 1}


def test_turn_of_another_workers_sandbox_moves_none():
    lab = WorkerPoolLab(["hog", "quiet"])
    lab.die(lab.crew.worker, lab.by_name["hog"].turn)
    lab.die(lab.crew.others[0], lab.by_name["quiet"].turn)
    assert lab.served() == {"hog": 2, "quiet": 1}
    assert (lab.said, len(lab.crew.others)) == ([], 1)


def test_blamed_sandbox_without_a_worker_is_cut_off_alone(clock):
    lab = WorkerPoolLab(["one", "two", "quiet"], places=1)
    for name in ("one", "two"):
        clock[0] += 10
        lab.die(lab.crew.worker, lab.by_name[name].turn)
    assert lab.served() == {"one": 2, "quiet": 1}
    assert [name for name, _ in lab.said] == ["two"]


def test_deaths_caused_by_neighbours_cut_off_only_those(clock):
    """Its table of names is lost each time, so a part of the pool has to rest before it may mean something else."""
    lab = WorkerPoolLab(["quiet", *map(str, range(MOST_DEATHS + 2))], places=3)
    waits = []
    for number in range(MOST_DEATHS + 2):
        clock[0] += 1
        lab.die(lab.crew.worker, lab.by_name[str(number)].turn)
        waits.append(next(what["wait"] for _, what in reversed(lab.crew.told) if what.get("admit") == "quiet"))
    assert lab.served() == {"quiet": 1, "0": 2, "1": 3, "2": 4}
    assert waits == [0.0] * MOST_DEATHS + [KEPT - MOST_DEATHS] * 2
    assert f"no addresses for {waits[-1]:.0f} s" in lab.crew.told[-1][1]["lost"]
    clock[0] += KEPT
    lab.die(lab.crew.worker, lab.by_name["quiet"].turn)
    assert lab.served().keys() == {"0", "1", "2"}, "the one in its own turn costs it its place, as none is left"


@pytest.mark.parametrize("refused", ["second", "set"])
def test_failed_move_of_one_sandbox_affects_no_other(refused):
    lab = WorkerPoolLab(["first", "second", "third"])
    lab.crew.worker.sets.clear()
    lab.crew.refused, lab.crew.told = {refused}, []
    lab.die(lab.crew.worker, 0)
    [(lost, said)] = lab.said
    assert lost == "second" or refused == "set"
    assert said == {"failed": "it could not be given to another worker: Too many open files"}
    assert lab.served() == {name: 1 for name in ("first", "second", "third") if name != lost}
    told = [what for _, what in lab.crew.told]
    assert "set" in told[0], "without it the worker takes no sandbox"
    assert {what["admit"] for what in told if "admit" in what} == lab.served().keys()


def test_sandbox_with_exhausted_addresses_is_cut_off(clock):
    """Each worker gives out addresses of another part of the pool: none may mean another name within KEPT seconds."""
    lab = WorkerPoolLab(["quick", "slow"])
    for name in lab.by_name:
        lab.die(lab.crew.worker, lab.by_name[name].turn)
    for name, seconds in (("quick", 1), ("slow", KEPT / (MOST_DEATHS - 1))):
        for _ in range(MOST_DEATHS):
            clock[0] += seconds
            lab.die(lab.by_name[name].worker, 0)
    assert lab.served().keys() == {"slow"}
    assert lab.said == [("quick", {"failed": f"{MOST_DEATHS + 1} workers have died while they served it"})]
