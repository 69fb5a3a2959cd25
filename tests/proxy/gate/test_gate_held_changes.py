"""What is held while something else changes: the rules, the registry that would answer, the gate itself."""

import asyncio

import pytest

from proxy.approvals.protocol import Withdraw
from proxy.approvals.votes import VoteRefusedError
from tests.proxy.gate.gate_harness import RAW
from tests.proxy.gate.held_harness import ASKED, held, reload, spoken, told, untouched


def test_without_a_registry_everything_that_is_asked_about_is_denied(tmp_path):
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


def test_a_registry_that_comes_back_is_asked_again_and_nothing_of_before_counts(tmp_path):
    async def test(world, people):
        waiting = await world.connect("raw.example")
        await people.question()
        before = world.sandbox.approvals.renew(await people.pair())
        assert await waiting.ended() == "reset"
        again = await world.connect("raw.example")
        await again.send(b"hello")
        await world.until(lambda: len([one for one in people.replies if type(one).__name__ == "Pending"]) == 2)
        await people.approve(people.asked()[0])
        await spoken(world, again)
        before.close()

    held(tmp_path, test)


def test_a_registry_that_says_nothing_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.approvals.client.SLACK", -0.95)

    async def test(world, people):
        people.mute = True
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["approval_unavailable"]
        await world.until(lambda: any(isinstance(word, Withdraw) for word in people.said))

    held(tmp_path, test, ASKED.replace("hold: 60s", "hold: 1s"))


RELOADS = {
    "a deny": (["id: no, to: raw.example, action: deny"], "rule"),
    "no rule": (["id: other, to: other.example, action: allow"], "no_rule"),
}


@pytest.mark.parametrize(("rules", "reason"), RELOADS.values(), ids=RELOADS)
def test_other_rules_decide_at_once_on_what_is_held(tmp_path, rules, reason):
    async def test(world, people):
        task = await world.connect("raw.example")
        id_ = await people.question()
        reload(world, tmp_path, *rules)
        assert await task.ended() == "reset"
        assert told(world) == [("deny", "blocked", reason, "")]
        await world.until(lambda: any(isinstance(word, Withdraw) for word in people.said))
        await people.approve(id_)
        assert untouched(world)

    held(tmp_path, test)


def test_rules_that_let_it_out_let_it_out_at_once(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        await people.question()
        reload(world, tmp_path, RAW)
        await spoken(world, task)
        assert told(world) == [("allow", "passed", "rule", "")]

    held(tmp_path, test)


def test_rules_that_ask_the_same_leave_the_question_and_others_ask_anew(tmp_path):
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


def test_a_grant_of_the_rule_as_it_was_is_worth_nothing(tmp_path):
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


def test_an_answer_to_a_worker_before_is_no_answer_to_this_one(tmp_path):
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


def test_whatever_is_no_word_of_a_registry_ends_it(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await people.question()
        people._channels[1].send(b'{"type": "answer", "number": "yes"}')
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["approval_unavailable"]

    held(tmp_path, test)


def test_a_gate_that_closes_ends_what_it_holds(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        await people.question()
        world.gate.close()
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["gate_error"]
        assert untouched(world)

    held(tmp_path, test)


def test_a_bug_while_it_is_held_lets_nothing_out(tmp_path, monkeypatch):
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


def test_what_begins_to_be_asked_about_while_it_is_looked_up_is_held(tmp_path):
    slow, ask = RAW.replace("raw", "slow"), ASKED.replace("raw", "slow")

    async def test(world, people):
        world.servers.hold = asyncio.Event()
        world.servers.known["slow.example", "A"] = ["127.0.0.1"]
        task = await world.connect("slow.example")
        await task.send(b"hello")
        await world.until(lambda: world.servers.asked)
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
