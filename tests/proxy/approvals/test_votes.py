"""How a question is decided: on both kinds of store, as people see it."""

import pytest

from proxy.approvals.model import Vote
from proxy.approvals.people import People
from proxy.approvals.protocol import Result
from proxy.approvals.votes import CastVote
from rules.decision import GrantScope
from tests.proxy.approvals.approval_samples import ANYONE, ASKS, CONNECTION, HOURLY, PUSH, REQUEST, terms_of
from tests.proxy.approvals.approval_world import ADA, BO, CY, LINTER, MALLORY, STARTER, USERS

DBA = ASKS._replace(rule="db:schema", digest="d9" * 32, terms=terms_of("dba"))


def test_approved(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        decided = await world.approve(id_, why="fine")
        assert decided.final
        assert decided.text == "approved: this very attempt, once, in the next 24h"
        answer = world.answer(number)
        assert (answer.result, answer.approval, answer.by) == (Result.GRANTED, id_, ("ada",))
        assert [(one.rule, one.digest, one.bytes) for one in answer.grants] == [(ANYONE.rule, ANYONE.digest, None)]
        assert world.told() == ["approval.asked", "approval.answered", "approval.used"]
        answered, used = world.journal.events[1:]
        assert answered["approval"]["final"]
        assert answered["approval"]["by"] == ["ada"]
        assert answered["approval"]["why"] == "fine"
        assert used["approval"]["uses"] == 0
        assert used["task"]["id"] == "t1"

    play(story, store)


def test_rejected_and_nobody_is_worn_down_by_asking_again(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        assert (await world.reject(id_, why="not today")).final
        answer = world.answer(number)
        assert (answer.result, answer.by, answer.why) == (Result.DENIED, ("ada",), "not today")
        again = await world.asked(task, REQUEST)
        assert (again.result, again.approval) == (Result.DENIED, id_)
        assert "was rejected already, by ada" in await world.refused(world.approve(id_))
        await world.held(task, REQUEST._replace(path="/other"))  # which nobody said anything about
        assert await world.registry.revoke(id_, world.who(BO)) == "rejection lifted: it may be requested again"
        assert (
            "  rejected     by ada: not today; lifted, so it may be requested again"
            in (await world.registry.card(id_)).text()
        )
        assert await world.refused(world.registry.revoke(id_, world.who(BO))) == (
            "its rejection was lifted already; nothing has changed"
        )
        await world.held(task, REQUEST)

    play(story, store)


def test_a_quorum_is_of_distinct_people_and_not_the_one_who_started_it(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, PUSH)
        assert "started the task" in await world.refused(world.approve(id_, STARTER))
        assert "not in that group" in await world.refused(world.approve(id_, CY))
        assert "may not approve" in await world.refused(world.approve(id_, MALLORY))
        decided = await world.approve(id_, ADA)
        assert (decided.final, decided.text) == (
            False,
            "ada approves; it takes 1 more for web:main-needs-two by release",
        )
        assert "a second vote does not count" in await world.refused(world.approve(id_, ADA))
        assert world.answer(number) is None
        assert (await world.approve(id_, BO)).final
        assert world.answer(number).by == ("ada", "bo")
        assert "was approved already, by ada, bo" in await world.refused(world.approve(id_, BO))
        refused = world.told("approval.refused")
        assert [event["approval"]["by"] for event in refused] == [
            ["starter"],
            ["cy"],
            ["mallory@host"],
            ["ada"],
            ["bo"],
        ]
        assert all(event["detail"] for event in refused)

    play(story, store)


def test_each_rule_wants_its_own_people(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, PUSH._replace(rules=(ASKS, DBA)))
        assert (
            "1 more for web:main-needs-two by release, 1 more for db:schema by dba"
            in (await world.approve(id_, ADA)).text
        )
        assert not (await world.approve(id_, BO)).final
        assert (await world.approve(id_, CY)).final
        assert {one.rule for one in world.answer(number).grants} == {ASKS.rule, DBA.rule}

    play(story, store)


def test_one_rejection_ends_it_and_who_started_it_may_take_it_back(play):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, PUSH)
        await world.approve(id_, ADA)
        assert "not in that group" in await world.refused(world.reject(id_, CY))
        await world.reject(id_, BO)
        assert world.answer(number).result is Result.DENIED
        _, id_ = await world.held(task, PUSH._replace(refs=PUSH.refs[:1]))
        await world.reject(id_, STARTER)
        _, id_ = await world.held(task, PUSH._replace(refs=PUSH.refs[1:]))
        await world.approve(id_, ADA)
        await world.reject(id_, ADA)  # on second thought

    play(story)


def test_a_vote_of_whom_the_group_lost_counts_no_more(play):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, PUSH)
        await world.approve(id_, ADA)
        people = world.registry.people
        world.registry.people = people._replace(groups={"release": frozenset({"bo"})})
        assert not (await world.approve(id_, BO)).final
        assert world.answer(number) is None

    play(story)


def test_who_gets_a_name_later_is_who_started_it_all_the_same(play, store):
    async def story(world):
        named = world.registry.people
        world.registry.people = named._replace(people={name: named.people[name] for name in ("bo", "cy")})
        task = await world.task(starter=ADA)
        _, id_ = await world.held(task, PUSH)
        world.registry.people = named
        assert "ada started the task" in await world.refused(world.approve(id_, ADA))
        await world.task(starter=ADA)  # introduced anew, as after a crash
        assert "ada started the task" in await world.refused(world.approve(id_, ADA))

    play(story, store)


def test_a_group_that_nobody_made_has_nobody_in_it(play):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, REQUEST._replace(rules=(ASKS._replace(terms=terms_of("nobodies")),)))
        assert "there is no such group in `approvers.yaml`" in await world.refused(world.approve(id_))
        card = await world.registry.card(id_)
        assert card.vain == {ASKS.rule: "there is no such group in `approvers.yaml`"}
        assert "  in vain      nobody can give that: there is no such group in `approvers.yaml`\n" in card.text()
        _, id_ = await world.held(
            task, REQUEST._replace(rules=(ASKS._replace(digest="d9" * 32, terms=terms_of("releases")),))
        )
        card = await world.registry.card(id_)
        assert card.vain == {ASKS.rule: "there is no such group in `approvers.yaml`; did you mean `release`?"}

    play(story)


def test_a_card_says_where_there_are_not_people_enough(play):
    async def story(world):
        task = await world.task(starter=ADA)
        for terms, vain in (
            (terms_of("dba", 2), "1 more than there are who may"),
            (terms_of("dba"), None),
        ):
            _, id_ = await world.held(
                task, REQUEST._replace(rules=(ASKS._replace(rule=f"web:q{terms.needed}", terms=terms),))
            )
            assert (await world.registry.card(id_)).vain.get(f"web:q{terms.needed}") == vain

    play(story)


def test_without_a_file_the_owner_approves_what_names_no_group(play):
    async def story(world):
        task = await world.task(starter=ADA)
        _, id_ = await world.held(task, REQUEST)
        assert "mallory may not approve" in await world.refused(world.approve(id_, MALLORY))
        assert (await world.approve(id_, ADA)).final
        assert not (await world.registry.card(id_)).vain
        _, id_ = await world.held(task, PUSH)
        assert "because there is no approvers.yaml" in await world.refused(world.approve(id_, ADA))
        alone = ANYONE._replace(rule="web:other", terms=terms_of(by_self=False))
        _, id_ = await world.held(task, CONNECTION._replace(rules=(alone,)))
        assert "started the task" in await world.refused(world.approve(id_, ADA))

    play(story, people=People(owner=ADA, name_of=lambda uid: USERS.get(uid, "")))


def test_what_is_unknown_is_refused_and_told(play):
    async def story(world):
        assert await world.refused(world.approve("abcd2345")) == "there is no such approval request"
        assert (
            await world.refused(world.registry.revoke("abcd2345", world.who(ADA)))
            == "there is no such grant or approval request"
        )
        assert world.told() == ["approval.refused"] * 2

    play(story)


@pytest.mark.parametrize(
    ("needed", "votes", "final"),
    [
        (1, "L", True),
        (2, "L", False),
        (2, "LA", True),
        (2, "AL", True),
        (3, "LA", False),
        (3, "LAB", True),
        (2, "AB", True),
    ],
)
def test_a_reviewer_never_counts_alone(play, needed, votes, final):
    async def story(world):
        task = await world.task()
        terms = terms_of(needed=needed)
        _, id_ = await world.held(task, REQUEST._replace(rules=(ANYONE._replace(terms=terms),)))
        who = {"L": LINTER, "A": world.who(ADA), "B": world.who(BO)}
        decided = [await world.registry.decide(id_, CastVote(who[vote], Vote.APPROVE)) for vote in votes]
        assert [one.final for one in decided] == [False] * (len(votes) - 1) + [final]
        names = [name for event in world.told("approval.answered") for name in event["approval"]["by"]]
        assert "linter" not in names
        assert ("reviewer linter" in names) == ("L" in votes)

    play(story)


def test_a_reviewer_passes_rejects_and_speaks_only_of_its_own_rules(play):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        assert not (await world.registry.decide(id_, CastVote(LINTER, Vote.PASS, why="it took too long"))).final
        assert "only a reviewer can pass" in await world.refused(
            world.registry.decide(id_, CastVote(world.who(ADA), Vote.PASS))
        )
        other = world.registry.people.by_name("other")
        assert "other doesn't review web:ask" in await world.refused(
            world.registry.decide(id_, CastVote(other, Vote.APPROVE))
        )
        assert "other doesn't review web:ask" in await world.refused(
            world.registry.decide(id_, CastVote(other, Vote.REJECT))
        )
        assert world.registry.people.by_name("ada") is None
        assert world.answer(number) is None
        await world.registry.decide(id_, CastVote(LINTER, Vote.REJECT, why="it smells"))
        assert world.answer(number).by == ("reviewer linter",)

    play(story)


def test_who_looked_is_told_once(play, store):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, REQUEST)
        for uid in (ADA, ADA, BO):
            await world.registry.seen(id_, world.who(uid))
        assert [event["approval"]["by"] for event in world.told("approval.seen")] == [["ada"], ["bo"]]

    play(story, store)


def test_the_narrower_of_two_approvals_counts(play):
    async def story(world):
        terms = terms_of("release", 2, covers=GrantScope.RULE, lasts=3600.0)
        task = await world.task()
        number, id_ = await world.held(task, CONNECTION._replace(rules=(HOURLY._replace(terms=terms),)))
        await world.approve(id_, ADA, "30m", covers="destination")
        decided = await world.approve(id_, BO, "uses 3")
        (grant,) = decided.grants
        assert (grant.uses, grant.ends - grant.made, grant.width) == (3, 1800.0, GrantScope.DESTINATION)
        assert world.answer(number).result is Result.GRANTED

    play(story)
