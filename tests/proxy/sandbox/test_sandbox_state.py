"""Invariant 11 for descriptors: whatever one sandbox takes, the others have theirs."""

import asyncio
import socket
import time
from operator import attrgetter

import pytest

from proxy.dns.records import MOST_AT_ONCE
from proxy.event_loop.poller import Loop
from proxy.sandbox.sandbox_state import LEAST, OWN, RESERVED, DescriptorQuotas, SandboxState, Task
from proxy.telemetry.journal.writer import Journal
from proxy.worker.sandbox import SandboxServer, WorkerResources
from rules.loading.load import load


def greedy(quota):
    """Take until there is no room."""
    while quota.has_room():
        quota.extra += 1
    return quota.extra


def test_single_sandbox_gets_the_whole_quota():
    assert greedy(DescriptorQuotas(1000, 1).join()) == 1000 - RESERVED - OWN


def test_quota_is_independent_of_neighbours():
    """A quota that shrinks as others take theirs would carry a bit from one sandbox to another (invariant 11)."""
    quotas = DescriptorQuotas(5000, 16)
    joined = [quotas.join() for _ in range(16)]
    alone = greedy(joined[0])
    assert alone == quotas.each >= LEAST
    assert [greedy(quota) for quota in joined[1:]] == [alone] * 15
    assert sum(quota.extra for quota in joined) + 16 * OWN + RESERVED <= 5000
    for quota in joined[1:]:
        quota.leave()
        quota.leave()
    assert not joined[0].has_room()
    assert not quotas.is_full


def test_open_objects_count_at_their_price_up_to_the_quota():
    quota = DescriptorQuotas(RESERVED + OWN + 10, 1).join()
    connections, questions = [], []
    quota.count(connections, 2)
    quota.count(questions, 3, 2)
    questions.extend(range(9))
    assert quota.has_room()
    connections.append(0)
    assert quota.has_room()
    connections.append(0)
    assert not quota.has_room()


def test_fewer_descriptors_allow_fewer_sandboxes():
    quotas = DescriptorQuotas(1024, 512)
    assert quotas.most * (OWN + LEAST) <= 1024 - RESERVED
    for _ in range(quotas.most):
        assert not quotas.is_full
        quotas.join()
    assert quotas.is_full


@pytest.fixture
def traffic(tmp_path):
    """What serves the traffic of a sandbox whose worker has few descriptors; within a loop."""
    (tmp_path / "rules.yaml").write_text("version: 1\nname: t\nrules: []\n")
    sandbox = SandboxState("box", Task("t1", "tests"), load([tmp_path / "rules.yaml"]))
    with asyncio.Runner(loop_factory=Loop) as runner:
        sockets = {name: socket.socket() for name in ("tcp", "dns_udp", "udp", "answers", "diag")}
        common = WorkerResources(
            Journal(tmp_path / "journal"),
            sockets["diag"],
            b"",
            authority_expires=time.time(),
            descriptors=DescriptorQuotas(RESERVED + OWN + 10, 1),
        )

        async def made():
            return SandboxServer(sandbox, sockets, common, on_failure=lambda _: None).start_traffic()

        yield runner.run(made())
        for sock in sockets.values():
            sock.close()


def test_sockets_of_a_connection_count_for_its_sandbox(traffic):
    quota = traffic.dialer.descriptors
    assert traffic.inspection._dialer.descriptors is quota
    for _ in range(10):
        assert quota.has_room()
        quota.extra += 1
    assert not quota.has_room()
    assert not traffic._gate._has_room()


@pytest.mark.parametrize(
    ("things", "each"),
    [("_gate.connections", 2), ("_udp.open_flows", 1), ("_lookup.waiting", 2), ("_resolver.record_tasks", 1)],
)
def test_open_objects_count_for_their_sandbox(traffic, things, each):
    counted = attrgetter(things)(traffic)
    for number in range(-(-10 // each)):
        assert traffic._gate._has_room()
        counted.update({number: None} if isinstance(counted, dict) else {number})
    assert not traffic._gate._has_room()
    assert not traffic._resolver._record_lookup()._has_room()
    counted.clear()


def test_queued_queries_take_no_descriptor(traffic):
    quota = traffic.dialer.descriptors
    quota._most = 2 * MOST_AT_ONCE
    traffic._resolver.record_tasks.update(range(5 * MOST_AT_ONCE))
    quota.extra = MOST_AT_ONCE - 1
    assert quota.has_room()
    quota.extra += 1
    assert not quota.has_room()
    traffic._resolver.record_tasks.clear()
