"""A gate with the people behind it, for tests of what is held."""

import asyncio

from tests.proxy.approvals.people_harness import People
from tests.proxy.gate.gate_lab import HOSTS, RAW, SPLICED, GateLab, policy_of, run

ASKED = "id: asked, to: raw.example, ports: [ORIGIN/tcp], action: ask, approval: {hold: 60s, open: 1h}"
ASKED_TLS = "id: tls, to: good.example, ports: [ORIGIN/tls], tls: splice, action: ask, approval: {hold: 60s, open: 1h}"
WELCOME = b"welcome"


def held(tmp_path, test, *rules, most=64, **settings):
    """Run a test with a gate and the people behind it."""

    async def inside():
        people = People(tmp_path)
        channel = await people.open()
        asking = rules or (ASKED, ASKED_TLS)
        async with GateLab(tmp_path, (RAW, SPLICED, *asking), hosts=HOSTS, most=most, **settings) as world:
            people.behind(world.recorder, world.poller, channel, review=world.gate.review)
            try:
                await test(world, people)
                await asyncio.sleep(0.01)
            finally:
                world.sandbox.approvals.close()
                await people.close()

    run(inside)


def reload(world, tmp_path, *rules):
    written = [rule.replace("ORIGIN", str(world.origin.port)) for rule in rules]
    world.sandbox.policy = policy_of(tmp_path, written)
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
