"""What compiled code that knows connections again does when Python hears of something before it was due."""

import select
import socket
import struct
import time
import weakref

import pytest

from proxy.backlog import Backlog
from proxy.compiled.lane import GREETED, OVER, Lane, destination
from proxy.poller import COMPILED, IN
from proxy.unasked import Vouched
from tests import harness

HERE, HELLO, NUMBER = "127.0.0.1", b"hello", 7
WAIT = 1.0  # seconds


@pytest.fixture
def lane():
    if COMPILED is None:
        harness.missing("a C compiler")
    backlog = Backlog()
    with socket.create_server((HERE, 0)) as listener, select.epoll() as polled:
        listener.setblocking(False)
        polled.register(listener.fileno(), IN)
        made = Lane(COMPILED.library, polled.fileno(), listener.fileno(), 10, backlog.address, backlog.most)
        place = int(socket.AF_INET), listener.getsockname()[1], socket.inet_aton(HERE).ljust(16, b"\0")
        assert made.learn(place, NUMBER, len(HELLO), [(0, HELLO)])
        yield made, polled.fileno(), listener.getsockname()
        made.close()


def test_what_was_heard_of_before_it_was_due_keeps_nobody_awake(lane):
    """An end is told a little later, with what comes next; rules that change meanwhile have all heard at once."""
    lane, number, address = lane
    with socket.create_server((HERE, 0)) as server, socket.create_connection(address) as client:
        client.sendall(HELLO)
        assert COMPILED.serve(number, WAIT, 10)
        (greeted,) = lane.news(0)
        assert (greeted.what, greeted.number) == (GREETED, NUMBER)
        where = destination(int(socket.AF_INET), server.getsockname()[1], socket.inet_aton(HERE))
        assert lane.dial(greeted.fd, greeted.id, where, len(where)) == 0
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        news = []
        while not news:
            COMPILED.serve(number, 0, 10)
            news = lane.news(0)
        assert [(each.what, each.id) for each in news] == [(OVER, greeted.id)]
    before = time.process_time()
    assert COMPILED.serve(number, WAIT, 10) == []
    assert time.process_time() - before < WAIT / 4  # asleep it takes nothing, and awake all of a processor


def test_what_compiled_code_looks_at_is_there_until_it_forgets(lane):
    lane, _, _ = lane
    where = destination(int(socket.AF_INET), 1, socket.inet_aton(HERE))
    vouched = Vouched()
    still = weakref.ref(vouched)
    lane.usual(NUMBER, vouched, where, (b"",) * 4)
    del vouched
    assert still() is not None
    assert not lane.forget()
    assert still() is None
