"""What is held while something else changes: the rules, the registry that would answer, the gate itself."""

import asyncio

import pytest

from proxy.approvals.protocol import Withdraw
from proxy.approvals.votes import VoteRefusedError
from tests.proxy.gate.approvals_lab import ASKED, held, reload, spoken, told, untouched
from tests.proxy.gate.gate_lab import RAW
from tests.support.waiting import wait_until_async


def test_connection_that_needs_approval_is_denied_without_a_registry(tmp_path):
    async def test(world, people):
        waiting = await world.connect("raw.example")
        await waiting.send(b"hello")
        id_ = await people.question()
        people.kill()
        assert await waiting.ended() == "reset"
        assert told(world) == [("deny", "blocked", "approval_unavailable", id_)]
        at_once = await world.connect("raw.example")
        assert await at_once.ended() == "reset"
        assert [line[2] for line in told(world)] == ["approval_unavailable"] * 2
        assert untouched(world)
        assert [e["fault"]["where"] for e in world.errors] == ["approvals"]

    held(tmp_path, test)


def test_returning_registry_gets_the_requests_again(tmp_path):
    async def test(world, people):
        waiting = await world.connect("raw.example")
        await people.question()
        before = world.sandbox.approvals.renew(await people.pair())
        assert await waiting.ended() == "reset"
        again = await world.connect("raw.example")
        await again.send(b"hello")
        await wait_until_async(lambda: len([one for one in people.replies if type(one).__name__ == "Pending"]) == 2)
        await people.approve(people.asked()[0])
        await spoken(world, again)
        before.close()

    held(tmp_path, test)


def test_silent_registry_is_given_up_after_a_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.approvals.client.SLACK", -0.95)

    async def test(world, people):
        people.mute = True
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["approval_unavailable"]
        await wait_until_async(lambda: any(isinstance(word, Withdraw) for word in people.said))

    held(tmp_path, test, ASKED.replace("hold: 60s", "hold: 1s"))


RELOADS = {
    "a deny": (["id: no, to: raw.example, action: deny"], "rule"),
    "no rule": (["id: other, to: other.example, action: allow"], "no_rule"),
}


@pytest.mark.parametrize(("rules", "reason"), RELOADS.values(), ids=RELOADS)
def test_new_rules_decide_pending_connections_at_once(tmp_path, rules, reason):
    async def test(world, people):
        task = await world.connect("raw.example")
        id_ = await people.question()
        reload(world, tmp_path, *rules)
        assert await task.ended() == "reset"
        assert told(world) == [("deny", "blocked", reason, "")]
        await wait_until_async(lambda: any(isinstance(word, Withdraw) for word in people.said))
        await people.approve(id_)
        assert untouched(world)

    held(tmp_path, test)


def test_new_allow_rule_splices_a_pending_connection(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        await people.question()
        reload(world, tmp_path, RAW)
        await spoken(world, task)
        assert told(world) == [("allow", "passed", "rule", "")]

    held(tmp_path, test)


def test_new_rules_keep_an_equal_request_and_replace_others(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        first = await people.question()
        reload(world, tmp_path, RAW, ASKED, "id: more, to: more.example, action: allow")
        await asyncio.sleep(0.05)
        assert not any(isinstance(word, Withdraw) for word in people.said)
        reload(world, tmp_path, RAW, ASKED.replace("hold: 60s", "hold: 30s"))  # another rule, by its content
        second = await people.question(2)
        with pytest.raises(VoteRefusedError, match=f"has no effect: .* it is asked as {second} now"):
            await people.approve(first)
        assert untouched(world)
        await people.approve(second)
        await spoken(world, task)
        assert told(world) == [("allow", "passed", "approval_granted", second)]

    held(tmp_path, test)


def test_grant_of_an_earlier_rule_version_is_ignored(tmp_path):
    async def test(world, people):
        await world.connect("raw.example")
        await people.approve(await people.question(), "task")
        await world.decision()
        reload(world, tmp_path, RAW, ASKED.replace("hold: 60s", "hold: 30s"))
        await world.closing()  # what passed under the grant of the other
        await world.connect("raw.example")
        await people.question(2)
        assert [line[2] for line in told(world)] == ["approval_granted"]

    held(tmp_path, test)


def test_answer_to_an_earlier_worker_is_ignored(tmp_path):
    """Packets that nobody read stay in the socket: numbers of one worker are never those of another."""

    async def test(world, people):
        channel = people._channels[1]
        for number in range(1, 200):
            channel.send(
                b'{"type":"answer","number":%d,"result":"granted","approval":"a","by":[],"why":"","grants":'
                b'[{"rule":"r:raw","digest":"d","grant":"g","bytes":null}]}' % number
            )
        task = await world.connect("raw.example")
        await task.send(b"hello")
        await people.question()
        assert untouched(world)
        task.close()

    held(tmp_path, test)


def test_malformed_registry_messages_close_its_channel(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await people.question()
        people._channels[1].send(b'{"type": "answer", "number": "yes"}')
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["approval_unavailable"]

    held(tmp_path, test)


def test_closing_the_gate_ends_pending_connections(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await people.question()
        world.gate.close()
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["gate_error"]
        assert untouched(world)

    held(tmp_path, test)


def test_exception_while_pending_allows_nothing(tmp_path, monkeypatch):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        id_ = await people.question()
        monkeypatch.setattr("proxy.gate.pending.decide_after_approval", lambda *_, **__: 1 / 0)
        await people.approve(id_)
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["gate_error"]
        assert untouched(world)
        assert [e["fault"]["where"] for e in world.errors] == ["approvals"]

    held(tmp_path, test)


def test_rule_that_asks_during_the_lookup_makes_it_pending(tmp_path):
    slow, ask = RAW.replace("raw", "slow"), ASKED.replace("raw", "slow")

    async def test(world, people):
        world.servers.hold = asyncio.Event()
        world.servers.known["slow.example", "A"] = ["127.0.0.1"]
        task = await world.connect("slow.example")
        await task.send(b"hello")
        await wait_until_async(lambda: world.servers.asked)
        reload(world, tmp_path, slow, ask)
        await asyncio.sleep(0.02)
        assert not people.asked(), "whether an approval would let it out is known first"
        world.servers.hold.set()
        id_ = await people.question()
        await asyncio.sleep(0.02)
        assert world.origin.accepted == 0
        await people.approve(id_)
        await spoken(world, task)
        assert told(world) == [("allow", "passed", "approval_granted", id_)]

    held(tmp_path, test, slow)
