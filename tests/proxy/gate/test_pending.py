"""Connections that rules ask about: held until people have said what becomes of them, with nothing sent anywhere."""

import asyncio
import socket

import pytest

from rules.verdicts import Outcome, Reason
from tests.proxy.gate.approvals_lab import ASKED, ASKED_TLS, held, spoken, summed, told, untouched
from tests.proxy.gate.gate_lab import client_hello
from tests.support.waiting import wait_until_async


@pytest.mark.parametrize("name", ["raw.example", "good.example"])
def test_pending_connection_is_spliced_after_the_grant(tmp_path, name):
    async def test(world, people):
        task = await world.connect(name)
        first = client_hello(name) if name == "good.example" else b"hello"
        await task.send(first)
        id_ = await people.question()
        assert untouched(world)
        assert world.decisions == []
        await people.approve(id_)
        await spoken(world, task, first)
        assert told(world) == [("allow", "passed", "approval_granted", id_)]

    held(tmp_path, test)


INSIDE = ASKED.replace("to: raw.example,", "to: inside.example, resolves_to: 127.0.0.0/8,")
LET_OUT = "id: inside, to: inside.example, resolves_to: 127.0.0.0/8, ports: [ORIGIN/tcp], action: allow"
ANYWHERE = "id: anywhere, to: '*', resolves_to: 127.0.0.0/8, action: ask"
NOT_THERE = INSIDE.replace("127.0.0.0/8", "10.0.0.0/8")
PUBLIC = ASKED.replace("raw.example", "inside.example")


@pytest.mark.parametrize("rules", [(INSIDE,), (LET_OUT, INSIDE), (LET_OUT, ANYWHERE), (LET_OUT, PUBLIC)])
def test_connection_to_a_private_address_is_spliced_after_the_grant(tmp_path, rules):
    async def test(world, people):
        world.servers.known["inside.example", "A"] = ["127.0.0.1"]
        task = await world.connect("inside.example")
        await task.send(b"hello")
        id_ = await people.question()
        assert (world.origin.accepted, world.decisions) == (0, [])
        await people.approve(id_)
        await spoken(world, task)
        assert told(world) == [("allow", "passed", "approval_granted", id_)]

    held(tmp_path, test, *rules)


@pytest.mark.parametrize(
    ("rule", "address", "reason"),
    [
        (NOT_THERE, "127.0.0.1", "address_not_listed"),
        (PUBLIC, "127.0.0.1", "non_public_address"),
        (INSIDE, None, "unresolved"),
    ],
)
def test_no_request_is_made_if_an_approval_would_not_help(tmp_path, rule, address, reason):
    async def test(world, people):
        if address is not None:
            world.servers.known["inside.example", "A"] = [address]
        task = await world.connect("inside.example")
        await task.send(b"hello")
        await world.decision()
        assert told(world) == [("deny", "blocked", reason, "")]
        assert world.decisions[0]["rules"] == ["r:asked"]
        assert people.asked() == []
        assert world.origin.accepted == 0

    held(tmp_path, test, rule)


def test_name_under_a_wildcard_is_not_looked_up_before_the_grant(tmp_path):
    """The task chose it: whoever serves that zone would read what it says."""
    wide = INSIDE.replace("inside.example", "'*.example'")

    async def test(world, people):
        world.servers.known["inside.example", "A"] = ["127.0.0.1"]
        task = await world.connect("inside.example")
        await task.send(b"hello")
        id_ = await people.question()
        assert untouched(world)
        await people.approve(id_)
        await spoken(world, task)

    held(tmp_path, test, wide)


def test_lookup_timeout_makes_no_request(tmp_path):
    async def test(world, people):
        world.servers.hold = asyncio.Event()
        task = await world.connect("inside.example")
        await task.send(b"hello")
        await wait_until_async(lambda: world.servers.asked)
        (connection,) = world.gate.connections
        connection.tick(asyncio.get_running_loop().time() + 60)
        await world.decision()
        assert told(world) == [("deny", "blocked", "unresolved", "")]
        world.servers.hold.set()
        await asyncio.sleep(0.01)
        assert people.asked() == []

    held(tmp_path, test, INSIDE)


@pytest.mark.parametrize("name", ["raw.example", "good.example"])
def test_rejected_connection_ends_with_the_reason(tmp_path, name):
    async def test(world, people):
        task = await world.connect(name)
        await task.send(client_hello(name) if name == "good.example" else b"hello")
        id_ = await people.question()
        await people.reject(id_, "not on a friday")
        await world.decision()
        assert told(world) == [("deny", "blocked", "approval_denied", id_)]
        assert world.decisions[0]["detail"] == "not on a friday"
        assert untouched(world)
        if name == "raw.example":
            assert await task.ended() == "reset"
        else:  # the page that says so
            (admitted,) = world.adopted
            assert (admitted.gate_decision.approval, admitted.gate_decision.detail) == (id_, "not on a friday")

    held(tmp_path, test)


def test_unanswered_connection_is_denied_and_its_retry_gets_the_answer(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        id_ = await people.question()
        await people.advance(61)
        assert await task.ended() == "reset"
        assert told(world) == [("deny", "blocked", "approval_timeout", id_)]
        await people.approve(id_)
        again = await world.connect("raw.example")
        await again.send(b"hello")
        await spoken(world, again)
        assert told(world)[1:] == [("allow", "passed", "approval_granted", id_)]
        assert summed(world) == "1 held: 1 not answered in time"  # nobody was asked about the retry
        once_more = await world.connect("raw.example")
        await people.question(2)  # it was good for one
        once_more.close()

    held(tmp_path, test)


def test_standing_rejection_denies_without_a_pending_connection(tmp_path):
    async def test(world, people):
        for number in range(3):
            task = await world.connect("raw.example")
            if not number:
                await people.reject(await people.question())
            assert await task.ended() == "reset"
        assert [reason for _, _, reason, _ in told(world)] == ["approval_denied"] * 3
        assert summed(world) == "1 held: 1 refused"

    held(tmp_path, test)


def test_two_equal_connections_share_one_request(tmp_path):
    async def test(world, people):
        tasks = [await world.connect("raw.example") for _ in range(2)]
        id_ = await people.question()
        await wait_until_async(lambda: len(people.replies) >= 4)  # a state, a fence, and two that wait
        assert people.asked() == [id_]
        await people.approve(id_, "uses 2")
        for task in tasks:
            await task.send(b"hello")
        for _ in tasks:
            server = await world.origin.take()
            assert await server.read_exactly(5) == b"hello"
        assert told(world) == [("allow", "passed", "approval_granted", id_)] * 2
        assert summed(world) == "2 held: 2 approved"

    held(tmp_path, test)


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
def test_client_end_withdraws_the_request(tmp_path, how):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        id_ = await people.question()
        getattr(task, how)()
        await world.decision()
        assert told(world) == [("deny", "blocked", "approval_timeout", id_)]
        assert world.decisions[0]["detail"] == "the client went away while people were asked"
        assert summed(world) == "1 held: 1 given up"
        await wait_until_async(lambda: "approval.stale" in people.kinds())
        assert len(world.gate.connections) == 0
        await people.approve(id_)  # it is still open, for a retry
        assert untouched(world)

    held(tmp_path, test)


def test_pending_connection_counts_against_the_maximum(tmp_path):
    async def test(world, people):
        first = await world.connect("raw.example")
        await people.question()
        beyond = await world.connect("raw.example")
        assert await beyond.ended() == "reset"
        assert [line[2] for line in told(world)] == ["limit_exceeded"]
        first.close()

    held(tmp_path, test, most=1)


def test_connection_is_reset_when_its_grant_ends(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        id_ = await people.question()
        await people.approve(id_, "1h")
        server = await spoken(world, task)
        await people.revoke(id_)
        assert await task.ended() == "reset"
        assert await server.ended() == "reset"
        closing = await world.closing()
        assert (closing["outcome"], closing["reason"], closing["rules"]) == ("blocked", "expired", ["r:asked"])

    held(tmp_path, test)


def test_block_page_for_a_limit_outlives_the_grant(tmp_path):
    """Inspection has its socket by then: whatever ends the grant must not close it beneath inspection."""
    limited = f"{ASKED_TLS}, limits: {{connections: 1}}"

    async def test(world, people):
        first = await world.connect("good.example")
        await first.send(client_hello())
        id_ = await people.question()
        await people.approve(id_, "1h", "uses 5")
        await world.origin.take()
        second = await world.connect("good.example")
        await second.send(client_hello())
        await wait_until_async(lambda: world.adopted)
        assert world.decisions[1]["reason"] == "limit_exceeded"
        await people.revoke(id_)
        assert await first.ended() == "reset"
        (page,) = world.adopted
        assert page.client.fileno() >= 0
        (left,) = world.gate.connections
        left._end(Outcome.FAILED, Reason.GATE_ERROR)
        assert page.client.fileno() >= 0
        page.client.close()
        page.closed(0, 0, None)
        assert not world.gate.connections

    held(tmp_path, test, limited)


def test_connection_relays_no_more_bytes_than_granted(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        id_ = await people.question()
        await people.approve(id_, "bytes 100", "uses 5")
        server = await spoken(world, task)
        await task.send(b"x" * 80)
        assert await server.read_exactly(80) == b"x" * 80
        await task.send(b"y" * 20)
        assert await server.ended() == "reset"
        closing = await world.closing()
        assert (closing["outcome"], closing["reason"], closing["bytes"]) == (
            "blocked", "limit_exceeded", {"up": 85, "down": 7},
        )  # fmt: skip
        again = await world.connect("raw.example")  # the registry knows, too
        await people.question(2)
        again.close()

    held(tmp_path, test)


def test_asks_of_two_layers_are_requested_in_turn(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        first = await people.question()
        assert {rule.rule for word in people.said if hasattr(word, "question") for rule in word.question.rules} == {
            "r:asked", "r:other",
        }  # fmt: skip
        await people.approve(first)
        await spoken(world, task)
        assert [line[2] for line in told(world)] == ["approval_granted"]

    other = "id: other, to: '*.example', ports: [ORIGIN/tcp], action: ask"
    held(tmp_path, test, ASKED, other)


def test_pending_connection_is_recorded_only_when_decided(tmp_path):
    """One decision, one event (invariant 6), also where it took two rounds and a client that went away."""

    async def test(world, people):
        task = await world.connect("raw.example")
        await people.question()
        task.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        task.close()
        world.gate.review()
        await world.decision()
        await asyncio.sleep(0.05)
        assert len(world.decisions) == 1

    held(tmp_path, test)
