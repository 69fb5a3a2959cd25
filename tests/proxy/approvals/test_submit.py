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
from tests.proxy.approvals.registry_lab import ADA, LINTER, bounded
from tests.proxy.approvals.sample_requests import ANYONE, PUSH, REQUEST

COPIES = """
WITH RECURSIVE numbers(n) AS (SELECT 10001 UNION ALL SELECT n + 1 FROM numbers WHERE n < 19999)
INSERT INTO approvals SELECT 'i000' || substr(CAST(n AS TEXT), 2), task, state, wish, CAST(n AS TEXT), question, host,
  port, said, asked + n / 7, expires, answered, by, why, times, stale FROM approvals, numbers"""


def path(number):
    return REQUEST._replace(path=f"/{number}")


def pre_request(
    number, question=REQUEST, verdict=Verdict.ASK, reason=Reason.APPROVAL_UNAVAILABLE, why="to fix the build"
):
    asked = question if verdict is Verdict.ASK else question._replace(rules=())
    return PreRequest(number, EvaluatedAttempt(asked, verdict, reason, ("web:r",)), why)


async def pre_requested(lab, task, said):
    await lab.registry.received(task, said)
    seen = lab.replies[task][-1]
    assert isinstance(seen, StatusReply)
    assert seen.number == said.number
    return seen.state


def test_flood_of_requests_is_recorded_once_and_limits_only_its_task(run_scenario, store):
    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        ids = [(await lab.submit_pending(task, path(number)))[1] for number in range(4)]
        for number in range(4, 10):
            assert (await lab.submit_answered(task, path(number))).result is Result.FLOOD
        assert [event["approval"]["answer"] for event in lab.recorded("approval.refused")] == ["flood"]
        assert [news.kind for news in lab.news].count("flood") == 1
        number, _ = await lab.submit_pending(task, path(0))  # the same again is no more
        await lab.registry.received(task, Withdraw(number))
        await lab.submit_pending(other, path(0))
        await lab.approve(ids[0])
        await lab.submit_pending(task, path(10))
        assert (await lab.submit_answered(task, path(11))).result is Result.FLOOD
        assert len(lab.recorded("approval.refused")) == 1, "it is the same flood still"
        for id_ in ids[1:]:
            await lab.reject(id_)
        for number in range(20, 23):
            await lab.submit_pending(task, path(number))
        assert (await lab.submit_answered(task, path(24))).result is Result.FLOOD
        assert len(lab.recorded("approval.refused")) == 2

    run_scenario(scenario, store, people=bounded(4, 100))


def test_pending_requests_of_all_tasks_are_bounded(run_scenario):
    async def scenario(lab):
        for number in range(6):
            await lab.submit_pending(await lab.task(f"t{number}"), REQUEST)
        assert (await lab.submit_answered(await lab.task("t6"), REQUEST)).result is Result.FLOOD
        assert "6 approval requests are pending" in lab.recorded("approval.refused")[0]["detail"]

    run_scenario(scenario, people=bounded(4, 6))


def test_task_with_too_many_rejections_is_denied_until_they_expire(run_scenario, store, monkeypatch):
    # A program that reviews answers as fast as a task asks, and what it rejects has to be kept for as long as it stands.
    monkeypatch.setattr(transaction, "MOST_REJECTED", 3)

    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        for number in range(3):
            await lab.reject((await lab.submit_pending(task, path(number)))[1])
        for number in range(3, 6):
            assert (await lab.submit_answered(task, path(number))).result is Result.FLOOD
        assert (await lab.submit_answered(task, path(0))).result is Result.DENIED, "what was rejected still says so"
        (told,) = lab.recorded("approval.refused")
        assert (
            told["detail"] == "3 approval requests of this task were rejected, and no more are taken until these expire"
        )
        await lab.submit_pending(other, path(0))
        lab.clock.advance(90_000)
        await lab.submit_pending(task, path(3))

    run_scenario(scenario, store)


def test_latest_ended_requests_of_each_task_are_retained(run_scenario, store, monkeypatch):
    monkeypatch.setattr(transaction, "MOST_ENDED", 5)
    monkeypatch.setattr(asking, "_LOOK", 4)

    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        _, others = await lab.submit_pending(other, path(0))
        await lab.approve(others)
        _, stands = await lab.submit_pending(task, path(100))
        await lab.reject(stands)
        number, serves = await lab.submit_pending(task, path(101))
        await lab.registry.received(task, Withdraw(number))
        await lab.approve(serves)  # of which a use is left
        ids = []
        for number in range(20):
            lab.clock.advance(1)
            ids.append((await lab.submit_pending(task, path(number)))[1])
            await lab.approve(ids[-1])
        there = [each for each in (others, stands, serves, *ids) if await lab.registry.card(each) is not None]
        assert there[:3] == [others, stands, serves]
        assert there[3:] == ids[-len(there) + 3 :]
        assert 5 <= len(there) - 3 < 5 + 4
        assert (await lab.submit_answered(task, path(100))).result is Result.DENIED
        assert (await lab.submit_answered(task, path(101))).result is Result.GRANTED
        async with lab.registry.store.reading() as rows:
            for table in ("grants", "votes"):
                ((count,),) = await rows.run(
                    f"SELECT count(*) FROM {table} WHERE approval NOT IN (SELECT id FROM approvals)"
                )
                assert count == 0

    run_scenario(scenario, store)


def test_repeated_requests_are_recorded_at_powers_of_two(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        for _ in range(40):
            number, _ = await lab.submit_pending(task, REQUEST)
            await lab.registry.received(task, Withdraw(number))
        assert len(lab.recorded("approval.asked")) == 6  # 1, 2, 4, 8, 16, 32
        assert len(lab.recorded("approval.stale")) == 6
        assert [(each.times, each.stale) for each in await lab.listed()] == [(40, True)]

    run_scenario(scenario)


def test_ten_thousand_pending_requests_are_listed_in_pages_and_expire(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, first = await lab.submit_pending(task, REQUEST)
        async with lab.registry.store.transaction() as rows:
            await rows.run(COPIES)
        seen, after = [], (0.0, "")
        while found := await lab.listed(after, 999):
            seen += [each.id for each in found]
            assert len(found) <= 999
            after = found[-1].asked, found[-1].id
        assert len(seen) == len(set(seen)) == 10_000
        assert seen[0] == first
        assert (await lab.approve("i0009876")).final
        assert (await lab.submit_answered(task, path("new"))).result is Result.FLOOD
        lab.clock.advance(90_000)
        await lab.registry.expire()
        assert await lab.listed() == []

    run_scenario(scenario, people=bounded(5000, 5000))


def test_approved_pre_request_allows_the_attempt_once(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        state = await pre_requested(lab, task, pre_request(1, REQUEST._replace(size=None, beforehand=True)))
        assert (state.standing, state.attempt) == (RequestStatus.PENDING, "POST api.example:443/repos")
        card = await lab.registry.card(state.approval)
        assert "a body of any size" in card.text()
        assert "  secrets      those that the rules allow" in card.text()
        assert card.approval.said == "to fix the build"
        assert "asked by the agent" in card.text()
        assert lab.recorded("approval.asked")[0]["approval"]["agent"]
        await lab.approve(state.approval, why="go")
        await lab.registry.received(task, StatusQuery(2, state.approval))
        looked = lab.replies[task][-1].state
        assert (looked.standing, looked.by, looked.why) == (RequestStatus.APPROVED, ("ada",), "go")
        assert (await lab.submit_answered(task, REQUEST)).result is Result.GRANTED
        await lab.submit_pending(task, REQUEST)

    run_scenario(scenario, store)


def test_approved_pre_request_allows_a_push_of_any_objects(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        push = PUSH._replace(rules=(ANYONE,))
        refs = tuple(ref._replace(old="", new="") for ref in push.refs)
        before = push._replace(method="", path="", refs=refs, beforehand=True)
        state = await pre_requested(lab, task, pre_request(1, before))
        await lab.approve(state.approval)
        assert (await lab.submit_answered(task, push)).result is Result.GRANTED

    run_scenario(scenario)


def test_pre_request_for_a_denied_attempt_is_refused(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        state = await pre_requested(lab, task, pre_request(1, verdict=Verdict.DENY, reason=Reason.RULE))
        assert (state.standing, state.approval) == (RequestStatus.REFUSED, "")
        assert "web:r" in state.why
        assert "nobody can approve this" in state.why
        state = await pre_requested(lab, task, pre_request(2, verdict=Verdict.ALLOW, reason=Reason.RULE))
        assert state.standing is RequestStatus.ALLOWED
        assert lab.recorded() == []

    run_scenario(scenario)


def test_pre_request_without_a_rule_is_approved_only_as_a_rule(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        state = await pre_requested(lab, task, pre_request(1, verdict=Verdict.DENY, reason=Reason.NO_RULE))
        assert state.standing is RequestStatus.PENDING
        assert "--as-rule" in await lab.refused(lab.approve(state.approval))
        assert "may not approve" in await lab.refused(lab.approve(state.approval, 6666, as_rule="web:new"))
        assert lab.registry.people.reviewers_of((await lab.registry.card(state.approval)).approval.question) == []
        for vote in (Vote.APPROVE, Vote.REJECT):
            assert "may not approve" in await lab.refused(
                lab.registry.decide(state.approval, CastVote(LINTER, vote, as_rule="x:y"))
            )
        decided = await lab.approve(state.approval, as_rule="web:new")
        assert (decided.final, decided.grants) == (True, ())
        assert lab.recorded("approval.answered")[0]["detail"] == "written down as web:new"
        other = await pre_requested(lab, task, pre_request(2, path("x"), verdict=Verdict.DENY, reason=Reason.NO_RULE))
        await lab.reject(other.approval, why="no")
        again = await pre_requested(lab, task, pre_request(3, path("x"), verdict=Verdict.DENY, reason=Reason.NO_RULE))
        assert (again.standing, again.why) == (RequestStatus.REJECTED, "no")

    run_scenario(scenario, store)


def test_pre_requests_are_rate_limited_and_visible_to_their_task_only(run_scenario):
    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        states = [await pre_requested(lab, task, pre_request(number, path(number))) for number in range(12)]
        assert [state.standing for state in states].count(RequestStatus.PENDING) == 10
        assert states[-1].why == "too many requests: wait a minute"
        await lab.registry.received(other, StatusQuery(1, states[0].approval))
        assert lab.replies[other][-1].state.standing is RequestStatus.UNKNOWN
        assert "another task's approval request" in lab.recorded("approval.refused")[-1]["detail"]
        for number in range(30):
            await lab.registry.received(other, StatusQuery(number + 3, "abcd2345"))
        assert len(lab.recorded("approval.refused")) == 10
        await lab.registry.received(other, StatusQuery(2, ""))
        assert lab.replies[other][-1].state.standing is RequestStatus.UNKNOWN

    run_scenario(scenario)


def test_messages_of_an_unknown_task_are_ignored(run_scenario):
    async def scenario(lab):
        await lab.registry.received("nobody", pre_request(1))
        await lab.submit("nobody", REQUEST)
        await asyncio.sleep(0)
        assert not lab.replies
        assert not lab.journal.events

    run_scenario(scenario)


def test_approval_of_five_uses_releases_five_of_thirty_waiters(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        numbers = [(await lab.submit_pending(task, REQUEST))[0] for _ in range(30)]
        decided = await lab.approve(lab.pending(numbers[0]), ADA, "uses 5")
        assert decided.final
        results = [lab.answer(number) for number in numbers]
        assert [one.result for one in results[:5]] == [Result.GRANTED] * 5
        assert results[5:] == [None] * 25
        assert len({lab.pending(number) for number in numbers[5:]}) == 1

    run_scenario(scenario)
