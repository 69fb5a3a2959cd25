"""How many workers the service has: as many as its sandboxes need, and no more than it may have."""

import pytest

from enforcer.service import worker_pool
from enforcer.service.worker_pool import MOST_FURTHER, Worker, WorkerPool
from enforcer.system.errors import HostError


@pytest.fixture
def workers(monkeypatch):
    """Two that have room for three sandboxes each, and whoever is started beside them."""
    made = WorkerPool.__new__(WorkerPool)
    made.most_each = 3
    made.workers = [Worker(1, None), Worker(2, None)]
    for each in made.workers:
        each.channel = made
    monkeypatch.setattr(worker_pool.identity, "choose", lambda: None)
    monkeypatch.setattr(WorkerPool, "_start", lambda _self, worker: setattr(worker, "channel", made))
    return made


def test_further_worker_starts_only_when_all_are_full(workers):
    workers.make_room(6)
    assert len(workers.workers) == 2
    workers.make_room(7)
    assert [worker.further for worker in workers.workers] == [False, False, True]
    for each in workers.workers[:2]:
        each.sandboxes |= {"a", "b", "c"}
    assert workers.least_busy() is workers.workers[2]


def test_sandboxes_beyond_the_last_worker_are_declined(workers):
    workers.make_room(3 * (2 + MOST_FURTHER))
    with pytest.raises(HostError, match="LimitNOFILE"):
        workers.make_room(3 * (2 + MOST_FURTHER) + 1)
    assert len(workers.workers) == 2 + MOST_FURTHER


def test_separate_worker_has_no_free_place(workers):
    workers.workers.append(Worker(3, None, apart=True))
    workers.make_room(7)
    assert [worker.further for worker in workers.workers] == [False, False, False, True]
