"""What is asked anew for each connection that is known again: what isn't as it was goes the way of all others."""

import asyncio
from datetime import date
from ipaddress import ip_address

import pytest
from gate_harness import (
    SPLICED,
    client_hello,
)  # fmt: skip
from regulars_harness import DENIED, ELSEWHERE, HERE, alike, known

from proxy import regulars
from rules.names import HostName


def changed_rules(world):
    world.put(DENIED)


def changed_rules_said(world):
    world.put(DENIED)
    world.gate.review()


def changed_host(world):
    world.names.remember(HostName("evil.example"), [ip_address(HERE)])


def changed_address(world):
    world.hosts.write_text(f"{ELSEWHERE} good.example\n")
    world.lookup._look_again_at = 0.0


@pytest.mark.parametrize("change", [changed_rules, changed_rules_said], ids=["in force", "and said to be"])
def test_under_other_rules_nobody_is_known(tmp_path, change):
    async def test(world):
        await world.pass_one()
        change(world)
        client = await world.connect(world.hello)
        decision = await world.decision(3)
        assert (decision["outcome"], decision["reason"]) == ("blocked", "rule")
        assert await client.ended() == "reset"
        assert world.known == 1
        assert world.origin.accepted == 2

    known(test, tmp_path, inspect=False)


def test_where_an_address_stands_for_another_name_too_nobody_is_known(tmp_path):
    async def test(world):
        await world.pass_one()
        world.names.remember(HostName("evil.example"), [ip_address(HERE)])
        await world.pass_one()
        evil = await world.connect(client_hello("evil.example"))
        assert (await world.decision(4))["reason"] == "no_rule"
        assert await evil.ended() == "reset"
        assert world.known == 1

    known(test, tmp_path, inspect=False)


def test_where_a_name_leads_elsewhere_that_is_dialled(tmp_path):
    async def test(world):
        await world.pass_one()
        world.hosts.write_text(f"{ELSEWHERE} good.example\n")
        world.lookup._look_again_at = 0.0
        await asyncio.sleep(regulars._FRESH_FOR)
        await world.connect(world.hello)
        assert (await world.decision(3))["destination"]["address"] == ELSEWHERE
        assert (await world.closing(3))["reason"] == "upstream_failed"  # nobody is there
        assert world.known == 1
        assert world.origin.accepted == 2

    known(test, tmp_path, ways=(False,))


class Day:
    """A calendar that is turned by hand."""

    def __init__(self):
        self.day = date(2026, 1, 1)

    def today(self):
        return self.day


def test_on_another_day_nobody_is_known(tmp_path):
    async def test(world):
        await world.pass_one()
        world.tenant.calendar.day = date(2026, 1, 2)
        client = await world.connect(world.hello)
        assert (await world.decision(3))["outcome"] == "blocked"
        assert await client.ended() == "reset"
        assert world.known == 1

    known(test, tmp_path, f"{SPLICED}, until: 2026-01-01", calendar_of=Day, inspect=False)


def test_once_the_task_is_tainted_nobody_is_known(tmp_path):
    async def test(world):
        await world.pass_one()
        world.tenant.tainted = True
        client = await world.connect(world.hello)
        assert (await world.decision(3))["outcome"] == "blocked"
        assert await client.ended() == "reset"
        assert world.known == 1

    tainted = "id: no, to: good.example, when: tainted, action: deny"
    known(test, tmp_path, SPLICED, tainted, inspect=False)


def test_what_has_limits_is_never_known(tmp_path):
    async def test(world):
        for _ in range(2):
            await world.pass_one()
        client = await world.connect(world.hello)
        assert (await world.decision(4))["reason"] == "limit_exceeded"
        await client.ended()
        assert not world.known

    known(test, tmp_path, f"{SPLICED}, limits: {{connections: 3, window: 1h}}", inspect=False, ways=(False,))


def test_what_could_not_be_told_isnt_dialled(tmp_path):
    async def test(world):
        world.journal.full = True
        client = await world.connect(world.hello)
        assert await client.ended() == "reset"
        assert world.known == 1
        world.journal.full = False
        assert len(world.decisions) == 1
        assert world.metrics.decisions[next(key for key in world.metrics.decisions if "journal_failed" in key)] == 1
        await world.pass_one()
        assert world.origin.accepted == 2

    known(test, tmp_path)


def test_one_that_cant_be_dialled_is_told_as_the_first_would_be(tmp_path):
    async def test(world):
        await world.origin.stop()
        told = []
        for forget in (False, True):
            if forget:
                world.gate._regulars.forget()
            client = await world.connect(world.hello)
            assert await client.ended() == "reset"
            told.append(alike([world.decisions[-1], await world.closing(len(world.decisions))]))
        assert world.known == 1
        assert told[0] == told[1]
        assert told[0][1]["reason"] == "upstream_failed"
        assert "connection refused" in told[0][1]["detail"]

    known(test, tmp_path)
