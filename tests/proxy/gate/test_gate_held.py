"""Connections that rules ask about: held until people have said what becomes of them, with nothing sent anywhere."""

import asyncio
import socket

import pytest
from gate_harness import HOSTS, RAW, SPLICED, World, client_hello, policy_of, run

from proxy.approvals.wire import Drop
from tests.proxy.approvals.people_harness import People

ASKED = "id: asked, to: raw.example, ports: [ORIGIN/tcp], action: ask, approval: {hold: 60s, open: 1h}"
ASKED_TLS = "id: tls, to: good.example, ports: [ORIGIN/tls], tls: splice, action: ask, approval: {hold: 60s, open: 1h}"
WELCOME = b"welcome"


def held(tmp_path, test, *rules, most=64, **settings):
    """Run a test with a gate and the people behind it."""

    async def inside():
        people = People(tmp_path)
        channel = await people.open()
        asking = rules or (ASKED, ASKED_TLS)
        async with World(tmp_path, (RAW, SPLICED, *asking), hosts=HOSTS, most=most, **settings) as world:
            people.behind(world.recorder, world.poller, channel, review=world.gate.review)
            try:
                await test(world, people)
                await asyncio.sleep(0.01)
            finally:
                world.tenant.asking.close()
                await people.close()

    run(inside)


def reload(world, tmp_path, *rules):
    written = [rule.replace("ORIGIN", str(world.origin.port)) for rule in rules]
    world.tenant.policy = policy_of(tmp_path, written)
    world.lookup.forget_checks()
    world.gate.review()


def told(world):
    return [(e["verdict"], e["outcome"], e["reason"], e.get("approval", {}).get("id", "")) for e in world.decisions]


def summed(world):
    """The part of the run's last lines that is about what was held."""
    return world.recorder.summary().describe().rpartition("; ")[2]


def untouched(world):
    """Nothing was dialled, and nobody's name was looked up."""
    return world.origin.accepted == 0 and world.servers.asked == []


async def spoken(world, task, data=b"hello"):
    """What the task says arrives, and what is answered too."""
    server = await world.origin.take()
    assert await server.read_exactly(len(data)) == data
    await server.send(WELCOME)
    assert await task.read_exactly(len(WELCOME)) == WELCOME
    return server


@pytest.mark.parametrize("name", ["raw.example", "good.example"])
def test_what_is_held_is_let_out_once_it_is_granted(tmp_path, name):
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


@pytest.mark.parametrize("name", ["raw.example", "good.example"])
def test_what_is_rejected_ends_and_says_why(tmp_path, name):
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
            assert (admitted.approval, admitted.detail) == (id_, "not on a friday")

    held(tmp_path, test)


def test_what_nobody_answers_is_refused_and_its_retry_has_the_answer(tmp_path):
    async def test(world, people):
        task = await world.connect("raw.example")
        id_ = await people.question()
        await people.pass_(61)
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


def test_what_a_rejection_that_stands_refuses_at_once_was_not_held(tmp_path):
    async def test(world, people):
        for number in range(3):
            task = await world.connect("raw.example")
            if not number:
                await people.reject(await people.question())
            assert await task.ended() == "reset"
        assert [reason for _, _, reason, _ in told(world)] == ["approval_denied"] * 3
        assert summed(world) == "1 held: 1 refused"

    held(tmp_path, test)


def test_two_of_the_same_are_one_question(tmp_path):
    async def test(world, people):
        tasks = [await world.connect("raw.example") for _ in range(2)]
        id_ = await people.question()
        await world.until(lambda: len(people.replies) >= 4)  # a state, a fence, and two that wait
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
def test_a_client_that_goes_away_is_noticed(tmp_path, how):
    async def test(world, people):
        task = await world.connect("raw.example")
        await task.send(b"hello")
        id_ = await people.question()
        getattr(task, how)()
        await world.decision()
        assert told(world) == [("deny", "blocked", "approval_timeout", id_)]
        assert world.decisions[0]["detail"] == "the client went away while people were asked"
        assert summed(world) == "1 held: 1 given up"
        await world.until(lambda: "approval.stale" in people.kinds())
        assert world.gate.connections == 0
        await people.approve(id_)  # it is still open, for a retry
        assert untouched(world)

    held(tmp_path, test)


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
        before = world.tenant.asking.renew(await people.pair())
        assert await waiting.ended() == "reset"
        again = await world.connect("raw.example")
        await again.send(b"hello")
        await world.until(lambda: len([one for one in people.replies if type(one).__name__ == "Pending"]) == 2)
        await people.approve(people.asked()[0])
        await spoken(world, again)
        before.close()

    held(tmp_path, test)


def test_a_registry_that_says_nothing_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.approvals.asking.SLACK", -0.95)

    async def test(world, people):
        people.mute = True
        task = await world.connect("raw.example")
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["approval_unavailable"]
        await world.until(lambda: any(isinstance(word, Drop) for word in people.said))

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
        await world.until(lambda: any(isinstance(word, Drop) for word in people.said))
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
        assert not any(isinstance(word, Drop) for word in people.said)
        reload(world, tmp_path, RAW, ASKED.replace("hold: 60s", "hold: 30s"))  # another rule, by its content
        second = await people.question(2)
        await people.approve(first)
        await asyncio.sleep(0.05)
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


def test_what_is_held_counts_as_a_connection(tmp_path):
    async def test(world, people):
        first = await world.connect("raw.example")
        await people.question()
        beyond = await world.connect("raw.example")
        assert await beyond.ended() == "reset"
        assert [line[2] for line in told(world)] == ["limit_exceeded"]
        first.close()

    held(tmp_path, test, most=1)


def test_what_passes_is_cut_when_its_grant_ends(tmp_path):
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


def test_no_more_bytes_pass_than_are_granted(tmp_path):
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


def test_a_layer_s_ask_comes_up_once_the_other_is_granted_and_both_have_to_be(tmp_path):
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


def test_an_answer_to_a_worker_before_is_no_answer_to_this_one(tmp_path):
    """Packets that nobody read stay in the socket: numbers of one worker are never those of another."""

    async def test(world, people):
        channel = people._channels[1]
        for number in range(1, 200):
            channel.send(
                b'{"answer":%d,"result":"granted","approval":"a","by":[],"why":"","grants":'
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
        people._channels[1].send(b'{"answer": "yes"}')
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
        monkeypatch.setattr("proxy.held.after_asking", lambda *_, **__: 1 / 0)
        await people.approve(id_)
        assert await task.ended() == "reset"
        assert [line[2] for line in told(world)] == ["gate_error"]
        assert untouched(world)
        assert [e["fault"]["where"] for e in world.errors] == ["approvals"]

    held(tmp_path, test)


def test_nobody_is_told_of_a_connection_before_it_is_decided(tmp_path):
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


def test_what_begins_to_be_asked_about_while_it_is_looked_up_is_held(tmp_path):
    slow, ask = RAW.replace("raw", "slow"), ASKED.replace("raw", "slow")

    async def test(world, people):
        world.servers.hold = asyncio.Event()
        world.servers.known["slow.example", "A"] = ["127.0.0.1"]
        task = await world.connect("slow.example")
        await task.send(b"hello")
        await world.until(lambda: world.servers.asked)
        reload(world, tmp_path, slow, ask)
        id_ = await people.question()
        world.servers.hold.set()
        await asyncio.sleep(0.02)
        assert world.origin.accepted == 0
        await people.approve(id_)
        await spoken(world, task)
        assert told(world) == [("allow", "passed", "approval_granted", id_)]

    held(tmp_path, test, slow)
