"""What compiled code does that the interpreter has no part in: being found, being left, and descriptors that are reused."""

import asyncio
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.compiled import build, library
from proxy.compiled.library import PairState
from proxy.event_loop.poller import IN, Poller
from proxy.gate import splice
from proxy.gate.splice import MAX_BUFFERED
from tests.proxy.gate.splice_lab import Passed, fill, relayed
from tests.support import harness
from tests.support.waiting import wait_until_async

compiled = splice.COMPILED


@pytest.fixture(autouse=True)
def there():
    if compiled is None:
        harness.missing("a C compiler")


class Meter:
    """Lets a side say so much."""

    def __init__(self, most):
        self.left = most
        self.said = {"up": 0, "down": 0}

    def up(self, size):
        return self._may("up", size)

    def down(self, size):
        return self._may("down", size)

    def _may(self, way, size):
        self.said[way] += size
        self.left -= size
        return self.left >= 0


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Its source and what is made of it, in a directory of their own."""
    source, made = shutil.copy(library.SOURCE, tmp_path), tmp_path / "relay.so"
    for module in (library, build):
        monkeypatch.setattr(module, "SOURCE", source)
        monkeypatch.setattr(module, "LIBRARY", str(made))
    return Path(source), made


def test_library_is_compiled_and_loaded(elsewhere):
    assert library.load() is None
    assert build.build() == ""
    assert isinstance(library.load(), library.Compiled)


def test_library_of_another_source_is_not_loaded(elsewhere):
    source, _ = elsewhere
    assert build.build() == ""
    source.write_text(source.read_text() + "\n")
    assert library.load() is None


@pytest.mark.parametrize("what", [b"", b"\x7fELF and no more"])
def test_file_that_is_no_library_is_not_loaded(elsewhere, what):
    elsewhere[1].write_bytes(what)
    assert library.load() is None


def test_library_without_the_relay_is_not_loaded(elsewhere, tmp_path):
    (tmp_path / "other.c").write_text("int nothing;")
    subprocess.run(["cc", "-shared", "-o", elsewhere[1], tmp_path / "other.c"], check=True)
    assert library.load() is None


def test_build_without_a_compiler_reports_it():
    found = subprocess.run(
        [sys.executable, "-m", "proxy.compiled.build"],
        env={"CC": "no-such-compiler", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0
    assert "there is no C compiler: install gcc" in found.stderr


def test_failed_build_reports_the_error_and_leaves_no_file(elsewhere):
    source, made = elsewhere
    source.write_text("no C at all\n")
    assert "error" in build.build()
    assert {each.suffix for each in source.parent.iterdir()} == {".c"}
    assert not made.exists()


def test_meter_set_later_counts_later_bytes():
    async def test(it):
        it.start()
        await it.task.send(b"x" * 1000)
        assert await it.server.read_exactly(1000) == b"x" * 1000
        meter = Meter(10)
        it.relay.set_meter(meter)
        await it.task.send(b"y" * 10)
        assert await it.server.read_exactly(10) == b"y" * 10
        assert (*it.relay.byte_counts(), meter.said) == (1010, 0, {"up": 10, "down": 0})
        await it.server.send(b"z")
        await it.over()
        assert it.relay.over_limit

    relayed(test)


@pytest.mark.parametrize("ended", [False, True])
def test_meter_set_while_a_socket_is_full_loses_no_bytes(ended):
    async def test(it):
        it.start()
        data = bytes(range(256)) * 4000
        sending = asyncio.create_task(it.server.send(data))
        await wait_until_async(lambda: it.buffers.used)
        if ended:
            it.task.shutdown()
            await it.server.read()
        kept = len(compiled.side(it.relay._pair, server=False).unsent)
        it.relay.set_meter(Meter(len(data)))
        assert it.buffers.used == kept
        reading = asyncio.create_task(it.task.read_exactly(len(data)))
        await sending
        assert await reading == data
        assert it.buffers.used == 0
        it.server.shutdown()
        it.task.shutdown()
        await it.over()
        assert it.relay.byte_counts()[1] == len(data)

    relayed(test, buffer=4096)


def test_meter_set_before_a_reset_is_reported_keeps_the_reset():
    """A reset is read once: whoever reads again reads an end."""

    async def test(it):
        it.start()
        await it.server.send(b"the first half")
        assert await it.task.read() == b"the first half"
        it.server.reset()
        while not compiled.state(it.relay._pair):
            compiled.serve(it.poller.number, 0, 256)  # whose answer somebody else's turn comes before
        it.relay.set_meter(Meter(1000))
        it.relay.ready(0)
        with pytest.raises(ConnectionResetError):
            await it.task.read()
        await it.over()
        assert it.relay.server_broke

    relayed(test)


def test_removed_meter_changes_nothing():
    async def test(it):
        it.start()
        it.relay.set_meter(None)
        it.relay.set_meter(Meter(100))
        it.relay.set_meter(None)
        await it.task.send(b"x" * 1000)
        assert await it.server.read_exactly(1000) == b"x" * 1000

    relayed(test)


def test_reused_descriptors_belong_to_the_new_pair():
    async def test(it):
        it.start()
        stale = it.relay._pair
        near, far = it.near.fileno(), it.far.fileno()
        fresh = compiled.adopt(it.poller.number, near, far, it.buffers.address, MAX_BUFFERED)
        compiled.release(stale)  # late, and of what isn't its any more
        it.relay._pair = fresh
        await it.task.send(b"still there")
        assert await it.server.read() == b"still there"

    relayed(test)


def test_pairs_of_a_closed_epoll_set_are_forgotten():
    """Should a connection ever outlive its sandbox, its numbers are a neighbour's by then (invariant 11)."""

    async def test(it):
        it.relay._poller = it.poller = Poller(in_turn=True)
        it.start()
        it.task.shutdown()
        assert await it.server.read() == b""  # so compiled code has taken one of them out of the set
        number = it.poller.number
        it.poller.close()
        with select.epoll() as neighbour:
            os.dup2(neighbour.fileno(), number)
            neighbour.register(it.far.fileno(), IN)
            await it.server.send(b"for the neighbour")
            await wait_until_async(lambda: compiled.serve(number, 0, 16) == [it.far.fileno(), IN])
            os.close(number)
        assert it.relay.byte_counts()[1] == 0

    relayed(test)


def test_late_end_event_does_not_end_the_new_pair():
    async def test(it):
        it.start()
        it.relay.ready(PairState.CLIENT_BROKE)  # what is true is asked for
        it.relay.ready(PairState.FAILED)
        await it.task.send(b"going on")
        assert await it.server.read() == b"going on"
        assert not it.ended

    relayed(test)


def test_socket_that_cannot_be_watched_is_reset_and_recorded():
    async def test(it):
        it.start()
        await fill(it)
        it.poller._set.register(it.far.fileno(), 0)  # it is out of the set, to be put there again when there is room
        with pytest.raises(ConnectionResetError):
            await it.task.read_all()
        with pytest.raises(ConnectionResetError):
            await it.server.read_all()
        assert isinstance(it.ended[0], OSError)

    relayed(test, buffer=4096)


def test_ended_pair_keeps_no_memory():
    """Each pair is memory: ten thousand connections later there is no more of it."""

    async def test(first):
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1])

        async def one():
            it = Passed().start()
            await it.task.send(b"x")
            it.task.shutdown()
            it.server.shutdown()
            await it.over()
            it.task.close()
            it.server.close()

        for _ in range(50):
            await one()
        before = resident()
        for _ in range(400):
            await one()
        assert resident() - before < 64  # pages; a leak of 256 KiB is one of a pair's own size each

    relayed(test)
