"""Invariant 11 for the loop: however many sockets of one sandbox are ready, the others get their turn in between."""

import asyncio
import itertools
import mmap
import socket
import sys
from time import thread_time

import pytest

from proxy.certificates.leaf_certificates import LeafCertificates, SignerLink
from proxy.certificates.signer import LONGEST_REQUEST, encode_answer, read_request
from proxy.event_loop import turn
from proxy.event_loop.poller import IN, ONCE, Loop, Poller
from proxy.event_loop.turn import SLICE


class Noted:
    """Takes note of its turn and leaves what has come where it is: it is ready again at once."""

    def __init__(self, who, log, *, raises=False, busy=0.0):
        self.who, self.log, self.raises, self.busy = who, log, raises, busy
        self.near, self.far = socket.socketpair()
        self.far.send(b"x")

    def ready(self, _events):
        self.log.append(self.who)
        until = thread_time() + self.busy
        while thread_time() < until:
            pass
        if self.raises:
            raise RuntimeError("on purpose")

    def failed(self, _error):
        self.log.append("failed")


async def noted(hogs, quiet, turns, busy=0.0):
    """Have so many sockets in one sandbox's set and so many in another's, for some turns of the second."""
    log, pollers, sockets = [], [], []
    for who, number in (("hog", hogs), ("quiet", quiet)):
        poller = Poller(in_turn=True)
        pollers.append(poller)
        for _ in range(number):
            one = Noted(who, log, busy=busy if who == "hog" else 0.0)
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
def test_other_sandbox_gets_few_events_between_two_turns(hogs):
    log, later = asyncio.run(noted(hogs, 1, 20), loop_factory=Loop)
    longest = max(len(list(run)) for who, run in itertools.groupby(log) if who == "hog")
    assert longest <= 32
    assert later == 0  # a set that is closed has no turns


def test_other_sandbox_gets_little_time_between_two_turns():
    """What each of its sockets costs counts, and none of them is forgotten for that."""
    log, later = asyncio.run(noted(12, 1, 20, busy=SLICE), loop_factory=Loop)
    longest = max(len(list(run)) for who, run in itertools.groupby(log) if who == "hog")
    assert longest <= 4
    assert later == 0


async def told_in_order(count):
    """Have sockets that are costly to serve ready once, each with its number."""
    log, sockets = [], []
    poller = Poller(in_turn=True)
    for number in range(count):
        one = Noted(number, log, busy=SLICE)
        sockets += [one.near, one.far]
        poller.watch(one.near.fileno(), IN | ONCE, one)
    async with asyncio.timeout(30):
        while len(log) < count:  # noqa: ASYNC110  it is asked of a list
            await asyncio.sleep(0)
    poller.close()
    for sock in sockets:
        sock.close()
    return log


def test_edge_event_is_served_in_a_later_turn():
    assert sorted(asyncio.run(told_in_order(10), loop_factory=Loop)) == list(range(10))


class Deadly:
    """Notes whose turn is marked where the worker would die of what it reads."""

    def __init__(self, page):
        self.page, self.found = page, None

    def ready(self, _events=0):
        self.found = turn.marked(self.page)


async def by_an_event(deadly):
    near, far = socket.socketpair()
    poller = Poller(in_turn=True)
    poller.watch(near.fileno(), IN, deadly)
    far.send(b"x")
    await reached(deadly)
    poller.close()
    near.close()
    far.close()


async def by_a_timer(deadly):
    asyncio.get_running_loop().call_later(0, deadly.ready)
    await reached(deadly)


async def by_a_task_after_a_thread(deadly):
    await asyncio.to_thread(len, "")
    deadly.ready()


async def by_a_task_that_another_turn_wakes(deadly):
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    loop.call_soon(woken.set, context=turn.context_of(6))
    await woken.wait()
    deadly.ready()


async def by_the_signer_s_answer(deadly):
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = SignerLink(ours)
    LeafCertificates(link).ask("good.example", lambda _problem: deadly.ready())
    end.send(encode_answer(read_request(end.recv(LONGEST_REQUEST)).number))
    await reached(deadly)
    link.close()
    end.close()


async def reached(deadly):
    async with asyncio.timeout(30):
        while deadly.found is None:  # noqa: ASYNC110
            await asyncio.sleep(0)


WAYS = [by_an_event, by_a_timer, by_a_task_after_a_thread, by_a_task_that_another_turn_wakes, by_the_signer_s_answer]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sandbox", [7, turn.NOBODY])
def test_worker_death_is_marked_with_the_sandbox_being_served(way, sandbox):
    page = mmap.mmap(-1, mmap.PAGESIZE)
    deadly = Deadly(page)

    async def body():
        asyncio.get_running_loop().in_turn(turn.context_of(5), int, 0)  # a neighbour's, which is over
        await asyncio.get_running_loop().create_task(way(deadly), context=turn.context_of(sandbox))

    asyncio.run(body(), loop_factory=lambda: Loop(turn.Marker(page)))
    assert (deadly.found, turn.marked(page)) == (sandbox, turn.NOBODY)


@pytest.mark.parametrize("order", ["little", "big"])
def test_mark_is_read_in_the_hosts_byte_order(monkeypatch, order):
    page = mmap.mmap(-1, mmap.PAGESIZE)
    monkeypatch.setattr(sys, "byteorder", order)
    page[:8] = (7).to_bytes(8, order)  # as a worker writes a native number
    assert turn.marked(page) == 7


def test_exception_ends_the_turn():
    page = mmap.mmap(-1, mmap.PAGESIZE)
    marker = turn.Marker(page)
    with pytest.raises(ValueError, match="word"):
        marker.run(7, int, "word")
    assert turn.marked(page) == turn.NOBODY


def test_exception_of_one_sandbox_ends_no_other():
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
