import asyncio
import socket
import time

import pytest

from proxy.event_loop.poller import ERR, HUP, IN, OUT, Loop, Poller
from tests.support.waiting import wait_until_async


class Ears:
    """Hears what the poller tells; reads what there is."""

    def __init__(self, sock, then=None):
        self.sock, self.then = sock, then
        self.heard, self.errors = [], []

    def ready(self, events):
        self.heard.append(events)
        if events & IN:
            self.sock.recv(100)
        if self.then:
            self.then(events)

    def failed(self, error):
        self.errors.append(error)


@pytest.fixture(params=[Loop, asyncio.SelectorEventLoop])
def poll(request):
    """Run a test with a poller and a pair of sockets, on our loop and on another."""

    def go(test):
        async def inside():
            poller = Poller()
            a, b = socket.socketpair()
            with a, b:
                a.setblocking(False)
                await asyncio.wait_for(test(poller, a, b), 60)
                poller.close()

        asyncio.run(inside(), loop_factory=request.param)

    return go


def test_watched_descriptor_gets_events_and_forgotten_does_not(poll):
    async def test(poller, a, b):
        ears = Ears(a)
        poller.watch(a.fileno(), IN, ears)
        b.send(b"x")
        await wait_until_async(lambda: ears.heard == [IN])
        poller.change(a.fileno(), IN | OUT)
        await wait_until_async(lambda: len(ears.heard) > 3)
        poller.forget(a.fileno())
        poller.forget(a.fileno())
        count = len(ears.heard)
        b.send(b"x")
        await asyncio.sleep(0.02)
        assert len(ears.heard) == count

    poll(test)


def test_hangup_is_reported_without_being_requested(poll):
    async def test(poller, a, b):
        ears = Ears(a, lambda _: poller.forget(a.fileno()))
        poller.watch(a.fileno(), 0, ears)
        b.close()
        await wait_until_async(lambda: ears.heard)
        assert ears.heard[0] & (HUP | ERR)

    poll(test)


def test_exception_ends_only_its_handler(poll):
    async def test(poller, a, b):
        def broken(_):
            poller.forget(b.fileno())
            raise RuntimeError("on purpose")

        bad, good = Ears(b, broken), Ears(a)
        poller.watch(b.fileno(), OUT, bad)
        poller.watch(a.fileno(), IN, good)
        b.send(b"x")
        await wait_until_async(lambda: bad.errors and good.heard)
        assert [str(error) for error in bad.errors] == ["on purpose"]

    poll(test)


@pytest.mark.parametrize("how", ["call_soon", "call_later", "task", "future", "event", "threadsafe"])
def test_asyncio_callbacks_from_handlers_run(poll, how):
    async def test(poller, a, b):
        loop = asyncio.get_running_loop()
        heard, future, event = asyncio.Event(), loop.create_future(), asyncio.Event()

        async def wait_for(what):
            await what
            heard.set()

        kept = [loop.create_task(wait_for(future)), loop.create_task(wait_for(event.wait()))]
        ways = {
            "call_soon": lambda: loop.call_soon(heard.set),
            "call_later": lambda: loop.call_later(0.001, heard.set),
            "task": lambda: kept.append(loop.create_task(wait_for(asyncio.sleep(0)))),
            "future": lambda: future.set_result(None),
            "event": event.set,
            "threadsafe": lambda: loop.call_soon_threadsafe(heard.set),
        }
        poller.watch(a.fileno(), IN, Ears(a, lambda _: ways[how]()))
        await asyncio.sleep(0)
        b.send(b"x")
        await asyncio.wait_for(heard.wait(), 20)
        for one in kept:
            one.cancel()

    poll(test)


def test_busy_socket_starves_no_timer_and_no_descriptor(poll):
    async def test(poller, a, b):
        poller.watch(a.fileno(), OUT, ears := Ears(a))  # always ready
        loop = asyncio.get_running_loop()
        timer, reader = asyncio.Event(), asyncio.Event()
        loop.call_later(0.01, timer.set)
        c, d = socket.socketpair()
        with c, d:
            loop.add_reader(c, reader.set)
            d.send(b"x")
            await asyncio.wait_for(timer.wait(), 20)
            await asyncio.wait_for(reader.wait(), 20)
            loop.remove_reader(c)
        async with asyncio.timeout(20):
            while len(ears.heard) <= 10:  # noqa: ASYNC110  it has its turns, too
                await asyncio.sleep(0)

    poll(test)


def test_idle_poller_does_nothing(poll):
    async def test(poller, a, _b):
        poller.watch(a.fileno(), IN, ears := Ears(a))
        before = time.thread_time()
        await asyncio.sleep(0.3)
        assert time.thread_time() - before < 0.1
        assert not ears.heard

    poll(test)


def test_asyncio_works_on_the_worker_loop():
    async def inside():
        async def serve(reader, writer):
            writer.write(await reader.read(100))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        process = await asyncio.create_subprocess_exec("/bin/echo", "hello", stdout=asyncio.subprocess.PIPE)
        assert (await process.communicate())[0] == b"hello\n"
        assert await asyncio.to_thread(lambda: 5) == 5

    asyncio.run(inside(), loop_factory=Loop)
