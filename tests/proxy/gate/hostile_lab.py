"""A gate for hostile clients, and how often it looks."""

import asyncio

import pytest

from proxy.gate.connection import Connection
from tests.proxy.gate.gate_lab import (
    HOSTS,
    INSPECTED,
    RAW,
    SPLICED,
    GateLab,
    client_hello,
    open_descriptors,
    run,
)

RULES = (SPLICED, INSPECTED, RAW)
HELLO = client_hello("good.example")


def hostile(tmp_path, test, rules=RULES, *, errors=0, **how):
    async def inside():
        async with GateLab(tmp_path, rules, **{"hosts": HOSTS, **how}) as world:
            await test(world)
            await asyncio.sleep(0.01)
            assert len(world.errors) == errors

    before = open_descriptors()
    run(inside)
    assert open_descriptors() == before


@pytest.fixture
def looks(monkeypatch):
    """How often the gate looked at what a client has said."""
    count = []
    ready = Connection.ready

    def counted(self, events):
        count.append(events)
        ready(self, events)

    monkeypatch.setattr(Connection, "ready", counted)
    return count


def reasons(world):
    return [event["reason"] for event in world.decisions]
