"""Other rules come into force, or another day, while connections are open: what they deny ends, and nothing else."""

import asyncio
from datetime import UTC, datetime

import pytest

from proxy.sandbox.sandbox_state import Calendar
from tests.proxy.gate.gate_lab import HOSTS, INSPECTED, RAW, SPLICED, GateLab, client_hello, policy_of, run
from tests.support.waiting import wait_until_async

ELSEWHERE = "id: elsewhere, to: other.example, action: allow"
NO = "id: no, to: '**.example', action: deny"
RULES = [SPLICED, RAW, INSPECTED]


def gate(tmp_path, test, rules=RULES, **more):
    async def setting():
        async with GateLab(tmp_path, rules, hosts=HOSTS, **more) as world:
            await test(world)

    run(setting)


def reload(world, tmp_path, *rules, **settings):
    """Put other rules in force, as `proxy.worker.policy_swap` does."""
    written = [rule.replace("ORIGIN", str(world.origin.port)) for rule in rules]
    world.sandbox.policy = policy_of(tmp_path, written, **settings)
    world.lookup.forget_checks()
    world.gate.review()


async def opened(world, name="raw.example"):
    """A connection that is passed on, with something said each way."""
    task = await world.connect(name)
    first = client_hello(name) if name == "good.example" else b"hello"
    await task.send(first)
    server = await world.origin.take()
    assert await server.read_exactly(len(first)) == first
    await server.send(b"welcome")
    assert await task.read_exactly(7) == b"welcome"
    return task, server


DENYING = {
    "no rule any more": ([ELSEWHERE], "no_rule", []),
    "a deny": ([*RULES, NO], "rule", ["r:no"]),
    "another port": ([RAW.replace("ORIGIN", "1"), SPLICED.replace("ORIGIN", "1")], "no_rule", []),
    "other addresses": ([rule.replace("127.0.0.0/8", "10.0.0.0/8") for rule in RULES], "address_not_listed", None),
    "for another task": ([f"{rule}, for: {{tasks: [other]}}" for rule in RULES], "no_rule", []),
}


@pytest.mark.parametrize("name", ["raw.example", "good.example"])
@pytest.mark.parametrize("denying", DENYING)
def test_connection_denied_by_new_rules_is_reset_and_cites_them(tmp_path, denying, name):
    rules, reason, cited = DENYING[denying]

    async def test(world):
        task, server = await opened(world, name)
        reload(world, tmp_path, *rules)
        closing = await world.closing()
        assert await task.ended() == "reset"
        assert await server.ended() == "reset"
        assert (closing["outcome"], closing["reason"]) == ("blocked", reason)
        assert closing["revision"] == world.sandbox.policy.revision
        if cited is not None:
            assert closing.get("rules", []) == cited
        assert closing["bytes"]["down"] == 7
        assert len(world.decisions) == 1
        assert len(world.gate.connections) == 0

    gate(tmp_path, test)


@pytest.mark.parametrize(
    "what", ["proxy.sandbox.rule_limits.Quota.end", "proxy.dialing.connect_race.ConnectRace.cancel"]
)
def test_denied_connection_is_reset_though_its_end_raises(tmp_path, monkeypatch, what):
    def broken(*_):
        raise RuntimeError("on purpose")

    async def test(world):
        task, server = await opened(world)
        with monkeypatch.context() as patch:
            patch.setattr(what, broken)
            reload(world, tmp_path, ELSEWHERE)
            assert await task.ended() == "reset"
            assert await server.ended() == "reset"

    gate(tmp_path, test)


LOCAL = "id: local, to: host.exeat.internal, ports: [ORIGIN/tcp], action: allow"
LOCKED = "id: locked, to: host.exeat.internal, action: deny"


@pytest.mark.parametrize("beside", [[LOCAL], [ELSEWHERE]], ids=["with the rule that let in", "alone"])
def test_new_deny_of_a_host_service_ends_open_connections(tmp_path, beside):
    async def test(world):
        task, _ = await opened(world, "host.exeat.internal")
        reload(world, tmp_path, *beside, LOCKED)
        closing = await world.closing()
        assert await task.ended() == "reset"
        assert (closing["outcome"], closing["reason"], closing["rules"]) == ("blocked", "rule", ["r:locked"])
        refused = await world.connect("host.exeat.internal")
        assert await refused.ended() == "reset"
        decided = world.decisions[-1]
        assert (decided["outcome"], decided["reason"], decided["rules"]) == ("blocked", "rule", ["r:locked"])

    gate(tmp_path, test, [LOCAL])


def test_connection_allowed_by_new_rules_continues(tmp_path):
    async def test(world):
        open_ones = [await opened(world, name) for name in ("raw.example", "good.example") * 3]
        for number in range(20):
            reload(world, tmp_path, *RULES, f"id: more-{number}, to: m{number}.example, action: allow")
            await asyncio.sleep(0)
        for number, (task, server) in enumerate(open_ones):
            await task.send(b"still here %d" % number)
            assert await server.read() == b"still here %d" % number
        assert not world.closings

    gate(tmp_path, test)


def test_spliced_connection_that_must_be_inspected_ends(tmp_path):
    async def test(world):
        task, _ = await opened(world, "good.example")
        reload(world, tmp_path, SPLICED.replace("tls: splice, ", ""))
        assert (await world.closing())["outcome"] == "blocked"
        assert await task.ended() == "reset"

    gate(tmp_path, test)


@pytest.mark.parametrize(
    ("then", "outcome"), [((RAW,), "passed"), ((ELSEWHERE,), "blocked")], ids=["still allowed", "denied"]
)
def test_connection_in_lookup_is_decided_by_new_rules(tmp_path, then, outcome):
    async def test(world):
        world.servers.hold = asyncio.Event()
        world.servers.known["raw.example", "A"] = ["127.0.0.1"]
        await world.connect("raw.example")
        await wait_until_async(lambda: world.servers.asked)
        reload(world, tmp_path, *then)
        world.servers.hold.set()
        decision = await world.decision()
        assert (decision["outcome"], decision["revision"]) == (outcome, world.sandbox.policy.revision)
        assert world.decisions == [decision]

    async def setting():
        async with GateLab(tmp_path, [RAW]) as world:
            await test(world)

    run(setting)


def test_connection_in_dial_is_reviewed_when_connected(tmp_path, monkeypatch):
    async def test(world):
        kept = []

        def connect(addresses, port, done, **_more):
            kept.append((addresses, port, done))
            return Waiting()

        real = world.dialer.connect
        monkeypatch.setattr(type(world.dialer), "connect", lambda _self, *args, **more: connect(*args, **more))
        task = await world.connect("raw.example")
        await world.decision()
        reload(world, tmp_path, RAW.replace("127.0.0.0/8", "127.0.0.9"))
        monkeypatch.undo()
        (addresses, port, done) = kept[0]
        connecting = real(addresses, port, done)
        assert (await world.closing())["reason"] == "address_not_listed"
        assert await task.ended() == "reset"
        connecting.cancel()

    class Waiting:
        def take(self):
            return None

        def cancel(self):
            pass

    gate(tmp_path, test, [RAW])


def test_new_connections_use_the_new_rules(tmp_path):
    async def test(world):
        await opened(world, "good.example")
        reload(world, tmp_path, RAW)
        task = await world.connect("good.example")
        await task.send(client_hello())
        assert (await world.decision(2))["outcome"] == "blocked"
        await opened(world)

    gate(tmp_path, test)


def test_inspection_gets_reviews_of_its_connections(tmp_path):
    async def test(world):
        await (await world.connect("seen.example")).send(client_hello("seen.example"))
        await wait_until_async(lambda: world.adopted)
        (admitted,) = world.adopted
        reload(world, tmp_path, *RULES)
        reload(world, tmp_path, ELSEWHERE)
        (first, second) = world.inspection.reviewed
        assert [told is admitted for told, _ in (first, second)] == [True, True]
        assert first[1].passes
        assert not second[1].passes
        admitted.client.close()
        admitted.closed(1, 2, None)
        closing = await world.closing()
        assert (closing["outcome"], closing["reason"]) == ("blocked", "no_rule")

    gate(tmp_path, test)


def test_inspected_connection_that_cannot_be_reviewed_ends(tmp_path, monkeypatch):
    async def test(world):
        await (await world.connect("seen.example")).send(client_hello("seen.example"))
        await wait_until_async(lambda: world.adopted)
        (admitted,) = world.adopted
        monkeypatch.setattr("proxy.gate.connection.decide_again", None)
        reload(world, tmp_path, *RULES)
        ((told, decision),) = world.inspection.reviewed
        assert told is admitted
        assert (decision.outcome, decision.reason) == ("blocked", "gate_error")
        admitted.client.close()
        admitted.closed(1, 2, None)
        closing = await world.closing()
        assert (closing["outcome"], closing["reason"]) == ("blocked", "gate_error")

    gate(tmp_path, test)


def test_denied_connection_only_serves_its_block_page(tmp_path):
    async def test(world):
        await (await world.connect("seen.example", 443)).send(client_hello("seen.example"))
        await wait_until_async(lambda: world.adopted)
        reload(world, tmp_path, ELSEWHERE)
        assert world.inspection.reviewed == []

    gate(tmp_path, test)


def test_review_of_many_connections_yields_to_others(tmp_path, monkeypatch):
    """A slice takes a moment at most; that others have their turn in between is what counts."""

    async def test(world):
        for _ in range(8):
            await opened(world)
        turns = []

        async def other():
            while True:
                turns.append(len(world.closings))
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        monkeypatch.setattr("proxy.gate.listener._REVIEW_SLICE", 0.0)
        reload(world, tmp_path, ELSEWHERE)
        await world.closing(8)
        task.cancel()
        assert len(set(turns)) > 2

    gate(tmp_path, test)


def test_connection_ends_when_the_until_date_of_its_rule_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.event_loop.poller.EVERY", 0.02)
    now = [datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()]
    rules = [f"{RAW}, until: 2026-12-31", SPLICED]

    async def setting():
        async with GateLab(tmp_path, rules, hosts=HOSTS, calendar=Calendar(lambda: now[0])) as world:
            task, _ = await opened(world)
            other, other_server = await opened(world, "good.example")
            now[0] += 120
            closing = await world.closing()
            assert (closing["outcome"], closing["reason"]) == ("blocked", "expired")
            assert await task.ended() == "reset"
            await other.send(b"on")
            assert await other_server.read() == b"on"
            assert await (await world.connect("raw.example")).ended() == "reset"
            assert (await world.decision(3))["reason"] == "expired"
            now[0] -= 86_400  # a clock that is set back opens nothing again
            assert await (await world.connect("raw.example")).ended() == "reset"
            assert (await world.decision(4))["reason"] == "expired"

    run(setting)


EVE = datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()
NARROWER = [
    f"{SPLICED}, until: 2026-12-31",
    SPLICED.replace("id: good", "id: nine").replace("127.0.0.0/8", "127.0.0.9"),
]


def test_date_change_during_a_lookup_applies(tmp_path):
    now = [EVE]

    async def setting():
        async with GateLab(tmp_path, [f"{RAW}, until: 2026-12-31"], calendar=Calendar(lambda: now[0])) as world:
            world.servers.hold = asyncio.Event()
            world.servers.known["raw.example", "A"] = ["127.0.0.1"]
            task = await world.connect("raw.example")
            await wait_until_async(lambda: world.servers.asked)
            now[0] += 120
            world.servers.hold.set()
            assert (await world.decision())["reason"] == "expired"
            assert await task.ended() == "reset"
            assert not world.origin.accepted

    run(setting)


def test_date_change_during_a_dial_applies_to_the_address(tmp_path, monkeypatch):
    now = [EVE]

    async def setting():
        async with GateLab(tmp_path, NARROWER, hosts=HOSTS, calendar=Calendar(lambda: now[0])) as world:
            real = type(world.dialer).connect

            def connect(self, *args, **more):
                race = real(self, *args, **more)
                now[0] += 120
                return race

            monkeypatch.setattr(type(world.dialer), "connect", connect)
            task = await world.connect("good.example")
            await task.send(client_hello())
            assert (await world.decision())["outcome"] == "passed"
            closing = await world.closing()
            assert (closing["reason"], closing["bytes"]["up"]) == ("expired", 0)
            assert await task.ended() == "reset"
            assert await (await world.origin.take()).ended() == "reset"  # and nothing was said to it

    run(setting)
