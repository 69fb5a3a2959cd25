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

    def ended(self, transport):
        self.calls.append("cut" if transport.cut else "ended")

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
            self.peer = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        if send_buffer:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        accepted.setblocking(False)
        self.peer.settimeout(30)
        self.owner = Owner()
        self.transport = Transport(
            asyncio.get_running_loop(), poller.Poller(), accepted, self.owner, None, client=client
        )
        self.transport.watch()

    async def wait_until(self, true):
        end = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end, self.owner.calls
            await asyncio.sleep(0.002)

    def send(self, data):
        self.transport.new.append(data)
        self.transport.flush()

    def read(self, size):
        return self.peer.recv(size)


def run_in_loop(test):
    def run():
        with asyncio.Runner(loop_factory=poller.Loop) as runner:
            runner.run(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@run_in_loop
async def test_queued_pieces_are_sent_together():
    pair = Pair()
    pair.transport.new.append(b"head")
    pair.transport.new.append(b"body")
    pair.transport.flush()
    assert pair.read(100) == b"headbody"
    assert pair.transport.up == 8


@run_in_loop
async def test_relieved_is_called_once_when_a_full_buffer_drains():
    pair = Pair(send_buffer=8192)
    pair.send(bytes(2_000_000))
    assert pair.transport.full
    got = 0
    pair.peer.setblocking(False)
    while got < 2_000_000:
        with contextlib.suppress(BlockingIOError):
            got += len(pair.read(10_000))
        await asyncio.sleep(0)
    await pair.wait_until(lambda: not pair.transport.full)
    assert pair.owner.calls == ["relieved"]
    pair.send(b"more")
    assert not pair.transport.full


@run_in_loop
async def test_end_is_reported_and_the_send_half_stays_open():
    pair = Pair()
    pair.peer.sendall(b"last")
    pair.peer.shutdown(socket.SHUT_WR)
    await pair.wait_until(lambda: pair.owner.calls)
    assert (pair.owner.calls, pair.owner.data) == (["ended"], b"last")
    pair.send(b"answer")
    assert pair.read(10) == b"answer"
    pair.transport.close()
    assert pair.owner.calls == ["ended", "gone"]


@run_in_loop
async def test_reset_is_reported_as_a_cut():
    pair = Pair()
    close_abruptly(pair.peer)
    await pair.wait_until(lambda: pair.owner.calls)
    assert pair.owner.calls == ["cut"]


@run_in_loop
async def test_reset_while_paused_is_reported_as_a_cut():
    pair = Pair()
    pair.transport.pause(paused=True)
    close_abruptly(pair.peer)
    await pair.wait_until(lambda: pair.owner.calls)
    assert pair.owner.calls == ["cut"]


@run_in_loop
async def test_peer_that_left_causes_no_busy_loop_while_paused():
    pair = Pair()
    calls = []
    ready = Transport.ready
    pair.transport.pause(paused=True)
    pair.peer.sendall(b"x" * 1000)
    pair.peer.close()
    Transport.ready = lambda self, events: (calls.append(events), ready(self, events))
    try:
        await asyncio.sleep(0.2)
    finally:
        Transport.ready = ready
    assert len(calls) < 5
    pair.transport.pause(paused=False)
    await pair.wait_until(lambda: pair.owner.calls)
    assert (pair.owner.calls, len(pair.owner.data)) == (["ended"], 1000)


@run_in_loop
async def test_early_answer_is_read_while_the_send_buffer_is_full():
    pair = Pair(client=False, send_buffer=8192)
    pair.send(bytes(3_000_000))
    pair.peer.sendall(b"too large")
    await pair.wait_until(lambda: pair.owner.data)
    assert pair.owner.data == b"too large"
    close_abruptly(pair.peer)
    await pair.wait_until(lambda: "cut" in pair.owner.calls)


@run_in_loop
async def test_close_sends_the_buffered_bytes_first():
    pair = Pair(send_buffer=8192)
    pair.send(bytes(500_000))
    pair.transport.close()
    pair.send(b"not this")
    pair.peer.setblocking(False)
    got, ended = 0, False
    while not ended:
        try:
            piece = pair.read(65536)
            got, ended = got + len(piece), not piece
        except BlockingIOError:
            await asyncio.sleep(0)
    assert got == 500_000
    pair.peer.close()
    await pair.wait_until(lambda: "gone" in pair.owner.calls)


@run_in_loop
async def test_closing_with_unread_bytes_does_not_reset_the_last_answer():
    """Closing a socket with unread bytes would send a reset, which discards the answer."""
    pair = Pair()
    pair.peer.sendall(b"x" * 100_000)
    pair.send(b"no")
    pair.transport.close()
    assert "gone" not in pair.owner.calls
    await asyncio.sleep(0.05)
    pair.peer.sendall(b"x" * 100_000)
    await asyncio.sleep(0.05)
    assert pair.read(10) == b"no"
    assert pair.read(10) == b""
    pair.peer.close()
    await pair.wait_until(lambda: "gone" in pair.owner.calls)
    assert pair.owner.data == b""


@pytest.mark.parametrize("limit", ["LINGER", "THROWN_AWAY"])
def test_lingering_ends_at_its_time_or_byte_limit(monkeypatch, limit):
    monkeypatch.setattr(module, limit, 0.1)

    @run_in_loop
    async def run():
        pair = Pair()
        pair.transport.close()
        if limit == "THROWN_AWAY":
            pair.peer.sendall(b"x")
        await pair.wait_until(lambda: "gone" in pair.owner.calls)

    run()


def test_lingering_is_extended_while_the_client_sends(monkeypatch):
    """The linger time starts anew each time bytes have arrived."""
    monkeypatch.setattr(module, "LINGER", 0.05)
    looks = []
    look = module.Transport._check_lingering

    def counting_look(transport, times, had):
        looks.append(times)
        look(transport, times, had)

    monkeypatch.setattr(module.Transport, "_check_lingering", counting_look)

    @run_in_loop
    async def run():
        pair = Pair()
        pair.transport.close()
        pair.peer.sendall(b"x")
        await pair.wait_until(lambda: "gone" in pair.owner.calls)

    run()
    assert looks == [1, 2]


@run_in_loop
async def test_reset_discards_the_buffered_bytes():
    pair = Pair(send_buffer=8192)
    pair.send(bytes(500_000))
    pair.transport.reset()
    pair.transport.reset()
    with pytest.raises(ConnectionResetError):
        read_all(pair.peer)
    assert pair.owner.calls == ["gone"]


@run_in_loop
async def test_exception_of_the_owner_is_passed_to_crashed():
    pair = Pair()

    def bug(transport, data):
        raise ValueError("on purpose")

    pair.owner.received = bug
    pair.peer.sendall(b"x")
    await pair.wait_until(lambda: pair.owner.calls)
    assert isinstance(pair.owner.calls[0], ValueError)


@run_in_loop
async def test_costly_data_is_read_in_smaller_pieces():
    """Piece sizes shrink while data is costly and grow again when it is cheap."""
    pair, clock, cost, sizes = Pair(client=False), [0.0], [0.0], []

    def received(_, data):
        sizes.append(len(data))
        clock[0] += len(data) * cost[0]

    pair.owner.received = received
    pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
    pair.peer.setblocking(False)

    async def read(most, seconds_a_byte):
        cost[0] = seconds_a_byte
        sizes.clear()
        pair.transport.pause(paused=True)
        sent = pair.peer.send(bytes(most))
        pair.transport.pause(paused=False)
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
    pair.transport.reset()
