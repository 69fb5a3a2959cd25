"""How often compiled code looks while connections come closely one after the other: no less often but on a busy host."""

import asyncio
import os
import select
import signal
import socket
import time

import pytest
from gate_harness import TIMEOUT, open_descriptors, run
from test_gate_regulars_storm import change, storm

from proxy import poller
from proxy.backlog import Backlog
from proxy.compiled.lane import Lane
from proxy.poller import COMPILED, IN
from tests import harness

PROCESSORS, ROUNDS = 2, 30
LOOK = 0.012  # seconds, after which the load is looked at again
BUSY, FREE = b"9.00 9.00 9.00 4/300 1234\n", b"9.00 9.00 9.00 3/300 1234\n"  # one may wait: who was just woken does
EACH = {"free": FREE, "empty": b"", "no numbers": b"a b c d", "too short": b"9.00 9.00", "another form": b"9/300"}


@pytest.fixture
def load(tmp_path):
    """Have compiled code believe in a load of the host's."""
    if COMPILED is None:
        harness.missing("a C compiler")
    opened = []

    def put(text):
        file = tmp_path / "loadavg"
        file.write_bytes(text)
        opened.append(os.open(file, os.O_RDONLY))
        COMPILED.pace(opened[-1], PROCESSORS)

    yield put
    COMPILED.pace(-1, PROCESSORS)
    for each in opened:
        os.close(each)


class Coming:
    """Connections to a gate's listener, some at a time."""

    def __init__(self, number, listener):
        self.number, self.listener = number, listener

    def come(self, count):
        """Have so many come, and the gate look until all are there; then once more, with nothing to see."""
        before = COMPILED.rested()
        clients = [socket.create_connection(self.listener) for _ in range(count)]
        told = 0
        while told < count:
            for each in self.lane.news(0) if COMPILED.serve(self.number, 1, 10) else ():
                os.close(each.fd)
                told += 1
        assert COMPILED.serve(self.number, 0.001, 10) == []
        for each in clients:
            each.close()
        return COMPILED.rested() - before

    def rests(self, count, rounds=ROUNDS):
        """Return whether what happens is ever left to gather."""
        for _ in range(rounds):
            time.sleep(LOOK)
            if self.come(count):
                return True
        return False


@pytest.fixture
def coming():
    if COMPILED is None:
        harness.missing("a C compiler")
    backlog = Backlog()
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as polled:
        listener.setblocking(False)
        polled.register(listener.fileno(), IN)
        made = Coming(polled.fileno(), listener.getsockname())
        made.lane = Lane(COMPILED.library, polled.fileno(), listener.fileno(), 10, backlog.address, backlog.most)
        yield made
        made.lane.close()


def test_on_a_busy_host_what_happens_gathers(load, coming):
    load(BUSY)
    deadline = time.monotonic() + TIMEOUT
    while not coming.rests(4):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("text", EACH.values(), ids=EACH)
def test_where_a_processor_is_free_or_nobody_knows_it_doesnt(load, coming, text):
    load(text)
    assert not coming.rests(4)


def test_without_a_load_to_look_at_it_doesnt(coming):
    assert not coming.rests(4)


def test_one_connection_waits_for_nothing(load, coming):
    """However busy the host is; and however long whoever has it goes on talking."""
    load(BUSY)
    time.sleep(0.03)  # beyond those of other tests
    assert not coming.rests(1, rounds=2)
    assert all(COMPILED.serve(coming.number, 0.001, 10) == [] for _ in range(100))
    before = COMPILED.rested()
    time.sleep(LOOK)
    assert COMPILED.serve(coming.number, 0.001, 10) == []
    assert COMPILED.rested() == before


def test_what_is_ready_is_served_at_once(load, coming):
    """It is only who would sleep that rests before."""
    load(BUSY)
    deadline = time.monotonic() + TIMEOUT
    while not coming.rests(4):
        assert time.monotonic() < deadline
    with socket.create_connection(coming.listener):
        before = COMPILED.rested()
        assert COMPILED.serve(coming.number, 1, 10)
        assert COMPILED.rested() == before
        assert coming.lane.news(0)


def test_a_signal_is_heard_meanwhile(load, coming):
    """Whoever handles it may have something to do that can't wait for the next connection."""
    load(BUSY)
    deadline = time.monotonic() + TIMEOUT
    while not coming.rests(4):
        assert time.monotonic() < deadline
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        while not heard:
            assert COMPILED.serve(coming.number, 1, 10) == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_worker_looks_at_this_hosts_load(monkeypatch):
    seen = []
    if COMPILED is None:
        harness.missing("a C compiler")
    if os.stat("/proc/loadavg").st_dev != os.stat("/proc/self").st_dev:
        harness.missing("a /proc/loadavg of the kernel's own")
    monkeypatch.setattr(COMPILED, "pace", lambda *words: seen.append(words))
    poller.keep_pace()
    ((descriptor, processors),) = seen
    assert os.pread(descriptor, 100, 0).split()[3].count(b"/") == 1
    assert processors == os.cpu_count()
    os.close(descriptor)


def test_what_stands_in_for_this_hosts_load_is_not_asked(monkeypatch, tmp_path):
    """It is a file system's in a process, in some containers: one that hangs would keep the gate for ever."""
    seen = []
    if COMPILED is None:
        harness.missing("a C compiler")
    fifo = tmp_path / "loadavg"
    os.mkfifo(fifo)
    monkeypatch.setattr(poller, "_LOAD", str(fifo))
    monkeypatch.setattr(COMPILED, "pace", lambda *words: seen.append(words))
    before = open_descriptors()
    poller.keep_pace()
    assert not seen
    assert open_descriptors() == before


class Crowd:
    """Connections that come to a listener of their own, a few in each turn of the loop, and are closed at once."""

    def __init__(self, poller):
        self._poller, self._backlog = poller, Backlog()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        fd = self._listener.fileno()
        poller.watch(fd, IN, self)
        self._lane = Lane(COMPILED.library, poller.number, fd, 10, self._backlog.address, self._backlog.most)

    def ready(self, _events):
        for each in self._lane.news(64):
            os.close(each.fd)

    def failed(self, error):
        raise error

    def come(self):
        for _ in range(4):
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.connect_ex(self._listener.getsockname())

    def close(self):
        self.ready(IN)
        self._poller.forget(self._listener.fileno())
        self._lane.close()
        self._listener.close()


async def crowd(world, chance):
    """Change what a decision hangs on, and have others come closely one after the other meanwhile."""
    changing = asyncio.create_task(change(world, chance))
    beside = Crowd(world.poller)
    try:
        while True:
            beside.come()
            await asyncio.sleep(0.001)
    finally:
        beside.close()
        changing.cancel()
        await asyncio.wait({changing})


def test_a_storm_that_gathers(tmp_path, load):
    load(BUSY)
    before = COMPILED.rested()
    run(storm, tmp_path, 3, 200, crowd, lambda: COMPILED.rested() > before)
