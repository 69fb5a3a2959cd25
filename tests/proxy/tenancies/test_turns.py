"""Invariant 11 for the loop: however many sockets of one tenant are ready, the others get their turn in between."""

import asyncio
import itertools
import socket

import pytest

from proxy.poller import IN, Loop, Poller


class Noted:
    """Takes note of its turn and leaves what has come where it is: it is ready again at once."""

    def __init__(self, who, log, *, raises=False):
        self.who, self.log, self.raises = who, log, raises
        self.near, self.far = socket.socketpair()
        self.far.send(b"x")

    def ready(self, _events):
        self.log.append(self.who)
        if self.raises:
            raise RuntimeError("on purpose")

    def failed(self, _error):
        self.log.append("failed")


async def noted(hogs, quiet, turns):
    """Have so many sockets in one tenant's set and so many in another's, for some turns of the second."""
    log, pollers, sockets = [], [], []
    for who, number in (("hog", hogs), ("quiet", quiet)):
        poller = Poller(in_turn=True)
        pollers.append(poller)
        for _ in range(number):
            one = Noted(who, log)
            sockets += [one.near, one.far]
            poller.watch(one.near.fileno(), IN, one)
    async with asyncio.timeout(30):
        while log.count("quiet") < turns:  # noqa: ASYNC110  it is asked of a list
            await asyncio.sleep(0)
    for poller in pollers:
        poller.close()
    after = len(log)
    for _ in range(10):
        await asyncio.sleep(0)
    for sock in sockets:
        sock.close()
    return log, len(log) - after


@pytest.mark.parametrize("hogs", [1, 200])
def test_between_two_turns_of_one_tenant_another_has_few_events(hogs):
    log, later = asyncio.run(noted(hogs, 1, 20), loop_factory=Loop)
    longest = max(len(list(run)) for who, run in itertools.groupby(log) if who == "hog")
    assert longest <= 32
    assert later == 0  # a set that is closed has no turns


def test_what_one_tenant_raises_ends_nobody_else():
    async def both():
        log = []
        broken, whole = Noted("broken", log, raises=True), Noted("whole", log)
        pollers = [Poller(in_turn=True), Poller(in_turn=True)]
        for poller, one in zip(pollers, (broken, whole), strict=True):
            poller.watch(one.near.fileno(), IN, one)
        async with asyncio.timeout(30):
            while log.count("whole") < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
        for poller, one in zip(pollers, (broken, whole), strict=True):
            poller.close()
            one.near.close()
            one.far.close()
        return log

    assert "failed" in asyncio.run(both(), loop_factory=Loop)
