"""How a question is decided: on both kinds of store, as people see it."""

import pytest

from proxy.approvals.model import Vote
from proxy.approvals.people import People
from proxy.approvals.protocol import Result
from proxy.approvals.votes import CastVote
from rules.decision import GrantScope
from tests.proxy.approvals.registry_lab import ADA, BO, CY, LINTER, MALLORY, STARTER, USERS
from tests.proxy.approvals.sample_requests import ANYONE, ASKS, CONNECTION, HOURLY, PUSH, REQUEST, terms_of

DBA = ASKS._replace(rule="db:schema", digest="d9" * 32, terms=terms_of("dba"))


def test_approval_grants_the_waiting_attempt(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        decided = await lab.approve(id_, why="fine")
        assert decided.final
        assert decided.text == "approved: this very attempt, once, in the next 24h"
        answer = lab.answer(number)
        assert (answer.result, answer.approval, answer.by) == (Result.GRANTED, id_, ("ada",))
        assert [(one.rule, one.digest, one.bytes) for one in answer.grants] == [(ANYONE.rule, ANYONE.digest, None)]
        assert lab.recorded() == ["approval.asked", "approval.answered", "approval.used"]
        answered, used = lab.journal.events[1:]
        assert answered["approval"]["final"]
        assert answered["approval"]["by"] == ["ada"]
        assert answered["approval"]["why"] == "fine"
        assert used["approval"]["uses"] == 0
        assert used["task"]["id"] == "t1"

    run_scenario(scenario, store)


def test_rejection_stands_for_repeated_requests_until_lifted(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        assert (await lab.reject(id_, why="not today")).final
        answer = lab.answer(number)
        assert (answer.result, answer.by, answer.why) == (Result.DENIED, ("ada",), "not today")
        again = await lab.submit_answered(task, REQUEST)
        assert (again.result, again.approval) == (Result.DENIED, id_)
        assert "was rejected already, by ada" in await lab.refused(lab.approve(id_))
        await lab.submit_pending(task, REQUEST._replace(path="/other"))  # which nobody said anything about
        assert await lab.registry.revoke(id_, lab.who(BO)) == "rejection lifted: it may be requested again"
        assert (
            "  rejected     by ada: not today; lifted, so it may be requested again"
            in (await lab.registry.card(id_)).text()
        )
        assert await lab.refused(lab.registry.revoke(id_, lab.who(BO))) == (
            "its rejection was lifted already; nothing has changed"
        )
        await lab.submit_pending(task, REQUEST)

    run_scenario(scenario, store)


def test_quorum_counts_distinct_people_other_than_the_starter(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, PUSH)
        assert "started the task" in await lab.refused(lab.approve(id_, STARTER))
        assert "not in that group" in await lab.refused(lab.approve(id_, CY))
        assert "may not approve" in await lab.refused(lab.approve(id_, MALLORY))
        decided = await lab.approve(id_, ADA)
        assert (decided.final, decided.text) == (
            False,
            "ada approves; it takes 1 more for web:main-needs-two by release",
        )
        assert "a second vote does not count" in await lab.refused(lab.approve(id_, ADA))
        assert lab.answer(number) is None
        assert (await lab.approve(id_, BO)).final
        assert lab.answer(number).by == ("ada", "bo")
        assert "was approved already, by ada, bo" in await lab.refused(lab.approve(id_, BO))
        refused = lab.recorded("approval.refused")
        assert [event["approval"]["by"] for event in refused] == [
            ["starter"],
            ["cy"],
            ["mallory@host"],
            ["ada"],
            ["bo"],
        ]
        assert all(event["detail"] for event in refused)

    run_scenario(scenario, store)


def test_each_rule_needs_votes_of_its_own_group(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, PUSH._replace(rules=(ASKS, DBA)))
        assert (
            "1 more for web:main-needs-two by release, 1 more for db:schema by dba"
            in (await lab.approve(id_, ADA)).text
        )
        assert not (await lab.approve(id_, BO)).final
        assert (await lab.approve(id_, CY)).final
        assert {one.rule for one in lab.answer(number).grants} == {ASKS.rule, DBA.rule}

    run_scenario(scenario, store)


def test_one_rejection_ends_a_request_and_the_starter_may_reject(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, PUSH)
        await lab.approve(id_, ADA)
        assert "not in that group" in await lab.refused(lab.reject(id_, CY))
        await lab.reject(id_, BO)
        assert lab.answer(number).result is Result.DENIED
        _, id_ = await lab.submit_pending(task, PUSH._replace(refs=PUSH.refs[:1]))
        await lab.reject(id_, STARTER)
        _, id_ = await lab.submit_pending(task, PUSH._replace(refs=PUSH.refs[1:]))
        await lab.approve(id_, ADA)
        await lab.reject(id_, ADA)  # on second thought

    run_scenario(scenario)


def test_vote_of_a_former_group_member_does_not_count(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, PUSH)
        await lab.approve(id_, ADA)
        people = lab.registry.people
        lab.registry.people = people._replace(groups={"release": frozenset({"bo"})})
        assert not (await lab.approve(id_, BO)).final
        assert lab.answer(number) is None

    run_scenario(scenario)


def test_starter_named_later_is_still_the_starter(run_scenario, store):
    async def scenario(lab):
        named = lab.registry.people
        lab.registry.people = named._replace(people={name: named.people[name] for name in ("bo", "cy")})
        task = await lab.task(starter=ADA)
        _, id_ = await lab.submit_pending(task, PUSH)
        lab.registry.people = named
        assert "ada started the task" in await lab.refused(lab.approve(id_, ADA))
        await lab.task(starter=ADA)  # introduced anew, as after a crash
        assert "ada started the task" in await lab.refused(lab.approve(id_, ADA))

    run_scenario(scenario, store)


def test_unknown_group_cannot_approve_and_the_card_says_so(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, REQUEST._replace(rules=(ASKS._replace(terms=terms_of("nobodies")),)))
        assert "there is no such group in `approvers.yaml`" in await lab.refused(lab.approve(id_))
        card = await lab.registry.card(id_)
        assert card.vain == {ASKS.rule: "there is no such group in `approvers.yaml`"}
        assert "  in vain      nobody can give that: there is no such group in `approvers.yaml`\n" in card.text()
        _, id_ = await lab.submit_pending(
            task, REQUEST._replace(rules=(ASKS._replace(digest="d9" * 32, terms=terms_of("releases")),))
        )
        card = await lab.registry.card(id_)
        assert card.vain == {ASKS.rule: "there is no such group in `approvers.yaml`; did you mean `release`?"}

    run_scenario(scenario)


def test_card_says_when_a_group_is_too_small(run_scenario):
    async def scenario(lab):
        task = await lab.task(starter=ADA)
        for terms, vain in (
            (terms_of("dba", 2), "1 more than there are who may"),
            (terms_of("dba"), None),
        ):
            _, id_ = await lab.submit_pending(
                task, REQUEST._replace(rules=(ASKS._replace(rule=f"web:q{terms.needed}", terms=terms),))
            )
            assert (await lab.registry.card(id_)).vain.get(f"web:q{terms.needed}") == vain

    run_scenario(scenario)


def test_without_a_file_the_owner_approves_rules_without_a_group(run_scenario):
    async def scenario(lab):
        task = await lab.task(starter=ADA)
        _, id_ = await lab.submit_pending(task, REQUEST)
        assert "mallory may not approve" in await lab.refused(lab.approve(id_, MALLORY))
        assert (await lab.approve(id_, ADA)).final
        assert not (await lab.registry.card(id_)).vain
        _, id_ = await lab.submit_pending(task, PUSH)
        assert "because there is no approvers.yaml" in await lab.refused(lab.approve(id_, ADA))
        alone = ANYONE._replace(rule="web:other", terms=terms_of(by_self=False))
        _, id_ = await lab.submit_pending(task, CONNECTION._replace(rules=(alone,)))
        assert "started the task" in await lab.refused(lab.approve(id_, ADA))

    run_scenario(scenario, people=People(owner=ADA, name_of=lambda uid: USERS.get(uid, "")))


def test_unknown_ids_are_refused_and_recorded(run_scenario):
    async def scenario(lab):
        assert await lab.refused(lab.approve("abcd2345")) == "there is no such approval request"
        assert (
            await lab.refused(lab.registry.revoke("abcd2345", lab.who(ADA)))
            == "there is no such grant or approval request"
        )
        assert lab.recorded() == ["approval.refused"] * 2

    run_scenario(scenario)


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
def test_reviewer_vote_counts_as_one_vote(run_scenario, needed, votes, final):
    async def scenario(lab):
        task = await lab.task()
        terms = terms_of(needed=needed)
        _, id_ = await lab.submit_pending(task, REQUEST._replace(rules=(ANYONE._replace(terms=terms),)))
        who = {"L": LINTER, "A": lab.who(ADA), "B": lab.who(BO)}
        decided = [await lab.registry.decide(id_, CastVote(who[vote], Vote.APPROVE)) for vote in votes]
        assert [one.final for one in decided] == [False] * (len(votes) - 1) + [final]
        names = [name for event in lab.recorded("approval.answered") for name in event["approval"]["by"]]
        assert "linter" not in names
        assert ("reviewer linter" in names) == ("L" in votes)

    run_scenario(scenario)


def test_reviewer_votes_only_on_its_own_rules(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        assert not (await lab.registry.decide(id_, CastVote(LINTER, Vote.PASS, why="it took too long"))).final
        assert "only a reviewer can pass" in await lab.refused(
            lab.registry.decide(id_, CastVote(lab.who(ADA), Vote.PASS))
        )
        other = lab.registry.people.by_name("other")
        assert "other doesn't review web:ask" in await lab.refused(
            lab.registry.decide(id_, CastVote(other, Vote.APPROVE))
        )
        assert "other doesn't review web:ask" in await lab.refused(
            lab.registry.decide(id_, CastVote(other, Vote.REJECT))
        )
        assert lab.registry.people.by_name("ada") is None
        assert lab.answer(number) is None
        await lab.registry.decide(id_, CastVote(LINTER, Vote.REJECT, why="it smells"))
        assert lab.answer(number).by == ("reviewer linter",)

    run_scenario(scenario)


def test_view_of_a_card_is_recorded_once_per_person(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, REQUEST)
        for uid in (ADA, ADA, BO):
            await lab.registry.seen(id_, lab.who(uid))
        assert [event["approval"]["by"] for event in lab.recorded("approval.seen")] == [["ada"], ["bo"]]

    run_scenario(scenario, store)


def test_narrower_of_two_approvals_applies(run_scenario):
    async def scenario(lab):
        terms = terms_of("release", 2, covers=GrantScope.RULE, lasts=3600.0)
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, CONNECTION._replace(rules=(HOURLY._replace(terms=terms),)))
        await lab.approve(id_, ADA, "30m", covers="destination")
        decided = await lab.approve(id_, BO, "uses 3")
        (grant,) = decided.grants
        assert (grant.uses, grant.ends - grant.made, grant.width) == (3, 1800.0, GrantScope.DESTINATION)
        assert lab.answer(number).result is Result.GRANTED

    run_scenario(scenario)
