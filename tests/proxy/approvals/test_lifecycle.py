"""What a grant is good for, and everything that it is not good for: replays are refused with a reason."""

import pytest

from proxy.approvals.approval_request import Ref
from proxy.approvals.protocol import BytesUsed, GrantsEnded, Result
from rules.decision import GrantScope
from tests.proxy.approvals.registry_lab import ADA, BO, MALLORY
from tests.proxy.approvals.sample_requests import (
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

HOUR = 3600.0


def test_single_use_grant_serves_one_of_several_waiters(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        first, id_ = await lab.submit_pending(task, REQUEST)
        second, same = await lab.submit_pending(task, REQUEST._replace(process=PROGRAM, event=EVENT))
        assert same == id_
        third, _ = await lab.submit_pending(task, REQUEST)
        await lab.approve(id_)
        assert lab.answer(first).result is Result.GRANTED
        assert lab.answer(second) is lab.answer(third) is None
        again = lab.pending(second)
        assert again != id_
        assert lab.pending(third) == again
        await lab.approve(again, ADA, "uses 2")
        assert [lab.answer(number).result for number in (second, third)] == [Result.GRANTED] * 2
        number, id_ = await lab.submit_pending(task, REQUEST)
        assert id_ != again
        await lab.reject(id_)
        assert lab.answer(number).result is Result.DENIED

    run_scenario(scenario, store)


def test_late_approval_allows_one_retry(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        lab.clock.advance(121)
        await lab.registry.expire()
        assert (lab.answer(number).result, lab.answer(number).approval) == (Result.TIMEOUT, id_)
        assert lab.recorded()[-1] == "approval.stale"
        await lab.approve(id_)
        assert (await lab.submit_answered(task, REQUEST)).result is Result.GRANTED
        await lab.submit_pending(task, REQUEST)

    run_scenario(scenario, store)


def test_destination_grant_allows_that_destination_for_its_hour(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        decided = await lab.approve(id_)
        assert (
            decided.text
            == "approved: anything this rule asks about at this destination, as often as the task likes, in the next 1h"
        )
        request = REQUEST._replace(protocol="tcp", host="db.example", port=5432, rules=(HOURLY,))
        for question in (CONNECTION, request, CONNECTION):
            assert (await lab.submit_answered(task, question)).result is Result.GRANTED
        await lab.submit_pending(task, CONNECTION._replace(port=5433))
        await lab.submit_pending(task, CONNECTION._replace(host="other.example"))
        lab.replies.clear()
        lab.clock.advance(HOUR)
        await lab.registry.expire()
        assert [reply for reply in lab.replies[task] if isinstance(reply, GrantsEnded)] == [
            GrantsEnded((decided.grants[0].id,))
        ]
        await lab.submit_pending(task, CONNECTION)
        assert [event["detail"] for event in lab.recorded("approval.expired")] == [
            f"the grant {decided.grants[0].id} is over"
        ]

    run_scenario(scenario)


REPLAYED = {
    "another task": ("t2", CONNECTION),
    "a changed rule": ("t1", CONNECTION._replace(rules=(HOURLY._replace(digest="d0" * 32),))),
    "another rule of the same content": ("t1", CONNECTION._replace(rules=(HOURLY._replace(rule="web:other"),))),
    "another destination": ("t1", CONNECTION._replace(host="evil.example")),
    "another protocol": ("t1", CONNECTION._replace(protocol="udp")),
}


@pytest.mark.parametrize("replay", REPLAYED)
def test_grant_does_not_allow_another_attempt(run_scenario, replay):
    async def scenario(lab):
        await lab.task("t2")
        _, id_ = await lab.submit_pending(await lab.task(), CONNECTION)
        await lab.approve(id_)
        await lab.submit_pending(*REPLAYED[replay])

    run_scenario(scenario)


def test_push_grant_allows_only_the_same_objects(run_scenario):
    async def scenario(lab):
        rules = (ASKS._replace(terms=terms_of(by_self=True, lasts=HOUR)),)
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, PUSH._replace(rules=rules))
        await lab.approve(id_)
        assert (await lab.submit_answered(task, PUSH._replace(rules=rules))).result is Result.GRANTED
        moved = (PUSH.refs[0]._replace(new="d" * 40), PUSH.refs[1])
        await lab.submit_pending(task, PUSH._replace(rules=rules, refs=moved))
        more = (*PUSH.refs, Ref("refs/heads/release", "create", "0" * 40, "e" * 40))
        await lab.submit_pending(task, PUSH._replace(rules=rules, refs=more))

    run_scenario(scenario)


def test_only_the_ungranted_ask_rule_is_submitted(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        await lab.approve(id_)
        number, id_ = await lab.submit_pending(task, CONNECTION._replace(rules=(HOURLY, ANYONE)))
        card = await lab.registry.card(id_)
        assert [asks.rule for asks in card.approval.question.rules] == [ANYONE.rule]
        await lab.approve(id_)
        assert {one.rule for one in lab.answer(number).grants} == {HOURLY.rule, ANYONE.rule}

    run_scenario(scenario)


def test_byte_limit_is_counted_down_and_then_ends_the_grant(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        (grant,) = (await lab.approve(id_, ADA, "bytes 1000")).grants
        assert (await lab.submit_answered(task, CONNECTION)).grants[0].bytes == 1000
        await lab.registry.received(task, BytesUsed(grant.id, 999))
        assert (await lab.submit_answered(task, CONNECTION)).grants[0].bytes == 1
        await lab.registry.received(task, BytesUsed(grant.id, 5))
        assert lab.replies[task][-1] == GrantsEnded((grant.id,))
        await lab.submit_pending(task, CONNECTION)
        number, id_ = await lab.submit_pending(task, REQUEST)  # once: its uses are taken before its bytes
        (once,) = (await lab.approve(id_, ADA, "bytes 10")).grants
        assert lab.answer(number).grants[0].bytes == 10
        await lab.registry.received(task, BytesUsed(once.id, 9))
        assert lab.replies[task][-1] == lab.answer(number)
        await lab.registry.received(task, BytesUsed(once.id, 1))
        assert lab.replies[task][-1] == GrantsEnded((once.id,))

    run_scenario(scenario, store)


def test_bytes_reported_under_a_foreign_grant_are_refused_and_recorded(run_scenario):
    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        _, id_ = await lab.submit_pending(task, CONNECTION)
        (grant,) = (await lab.approve(id_, ADA, "bytes 1000")).grants
        for forged in (grant.id, "abcd2345"):
            await lab.registry.received(other, BytesUsed(forged, 400))
            assert lab.replies[other][-1] == GrantsEnded((forged,))
        assert (await lab.submit_answered(task, CONNECTION)).grants[0].bytes == 1000, "and nothing was taken"
        assert all("no grant of this task" in event["detail"] for event in lab.recorded("approval.refused"))

    run_scenario(scenario)


def test_revoked_grant_ends_at_once_and_only_once(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        (grant,) = (await lab.approve(id_)).grants
        assert "may not approve" in await lab.refused(lab.registry.revoke(grant.id, lab.who(MALLORY)))
        assert await lab.registry.revoke(grant.id, lab.who(BO), "enough") == "revoked: connections that use it are cut"
        assert lab.replies[task][-1] == GrantsEnded((grant.id,))
        again = await lab.refused(lab.registry.revoke(grant.id, lab.who(BO)))
        assert "it is over: revoked by bo: enough; nothing has changed" in again
        await lab.submit_pending(task, CONNECTION)
        assert lab.recorded("approval.expired")[0]["detail"] == "revoked by bo: enough"
        _, id_ = await lab.submit_pending(task, REQUEST)
        (used,) = (await lab.approve(id_)).grants
        assert "uses are taken" in await lab.registry.revoke(id_, lab.who(ADA))
        assert lab.replies[task][-1] == GrantsEnded((used.id,)), "what it let out may still be passing"
        over = (await lab.registry.card(id_)).grants
        assert [one.ending for one in over] == ["used, then revoked by ada"]
        again = await lab.refused(lab.registry.revoke(used.id, lab.who(ADA)))
        assert "it is over: used, then revoked by ada; nothing has changed" in again
        assert (await lab.registry.card(id_)).grants == over
        _, id_ = await lab.submit_pending(task, REQUEST)
        (used,) = (await lab.approve(id_)).grants
        await lab.registry.leave(task)
        assert "it is over: used; nothing has changed" in await lab.refused(lab.registry.revoke(used.id, lab.who(ADA)))
        assert [one.ending for one in (await lab.registry.card(id_)).grants] == ["used"]

    run_scenario(scenario, store)


def test_requests_and_grants_end_with_their_task(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        _, granted = await lab.submit_pending(task, CONNECTION)
        (grant,) = (await lab.approve(granted)).grants
        _, id_ = await lab.submit_pending(task, REQUEST)
        await lab.registry.leave(task)
        assert "its task has ended" in await lab.refused(lab.approve(id_))
        assert "it is over: " in await lab.refused(lab.registry.revoke(grant.id, lab.who(ADA)))
        assert [news.kind for news in lab.news if news.approval == id_] == ["asked", "over"]
        with pytest.raises(ValueError, match="has ended"):
            await lab.task()
        await lab.submit_pending(await lab.task("t2"), CONNECTION)

    run_scenario(scenario, store)


def test_grant_that_cannot_be_journaled_is_not_made(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        lab.journal.broken = True
        with pytest.raises(OSError, match="no space left"):
            await lab.approve(id_)
        assert lab.answer(number) is None
        assert (await lab.submit_answered(task, CONNECTION)).result is Result.UNAVAILABLE, "nor is anybody asked"
        lab.journal.broken = False
        await lab.approve(id_, ADA, "uses 2")
        lab.journal.broken = True
        assert (await lab.submit_answered(task, REQUEST)).result is Result.UNAVAILABLE, "nor is a use taken"
        lab.journal.broken = False
        assert (await lab.submit_answered(task, REQUEST)).result is Result.GRANTED

    run_scenario(scenario)


def test_request_too_large_to_show_takes_no_attempt_grant(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        large = CONNECTION._replace(path="/" + "x" * 90_000).fitted()
        assert large.cut
        assert (await lab.submit_answered(task, large._replace(rules=(ANYONE,)))).result is Result.WIDE
        number, id_ = await lab.submit_pending(task, large)
        assert "more than is shown" in await lab.refused(lab.approve(id_, ADA, covers="attempt"))
        await lab.approve(id_)
        assert lab.answer(number).result is Result.GRANTED

    run_scenario(scenario)


def test_rule_wide_grant_allows_other_destinations(run_scenario):
    async def scenario(lab):
        rules = (ANYONE._replace(terms=terms_of(covers=GrantScope.RULE, by_self=True)),)
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, REQUEST._replace(rules=rules))
        await lab.approve(id_, ADA, "task")
        assert (await lab.submit_answered(task, CONNECTION._replace(rules=rules))).result is Result.GRANTED
        lab.clock.advance(400 * 86400)
        await lab.registry.expire()
        assert (await lab.submit_answered(task, PUSH._replace(rules=rules))).result is Result.GRANTED

    run_scenario(scenario)
