"""What a grant is good for, and everything that it is not good for: replays are refused with a reason."""

import pytest

from proxy.approvals.approval_request import Ref
from proxy.approvals.protocol import BytesUsed, GrantsEnded, Result
from rules.decision import GrantScope
from tests.proxy.approvals.approval_samples import (
    ANYONE,
    ASKS,
    CONNECTION,
    EVENT,
    HOURLY,
    PROGRAM,
    PUSH,
    REQUEST,
    terms_of,
)
from tests.proxy.approvals.approval_world import ADA, BO, MALLORY

HOUR = 3600.0


def test_once_is_once_also_for_those_who_waited_together(play, store):
    async def story(world):
        task = await world.task()
        first, id_ = await world.held(task, REQUEST)
        second, same = await world.held(task, REQUEST._replace(process=PROGRAM, event=EVENT))
        assert same == id_
        third, _ = await world.held(task, REQUEST)
        await world.approve(id_)
        assert world.answer(first).result is Result.GRANTED
        assert world.answer(second) is world.answer(third) is None
        again = world.pending(second)
        assert again != id_
        assert world.pending(third) == again
        await world.approve(again, ADA, "uses 2")
        assert [world.answer(number).result for number in (second, third)] == [Result.GRANTED] * 2
        number, id_ = await world.held(task, REQUEST)
        assert id_ != again
        await world.reject(id_)
        assert world.answer(number).result is Result.DENIED

    play(story, store)


def test_an_answer_after_the_hold_serves_the_retry_once(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        world.hands.pass_(121)
        await world.registry.expire()
        assert (world.answer(number).result, world.answer(number).approval) == (Result.TIMEOUT, id_)
        assert world.told()[-1] == "approval.stale"
        await world.approve(id_)
        assert (await world.asked(task, REQUEST)).result is Result.GRANTED
        await world.held(task, REQUEST)

    play(story, store)


def test_a_destination_for_an_hour(play):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        decided = await world.approve(id_)
        assert (
            decided.text
            == "approved: anything this rule asks about at this destination, as often as the task likes, in the next 1h"
        )
        request = REQUEST._replace(protocol="tcp", host="db.example", port=5432, rules=(HOURLY,))
        for question in (CONNECTION, request, CONNECTION):
            assert (await world.asked(task, question)).result is Result.GRANTED
        await world.held(task, CONNECTION._replace(port=5433))
        await world.held(task, CONNECTION._replace(host="other.example"))
        world.replies.clear()
        world.hands.pass_(HOUR)
        await world.registry.expire()
        assert [reply for reply in world.replies[task] if isinstance(reply, GrantsEnded)] == [
            GrantsEnded((decided.grants[0].id,))
        ]
        await world.held(task, CONNECTION)
        assert [event["detail"] for event in world.told("approval.expired")] == [
            f"the grant {decided.grants[0].id} is over"
        ]

    play(story)


REPLAYED = {
    "another task": ("t2", CONNECTION),
    "a changed rule": ("t1", CONNECTION._replace(rules=(HOURLY._replace(digest="d0" * 32),))),
    "another rule of the same content": ("t1", CONNECTION._replace(rules=(HOURLY._replace(rule="web:other"),))),
    "another destination": ("t1", CONNECTION._replace(host="evil.example")),
    "another protocol": ("t1", CONNECTION._replace(protocol="udp")),
}


@pytest.mark.parametrize("replay", REPLAYED)
def test_a_grant_serves_nothing_else(play, replay):
    async def story(world):
        await world.task("t2")
        _, id_ = await world.held(await world.task(), CONNECTION)
        await world.approve(id_)
        await world.held(*REPLAYED[replay])

    play(story)


def test_a_push_is_approved_with_its_objects(play):
    async def story(world):
        rules = (ASKS._replace(terms=terms_of(by_self=True, lasts=HOUR)),)
        task = await world.task()
        _, id_ = await world.held(task, PUSH._replace(rules=rules))
        await world.approve(id_)
        assert (await world.asked(task, PUSH._replace(rules=rules))).result is Result.GRANTED
        moved = (PUSH.refs[0]._replace(new="d" * 40), PUSH.refs[1])
        await world.held(task, PUSH._replace(rules=rules, refs=moved))
        more = (*PUSH.refs, Ref("refs/heads/release", "create", "0" * 40, "e" * 40))
        await world.held(task, PUSH._replace(rules=rules, refs=more))

    play(story)


def test_another_rule_that_asks_is_asked_about_by_itself(play):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        await world.approve(id_)
        number, id_ = await world.held(task, CONNECTION._replace(rules=(HOURLY, ANYONE)))
        card = await world.registry.card(id_)
        assert [asks.rule for asks in card.approval.question.rules] == [ANYONE.rule]
        await world.approve(id_)
        assert {one.rule for one in world.answer(number).grants} == {HOURLY.rule, ANYONE.rule}

    play(story)


def test_bytes_are_taken_and_what_is_over_is_cut(play, store):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        (grant,) = (await world.approve(id_, ADA, "bytes 1000")).grants
        assert (await world.asked(task, CONNECTION)).grants[0].bytes == 1000
        await world.registry.received(task, BytesUsed(grant.id, 999))
        assert (await world.asked(task, CONNECTION)).grants[0].bytes == 1
        await world.registry.received(task, BytesUsed(grant.id, 5))
        assert world.replies[task][-1] == GrantsEnded((grant.id,))
        await world.held(task, CONNECTION)
        number, id_ = await world.held(task, REQUEST)  # once: its uses are taken before its bytes
        (once,) = (await world.approve(id_, ADA, "bytes 10")).grants
        assert world.answer(number).grants[0].bytes == 10
        await world.registry.received(task, BytesUsed(once.id, 9))
        assert world.replies[task][-1] == world.answer(number)
        await world.registry.received(task, BytesUsed(once.id, 1))
        assert world.replies[task][-1] == GrantsEnded((once.id,))

    play(story, store)


def test_bytes_under_no_grant_of_this_task_are_cut_and_told(play):
    async def story(world):
        task, other = await world.task(), await world.task("t2")
        _, id_ = await world.held(task, CONNECTION)
        (grant,) = (await world.approve(id_, ADA, "bytes 1000")).grants
        for forged in (grant.id, "abcd2345"):
            await world.registry.received(other, BytesUsed(forged, 400))
            assert world.replies[other][-1] == GrantsEnded((forged,))
        assert (await world.asked(task, CONNECTION)).grants[0].bytes == 1000, "and nothing was taken"
        assert all("no grant of this task" in event["detail"] for event in world.told("approval.refused"))

    play(story)


def test_revoked(play, store):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        (grant,) = (await world.approve(id_)).grants
        assert "may not approve" in await world.refused(world.registry.revoke(grant.id, world.who(MALLORY)))
        assert (
            await world.registry.revoke(grant.id, world.who(BO), "enough") == "revoked: connections that use it are cut"
        )
        assert world.replies[task][-1] == GrantsEnded((grant.id,))
        again = await world.refused(world.registry.revoke(grant.id, world.who(BO)))
        assert "it is over: revoked by bo: enough; nothing has changed" in again
        await world.held(task, CONNECTION)
        assert world.told("approval.expired")[0]["detail"] == "revoked by bo: enough"
        _, id_ = await world.held(task, REQUEST)
        (used,) = (await world.approve(id_)).grants
        assert "uses are taken" in await world.registry.revoke(id_, world.who(ADA))
        assert world.replies[task][-1] == GrantsEnded((used.id,)), "what it let out may still be passing"
        over = (await world.registry.card(id_)).grants
        assert [one.ending for one in over] == ["used, then revoked by ada"]
        again = await world.refused(world.registry.revoke(used.id, world.who(ADA)))
        assert "it is over: used, then revoked by ada; nothing has changed" in again
        assert (await world.registry.card(id_)).grants == over
        _, id_ = await world.held(task, REQUEST)
        (used,) = (await world.approve(id_)).grants
        await world.registry.leave(task)
        assert "it is over: used; nothing has changed" in await world.refused(
            world.registry.revoke(used.id, world.who(ADA))
        )
        assert [one.ending for one in (await world.registry.card(id_)).grants] == ["used"]

    play(story, store)


def test_all_of_a_task_ends_with_it(play, store):
    async def story(world):
        task = await world.task()
        _, granted = await world.held(task, CONNECTION)
        (grant,) = (await world.approve(granted)).grants
        _, id_ = await world.held(task, REQUEST)
        await world.registry.leave(task)
        assert "its task has ended" in await world.refused(world.approve(id_))
        assert "it is over: " in await world.refused(world.registry.revoke(grant.id, world.who(ADA)))
        assert [news.kind for news in world.news if news.approval == id_] == ["asked", "over"]
        with pytest.raises(ValueError, match="has ended"):
            await world.task()
        await world.held(await world.task("t2"), CONNECTION)

    play(story, store)


def test_nothing_is_granted_that_is_not_told(play):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        world.journal.broken = True
        with pytest.raises(OSError, match="no space left"):
            await world.approve(id_)
        assert world.answer(number) is None
        assert (await world.asked(task, CONNECTION)).result is Result.UNAVAILABLE, "nor is anybody asked"
        world.journal.broken = False
        await world.approve(id_, ADA, "uses 2")
        world.journal.broken = True
        assert (await world.asked(task, REQUEST)).result is Result.UNAVAILABLE, "nor is a use taken"
        world.journal.broken = False
        assert (await world.asked(task, REQUEST)).result is Result.GRANTED

    play(story)


def test_what_is_too_large_to_show_is_not_approved_by_itself(play):
    async def story(world):
        task = await world.task()
        large = CONNECTION._replace(path="/" + "x" * 90_000).fitted()
        assert large.cut
        assert (await world.asked(task, large._replace(rules=(ANYONE,)))).result is Result.WIDE
        number, id_ = await world.held(task, large)
        assert "more than is shown" in await world.refused(world.approve(id_, ADA, covers="attempt"))
        await world.approve(id_)
        assert world.answer(number).result is Result.GRANTED

    play(story)


def test_the_rule_wide_grant_serves_other_places(play):
    async def story(world):
        rules = (ANYONE._replace(terms=terms_of(covers=GrantScope.RULE, by_self=True)),)
        task = await world.task()
        _, id_ = await world.held(task, REQUEST._replace(rules=rules))
        await world.approve(id_, ADA, "task")
        assert (await world.asked(task, CONNECTION._replace(rules=rules))).result is Result.GRANTED
        world.hands.pass_(400 * 86400)
        await world.registry.expire()
        assert (await world.asked(task, PUSH._replace(rules=rules))).result is Result.GRANTED

    play(story)
