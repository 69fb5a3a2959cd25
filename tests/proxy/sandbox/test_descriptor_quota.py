"""Invariant 11 for descriptors: whatever one tenant takes, the others have theirs."""

import asyncio
import socket
import time

import pytest

from proxy.event_loop.poller import Loop
from proxy.inspection import Roots
from proxy.sandbox.descriptor_quota import LEAST, OWN, RESERVED, Shares
from proxy.sandbox.tenant import Task, Tenant
from proxy.telemetry.journal.writer import Journal
from proxy.worker.sandbox import Common, Tenancy
from rules.loading.load import load


def greedy(share, used, number):
    """Take until there is no room."""
    while share.has_room():
        used[number] += 1
    return used[number]


def test_one_tenant_alone_may_have_all_of_it():
    shares, used = Shares(1000, 1), [0]
    assert greedy(shares.join(lambda: used[0]), used, 0) == 1000 - RESERVED - OWN


def test_what_a_tenant_may_have_is_the_same_whatever_its_neighbours_hold():
    """A share that shrinks as others take theirs would carry a bit from one sandbox to another (invariant 11)."""
    shares = Shares(5000, 16)
    used = [0] * 16
    joined = [shares.join(lambda number=number: used[number]) for number in range(16)]
    alone = greedy(joined[0], used, 0)
    assert alone == shares.each >= LEAST
    assert [greedy(joined[number], used, number) for number in range(1, 16)] == [alone] * 15
    assert sum(used) + 16 * OWN + RESERVED <= 5000
    for share in joined[1:]:
        share.leave()
        share.leave()
    assert not joined[0].has_room()
    assert not shares.is_full


def test_where_there_are_few_descriptors_there_are_fewer_tenants():
    shares = Shares(1024, 512)
    assert shares.most * (OWN + LEAST) <= 1024 - RESERVED
    for _ in range(shares.most):
        assert not shares.is_full
        shares.join(lambda: 0)
    assert shares.is_full


@pytest.fixture
def tenancy(tmp_path):
    """A sandbox's part of a worker that has few descriptors; within a loop."""
    (tmp_path / "rules.yaml").write_text("version: 1\nname: t\nrules: []\n")
    tenant = Tenant("box", Task("t1", "tests"), load([tmp_path / "rules.yaml"]))
    with asyncio.Runner(loop_factory=Loop) as runner:
        sockets = {name: socket.socket() for name in ("tcp", "dns_udp", "udp", "answers", "diag")}
        common = Common(Journal(tmp_path / "journal"), None, time.time(), Roots(b""), Shares(RESERVED + OWN + 10, 1))

        async def made():
            return Tenancy(tenant, sockets, common)

        yield runner.run(made())
        for sock in sockets.values():
            sock.close()


def test_what_stands_beside_a_connection_counts_as_its_tenants(tenancy):
    beside = tenancy._gate.dialer.beside
    assert tenancy._inspection._dialer.beside is beside
    for _ in range(10):
        assert beside.has_room()
        beside.count += 1
    assert not beside.has_room()
    assert not tenancy._gate._has_room()


def test_questions_about_records_count_as_their_tenants(tenancy):
    tenancy._resolver._record_lookup()._tasks = range(9)
    assert tenancy._beside.has_room()
    tenancy._beside.count = 1
    assert not tenancy._resolver._records._has_room()
