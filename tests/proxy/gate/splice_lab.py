"""Two pairs of sockets, and what passes bytes on between them."""

import asyncio
import contextlib
import socket

from proxy.event_loop import poller
from proxy.event_loop.poller import Poller
from proxy.gate.splice import BufferQuota, Splice
from tests.proxy.gate.gate_lab import Client, open_descriptors, run
from tests.support.waiting import wait_until_async


@contextlib.contextmanager
def turns():
    """Count how often somebody asked epoll: a spin asks thousands of times."""
    asked = []
    poll = poller._poll

    def counted(*what):
        asked.append(what)
        return poll(*what)

    poller._poll = counted
    try:
        yield asked
    finally:
        poller._poll = poll


def tcp_pair(listener):
    near = socket.socket()
    near.connect(listener.getsockname())
    far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return near, far


class Passed:
    """A relay between two connections: `task` talks to its near side, `server` to its far side."""

    def __init__(self, buffer=None, send_buffer=None):
        self.poller, self.buffers = Poller(), BufferQuota()
        self.ended = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for option, size in ((socket.SO_SNDBUF, send_buffer or buffer), (socket.SO_RCVBUF, buffer)):
                if size:
                    listener.setsockopt(socket.SOL_SOCKET, option, size)  # accepted sockets inherit it
            task, near = tcp_pair(listener)
            server, far = tcp_pair(listener)
        self.near, self.far = near, far
        self.task, self.server = Client(task), Client(server)
        self.relay = Splice(self.poller, self.buffers, near, far, self.ended.append)

    def start(self):
        self.relay.start()
        return self

    async def over(self):
        await wait_until_async(lambda: self.ended)
        assert self.ended == [None]
        assert (self.near.fileno(), self.far.fileno()) == (-1, -1)
        assert self.buffers.used == 0
        assert not self.poller._watched


def relayed(test, **how):
    async def inside():
        it = Passed(**how)
        await test(it)
        it.relay.abort()
        it.task.close()
        it.server.close()

    before = open_descriptors()
    run(inside)
    assert open_descriptors() == before


async def fill(it):
    """Have the server say more than the task's side takes."""
    sending = asyncio.create_task(it.server.send(b"x" * (64 << 20)))
    await wait_until_async(lambda: it.buffers.used)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
