"""Questions about rules that have changed since: they end when the new ones ask, and what they end by is said."""

from proxy.approvals.model import ApprovalState
from proxy.approvals.protocol import (
    EvaluatedAttempt,
    PreRequest,
    RequestStatus,
    Result,
    StatusQuery,
    StatusReply,
    Withdraw,
)
from rules.verdicts import Reason, Verdict
from tests.proxy.approvals.registry_lab import ADA, bounded
from tests.proxy.approvals.sample_requests import ANYONE, CONNECTION, HOURLY, REQUEST

CHANGED = REQUEST._replace(rules=(ANYONE._replace(digest="d8" * 32),), revision="r2")
OTHER = REQUEST._replace(path="/other")


async def dropped(lab, task, *numbers):
    """What a gate says that decides again: other rules are in force."""
    for number in numbers:
        await lab.registry.received(task, Withdraw(number))


async def state(lab, id_):
    return (await lab.registry.card(id_)).approval.state


async def pending(lab):
    return [each.id for each in await lab.listed()]


def test_request_under_a_changed_rule_supersedes_the_earlier_one(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, before = await lab.submit_pending(task, REQUEST)
        await dropped(lab, task, number)
        number, now = await lab.submit_pending(task, CHANGED)
        assert await pending(lab) == [now]
        why = f"web:ask has changed since it was asked, and it is asked as {now} now"
        for answer in (lab.approve(before, ADA, "1h"), lab.reject(before), lab.approve(before, as_rule="x")):
            assert await lab.refused(answer) == f"an answer has no effect: {why}"
        card = await lab.registry.card(before)
        assert (card.approval.state, card.choices, card.missing) == (ApprovalState.SUPERSEDED, (), ())
        assert f"{before}  superseded: POST" in card.text()
        assert f"  superseded   {why}: an answer has no effect" in card.text()
        assert lab.recorded()[:4] == ["approval.asked", "approval.stale", "approval.asked", "approval.expired"]
        assert lab.recorded("approval.expired")[0]["detail"] == f"superseded: {why}"
        assert lab.recorded("approval.expired")[0]["approval"]["id"] == before
        assert [(news.kind, news.approval) for news in lab.news[:3]] == [
            ("asked", before), ("asked", now), ("superseded", before),
        ]  # fmt: skip
        await lab.approve(now)
        assert lab.answer(number).result is Result.GRANTED

    run_scenario(scenario, store)


def test_held_attempts_are_resubmitted_once_each_after_a_rule_change(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        one, before = await lab.submit_pending(task, REQUEST)
        two, _ = await lab.submit_pending(task, REQUEST)
        await dropped(lab, task, one)
        _, now = await lab.submit_pending(task, CHANGED)
        assert await state(lab, before) is ApprovalState.PENDING  # whoever waits is to decide again by itself
        await dropped(lab, task, two)
        assert (await lab.submit_pending(task, CHANGED))[1] == now
        assert await pending(lab) == [now]
        assert lab.answer(two) is None

    run_scenario(scenario)


def test_requests_of_other_rules_and_grants_survive_a_rule_change(run_scenario, store):
    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        _, granted = await lab.submit_pending(task, CONNECTION)
        await lab.approve(granted)
        elsewhere, theirs = await lab.submit_pending(other, REQUEST)
        await dropped(lab, other, elsewhere)
        rule = await lab.submit_pending(task, CONNECTION._replace(rules=(HOURLY._replace(rule="web:else"),)))
        attempt = await lab.submit_pending(task, OTHER)
        await dropped(lab, task, rule[0], attempt[0])
        _, now = await lab.submit_pending(task, CHANGED)
        assert set(await pending(lab)) == {theirs, rule[1], now}
        text = "an answer has no effect: web:ask has changed since it was asked"
        assert await lab.refused(lab.approve(attempt[1])) == text  # nobody has asked about that attempt anew
        assert (await lab.submit_answered(task, CONNECTION)).result is Result.GRANTED

    run_scenario(scenario, store)


def test_rule_changed_back_submits_a_new_request(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        for question in (REQUEST, CHANGED, REQUEST):
            number, id_ = await lab.submit_pending(task, question)
            assert await pending(lab) == [id_]
            await dropped(lab, task, number)

    run_scenario(scenario)


def test_waiter_under_older_rules_supersedes_nothing_newer(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, before = await lab.submit_pending(task, REQUEST)
        await lab.submit_pending(task, REQUEST)
        number, now = await lab.submit_pending(task, CHANGED)
        await dropped(lab, task, number)
        await lab.approve(before)  # once: for the second it is asked anew
        assert now in await pending(lab)

    run_scenario(scenario)


def test_requests_resubmitted_after_a_rule_change_are_no_flood(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        numbers = [(await lab.submit_pending(task, question))[0] for question in (REQUEST, OTHER)]
        await dropped(lab, task, *numbers)
        ids = {(await lab.submit_pending(task, question))[1] for question in (CHANGED, CHANGED._replace(path="/other"))}
        assert set(await pending(lab)) == ids

    run_scenario(scenario, people=bounded(2, 10))


def test_superseded_pre_request_is_reported_over_and_can_be_repeated(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        pre_request = REQUEST._replace(beforehand=True, size=None)
        await lab.registry.received(
            task, PreRequest(1001, EvaluatedAttempt(pre_request, Verdict.ASK, Reason.APPROVAL_UNAVAILABLE))
        )
        (before,) = await pending(lab)
        changed = pre_request._replace(rules=CHANGED.rules)
        await lab.registry.received(
            task, PreRequest(1002, EvaluatedAttempt(changed, Verdict.ASK, Reason.APPROVAL_UNAVAILABLE))
        )
        (now,) = await pending(lab)
        await lab.registry.received(task, StatusQuery(1003, before))
        seen = next(reply for reply in lab.replies[task] if isinstance(reply, StatusReply) and reply.number == 1003)
        assert (seen.state.standing, seen.state.why) == (
            RequestStatus.EXPIRED, f"web:ask has changed since it was asked, and it is asked as {now} now",
        )  # fmt: skip

    run_scenario(scenario)


def test_approval_without_a_waiter_says_so(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        await dropped(lab, task, number)
        decided = await lab.approve(id_)
        assert decided.text == (
            "approved: this very attempt, once, in the next 24h; the client no longer waits: the approval serves its "
            "next try, unless the rules change before"
        )
        assert (await lab.submit_answered(task, REQUEST)).result is Result.GRANTED

    run_scenario(scenario)
