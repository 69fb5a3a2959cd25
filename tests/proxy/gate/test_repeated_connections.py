"""Invariant 13: each connection is decided for itself, however many like it were allowed just before."""

from datetime import date

import pytest

from rules.values.names import HostName
from tests.proxy.gate.gate_lab import LOOPBACK, SPLICED, GateLab, client_hello, policy_of, run

ELSEWHERE = "127.0.0.3"
RULES = (f"{SPLICED}, until: 2026-01-01", "id: no, to: good.example, when: tainted, action: deny")
DENIED = "id: good, to: good.example, action: deny"


class Day:
    """A calendar that is turned by hand."""

    def __init__(self):
        self.day = date(2026, 1, 1)

    def today(self):
        return self.day


async def pass_one(world, name="good.example"):
    """Have one connection pass, to its end."""
    client = await world.connect(LOOPBACK)
    await client.send(client_hello(name))
    far = await world.origin.take()
    await far.send(b"answer")
    assert await client.read_exactly(6) == b"answer"
    client.close()
    far.close()
    await world.closing(len(world.decisions))


def other_rules(world, tmp_path):
    world.sandbox.policy = policy_of(tmp_path, [DENIED])


def other_day(world, _):
    world.sandbox.calendar.day = date(2026, 1, 2)


def tainted(world, _):
    world.sandbox.tainted = True


def no_address(world, _):
    world.hosts.write_text("")
    world.lookup._next_file_check = 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [(other_rules, "rule"), (other_day, "expired"), (tainted, "tainted"), (no_address, "unresolved")],
)
def test_change_applies_to_the_next_equal_connection(tmp_path, change, reason):
    async def test():
        async with GateLab(tmp_path, RULES, hosts="127.0.0.1 good.example\n", calendar=Day(), inspect=False) as world:
            world.names.remember(HostName("good.example"), [LOOPBACK])
            for _ in range(3):
                await pass_one(world)
            change(world, tmp_path)
            client = await world.connect(LOOPBACK)
            await client.send(client_hello())
            decision = await world.decision(4)
            assert decision["outcome"] in {"blocked", "failed"}
            assert decision["reason"] == reason
            assert await client.ended() == "reset"
            assert world.origin.accepted == 3

    run(test)


def test_name_that_moved_is_dialed_at_its_new_address(tmp_path):
    async def test():
        async with GateLab(tmp_path, [SPLICED], hosts="127.0.0.1 good.example\n", inspect=False) as world:
            world.names.remember(HostName("good.example"), [LOOPBACK])
            await pass_one(world)
            world.hosts.write_text(f"{ELSEWHERE} good.example\n")
            world.lookup._next_file_check = 0.0
            client = await world.connect(LOOPBACK)
            await client.send(client_hello())
            assert (await world.decision(2))["destination"]["address"] == ELSEWHERE
            assert (await world.closing(2))["reason"] == "upstream_failed"  # nobody listens there
            assert world.origin.accepted == 1

    run(test)


def test_second_name_of_an_address_is_not_allowed_with_the_first(tmp_path):
    async def test():
        async with GateLab(tmp_path, [SPLICED], hosts="127.0.0.1 good.example\n", inspect=False) as world:
            world.names.remember(HostName("good.example"), [LOOPBACK])
            await pass_one(world)
            world.names.remember(HostName("evil.example"), [LOOPBACK])
            await pass_one(world)
            evil = await world.connect(LOOPBACK)
            await evil.send(client_hello("evil.example"))
            assert (await world.decision(3))["reason"] == "no_rule"
            assert await evil.ended() == "reset"
            assert world.origin.accepted == 2

    run(test)


def test_unrecordable_connection_is_not_dialed_like_earlier_ones(tmp_path):
    async def test():
        async with GateLab(tmp_path, [SPLICED], hosts="127.0.0.1 good.example\n", inspect=False) as world:
            world.names.remember(HostName("good.example"), [LOOPBACK])
            await pass_one(world)
            world.journal.full = True
            client = await world.connect(LOOPBACK)
            await client.send(client_hello())
            assert await client.ended() == "reset"
            world.journal.full = False
            await pass_one(world)
            assert world.origin.accepted == 2

    run(test)
