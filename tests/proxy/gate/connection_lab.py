"""A gate under rules of every kind, and a hello."""

import asyncio

from tests.proxy.gate.gate_lab import (
    HOSTS,
    INSPECTED,
    RAW,
    SPLICED,
    GateLab,
    client_hello,
    run,
)

RULES = (SPLICED, INSPECTED, RAW)
HELLO = client_hello("good.example")


def gate(tmp_path, test, rules=RULES, **how):
    async def inside():
        async with GateLab(tmp_path, rules, **{"hosts": HOSTS, **how}) as world:
            await test(world)
            await asyncio.sleep(0.01)
            assert not world.errors

    run(inside)


def decided(event):
    return event["verdict"], event["outcome"], event["reason"]
