"""Clocks that jump, registries that begin anew, and what has ended: nothing comes back."""

import pytest

from proxy.approvals.protocol import GrantsEnded, Hello, Result, Tainted, TaskState, TaskTaint
from proxy.approvals.waiters import Clock
from tests.proxy.approvals.approval_samples import CONNECTION, REQUEST, SOURCE
from tests.proxy.approvals.approval_world import ADA, START, Hands

DAY = 86400.0


def test_a_clock_goes_on_at_its_own_pace_when_it_is_set_back():
    hands = Hands()
    clock = hands.clock()
    hands.pass_(10)
    assert clock.now() == START + 10
    hands.wall = START - DAY
    assert clock.now() == START + 10
    hands.pass_(5)
    assert clock.now() == START + 15
    hands.wall = START + DAY
    assert clock.now() == START + DAY
    assert clock.now(START + 2 * DAY) == START + 2 * DAY
    hands.pass_(1)
    assert clock.now() == START + 2 * DAY + 1


def test_the_hosts_own_clocks_are_followed():
    clock = Clock()
    assert clock.now() <= clock.now()


def test_expired(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        world.hands.pass_(DAY + 121)
        await world.registry.expire()
        assert world.answer(number).result is Result.TIMEOUT
        assert "has expired" in await world.refused(world.approve(id_))
        assert "has expired" in await world.refused(world.reject(id_))
        assert world.told()[-3:] == ["approval.expired", "approval.refused", "approval.refused"]
        _, again = await world.held(task, REQUEST)
        assert again != id_

    play(story, store)


def test_what_has_expired_is_refused_before_anybody_has_noticed(play):
    async def story(world):
        _, id_ = await world.held(await world.task(), REQUEST)
        world.hands.pass_(2 * DAY)
        assert "has expired" in await world.refused(world.approve(id_))

    play(story)


@pytest.mark.parametrize("back", [1.0, DAY, 3650 * DAY])
def test_a_clock_that_is_set_back_gives_no_time_back(play, back):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        await world.approve(id_)
        _, pending = await world.held(task, REQUEST)
        world.hands.pass_(3599)
        assert (await world.asked(task, CONNECTION)).result is Result.GRANTED
        world.hands.wall -= back
        world.hands.pass_(2)
        await world.held(task, CONNECTION)
        await world.registry.expire()
        assert any(isinstance(reply, GrantsEnded) for reply in world.replies[task])
        world.hands.pass_(DAY)
        assert "has expired" in await world.refused(world.approve(pending))

    play(story)


def test_a_clock_that_is_set_forward_ends_what_is_over_then(play):
    async def story(world):
        task = await world.task()
        _, id_ = await world.held(task, CONNECTION)
        await world.approve(id_)
        number, _ = await world.held(task, REQUEST)
        world.hands.wall += 400 * DAY
        assert world.registry.next_due() < 0.05
        await world.registry.expire()
        assert world.answer(number).result is Result.TIMEOUT
        world.hands.wall -= 400 * DAY
        await world.held(task, CONNECTION)

    play(story)


def test_a_registry_that_begins_anew_goes_on_and_gives_no_time_back(play, store):
    hands = Hands()
    kept = {}

    async def before(world):
        task = await world.task()
        _, kept["granted"] = await world.held(task, CONNECTION)
        await world.approve(kept["granted"], ADA, "uses 3")
        _, kept["pending"] = await world.held(task, REQUEST)
        await world.registry.received(task, Tainted(SOURCE))
        hands.pass_(3000)
        await world.asked(task, CONNECTION)

    async def after(world):
        task = await world.task()
        await world.registry.received(task, Hello())
        assert world.replies[task] == [TaskState(TaskTaint(tainted=True, tainted_by=(SOURCE,)))]
        assert (await world.asked(task, CONNECTION)).result is Result.GRANTED
        await world.held(task, CONNECTION)  # three uses are three, one went before it was asked
        assert kept["pending"] in {each.id for each in await world.listed()}
        number, id_ = await world.held(task, REQUEST)
        assert id_ == kept["pending"]
        await world.approve(id_)
        assert world.answer(number).result is Result.GRANTED

    async def much_later(world):
        task = await world.task()
        await world.held(task, CONNECTION)

    play(before, store, hands=hands)
    hands.wall -= DAY  # while it was down
    play(after, store, hands=hands)
    hands.steady += 601
    hands.wall += 601
    play(much_later, store, hands=hands)


def test_what_an_earlier_worker_waits_for_is_stale(play, store):
    async def story(world):
        task = await world.task()
        number, id_ = await world.held(task, REQUEST)
        await world.registry.received(task, Hello())
        assert world.replies[task][-1] == TaskState(TaskTaint(tainted=False))
        assert world.told()[-1] == "approval.stale"
        await world.approve(id_)
        assert world.answer(number) is None
        assert (await world.asked(task, REQUEST)).result is Result.GRANTED

    play(story, store)


def test_taint_only_grows_and_is_told_once_a_source(play, store):
    async def story(world):
        task, other = await world.task(), await world.task("t2")
        more = SOURCE._replace(destination="https://forge.example/gist")
        for source in (SOURCE, SOURCE, more):
            world.hands.pass_(1)
            await world.registry.received(task, Tainted(source))
        await world.registry.received(task, Hello())
        await world.registry.received(other, Hello())
        assert world.replies[task] == [TaskState(TaskTaint(tainted=True, tainted_by=(SOURCE, more)))]
        assert world.replies[other] == [TaskState(TaskTaint(tainted=False))]
        assert len(world.told("task.tainted")) == 2
        for number in range(70):
            await world.registry.received(other, Tainted(SOURCE._replace(destination=f"https://{number}.example/")))
        world.replies.clear()
        await world.registry.received(other, Hello())
        assert len(world.replies[other][0].done.tainted_by) == 64

    play(story, store)


def test_when_it_is_next_due(play):
    async def story(world):
        assert world.registry.next_due() is None
        task = await world.task()
        await world.held(task, REQUEST)
        assert world.registry.next_due() == 30.0, "in case the clock is set"
        world.hands.pass_(100)
        assert world.registry.next_due() == pytest.approx(20.0)

    play(story)


def test_a_source_is_told_by_its_name_or_its_address_and_port(play):
    async def story(world):
        task = await world.task()
        for where in ("api.example:443", "[2001:db8::1]:8443", "192.0.2.1:80"):
            await world.registry.received(task, Tainted(SOURCE._replace(destination=where)))
        assert [event["destination"] for event in world.told("task.tainted")] == [
            {"name": "api.example", "port": 443},
            {"address": "2001:db8::1", "port": 8443},
            {"address": "192.0.2.1", "port": 80},
        ]

    play(story)
