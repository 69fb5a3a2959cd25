"""Transport of one connection: backpressure, ends, cuts and lingering close, over real sockets."""

import asyncio
import contextlib
import socket
import time

import pytest

from proxy.event_loop import poller
from proxy.inspection import transport as module
from proxy.inspection.transport import Transport
from tests.proxy.inspection.clients import close_abruptly, read_all


class Owner:
    """Records the calls and data of a transport."""

    def __init__(self):
        self.calls = []
        self.data = b""

    def received(self, _, data):
        self.data += data

    def ended(self, link):
        self.calls.append("cut" if link.cut else "ended")

    def relieved(self, _):
        self.calls.append("relieved")

    def gone(self, _):
        self.calls.append("gone")

    def crashed(self, error):
        self.calls.append(error)


class Pair:
    """A transport, and its peer as a plain socket."""

    def __init__(self, *, client=True, send_buffer=0):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
        if send_buffer:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        near.setblocking(False)
        self.far.settimeout(30)
        self.owner = Owner()
        self.link = Transport(asyncio.get_running_loop(), poller.Poller(), near, self.owner, None, client=client)
        self.link.watch()

    async def wait_until(self, true):
        end = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end, self.owner.calls
            await asyncio.sleep(0.002)

    def send(self, data):
        self.link.new.append(data)
        self.link.flush()

    def read(self, size):
        return self.far.recv(size)


def in_a_loop(test):
    def run():
        with asyncio.Runner(loop_factory=poller.Loop) as runner:
            runner.run(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@in_a_loop
async def test_queued_pieces_are_sent_together():
    pair = Pair()
    pair.link.new.append(b"head")
    pair.link.new.append(b"body")
    pair.link.flush()
    assert pair.read(100) == b"headbody"
    assert pair.link.up == 8


@in_a_loop
async def test_relieved_is_called_once_when_a_full_buffer_drains():
    pair = Pair(send_buffer=8192)
    pair.send(bytes(2_000_000))
    assert pair.link.full
    got = 0
    pair.far.setblocking(False)
    while got < 2_000_000:
        with contextlib.suppress(BlockingIOError):
            got += len(pair.read(10_000))
        await asyncio.sleep(0)
    await pair.wait_until(lambda: not pair.link.full)
    assert pair.owner.calls == ["relieved"]
    pair.send(b"more")
    assert not pair.link.full


@in_a_loop
async def test_end_is_reported_and_the_send_half_stays_open():
    pair = Pair()
    pair.far.sendall(b"last")
    pair.far.shutdown(socket.SHUT_WR)
    await pair.wait_until(lambda: pair.owner.calls)
    assert (pair.owner.calls, pair.owner.data) == (["ended"], b"last")
    pair.send(b"answer")
    assert pair.read(10) == b"answer"
    pair.link.close()
    assert pair.owner.calls == ["ended", "gone"]


@in_a_loop
async def test_reset_is_reported_as_a_cut():
    pair = Pair()
    close_abruptly(pair.far)
    await pair.wait_until(lambda: pair.owner.calls)
    assert pair.owner.calls == ["cut"]


@in_a_loop
async def test_reset_while_paused_is_reported_as_a_cut():
    pair = Pair()
    pair.link.pause(paused=True)
    close_abruptly(pair.far)
    await pair.wait_until(lambda: pair.owner.calls)
    assert pair.owner.calls == ["cut"]


@in_a_loop
async def test_peer_that_left_causes_no_busy_loop_while_paused():
    pair = Pair()
    calls = []
    ready = Transport.ready
    pair.link.pause(paused=True)
    pair.far.sendall(b"x" * 1000)
    pair.far.close()
    Transport.ready = lambda self, events: (calls.append(events), ready(self, events))
    try:
        await asyncio.sleep(0.2)
    finally:
        Transport.ready = ready
    assert len(calls) < 5
    pair.link.pause(paused=False)
    await pair.wait_until(lambda: pair.owner.calls)
    assert (pair.owner.calls, len(pair.owner.data)) == (["ended"], 1000)


@in_a_loop
async def test_early_answer_is_read_while_the_send_buffer_is_full():
    pair = Pair(client=False, send_buffer=8192)
    pair.send(bytes(3_000_000))
    pair.far.sendall(b"too large")
    await pair.wait_until(lambda: pair.owner.data)
    assert pair.owner.data == b"too large"
    close_abruptly(pair.far)
    await pair.wait_until(lambda: "cut" in pair.owner.calls)


@in_a_loop
async def test_close_sends_the_buffered_bytes_first():
    pair = Pair(send_buffer=8192)
    pair.send(bytes(500_000))
    pair.link.close()
    pair.send(b"not this")
    pair.far.setblocking(False)
    got, ended = 0, False
    while not ended:
        try:
            piece = pair.read(65536)
            got, ended = got + len(piece), not piece
        except BlockingIOError:
            await asyncio.sleep(0)
    assert got == 500_000
    pair.far.close()
    await pair.wait_until(lambda: "gone" in pair.owner.calls)


@in_a_loop
async def test_closing_with_unread_bytes_does_not_reset_the_last_answer():
    """Closing a socket with unread bytes would send a reset, which discards the answer."""
    pair = Pair()
    pair.far.sendall(b"x" * 100_000)
    pair.send(b"no")
    pair.link.close()
    assert "gone" not in pair.owner.calls
    await asyncio.sleep(0.05)
    pair.far.sendall(b"x" * 100_000)
    await asyncio.sleep(0.05)
    assert pair.read(10) == b"no"
    assert pair.read(10) == b""
    pair.far.close()
    await pair.wait_until(lambda: "gone" in pair.owner.calls)
    assert pair.owner.data == b""


@pytest.mark.parametrize("limit", ["LINGER", "THROWN_AWAY"])
def test_lingering_ends_at_its_time_or_byte_limit(monkeypatch, limit):
    monkeypatch.setattr(module, limit, 0.1)

    @in_a_loop
    async def run():
        pair = Pair()
        pair.link.close()
        if limit == "THROWN_AWAY":
            pair.far.sendall(b"x")
        await pair.wait_until(lambda: "gone" in pair.owner.calls)

    run()


def test_lingering_is_extended_while_the_client_sends(monkeypatch):
    """The linger time starts anew each time bytes have arrived."""
    monkeypatch.setattr(module, "LINGER", 0.05)
    looks = []
    look = module.Transport._look

    def counting_look(link, times, had):
        looks.append(times)
        look(link, times, had)

    monkeypatch.setattr(module.Transport, "_look", counting_look)

    @in_a_loop
    async def run():
        pair = Pair()
        pair.link.close()
        pair.far.sendall(b"x")
        await pair.wait_until(lambda: "gone" in pair.owner.calls)

    run()
    assert looks == [1, 2]


@in_a_loop
async def test_reset_discards_the_buffered_bytes():
    pair = Pair(send_buffer=8192)
    pair.send(bytes(500_000))
    pair.link.reset()
    pair.link.reset()
    with pytest.raises(ConnectionResetError):
        read_all(pair.far)
    assert pair.owner.calls == ["gone"]


@in_a_loop
async def test_exception_of_the_owner_is_passed_to_crashed():
    pair = Pair()

    def bug(link, data):
        raise ValueError("on purpose")

    pair.owner.received = bug
    pair.far.sendall(b"x")
    await pair.wait_until(lambda: pair.owner.calls)
    assert isinstance(pair.owner.calls[0], ValueError)


@in_a_loop
async def test_costly_data_is_read_in_smaller_pieces():
    """Piece sizes shrink while data is costly and grow again when it is cheap."""
    pair, clock, cost, sizes = Pair(client=False), [0.0], [0.0], []

    def received(_, data):
        sizes.append(len(data))
        clock[0] += len(data) * cost[0]

    pair.owner.received = received
    pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
    pair.far.setblocking(False)

    async def read(most, seconds_a_byte):
        cost[0] = seconds_a_byte
        sizes.clear()
        pair.link.pause(paused=True)
        sent = pair.far.send(bytes(most))
        pair.link.pause(paused=False)
        await pair.wait_until(lambda: sum(sizes) == sent)
        return list(sizes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "thread_time", lambda: clock[0])
        dear = await read(100_000, 1e-5)  # 0.3 s for the first piece
        assert dear[:4] == [32768, 8192, 2048, 1024]
        assert set(dear[3:-1]) == {1024}
        cheap = await read(100_000, 1e-9)
        assert max(cheap) > 16 * min(cheap)
        assert max(cheap) <= module.PIECE
    pair.link.reset()
