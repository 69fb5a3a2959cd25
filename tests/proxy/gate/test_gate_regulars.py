"""Connections that compiled code knows again, from accept to their end; and all that isn't as it was, and isn't known."""

import asyncio
import errno
import time

import pytest
from gate_harness import (
    TIMEOUT,
    client_hello,
    ech_hello,
    extension,
    hello_message,
    made_hello,
    records,
    server_name,
)  # fmt: skip
from regulars_harness import alike, known

from proxy import account, regulars


def test_those_that_follow_are_known_and_told_as_the_first(tmp_path):
    async def test(world):
        for _ in range(3):
            await world.pass_one()
        assert world.known == 3
        pairs = [world.events[at : at + 2] for at in range(0, 8, 2)]
        for decided, closed in pairs:
            assert alike([decided, closed]) == alike(pairs[0])
            assert closed["cause"] == decided["id"]
            assert 0 <= closed["duration"] < TIMEOUT
        assert len({event["id"] for event in world.events}) == 8
        metrics = world.metrics
        count = world.passed + 3
        assert metrics.connections_open == 0
        assert sum(metrics.decisions.values()) == sum(metrics.peek_seconds.counts) == count
        assert sum(metrics.dial_seconds["connected"].counts) == sum(metrics.connection_seconds.counts) == count
        assert metrics.bytes_up == count * len(world.hello)
        assert metrics.bytes_down == count * len(b"answer")

    known(test, tmp_path)


def test_one_that_greets_late_is_known_too(tmp_path):
    async def test(world):
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        await client.send(world.hello)
        far = await world.take()
        assert await far.read_exactly(len(world.hello)) == world.hello
        assert world.known == 1

    known(test, tmp_path)


def test_where_others_want_their_turn_nobody_is_waited_for_here(tmp_path):
    async def test(world):
        late = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        assert not world.gate._regulars.silent
        await late.send(world.hello)
        await (await world.take()).read_exactly(len(world.hello))
        assert not world.known
        client, far = await world.open_one(at_once=True)
        assert world.known == 1
        client.shutdown()
        far.close()
        await world.until(lambda: world.gate.connections == 1)
        late.close()

    known(test, tmp_path, in_turn=True)


def test_what_comes_with_the_greeting_and_behind_it_arrives(tmp_path):
    async def test(world):
        data = world.hello + b"early" * 100_000
        client = await world.connect()
        sending = asyncio.create_task(client.send(data))
        far = await world.take()
        assert await far.read_exactly(len(data)) == data
        await sending
        assert world.known == 1

    known(test, tmp_path)


def test_another_random_is_the_same_greeting(tmp_path):
    async def test(world):
        again = client_hello()
        assert again != world.hello
        await world.pass_one(again)
        assert world.known == 1

    known(test, tmp_path)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        pytest.param(lambda: client_hello("evil.example"), "name_mismatch", id="another name"),
        pytest.param(lambda: client_hello(None), "sni_missing", id="no name"),
        pytest.param(ech_hello, "ech", id="encrypted"),
        pytest.param(lambda: b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "protocol_mismatch", id="no TLS"),
        pytest.param(lambda: b"\x16\x03\x01" + bytes(600), "protocol_mismatch", id="nearly TLS"),
    ],
)
def test_whoever_says_anything_else_is_judged_by_that(tmp_path, hello, reason):
    async def test(world):
        client = await world.connect(hello())
        decision = await world.decision(2)
        assert (decision["outcome"], decision["reason"]) == ("blocked", reason)
        await client.ended()
        assert not world.known
        assert world.origin.accepted == 1

    known(test, tmp_path, inspect=False)


def test_no_byte_of_a_greeting_that_is_read_can_be_another(tmp_path):
    async def test(world):
        size = len(world.hello)
        for at in [*range(12), *range(43, size, 11)]:
            other = bytearray(world.hello)
            other[at] ^= 1
            before = world.known
            client = await world.connect(bytes(other))
            said = world.gate.recall.recognise(bytes(other), whole_head=False)
            client.shutdown()  # or what is cut short would be waited for
            decision = await world.decision(len(world.decisions) + 1)
            as_before = said is world.gate.recall.recognise(world.hello, whole_head=False)
            assert (world.known > before) == as_before
            if as_before:
                (await world.take()).close()
            else:
                assert decision["outcome"] == "blocked" or world.origin.accepted
            client.close()

    known(test, tmp_path, inspect=False)


def test_a_greeting_in_pieces_goes_the_way_of_all_others(tmp_path):
    async def test(world):
        client = await world.connect()
        for at in range(0, len(world.hello), 100):
            await client.send(world.hello[at : at + 100])
            await asyncio.sleep(0.002)
        far = await world.take()
        assert await far.read_exactly(len(world.hello)) == world.hello
        assert not world.known

    known(test, tmp_path)


def test_one_that_says_nothing_is_waited_for_as_any_other(tmp_path):
    async def test(world):
        began = time.monotonic()
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        assert world.gate._regulars.silent == 1
        await world.until(lambda: not world.gate._regulars.silent)
        assert world.gate.connections == 1
        waiting = next(iter(world.gate._guests))
        assert began <= waiting._account.opened <= time.monotonic() - 0.9  # it began when it was accepted
        await client.send(world.hello)
        await (await world.take()).read_exactly(len(world.hello))

    known(test, tmp_path)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_one_that_leaves_before_it_greets_is_told(tmp_path, how):
    async def test(world):
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        client.shutdown() if how == "end" else client.reset()
        assert (await world.decision(2))["outcome"] == "blocked"
        await world.until(lambda: not world.gate.connections)

    known(test, tmp_path)


def test_hundreds_that_say_nothing_are_all_counted_and_told(tmp_path):
    async def test(world):
        clients = [await world.connect() for _ in range(300)]
        await world.until(lambda: world.gate.connections == 300)
        assert world.gate._regulars.silent <= 256
        await world.pass_one()
        for client in clients:
            client.reset()
        await world.until(lambda: len(world.decisions) == 302)
        await world.until(lambda: not world.gate.connections)

    known(test, tmp_path, most=400)


def test_more_than_may_be_are_refused(tmp_path):
    async def test(world):
        open_ones = [await world.open_one() for _ in range(3)]
        assert world.known == 3
        refused = await world.connect(world.hello)
        assert await refused.ended() == "reset"
        assert world.decisions[-1]["reason"] == "limit_exceeded"
        for client, far in open_ones:
            far.close()
            client.close()

    known(test, tmp_path, most=3)


def test_more_greetings_than_are_remembered_are_learned_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(regulars, "MOST_USUAL", 4)

    async def test(world):
        hellos = [made_hello(server_name(b"good.example"), extension(0x9999, bytes(size))) for size in range(6)]
        for hello in hellos:
            await world.pass_one(hello)
        assert len(world.gate._regulars._usual) <= 4
        await world.pass_one(hellos[-1])
        assert world.known == 1

    known(test, tmp_path)


def test_a_greeting_in_several_records_is_never_known(tmp_path):
    async def test(world):
        for _ in range(3):
            await world.pass_one(records(hello_message([server_name(b"good.example")]), 40))
        assert not world.known

    known(test, tmp_path)


@pytest.mark.parametrize("where", ["_usual_of", "_welcome", "dial"])
def test_an_exception_ends_the_one_and_no_other(tmp_path, monkeypatch, where):
    async def test(world):
        def raising(*_):
            raise RuntimeError("broken on purpose")

        with monkeypatch.context() as patch:
            if where == "dial":
                patch.setattr(world.gate._regulars._lane, "dial", raising)
            else:
                patch.setattr(regulars.Regulars, where, raising)
            client = await world.connect(world.hello)
            assert await client.ended() == "reset"
        await world.until(lambda: not world.gate.connections)
        assert "broken on purpose" in world.errors[0]["fault"]["detail"]
        assert [each["reason"] for each in world.closings[1:]] == (["gate_error"] if where == "dial" else [])
        await world.pass_one()
        assert world.origin.accepted == 2

    known(test, tmp_path, errors=1, ways=(False,))


def test_one_that_nobody_can_be_known_by_passes_anyway(tmp_path, monkeypatch):
    async def test(world):
        def raising(*_):
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(regulars.Regulars, "learn", raising)
        world.gate._regulars.forget()
        await world.pass_one()
        assert "broken on purpose" in world.errors[0]["fault"]["detail"]
        assert not world.known

    known(test, tmp_path, errors=1, ways=(False,))


def test_one_whose_end_cant_be_told_is_kept_no_longer(tmp_path, monkeypatch):
    async def test(world):
        def raising(*_, **__):
            raise RuntimeError("broken on purpose")

        client, far = await world.open_one()
        monkeypatch.setattr("proxy.account.Account.ended", raising)
        far.reset()
        assert await client.ended() == "reset"
        await world.until(lambda: world.errors)
        assert not world.gate.connections

    known(test, tmp_path, errors=1, ways=(False,))


def test_what_goes_wrong_with_the_end_of_one_that_failed_keeps_nobody_from_their_news(tmp_path, monkeypatch):
    async def test(world):
        def raising(*_, **__):
            raise RuntimeError("broken on purpose")

        lane, ended = world.gate._regulars._lane, []
        dial = lane.dial
        monkeypatch.setattr(lane, "dial", lambda *how: raising() if not ended else dial(*how))
        end = account.Account.ended
        monkeypatch.setattr(
            account.Account, "ended", lambda *how, **more: end(*how, **more) if ended else raising(ended.append(how))
        )
        first = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        second = world.connect_at_once()  # both greet in one turn
        await first.send(world.hello)
        far = await world.take()
        assert await far.read_exactly(len(world.hello)) == world.hello
        assert world.known == 2
        far.reset()
        assert await first.ended() == await second.ended() == "reset"

    known(test, tmp_path, errors=2, ways=(False,))


def test_while_nobody_is_accepted_those_who_were_go_on(tmp_path):
    async def test(world):
        late, (client, far) = await world.connect(), await world.open_one()
        await world.until(lambda: world.gate.connections == 2)
        world.gate._rounds.stop()  # in which all news is heard anyway
        world.gate._pause = 2 * TIMEOUT
        world.gate._rest(OSError(errno.EMFILE, "no descriptors"))
        await late.send(world.hello)
        assert await (await world.take()).read_exactly(len(world.hello)) == world.hello
        far.reset()
        assert await client.ended() == "reset"
        await world.until(lambda: world.gate.connections == 1)
        world.gate._resume()
        await world.open_one()

    known(test, tmp_path, errors=1)
