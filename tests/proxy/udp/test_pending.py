"""Flows that rules ask about: refused at once, as nobody waits on a line, and what is sent again has the answer."""

import contextlib

from proxy.udp.listener import IDLE_BEFORE_EVICTION
from tests.proxy.approvals.people_harness import People
from tests.proxy.udp.udp_lab import CLIENT, UDP, reasons, tried
from tests.support.waiting import wait_until_async

HOST = "host.exeat.internal"
ASKED = f"id: asked, to: {HOST}, ports: PORT/udp, action: ask, approval: {{hold: 60s, open: 1h}}"


@contextlib.asynccontextmanager
async def people_behind(tmp_path, world, udp):
    people = People(tmp_path)
    channel = await people.open()
    asking = people.behind(world.recorder, world.poller, channel, review=udp.gate.review)
    try:
        yield people
    finally:
        udp.gate.close()
        asking.close()
        await people.close()


def test_datagram_is_denied_at_once_and_its_retry_is_relayed(tmp_path):
    async def test(world, udp, server):
        async with people_behind(tmp_path, world, udp) as people:
            udp.send(HOST, server.port)
            id_ = await people.question()
            assert udp.answers.refused == []
            await people.advance(0.1)
            await wait_until_async(lambda: udp.answers.refused)
            assert reasons(world.decisions) == [("blocked", "approval_timeout")]
            assert world.decisions[0]["approval"]["id"] == id_
            assert server.take() is None
            await people.approve(id_)
            udp.send(HOST, server.port)  # too soon: the refusal is remembered for a moment
            udp.now += IDLE_BEFORE_EVICTION
            udp.send(HOST, server.port, b"again")
            assert (await server.hear())[0] == b"again"
            assert reasons(world.decisions)[1:] == [("passed", "approval_granted")]

    tried(test, tmp_path, UDP, ASKED)


def test_granted_flow_relays_its_queued_datagrams(tmp_path):
    async def test(world, udp, server):
        async with people_behind(tmp_path, world, udp) as people:
            udp.send(HOST, server.port, client=40000)
            await people.approve(await people.question(), "task")
            assert (await server.hear())[0] == b"question"
            udp.send(HOST, server.port, b"other", client=40001)
            assert (await server.hear())[0] == b"other"
            assert reasons(world.decisions) == [("passed", "approval_granted")] * 2

    tried(test, tmp_path, UDP, ASKED)


def test_flow_ends_with_its_grant(tmp_path):
    async def test(world, udp, server):
        async with people_behind(tmp_path, world, udp) as people:
            udp.send(HOST, server.port)
            id_ = await people.question()
            await people.approve(id_, "1h")
            await server.hear()
            await people.revoke(id_)
            closing = await world.closing()
            assert (closing["outcome"], closing["reason"]) == ("blocked", "expired")
            assert udp.answers.refused[-1][1][0] == CLIENT

    tried(test, tmp_path, UDP, ASKED)


def test_new_rules_decide_a_pending_flow(tmp_path):
    async def test(world, udp, server):
        async with people_behind(tmp_path, world, udp) as people:
            udp.send(HOST, server.port)
            await people.question()
            udp.reload(tmp_path, f"id: no, to: {HOST}, action: deny")
            assert reasons(world.decisions) == [("blocked", "rule")]
            assert server.take() is None

    tried(test, tmp_path, UDP, ASKED)


def test_flow_that_needs_approval_is_denied_without_approvals(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        assert reasons(world.decisions) == [("blocked", "approval_unavailable")]
        async with people_behind(tmp_path, world, udp) as people:
            people.kill()
            await wait_until_async(lambda: not world.sandbox.approvals.is_there)
            udp.send(HOST, server.port, client=40001)
            await wait_until_async(lambda: len(world.decisions) == 2)
            assert reasons(world.decisions)[1:] == [("blocked", "approval_unavailable")]
            assert server.take() is None
        world.journal.events[:] = [event for event in world.events if event["kind"] != "gate.error"]

    tried(test, tmp_path, UDP, ASKED)
