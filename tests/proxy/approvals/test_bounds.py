"""Too much: questions, joins, wishes. A flood is told once, and costs nobody else."""

import asyncio

from proxy.approvals import submit as asking
from proxy.approvals import transaction
from proxy.approvals.model import Vote
from proxy.approvals.protocol import (
    EvaluatedAttempt,
    PreRequest,
    RequestStatus,
    Result,
    StatusQuery,
    StatusReply,
    Withdraw,
)
from proxy.approvals.votes import CastVote
from rules.verdicts import Reason, Verdict
from tests.proxy.approvals.approval_samples import ANYONE, PUSH, REQUEST
from tests.proxy.approvals.approval_world import ADA, LINTER, bounded

COPIES = """
WITH RECURSIVE numbers(n) AS (SELECT 10001 UNION ALL SELECT n + 1 FROM numbers WHERE n < 19999)
INSERT INTO approvals SELECT 'i000' || substr(CAST(n AS TEXT), 2), task, state, wish, CAST(n AS TEXT), question, host,
  port, said, asked + n / 7, expires, answered, by, why, times, stale FROM approvals, numbers"""


def path(number):
    return REQUEST._replace(path=f"/{number}")


def wish(number, question=REQUEST, verdict=Verdict.ASK, reason=Reason.APPROVAL_UNAVAILABLE, why="to fix the build"):
    asked = question if verdict is Verdict.ASK else question._replace(rules=())
    return PreRequest(number, EvaluatedAttempt(asked, verdict, reason, ("web:r",)), why)


async def wished(world, task, said):
    await world.registry.received(task, said)
    seen = world.replies[task][-1]
    assert isinstance(seen, StatusReply)
    assert seen.number == said.number
    return seen.state


def test_a_flood_is_told_once_and_costs_that_task_alone(play, store):
    async def story(world):
        task, other = await world.task(), await world.task("t2")
        ids = [(await world.held(task, path(number)))[1] for number in range(4)]
        for number in range(4, 10):
            assert (await world.asked(task, path(number))).result is Result.FLOOD
        assert [event["approval"]["answer"] for event in world.told("approval.refused")] == ["flood"]
        assert [news.kind for news in world.news].count("flood") == 1
        number, _ = await world.held(task, path(0))  # the same again is no more
        await world.registry.received(task, Withdraw(number))
        await world.held(other, path(0))
        await world.approve(ids[0])
        await world.held(task, path(10))
        assert (await world.asked(task, path(11))).result is Result.FLOOD
        assert len(world.told("approval.refused")) == 1, "it is the same flood still"
        for id_ in ids[1:]:
            await world.reject(id_)
        for number in range(20, 23):
            await world.held(task, path(number))
        assert (await world.asked(task, path(24))).result is Result.FLOOD
        assert len(world.told("approval.refused")) == 2

    play(story, store, people=bounded(4, 100))


def test_all_tasks_together_have_a_bound_too(play):
    async def story(world):
        for number in range(6):
            await world.held(await world.task(f"t{number}"), REQUEST)
        assert (await world.asked(await world.task("t6"), REQUEST)).result is Result.FLOOD
        assert "6 approval requests are pending" in world.told("approval.refused")[0]["detail"]

    play(story, people=bounded(4, 6))


def test_who_was_rejected_too_often_is_not_asked_about_while_that_stands(play, store, monkeypatch):
    # A program that reviews answers as fast as a task asks, and what it rejects has to be kept for as long as it stands.
    monkeypatch.setattr(transaction, "MOST_REJECTED", 3)

    async def story(world):
        task, other = await world.task(), await world.task("t2")
        for number in range(3):
            await world.reject((await world.held(task, path(number)))[1])
        for number in range(3, 6):
            assert (await world.asked(task, path(number))).result is Result.FLOOD
        assert (await world.asked(task, path(0))).result is Result.DENIED, "what was rejected still says so"
        (told,) = world.told("approval.refused")
        assert (
            told["detail"] == "3 approval requests of this task were rejected, and no more are taken until these expire"
        )
        await world.held(other, path(0))
        world.hands.pass_(90_000)
        await world.held(task, path(3))

    play(story, store)


def test_of_what_has_ended_the_latest_of_each_task_is_kept(play, store, monkeypatch):
    monkeypatch.setattr(transaction, "MOST_ENDED", 5)
    monkeypatch.setattr(asking, "_LOOK", 4)

    async def story(world):
        task, other = await world.task(), await world.task("t2")
        _, others = await world.held(other, path(0))
        await world.approve(others)
        _, stands = await world.held(task, path(100))
        await world.reject(stands)
        number, serves = await world.held(task, path(101))
        await world.registry.received(task, Withdraw(number))
        await world.approve(serves)  # of which a use is left
        ids = []
        for number in range(20):
            world.hands.pass_(1)
            ids.append((await world.held(task, path(number)))[1])
            await world.approve(ids[-1])
        there = [each for each in (others, stands, serves, *ids) if await world.registry.card(each) is not None]
        assert there[:3] == [others, stands, serves]
        assert there[3:] == ids[-len(there) + 3 :]
        assert 5 <= len(there) - 3 < 5 + 4
        assert (await world.asked(task, path(100))).result is Result.DENIED
        assert (await world.asked(task, path(101))).result is Result.GRANTED
        async with world.registry.store.reading() as rows:
            for table in ("grants", "votes"):
                ((count,),) = await rows.run(
                    f"SELECT count(*) FROM {table} WHERE approval NOT IN (SELECT id FROM approvals)"
                )
                assert count == 0

    play(story, store)


def test_asking_the_same_again_and_again_is_told_ever_more_rarely(play):
    async def story(world):
        task = await world.task()
        for _ in range(40):
            number, _ = await world.held(task, REQUEST)
            await world.registry.received(task, Withdraw(number))
        assert len(world.told("approval.asked")) == 6  # 1, 2, 4, 8, 16, 32
        assert len(world.told("approval.stale")) == 6
        assert [(each.times, each.stale) for each in await world.listed()] == [(40, True)]

    play(story)


def test_ten_thousand_pending_are_listed_in_pages_and_end(play):
    async def story(world):
        task = await world.task()
        _, first = await world.held(task, REQUEST)
        async with world.registry.store.transaction() as rows:
            await rows.run(COPIES)
        seen, after = [], (0.0, "")
        while found := await world.listed(after, 999):
            seen += [each.id for each in found]
            assert len(found) <= 999
            after = found[-1].asked, found[-1].id
        assert len(seen) == len(set(seen)) == 10_000
        assert seen[0] == first
        assert (await world.approve("i0009876")).final
        assert (await world.asked(task, path("new"))).result is Result.FLOOD
        world.hands.pass_(90_000)
        await world.registry.expire()
        assert await world.listed() == []

    play(story, people=bounded(5000, 5000))


def test_a_wish_is_a_question_that_serves_the_attempt(play, store):
    async def story(world):
        task = await world.task()
        state = await wished(world, task, wish(1, REQUEST._replace(size=None, beforehand=True)))
        assert (state.standing, state.attempt) == (RequestStatus.PENDING, "POST api.example:443/repos")
        card = await world.registry.card(state.approval)
        assert "a body of any size" in card.text()
        assert "  secrets      those that the rules allow" in card.text()
        assert card.approval.said == "to fix the build"
        assert "asked by the agent" in card.text()
        assert world.told("approval.asked")[0]["approval"]["agent"]
        await world.approve(state.approval, why="go")
        await world.registry.received(task, StatusQuery(2, state.approval))
        looked = world.replies[task][-1].state
        assert (looked.standing, looked.by, looked.why) == (RequestStatus.APPROVED, ("ada",), "go")
        assert (await world.asked(task, REQUEST)).result is Result.GRANTED
        await world.held(task, REQUEST)

    play(story, store)


def test_a_wish_for_a_push_serves_whatever_is_pushed_there(play):
    async def story(world):
        task = await world.task()
        push = PUSH._replace(rules=(ANYONE,))
        refs = tuple(ref._replace(old="", new="") for ref in push.refs)
        before = push._replace(method="", path="", refs=refs, beforehand=True)
        state = await wished(world, task, wish(1, before))
        await world.approve(state.approval)
        assert (await world.asked(task, push)).result is Result.GRANTED

    play(story)


def test_nobody_can_approve_what_a_rule_denies(play):
    async def story(world):
        task = await world.task()
        state = await wished(world, task, wish(1, verdict=Verdict.DENY, reason=Reason.RULE))
        assert (state.standing, state.approval) == (RequestStatus.REFUSED, "")
        assert "web:r" in state.why
        assert "nobody can approve this" in state.why
        state = await wished(world, task, wish(2, verdict=Verdict.ALLOW, reason=Reason.RULE))
        assert state.standing is RequestStatus.ALLOWED
        assert world.told() == []

    play(story)


def test_what_no_rule_knows_is_kept_and_takes_a_rule(play, store):
    async def story(world):
        task = await world.task()
        state = await wished(world, task, wish(1, verdict=Verdict.DENY, reason=Reason.NO_RULE))
        assert state.standing is RequestStatus.PENDING
        assert "--as-rule" in await world.refused(world.approve(state.approval))
        assert "may not approve" in await world.refused(world.approve(state.approval, 6666, as_rule="web:new"))
        assert world.registry.people.reviewers_of((await world.registry.card(state.approval)).approval.question) == []
        for vote in (Vote.APPROVE, Vote.REJECT):
            assert "may not approve" in await world.refused(
                world.registry.decide(state.approval, CastVote(LINTER, vote, as_rule="x:y"))
            )
        decided = await world.approve(state.approval, as_rule="web:new")
        assert (decided.final, decided.grants) == (True, ())
        assert world.told("approval.answered")[0]["detail"] == "written down as web:new"
        other = await wished(world, task, wish(2, path("x"), verdict=Verdict.DENY, reason=Reason.NO_RULE))
        await world.reject(other.approval, why="no")
        again = await wished(world, task, wish(3, path("x"), verdict=Verdict.DENY, reason=Reason.NO_RULE))
        assert (again.standing, again.why) == (RequestStatus.REJECTED, "no")

    play(story, store)


def test_wishes_are_few_and_of_their_own_task(play):
    async def story(world):
        task, other = await world.task(), await world.task("t2")
        states = [await wished(world, task, wish(number, path(number))) for number in range(12)]
        assert [state.standing for state in states].count(RequestStatus.PENDING) == 10
        assert states[-1].why == "too many requests: wait a minute"
        await world.registry.received(other, StatusQuery(1, states[0].approval))
        assert world.replies[other][-1].state.standing is RequestStatus.UNKNOWN
        assert "another task's approval request" in world.told("approval.refused")[-1]["detail"]
        for number in range(30):
            await world.registry.received(other, StatusQuery(number + 3, "abcd2345"))
        assert len(world.told("approval.refused")) == 10
        await world.registry.received(other, StatusQuery(2, ""))
        assert world.replies[other][-1].state.standing is RequestStatus.UNKNOWN

    play(story)


def test_who_is_not_introduced_is_not_heard(play):
    async def story(world):
        await world.registry.received("nobody", wish(1))
        await world.ask("nobody", REQUEST)
        await asyncio.sleep(0)
        assert not world.replies
        assert not world.journal.events

    play(story)


def test_one_approval_of_many_that_wait_lets_one_go(play):
    async def story(world):
        task = await world.task()
        numbers = [(await world.held(task, REQUEST))[0] for _ in range(30)]
        decided = await world.approve(world.pending(numbers[0]), ADA, "uses 5")
        assert decided.final
        results = [world.answer(number) for number in numbers]
        assert [one.result for one in results[:5]] == [Result.GRANTED] * 5
        assert results[5:] == [None] * 25
        assert len({world.pending(number) for number in numbers[5:]}) == 1

    play(story)
