"""Flows of datagrams that rules ask about, where the answer depends on the address that a name leads to."""

import asyncio

import pytest

from proxy.dialing.dialer import LOOKUP_TIMEOUT
from tests.proxy.approvals.people_harness import People
from tests.proxy.gate.approvals_lab import told
from tests.proxy.udp.udp_lab import ELSEWHERE, tried
from tests.support.waiting import wait_until_async

ASKED = "id: asked, to: inside.example, ports: PORT/udp, action: ask, approval: {hold: 60s, open: 1h}"
INSIDE = ASKED.replace("action", "resolves_to: 127.0.0.0/8, action")
NOT_THERE = INSIDE.replace("127.0.0.0/8", "10.0.0.0/8")
LET_OUT = "id: inside, to: inside.example, resolves_to: 127.0.0.0/8, ports: PORT/udp, action: allow"
BY_ADDRESS = "id: anywhere, to: '*', ports: PORT/udp, resolves_to: 127.0.0.0/8, action: ask"


def held(tmp_path, test, *rules):
    """Run a test with a gate for datagrams and the people behind it."""

    async def around(world, udp, server):
        people = People(tmp_path)
        people.behind(world.recorder, world.poller, await people.open(), review=udp.gate.review)
        try:
            await test(world, udp, server, people)
        finally:
            world.sandbox.approvals.close()
            await people.close()

    tried(around, tmp_path, *rules)


@pytest.mark.parametrize(
    "rules", [(INSIDE,), (LET_OUT, INSIDE), (LET_OUT, BY_ADDRESS), (LET_OUT, ASKED)],
    ids=["inside", "beside an allow", "by address, after the lookup", "of a public address"],
)  # fmt: skip
def test_flow_to_a_private_address_is_relayed_after_the_grant(tmp_path, rules):
    async def test(world, udp, server, people):
        world.servers.known["inside.example", "A"] = ["127.0.0.1"]
        udp.send("inside.example", server.port, b"one")
        id_ = await people.question()
        udp.send("inside.example", server.port, b"two")
        assert (server.take(), world.decisions, udp.gate.flows) == (None, [], 1)
        await people.approve(id_)
        assert [(await server.hear())[0] for _ in range(2)] == [b"one", b"two"]
        assert told(world) == [("allow", "passed", "approval_granted", id_)]
        assert world.decisions[0]["destination"]["address"] == "127.0.0.1"

    held(tmp_path, test, *rules)


@pytest.mark.parametrize("rules", [(INSIDE,), (LET_OUT, BY_ADDRESS)], ids=["inside", "by address, after the lookup"])
def test_rejected_flow_is_denied_and_sends_nothing(tmp_path, rules):
    async def test(world, udp, server, people):
        world.servers.known["inside.example", "A"] = ["127.0.0.1"]
        udp.send("inside.example", server.port)
        id_ = await people.question()
        await people.reject(id_, "not today")
        await wait_until_async(lambda: world.decisions)
        assert told(world) == [("deny", "blocked", "approval_denied", id_)]
        assert (len(udp.answers.refused), server.take()) == (1, None)

    held(tmp_path, test, *rules)


@pytest.mark.parametrize(
    ("rule", "address", "reason"),
    [
        (NOT_THERE, "127.0.0.1", "address_not_listed"),
        (ASKED, "127.0.0.1", "non_public_address"),
        (INSIDE, None, "unresolved"),
    ],
)
def test_no_request_is_made_if_an_approval_would_not_help(tmp_path, rule, address, reason):
    async def test(world, udp, server, people):
        if address is not None:
            world.servers.known["inside.example", "A"] = [address]
        udp.send("inside.example", server.port)
        await wait_until_async(lambda: world.decisions)
        assert told(world) == [("deny", "blocked", reason, "")]
        assert world.decisions[0]["rules"] == ["r:asked"]
        assert (len(udp.answers.refused), people.asked(), server.take()) == (1, [], None)

    held(tmp_path, test, rule)


def test_lookup_timeout_makes_no_request(tmp_path):
    async def test(world, udp, server, people):
        world.servers.hold = asyncio.Event()
        udp.send("inside.example", server.port)
        await wait_until_async(lambda: world.servers.asked)
        udp.now += LOOKUP_TIMEOUT
        udp.gate.periodic_tasks.go()
        assert told(world) == [("deny", "blocked", "unresolved", "")]
        world.servers.hold.set()
        await asyncio.sleep(0.01)
        assert people.asked() == []

    held(tmp_path, test, INSIDE, ELSEWHERE)


def test_lookup_for_a_second_request_has_its_own_deadline(tmp_path):
    async def test(world, udp, server, people):
        world.servers.known["inside.example", "A"] = ["127.0.0.1"]
        udp.send("inside.example", server.port)
        await people.question()
        world.servers.hold = asyncio.Event()
        udp.now += LOOKUP_TIMEOUT
        udp.reload(tmp_path, INSIDE.replace("PORT", str(server.port)))
        await wait_until_async(lambda: world.servers.asked)
        udp.gate.periodic_tasks.go()
        assert world.decisions == []
        world.servers.hold.set()
        await wait_until_async(lambda: len(people.asked()) == 2)
        await people.approve(people.asked()[1])
        assert (await server.hear())[0] == b"question"

    held(tmp_path, test, INSIDE.replace("inside.example", "'*.example'").replace("id: asked", "id: any"))


def test_name_under_a_wildcard_is_not_looked_up_before_the_grant(tmp_path):
    """The task chose it: whoever serves that zone would read what it says."""

    async def test(world, udp, server, people):
        world.servers.known["inside.example", "A"] = ["127.0.0.1"]
        udp.send("inside.example", server.port, b"one")
        id_ = await people.question()
        assert world.servers.asked == []
        await people.approve(id_)
        assert (await server.hear())[0] == b"one"

    held(tmp_path, test, INSIDE.replace("inside.example", "'*.example'"))
