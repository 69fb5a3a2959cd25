"""Counts of pending approvals: each attempt once, in every process and in totals."""

import asyncio
import json
import socket

import pytest
from msgspec import MsgspecError, convert, to_builtins

from proxy.approvals import protocol
from proxy.approvals.approval_request import ApprovalRequest, Rule
from proxy.approvals.approval_request import Kind as QuestionKind
from proxy.approvals.client import ApprovalsClient
from proxy.approvals.protocol import Pending, Result
from proxy.event_loop.poller import IN
from proxy.telemetry.events import Answer
from proxy.telemetry.prometheus.metrics import ANSWERS, STALE, ApprovalWaits, Metrics, PendingCounts
from proxy.telemetry.prometheus.totals import add, from_json, to_json, total
from proxy.wire import message
from rules.decision import ApprovalTerms, RequiredApproval


def some():
    waiting = ApprovalWaits()
    for key in "abc":
        waiting.start(key)
    waiting.finish("a", Answer.APPROVED)
    waiting.finish("a", Answer.REJECTED)  # it is over
    waiting.finish("b", None)
    waiting.count_answer(Answer.FLOOD)
    return waiting


def test_attempt_counts_once_and_only_waits_are_timed():
    waiting = some()
    assert waiting.answers == {"approved": 1, "stale": 1, "flood": 1}
    assert sum(waiting.counts) == 2
    assert waiting.pending == 1
    assert waiting.age > 0
    waiting.finish("c", Answer.TIMEOUT)
    assert (waiting.pending, waiting.age) == (0, 0.0)


def test_totals_of_waits_drop_the_pending_of_ended_parts():
    whole = total()
    for ended in (False, False, True):
        metrics = Metrics()
        metrics.waiting = some()
        add(whole, metrics, ended=ended)
    passed_on = from_json(json.loads(json.dumps(to_json(whole))), "")
    for each in (whole, passed_on):
        assert each.waiting.pending == 2
        assert each.waiting.answers == {"approved": 3, "stale": 3, "flood": 3}
        assert sum(each.waiting.counts) == 6
        assert each.waiting.age > 0


@pytest.mark.parametrize(
    "change",
    [
        {"answers": {"\x1b": 1}},
        {"answers": {"approved": -1}},
        {"answers": []},
        {"counts": [1]},
        {"pending": True},
        {"pending": 1 << 64},
        {"age": float("nan")},
        {"seconds": "1"},
    ],
)
def test_malformed_counts_of_a_worker_are_refused(change):
    with pytest.raises((ValueError, MsgspecError)):
        ApprovalWaits.from_message(convert({**to_builtins(some().to_message()), **change}, PendingCounts))


def test_every_answer_has_a_series_from_the_start():
    text = Metrics().render().decode()
    for answer in ANSWERS:
        assert f'exeat_approvals_total{{answer="{answer}"}} 0.0' in text


class NoPoller:
    """Watches nothing: the test calls the reader itself."""

    def watch(self, *_):
        pass

    forget = change = watch


def question():
    return ApprovalRequest(
        QuestionKind.CONNECTION,
        "tls",
        "a.example",
        443,
        rules=(Rule.of(RequiredApproval("t:a", "0f", ApprovalTerms())),),
    )


async def asking_of(replies):
    """Ask as often as there are lists of replies, answer with those, and return what was counted."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        asking = ApprovalsClient(ours, NoPoller(), pytest.fail)
        asking.start()
        tickets = [asking.submit(question(), lambda _answer: None) for _ in replies]
        for ticket, said in zip(tickets, replies, strict=True):
            for reply in said:
                if reply == "drop":
                    ticket.drop()
                else:
                    message.send(theirs, reply(ticket.number).packed())
                    asking.ready(IN)
        waiting = asking.waiting
        counted = dict(waiting.answers), waiting.pending, sum(waiting.counts)
        asking.close()
        return counted, waiting.answers.get(STALE, 0)


def test_approval_request_of_a_worker_counts_once():
    def pending(number):
        return Pending(number, "bcdefgha", 0.0)

    def answer(result):
        grants = (protocol.Granted("t:a", "0f", "g1"),) if result is Result.GRANTED else ()
        return lambda number: protocol.Answer(number, result, "bcdefgha", grants=grants)

    counted, stale = asyncio.run(
        asking_of(
            [
                [pending, answer(Result.GRANTED)],
                [answer(Result.GRANTED)],  # by a grant that there is
                [pending, answer(Result.DENIED), answer(Result.GRANTED)],
                [answer(Result.FLOOD)],
                [pending, "drop", "drop"],
                [pending, answer(Result.TIMEOUT)],
                [pending],
            ]
        )
    )
    assert counted == ({"approved": 2, "rejected": 1, "flood": 1, "stale": 1, "timeout": 1}, 1, 4)
    assert stale == 2  # the gate closed
