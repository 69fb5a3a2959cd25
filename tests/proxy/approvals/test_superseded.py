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
from tests.proxy.approvals.approval_samples import ANYONE, CONNECTION, HOURLY, REQUEST
from tests.proxy.approvals.approval_world import ADA, bounded

CHANGED = REQUEST._replace(rules=(ANYONE._replace(digest="d8" * 32),), revision="r2")
OTHER = REQUEST._replace(path="/other")


async def dropped(world, task, *numbers):
    """What a gate says that decides again: other rules are in force."""
    for number in numbers:
        await world.registry.received(task, Withdraw(number))


async def state(world, id_):
    return (await world.registry.card(id_)).approval.state


async def pending(world):
    return [each.id for each in await world.listed()]


def test_what_is_asked_anew_under_a_changed_rule_ends_what_was_asked_before(play, store):
    async def story(world):
        task = await world.task()
        number, before = await world.held(task, REQUEST)
        await dropped(world, task, number)
        number, now = await world.held(task, CHANGED)
        assert await pending(world) == [now]
        why = f"web:ask has changed since it was asked, and it is asked as {now} now"
        for answer in (world.approve(before, ADA, "1h"), world.reject(before), world.approve(before, as_rule="x")):
            assert await world.refused(answer) == f"an answer has no effect: {why}"
        card = await world.registry.card(before)
        assert (card.approval.state, card.choices, card.missing) == (ApprovalState.SUPERSEDED, (), ())
        assert f"{before}  superseded: POST" in card.text()
        assert f"  superseded   {why}: an answer has no effect" in card.text()
        assert world.told()[:4] == ["approval.asked", "approval.stale", "approval.asked", "approval.expired"]
        assert world.told("approval.expired")[0]["detail"] == f"superseded: {why}"
        assert world.told("approval.expired")[0]["approval"]["id"] == before
        assert [(news.kind, news.approval) for news in world.news[:3]] == [
            ("asked", before), ("asked", now), ("superseded", before),
        ]  # fmt: skip
        await world.approve(now)
        assert world.answer(number).result is Result.GRANTED

    play(story, store)


def test_of_several_that_are_held_each_is_asked_about_once(play):
    async def story(world):
        task = await world.task()
        one, before = await world.held(task, REQUEST)
        two, _ = await world.held(task, REQUEST)
        await dropped(world, task, one)
        _, now = await world.held(task, CHANGED)
        assert await state(world, before) is ApprovalState.PENDING  # whoever waits is to decide again by itself
        await dropped(world, task, two)
        assert (await world.held(task, CHANGED))[1] == now
        assert await pending(world) == [now]
        assert world.answer(two) is None

    play(story)


def test_what_other_rules_ask_and_what_was_granted_stays(play, store):
    async def story(world):
        task, other = await world.task(), await world.task("t2")
        _, granted = await world.held(task, CONNECTION)
        await world.approve(granted)
        elsewhere, theirs = await world.held(other, REQUEST)
        await dropped(world, other, elsewhere)
        rule = await world.held(task, CONNECTION._replace(rules=(HOURLY._replace(rule="web:else"),)))
        attempt = await world.held(task, OTHER)
        await dropped(world, task, rule[0], attempt[0])
        _, now = await world.held(task, CHANGED)
        assert set(await pending(world)) == {theirs, rule[1], now}
        text = "an answer has no effect: web:ask has changed since it was asked"
        assert await world.refused(world.approve(attempt[1])) == text  # nobody has asked about that attempt anew
        assert (await world.asked(task, CONNECTION)).result is Result.GRANTED

    play(story, store)


def test_rules_that_are_changed_back_ask_anew_too(play):
    async def story(world):
        task = await world.task()
        for question in (REQUEST, CHANGED, REQUEST):
            number, id_ = await world.held(task, question)
            assert await pending(world) == [id_]
            await dropped(world, task, number)

    play(story)


def test_who_waits_under_older_rules_ends_nothing_that_newer_ones_ask(play):
    async def story(world):
        task = await world.task()
        _, before = await world.held(task, REQUEST)
        await world.held(task, REQUEST)
        number, now = await world.held(task, CHANGED)
        await dropped(world, task, number)
        await world.approve(before)  # once: for the second it is asked anew
        assert now in await pending(world)

    play(story)


def test_a_change_of_rules_is_no_flood(play):
    async def story(world):
        task = await world.task()
        numbers = [(await world.held(task, question))[0] for question in (REQUEST, OTHER)]
        await dropped(world, task, *numbers)
        ids = {(await world.held(task, question))[1] for question in (CHANGED, CHANGED._replace(path="/other"))}
        assert set(await pending(world)) == ids

    play(story, people=bounded(2, 10))


def test_what_an_agent_asked_for_is_over_for_it_and_it_may_ask_again(play):
    async def story(world):
        task = await world.task()
        wish = REQUEST._replace(beforehand=True, size=None)
        await world.registry.received(
            task, PreRequest(1001, EvaluatedAttempt(wish, Verdict.ASK, Reason.APPROVAL_UNAVAILABLE))
        )
        (before,) = await pending(world)
        changed = wish._replace(rules=CHANGED.rules)
        await world.registry.received(
            task, PreRequest(1002, EvaluatedAttempt(changed, Verdict.ASK, Reason.APPROVAL_UNAVAILABLE))
        )
        (now,) = await pending(world)
        await world.registry.received(task, StatusQuery(1003, before))
        seen = next(reply for reply in world.replies[task] if isinstance(reply, StatusReply) and reply.number == 1003)
        assert (seen.state.standing, seen.state.why) == (
            RequestStatus.EXPIRED, f"web:ask has changed since it was asked, and it is asked as {now} now",
        )  # fmt: skip

    play(story)


def test_an_approval_that_nobody_waits_for_says_so(play):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        await dropped(world, task, number)
        decided = await world.approve(id_)
        assert decided.text == (
            "approved: this very attempt, once, in the next 24h; the client no longer waits: the approval serves its "
            "next try, unless the rules change before"
        )
        assert (await world.asked(task, REQUEST)).result is Result.GRANTED

    play(story)
