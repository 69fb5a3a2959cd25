"""Invariant 11 for descriptors: whatever one tenant takes, the others have theirs."""

import asyncio
import random
import socket
import time

import pytest

from proxy.inspection import Roots
from proxy.poller import Loop
from proxy.shares import LEAST, OWN, RESERVED, Shares
from proxy.telemetry.journal.writing import Journal
from proxy.tenancy import Common, Tenancy
from proxy.tenant import Task, Tenant
from rules.load import load


def greedy(share, used, number):
    """Take until there is no room."""
    while share.has_room():
        used[number] += 1
    return used[number]


def test_one_tenant_alone_may_have_all_of_it():
    shares, used = Shares(1000, 1), [0]
    assert greedy(shares.join(lambda: used[0]), used, 0) == 1000 - RESERVED - OWN


def test_hogs_leave_everybody_what_is_guaranteed():
    shares = Shares(5000, 16)
    used = [0] * 16
    joined = [shares.join(lambda number=number: used[number]) for number in range(16)]
    for number in range(15):
        greedy(joined[number], used, number)
    assert greedy(joined[15], used, 15) >= shares.guaranteed > LEAST
    assert sum(used) + 16 * OWN + RESERVED <= 5000
    assert used[0] > shares.guaranteed  # what nobody else wants may be had


def test_in_whatever_order_they_take_and_give_back_nobody_goes_without_and_the_limit_holds():
    chance = random.Random(7)
    shares = Shares(3000, 20)
    used = {}
    joined = {}
    for _ in range(4000):
        number = chance.randrange(20)
        if number not in joined:
            used[number] = 0
            joined[number] = shares.join(lambda number=number: used.get(number, 0))
        elif chance.random() < 0.02:
            joined.pop(number).leave()
            used.pop(number)
        elif chance.random() < 0.3:
            used[number] -= chance.randint(0, used[number])
        else:
            for _ in range(chance.randint(0, 400)):
                if not joined[number].has_room():
                    break
                used[number] += 1
        assert sum(used.values()) + 20 * OWN + RESERVED <= 3000
        assert all(joined[each].has_room() for each in joined if used[each] < shares.guaranteed)


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
    assert not tenancy._gate.has_room()


def test_questions_about_records_count_as_their_tenants(tenancy):
    tenancy._resolver._record_lookup()._tasks = range(9)
    assert tenancy._beside.has_room()
    tenancy._beside.count = 1
    assert not tenancy._resolver._records._has_room()
