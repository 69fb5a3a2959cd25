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
from tests.proxy.approvals.approval_samples import CONNECTION, REQUEST


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


async def until(true):
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  it is asked of a socket
            await asyncio.sleep(0.002)


def heard(ours):
    """Every word that is there."""
    words = []
    try:
        while data := ours.recv(1 << 17):
            words.append(read_worker_message(json.loads(data)))
    except BlockingIOError:
        pass
    return words


def test_what_a_registry_doesn_t_take_is_kept_up_to_a_bound_and_then_refused(monkeypatch):
    monkeypatch.setattr(module, "ASKS", (10_000, 1.0))

    async def test(one, ours, _errors):
        answers = []
        for _ in range(2000):
            one.submit(REQUEST, answers.append)
        assert len(one._unsent) == MOST_UNSENT
        await asyncio.sleep(0)
        await until(lambda: answers)
        assert {answer.result for answer in answers} == {Result.UNAVAILABLE}
        assert not one.tainted(None)  # nothing goes before what waits
        words = []
        await until(lambda: words.extend(heard(ours)) or not one._unsent)
        words += heard(ours)
        asks = [word.number for word in words if isinstance(word, Submit)]
        assert asks == sorted(asks)
        assert len(asks) + len(answers) == 2000

    asking(test)


def test_what_is_asked_too_fast_is_denied_and_not_passed_on(monkeypatch):
    monkeypatch.setattr(module, "ASKS", (5, 0.0))

    async def test(one, ours, _errors):
        answers = []
        for _ in range(25):
            one.submit(CONNECTION, answers.append)
        await until(lambda: len(answers) == 20)
        assert len([word for word in heard(ours) if isinstance(word, Submit)]) == 5
        assert {answer.result for answer in answers} == {Result.FLOOD}

    asking(test)


def test_a_question_that_was_dropped_has_no_answer():
    async def test(one, ours, errors):
        answers = []
        ticket = one.submit(CONNECTION, answers.append)
        ticket.drop()
        ticket.drop()
        ours.send(json.dumps(Answer(ticket.number, Result.DENIED).packed()).encode())
        ours.close()
        await until(lambda: not one.is_there)
        assert answers == []
        assert errors == ["approval requests are no longer possible: it has ended"]

    asking(test)


def test_a_question_of_too_many_rules_is_unavailable():
    async def test(one, ours, _errors):
        answers = []
        many = CONNECTION._replace(rules=CONNECTION.rules * 5000)
        one.submit(many, answers.append)
        await until(lambda: answers)
        assert answers[0].result is Result.UNAVAILABLE
        assert not any(isinstance(word, Submit) for word in heard(ours))

    asking(test)


@given(st.integers(1, 4 * PIECE), st.lists(st.integers(0, PIECE), max_size=40))
def test_no_byte_passes_that_the_registry_was_not_told_of(granted, sizes):
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


def test_bytes_that_can_t_be_told_don_t_pass():
    budget = Budget("r:a", 100, lambda _: False)
    assert not budget.take(1)
    assert budget.is_empty


def test_a_grant_that_is_over_lets_nothing_begin_and_one_of_another_registry_neither():
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
