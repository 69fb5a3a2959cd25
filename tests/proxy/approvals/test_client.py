"""The worker's end by itself: what doesn't fit, what is too much, what is told of bytes before they pass."""

import asyncio
import json
import socket

from hypothesis import given
from hypothesis import strategies as st

from proxy.approvals import client as module
from proxy.approvals.client import MOST_UNSENT, ApprovalsClient
from proxy.approvals.leases import PIECE, Budget, Leases
from proxy.approvals.protocol import Answer, Granted, Result, Submit, read_worker_message
from proxy.event_loop.poller import Loop, Poller
from tests.proxy.approvals.sample_requests import CONNECTION, REQUEST
from tests.support.waiting import wait_until_async


def asking(test):
    async def inside():
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        errors = []
        one = ApprovalsClient(theirs, Poller(), lambda _where, what: errors.append(what))
        one.start()
        try:
            await test(one, ours, errors)
        finally:
            one.close()
            theirs.close()
            ours.close()

    asyncio.run(asyncio.wait_for(inside(), 60), loop_factory=Loop)


def heard(ours):
    """Every word that is there."""
    words = []
    try:
        while data := ours.recv(1 << 17):
            words.append(read_worker_message(json.loads(data)))
    except BlockingIOError:
        pass
    return words


def test_client_queues_to_a_bound_when_the_registry_does_not_read(monkeypatch):
    monkeypatch.setattr(module, "ASKS", (10_000, 1.0))

    async def test(one, ours, _errors):
        answers = []
        for _ in range(2000):
            one.submit(REQUEST, answers.append)
        assert len(one._unsent) == MOST_UNSENT
        await asyncio.sleep(0)
        await wait_until_async(lambda: answers)
        assert {answer.result for answer in answers} == {Result.UNAVAILABLE}
        assert not one.tainted(None)  # nothing goes before what waits
        words = []
        await wait_until_async(lambda: words.extend(heard(ours)) or not one._unsent)
        words += heard(ours)
        asks = [word.number for word in words if isinstance(word, Submit)]
        assert asks == sorted(asks)
        assert len(asks) + len(answers) == 2000

    asking(test)


def test_requests_over_the_rate_limit_are_denied_by_the_client(monkeypatch):
    monkeypatch.setattr(module, "ASKS", (5, 0.0))

    async def test(one, ours, _errors):
        answers = []
        for _ in range(25):
            one.submit(CONNECTION, answers.append)
        await wait_until_async(lambda: len(answers) == 20)
        assert len([word for word in heard(ours) if isinstance(word, Submit)]) == 5
        assert {answer.result for answer in answers} == {Result.FLOOD}

    asking(test)


def test_withdrawn_request_ignores_a_late_answer():
    async def test(one, ours, errors):
        answers = []
        ticket = one.submit(CONNECTION, answers.append)
        ticket.drop()
        ticket.drop()
        ours.send(json.dumps(Answer(ticket.number, Result.DENIED).packed()).encode())
        ours.close()
        await wait_until_async(lambda: not one.is_there)
        assert answers == []
        assert errors == ["approval requests are no longer possible: it has ended"]

    asking(test)


def test_request_with_too_many_rules_is_unavailable():
    async def test(one, ours, _errors):
        answers = []
        many = CONNECTION._replace(rules=CONNECTION.rules * 5000)
        one.submit(many, answers.append)
        await wait_until_async(lambda: answers)
        assert answers[0].result is Result.UNAVAILABLE
        assert not any(isinstance(word, Submit) for word in heard(ours))

    asking(test)


@given(st.integers(1, 4 * PIECE), st.lists(st.integers(0, PIECE), max_size=40))
def test_bytes_are_reported_to_the_registry_before_they_pass(granted, sizes):
    told, passed = [], 0
    budget = Budget("r:a", granted, lambda size: told.append(size) or True)
    for size in sizes:
        if budget.take(size):
            passed += size
        assert passed <= sum(told) <= granted
    assert budget.over or passed == sum(sizes)
    if sum(sizes) <= granted:
        assert not budget.over
    if budget.over:
        assert sum(told) == granted  # it is spent, also there


def test_bytes_are_blocked_when_they_cannot_be_reported():
    budget = Budget("r:a", 100, lambda _: False)
    assert not budget.take(1)
    assert budget.is_empty


def test_ended_or_foreign_grant_allows_no_new_connection():
    passes, cut = Leases(lambda *_: True), []
    first, second = (passes.grants("q", [Granted("r:a", "d", name)]) for name in ("one", "two"))
    lease = passes.enter(first, cut.append)
    passes.over(["one", "two", "three"])
    assert [grant.id for grant in cut] == ["one"]
    lease.end()
    assert passes.enter(second, cut.append) is None
    third = passes.grants("q", [Granted("r:a", "d", "four")])
    kept = passes.enter(third, cut.append)
    passes.lost()
    assert [grant.id for grant in cut] == ["one", "four"]
    assert passes.enter(third, cut.append) is None
    passes.begin_anew()
    assert passes.enter(third, cut.append) is None
    assert passes.enter(passes.grants("q", [Granted("r:a", "d", "four")]), cut.append) is not None
    kept.end()
