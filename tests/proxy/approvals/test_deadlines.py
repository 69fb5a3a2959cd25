"""Clocks that jump, registries that begin anew, and what has ended: nothing comes back."""

import pytest

from proxy.approvals.protocol import GrantsEnded, Hello, Result, Tainted, TaskState, TaskTaint
from proxy.approvals.waiters import Clock
from tests.proxy.approvals.registry_lab import ADA, START, ManualClock
from tests.proxy.approvals.sample_requests import CONNECTION, REQUEST, SOURCE

DAY = 86400.0


def test_clock_continues_steadily_when_set_back():
    manual = ManualClock()
    clock = manual.clock()
    manual.advance(10)
    assert clock.now() == START + 10
    manual.wall = START - DAY
    assert clock.now() == START + 10
    manual.advance(5)
    assert clock.now() == START + 15
    manual.wall = START + DAY
    assert clock.now() == START + DAY
    assert clock.now(START + 2 * DAY) == START + 2 * DAY
    manual.advance(1)
    assert clock.now() == START + 2 * DAY + 1


def test_clock_follows_the_host():
    clock = Clock()
    assert clock.now() <= clock.now()


def test_unanswered_request_expires(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        lab.clock.advance(DAY + 121)
        await lab.registry.expire()
        assert lab.answer(number).result is Result.TIMEOUT
        assert "has expired" in await lab.refused(lab.approve(id_))
        assert "has expired" in await lab.refused(lab.reject(id_))
        assert lab.recorded()[-3:] == ["approval.expired", "approval.refused", "approval.refused"]
        _, again = await lab.submit_pending(task, REQUEST)
        assert again != id_

    run_scenario(scenario, store)


def test_vote_after_the_deadline_is_refused_before_the_sweep(run_scenario):
    async def scenario(lab):
        _, id_ = await lab.submit_pending(await lab.task(), REQUEST)
        lab.clock.advance(2 * DAY)
        assert "has expired" in await lab.refused(lab.approve(id_))

    run_scenario(scenario)


@pytest.mark.parametrize("back", [1.0, DAY, 3650 * DAY])
def test_clock_set_back_extends_no_deadline(run_scenario, back):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        await lab.approve(id_)
        _, pending = await lab.submit_pending(task, REQUEST)
        lab.clock.advance(3599)
        assert (await lab.submit_answered(task, CONNECTION)).result is Result.GRANTED
        lab.clock.wall -= back
        lab.clock.advance(2)
        await lab.submit_pending(task, CONNECTION)
        await lab.registry.expire()
        assert any(isinstance(reply, GrantsEnded) for reply in lab.replies[task])
        lab.clock.advance(DAY)
        assert "has expired" in await lab.refused(lab.approve(pending))

    run_scenario(scenario)


def test_clock_set_forward_ends_what_has_expired(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        _, id_ = await lab.submit_pending(task, CONNECTION)
        await lab.approve(id_)
        number, _ = await lab.submit_pending(task, REQUEST)
        lab.clock.wall += 400 * DAY
        assert lab.registry.next_due() < 0.05
        await lab.registry.expire()
        assert lab.answer(number).result is Result.TIMEOUT
        lab.clock.wall -= 400 * DAY
        await lab.submit_pending(task, CONNECTION)

    run_scenario(scenario)


def test_restarted_registry_keeps_requests_and_deadlines(run_scenario, store):
    clock = ManualClock()
    kept = {}

    async def before(lab):
        task = await lab.task()
        _, kept["granted"] = await lab.submit_pending(task, CONNECTION)
        await lab.approve(kept["granted"], ADA, "uses 3")
        _, kept["pending"] = await lab.submit_pending(task, REQUEST)
        await lab.registry.received(task, Tainted(SOURCE))
        clock.advance(3000)
        await lab.submit_answered(task, CONNECTION)

    async def after(lab):
        task = await lab.task()
        await lab.registry.received(task, Hello())
        assert lab.replies[task] == [TaskState(TaskTaint(tainted=True, tainted_by=(SOURCE,)))]
        assert (await lab.submit_answered(task, CONNECTION)).result is Result.GRANTED
        await lab.submit_pending(task, CONNECTION)  # three uses are three, one went before it was asked
        assert kept["pending"] in {each.id for each in await lab.listed()}
        number, id_ = await lab.submit_pending(task, REQUEST)
        assert id_ == kept["pending"]
        await lab.approve(id_)
        assert lab.answer(number).result is Result.GRANTED

    async def much_later(lab):
        task = await lab.task()
        await lab.submit_pending(task, CONNECTION)

    run_scenario(before, store, clock=clock)
    clock.wall -= DAY  # while it was down
    run_scenario(after, store, clock=clock)
    clock.steady += 601
    clock.wall += 601
    run_scenario(much_later, store, clock=clock)


def test_request_of_an_earlier_worker_is_stale(run_scenario, store):
    async def scenario(lab):
        task = await lab.task()
        number, id_ = await lab.submit_pending(task, REQUEST)
        await lab.registry.received(task, Hello())
        assert lab.replies[task][-1] == TaskState(TaskTaint(tainted=False))
        assert lab.recorded()[-1] == "approval.stale"
        await lab.approve(id_)
        assert lab.answer(number) is None
        assert (await lab.submit_answered(task, REQUEST)).result is Result.GRANTED

    run_scenario(scenario, store)


def test_taint_grows_and_is_recorded_once_per_source(run_scenario, store):
    async def scenario(lab):
        task, other = await lab.task(), await lab.task("t2")
        more = SOURCE._replace(destination="https://forge.example/gist")
        for source in (SOURCE, SOURCE, more):
            lab.clock.advance(1)
            await lab.registry.received(task, Tainted(source))
        await lab.registry.received(task, Hello())
        await lab.registry.received(other, Hello())
        assert lab.replies[task] == [TaskState(TaskTaint(tainted=True, tainted_by=(SOURCE, more)))]
        assert lab.replies[other] == [TaskState(TaskTaint(tainted=False))]
        assert len(lab.recorded("task.tainted")) == 2
        for number in range(70):
            await lab.registry.received(other, Tainted(SOURCE._replace(destination=f"https://{number}.example/")))
        lab.replies.clear()
        await lab.registry.received(other, Hello())
        assert len(lab.replies[other][0].done.tainted_by) == 64

    run_scenario(scenario, store)


def test_next_due_time_is_the_earliest_deadline(run_scenario):
    async def scenario(lab):
        assert lab.registry.next_due() is None
        task = await lab.task()
        await lab.submit_pending(task, REQUEST)
        assert lab.registry.next_due() == 30.0, "in case the clock is set"
        lab.clock.advance(100)
        assert lab.registry.next_due() == pytest.approx(20.0)

    run_scenario(scenario)


def test_taint_source_is_recorded_by_name_or_address_and_port(run_scenario):
    async def scenario(lab):
        task = await lab.task()
        for where in ("api.example:443", "[2001:db8::1]:8443", "192.0.2.1:80"):
            await lab.registry.received(task, Tainted(SOURCE._replace(destination=where)))
        assert [event["destination"] for event in lab.recorded("task.tainted")] == [
            {"name": "api.example", "port": 443},
            {"address": "2001:db8::1", "port": 8443},
            {"address": "192.0.2.1", "port": 80},
        ]

    run_scenario(scenario)
